package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// plug is a battery that the agent of a world sees: none of our hosts has one. The
// kernel itself is asked to tell of it, as it does for a device.
type plug struct {
	*world
	class string // stands for /sys/class
	fd    int
}

// onBattery is a world with a battery. Its agent has a mount namespace of its own, in
// which the power supplies are files of ours.
func onBattery(t *testing.T) *plug {
	t.Helper()
	offers(t, "exec") // skips outside of a host
	if !isRoot(t) {
		t.Skip("only root may mount, and have uevents sent")
	}
	dir := t.TempDir()
	p := &plug{world: &world{t: t}, class: filepath.Join(dir, "class")}
	require.NoError(t, os.MkdirAll(p.of("BAT0"), 0o755))
	p.set("type", "Battery")
	p.set("status", "Full")
	p.set("capacity", "100")
	agent := filepath.Join(dir, "gladsheimd-on-battery")
	require.NoError(t, os.WriteFile(agent, fmt.Appendf(nil,
		"#!/bin/sh\nexec unshare --mount --propagation private sh -c 'mount --bind %s /sys/class && exec gladsheimd \"$@\"' sh \"$@\"\n", p.class), 0o755))
	var err error
	p.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(p.fd) })
	p.world = newWorldOf(t, agent)
	p.configure(`"battery_management": {"stop_services_below_percent": 15, "reduce_monitoring_below_percent": 30}`)
	eventually(t, "the thresholds are those of the file", func() bool { return p.power().GetStopServicesBelowPercent() == 15 })
	return p
}

func (p *plug) of(supply string) string { return filepath.Join(p.class, "power_supply", supply) }

// set changes an attribute at once.
func (p *plug) set(attribute, value string) {
	p.t.Helper()
	file := filepath.Join(p.of("BAT0"), attribute)
	require.NoError(p.t, os.WriteFile(file+".new", []byte(value+"\n"), 0o644))
	require.NoError(p.t, os.Rename(file+".new", file))
}

// becomes changes the battery, and has the kernel tell (uevent_net_rcv).
func (p *plug) becomes(status, capacity string) {
	p.t.Helper()
	p.set("status", status)
	p.set("capacity", capacity)
	const someType = 0x10
	message := "change@/devices/BAT0\x00ACTION=change\x00DEVPATH=/devices/BAT0\x00SUBSYSTEM=power_supply\x00"
	buf := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(message)))
	buf = binary.NativeEndian.AppendUint16(buf, someType)
	buf = binary.NativeEndian.AppendUint16(buf, unix.NLM_F_REQUEST)
	buf = append(append(buf, make([]byte, 8)...), message...)
	require.NoError(p.t, unix.Sendto(p.fd, buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

func (p *plug) power() *gladsheimv1.PowerInfo {
	p.t.Helper()
	h, err := gladsheimv1.NewHostServiceClient(p.conn).GetHost(contextFor(p.t), &gladsheimv1.GetHostRequest{})
	require.NoError(p.t, err)
	return h.GetPower()
}

// phase is read without asking how the host is powered, which would have it looked at.
func (p *plug) phase(name string) string {
	p.t.Helper()
	return byGRPC{p.world}.status(name).GetPhase()
}

func (p *plug) comesTo(phase string, names ...string) {
	p.t.Helper()
	for _, name := range names {
		eventually(p.t, name+" is "+phase, func() bool { return p.phase(name) == phase })
	}
}

// configure reloads the agent with further sections of its configuration.
func (w *world) configure(sections string) {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(w.path("gladsheim.json"), fmt.Appendf(nil,
		`{"gladsheim":{"grpc":{"port":%d},%s}}`, tcpPort, sections), 0o600))
	require.NoError(w.t, w.daemon.Process.Signal(syscall.SIGHUP))
}

// A battery that runs low, by what the kernel tells, has services stopped and comes to be
// forgotten on AC; an agent that is killed meanwhile changes nothing.
func TestTheBatteryRunsLow(t *testing.T) {
	anywhere(t)
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			p := onBattery(t)
			for name, class := range map[string]string{"core": "essential", "web": "normal", "feed": "deferrable"} {
				p.register(workload(t, name, name, "fork", "1").with(fields{
					"launch": mode, "power": class, "limits": limits(t, fields{}), "restart": fields{"policy": "on-failure"},
				}))
				byGRPC{p.world}.start(name)
			}
			p.register(workload(t, "cold", "cold", "fork", "1").with(fields{
				"launch": mode, "power": "deferrable", "low_battery": "freeze", "priority": 900, "limits": limits(t, fields{}),
			}))
			cold := byGRPC{p.world}.start("cold").GetProcessId()
			eventually(t, "it and its child run", func() bool { return len(marked(t, "web")) == 2 })
			core := byGRPC{p.world}.status("core").GetProcessId()
			p.becomes("Discharging", "14")
			p.comesTo("held", "feed", "web")
			frozen := func() {
				t.Helper()
				s := byGRPC{p.world}.status("cold")
				if limited(t) {
					require.True(t, s.GetFrozen())
					require.Equal(t, cold, s.GetProcessId())
					require.Equal(t, "frozen to save the battery; it is thawed on AC", s.GetErrorMessage())
				} else { // nothing can be frozen
					require.Equal(t, "held", s.GetPhase())
				}
			}
			frozen()
			require.Equal(t, "the agent, to save the battery", p.ended("web").GetRequestedBy())
			s := byGRPC{p.world}.status("web")
			require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, s.GetState())
			require.Equal(t, "stopped to save the battery; it starts again on AC", s.GetErrorMessage())
			require.Zero(t, s.GetRestartCount())
			require.Empty(t, marked(t, "web"))
			require.Contains(t, p.mustCLI("system"), "on battery, 14% (services that are not essential are stopped)")
			require.Contains(t, p.mustCLI("events"), "power           low: on battery, 14%")
			require.Equal(t, 3, p.cli("status", "web").code)

			p.leave(syscall.SIGKILL)
			p.begin()
			require.Equal(t, "held", p.phase("web"))
			require.Equal(t, "held", p.phase("feed"))
			frozen()
			require.Equal(t, core, byGRPC{p.world}.status("core").GetProcessId())

			p.mustCLI("start", "feed")
			p.becomes("Discharging", "9")
			eventually(t, "the agent has looked", func() bool { return p.power().GetPercent() == 9 })
			require.Equal(t, "running", p.phase("feed"), "somebody wanted it")

			p.becomes("Charging", "9")
			p.comesTo("running", "web", "cold")
			if limited(t) {
				eventually(t, "it is thawed", func() bool { return !byGRPC{p.world}.status("cold").GetFrozen() })
				require.Equal(t, cold, byGRPC{p.world}.status("cold").GetProcessId())
			}
			require.Zero(t, byGRPC{p.world}.status("web").GetRestartCount())
			require.Equal(t, core, byGRPC{p.world}.status("core").GetProcessId())
			require.Equal(t, "full", p.power().GetLevel())
			p.becomes("Full", "100")
		})
	}
}
