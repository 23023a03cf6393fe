package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// testPower is the kernel's own driver for tests of power supplies, of which Debian
// builds none: the machines of some hosts have it (test/host).
const testPower = "/usr/lib/gladsheim-testhost/test_power.ko"

// kernelBattery has the kernel itself have a battery, an adapter and a USB supply, until
// the test is done: what changes there is told by real uevents.
func kernelBattery(t *testing.T) (becomes func(parameters ...string)) {
	t.Helper()
	anywhere(t)
	switch offers(t, "exec"); os.Getenv("GLADSHEIM_TEST_HOST") {
	case "systemd", "cgroup2":
	default:
		t.Skip("the kernel of this host has no test_power")
	}
	module, err := os.Open(testPower)
	require.NoError(t, err)
	defer module.Close()
	require.NoError(t, unix.FinitModule(int(module.Fd()), "usb_online=off battery_status=full battery_capacity=100", 0))
	t.Cleanup(func() { require.NoError(t, unix.DeleteModule("test_power", 0)) }) // which takes its time
	return func(parameters ...string) {
		t.Helper()
		for _, parameter := range parameters {
			name, value, _ := strings.Cut(parameter, "=")
			require.NoError(t, os.WriteFile(filepath.Join("/sys/module/test_power/parameters", name), []byte(value), 0o600))
		}
	}
}

// TestTheKernelsBattery: below 30 percent checks are fewer, below 15 services are frozen
// and stopped in their order, on AC they come back in reverse, each by what the kernel
// tells by itself. Nobody asks the agent how the host is powered, which would have it
// look; and it looks at nothing in between, so that a word that were missed would be seen.
func TestTheKernelsBattery(t *testing.T) {
	becomes := kernelBattery(t)
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			w.configure(`"battery_management": {"stop_services_below_percent": 15, "reduce_monitoring_below_percent": 30}`)
			for name, keys := range map[string]fields{
				"core": {"power": "essential"}, "web": {"priority": 600}, "mail": {"priority": 400}, "feed": {"power": "deferrable"},
				"cold": {"power": "deferrable", "low_battery": "freeze", "priority": 900},
			} {
				w.register(workload(t, name, name, "sleep").with(keys).with(fields{"launch": mode}))
				byGRPC{w}.start(name)
			}
			cold := byGRPC{w}.status("cold").GetProcessId()
			told := func(what string) {
				t.Helper()
				eventually(t, "it is told: "+what, func() bool { return strings.Contains(w.mustCLI("events"), what) })
			}
			phases := func(phase string, names ...string) {
				t.Helper()
				for _, name := range names {
					eventually(t, name+" is "+phase, func() bool { return byGRPC{w}.status(name).GetPhase() == phase })
				}
			}
			becomes("ac_online=off", "battery_status=discharging", "battery_capacity=29")
			told("reduced: on battery, 29%")
			phases("running", "core", "web", "mail", "feed", "cold")

			becomes("battery_capacity=14")
			told("low: on battery, 14%")
			phases("held", "feed", "mail", "web")
			require.Equal(t, []string{"feed", "mail", "web"}, w.inTurn("held"), "deferrable before normal, the lowest priority first")
			require.True(t, byGRPC{w}.status("cold").GetFrozen())
			require.Equal(t, "running", byGRPC{w}.status("core").GetPhase())

			w.leave(syscall.SIGKILL)
			w.begin()
			phases("held", "feed", "mail", "web")
			becomes("battery_status=charging", "ac_online=on")
			phases("running", "web", "mail", "feed", "cold", "core")
			told("full: on AC, battery at 14%")
			eventually(t, "it is thawed", func() bool { return !byGRPC{w}.status("cold").GetFrozen() })
			require.Equal(t, cold, byGRPC{w}.status("cold").GetProcessId())
			require.Contains(t, w.mustCLI("system"), "on AC, battery at 14%")
			becomes("battery_capacity=100", "battery_status=full")
		})
	}
}

// inTurn are the services that came to a phase, in the order in which that was told.
func (w *world) inTurn(phase string) (names []string) {
	w.t.Helper()
	events := w.mustCLI("events")
	w.t.Log(events)
	for line := range strings.Lines(events) {
		if words := strings.Fields(line); strings.Contains(line, phase) && len(words) > 2 {
			names = append(names, words[1])
		}
	}
	return names
}
