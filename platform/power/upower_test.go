package power

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// aBus is a message bus of the test's own.
func aBus(t *testing.T) (address string, end func()) {
	t.Helper()
	path, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("there is no dbus-daemon here")
	}
	daemon := exec.Command(path, "--session", "--nofork", "--nopidfile", "--print-address")
	out, err := daemon.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, daemon.Start())
	end = func() { _ = daemon.Process.Signal(syscall.SIGKILL); _ = daemon.Wait() }
	t.Cleanup(end)
	address, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(address), end
}

// fakeUPower is on the bus as UPower is, as far as we ask.
type fakeUPower struct {
	conn           *dbus.Conn
	device, daemon *prop.Properties
}

func onTheBus(t *testing.T, address string, present bool, percent float64, state uint32, onBattery bool) *fakeUPower {
	t.Helper()
	conn, err := dbus.Connect(address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	of := func(v any) *prop.Prop { return &prop.Prop{Value: v, Emit: prop.EmitTrue} }
	f := &fakeUPower{conn: conn}
	f.device, err = prop.Export(conn, displayDevice, prop.Map{upowerName + ".Device": {
		"IsPresent": of(present), "Percentage": of(percent), "State": of(state),
	}})
	require.NoError(t, err)
	f.daemon, err = prop.Export(conn, upowerPath, prop.Map{upowerName: {"OnBattery": of(onBattery)}})
	require.NoError(t, err)
	reply, err := conn.RequestName(upowerName, dbus.NameFlagDoNotQueue)
	require.NoError(t, err)
	require.Equal(t, dbus.RequestNameReplyPrimaryOwner, reply)
	return f
}

// comesTo waits for news until what is read is so.
func comesTo(t *testing.T, s *Source, want service.Power) {
	t.Helper()
	for over := time.After(20 * time.Second); ; {
		now, err := s.Read()
		require.NoError(t, err)
		if now == want {
			return
		}
		select {
		case <-s.News():
		case <-over:
			t.Fatalf("it is %+v, and never was %+v", now, want)
		}
	}
}

func TestUPower(t *testing.T) {
	address, end := aBus(t)
	here := service.Power{Battery: true, Draining: true, Percent: 40, Source: "sysfs"}
	s := open(sysfs(t, supplies{"BAT0": {"type": "Battery", "status": "Discharging", "capacity": "40"}}), address, slog.New(slog.DiscardHandler))
	defer s.Close()
	comesTo(t, s, here)

	there := func(percent float64, draining bool) service.Power {
		return service.Power{Battery: true, Draining: draining, Percent: percent, Source: "upower"}
	}
	f := onTheBus(t, address, true, 33.5, stateDischarging, true)
	comesTo(t, s, there(33.5, true))
	f.device.SetMust(upowerName+".Device", "Percentage", 33.0)
	comesTo(t, s, there(33, true))
	f.device.SetMust(upowerName+".Device", "State", uint32(stateCharging))
	comesTo(t, s, there(33, false))
	f.device.SetMust(upowerName+".Device", "State", uint32(0)) // unknown
	comesTo(t, s, there(33, true))
	f.daemon.SetMust(upowerName, "OnBattery", false)
	comesTo(t, s, there(33, false))

	f.device.SetMust(upowerName+".Device", "IsPresent", false)
	comesTo(t, s, here)
	f.device.SetMust(upowerName+".Device", "IsPresent", true)
	comesTo(t, s, there(33, false))
	require.NoError(t, f.conn.Close(), "it ends")
	comesTo(t, s, here)

	onTheBus(t, address, true, 20, stateDischarging, true)
	comesTo(t, s, there(20, true))
	end()
	comesTo(t, s, here)
}

// A bus that comes later is found when somebody looks.
func TestUPowerWithoutABus(t *testing.T) {
	s := open(t.TempDir(), "unix:path="+t.TempDir()+"/none", slog.New(slog.DiscardHandler))
	defer s.Close()
	for range 3 {
		now, err := s.Read()
		require.NoError(t, err)
		require.Equal(t, service.Power{}, now)
	}
}

// stuck takes calls and answers none until it is let.
type stuck struct{ until chan struct{} }

func (s stuck) GetAll(string) (map[string]dbus.Variant, *dbus.Error) {
	<-s.until
	return nil, dbus.MakeFailedError(errors.New("late"))
}

// An UPower that got stuck is not believed for ever: what the kernel tells counts.
func TestUPowerIsStuck(t *testing.T) {
	fd := sender(t)
	address, _ := aBus(t)
	root := sysfs(t, supplies{"BAT0": {"type": "Battery", "status": "Discharging", "capacity": "12"}})
	f := onTheBus(t, address, true, 80, stateCharging, false)
	s := open(root, address, slog.New(slog.DiscardHandler))
	defer s.Close()
	// By a look, so that nobody has it asked once more.
	require.Eventually(t, func() bool { return s.upower.now.Load() != nil }, 10*time.Second, time.Millisecond)
	comesTo(t, s, service.Power{Battery: true, Percent: 80, Source: "upower"})

	hung := stuck{make(chan struct{})}
	defer close(hung.until)
	require.NoError(t, f.conn.Export(hung, displayDevice, "org.freedesktop.DBus.Properties"))
	byKernel(t, fd, uevent("power_supply"))
	comesTo(t, s, service.Power{Battery: true, Draining: true, Percent: 12, Source: "sysfs"})
}

// A bus that takes a connection and says nothing is given up, and holds up nobody.
func TestTheBusIsStuck(t *testing.T) {
	at := filepath.Join(t.TempDir(), "bus")
	bus, err := net.Listen("unix", at)
	require.NoError(t, err)
	defer bus.Close()
	s := open(t.TempDir(), "unix:path="+at, slog.New(slog.DiscardHandler))
	defer s.Close()
	conn, err := bus.Accept()
	require.NoError(t, err)
	defer conn.Close()
	now, err := s.Read()
	require.NoError(t, err)
	require.Equal(t, service.Power{}, now)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err = io.Copy(io.Discard, conn)
	require.NoError(t, err, "it is not given up")
}
