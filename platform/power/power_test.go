package power

import (
	"bytes"
	"encoding/binary"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// supplies are the attributes of power supplies, by their names.
type supplies map[string]map[string]string

// sysfs makes a root with them.
func sysfs(t *testing.T, s supplies) (root string) {
	t.Helper()
	root = t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, class), 0o755))
	for name, attributes := range s {
		dir := filepath.Join(root, class, name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		for attribute, value := range attributes {
			require.NoError(t, os.WriteFile(filepath.Join(dir, attribute), []byte(value+"\n"), 0o644))
		}
	}
	return root
}

func TestSysfs(t *testing.T) {
	ac := func(online string) map[string]string { return map[string]string{"type": "Mains", "online": online} }
	energy := func(status, now, full string) map[string]string {
		return map[string]string{"type": "Battery", "status": status, "present": "1", "capacity": "50", "energy_now": now, "energy_full": full}
	}
	for name, tt := range map[string]struct {
		supplies supplies
		battery  bool
		draining bool
		percent  float64
	}{
		"nothing":          {},
		"mains alone":      {supplies: supplies{"AC": ac("0")}},
		"a port of a NUC":  {supplies: supplies{"ucsi0": {"type": "USB", "online": "0"}, "ucsi1": {"type": "USB", "online": "0"}}},
		"a mouse":          {supplies: supplies{"hidpp": {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "3"}}},
		"an empty bay":     {supplies: supplies{"BAT0": {"type": "Battery", "present": "0", "status": "Unknown", "capacity": "0"}}},
		"laptop unplugged": {supplies{"AC": ac("0"), "BAT0": energy("Discharging", "10000000", "40000000")}, true, true, 25},
		"laptop charging":  {supplies{"AC": ac("1"), "BAT0": energy("Charging", "10000000", "40000000")}, true, false, 25},
		"full":             {supplies{"AC": ac("1"), "BAT0": energy("Full", "40000000", "40000000")}, true, false, 100},
		"held at 80 %":     {supplies{"AC": ac("1"), "BAT0": energy("Not charging", "32000000", "40000000")}, true, false, 80},
		"a weak charger":   {supplies{"AC": ac("1"), "BAT0": energy("Discharging", "4000000", "40000000")}, true, true, 10},
		"two, one drains":  {supplies{"BAT0": energy("Discharging", "5000000", "20000000"), "BAT1": energy("Unknown", "60000000", "60000000")}, true, true, 81.25},
		"two, one charges": {supplies{"BAT0": energy("Charging", "5000000", "20000000"), "BAT1": energy("Discharging", "15000000", "60000000")}, true, false, 25},
		"they do not know, on AC": {supplies{"AC": ac("1"), "BAT0": energy("Unknown", "4000000", "40000000")},
			true, false, 10},
		"they do not know, off AC": {supplies{"AC": ac("0"), "BAT0": energy("Unknown", "4000000", "40000000")},
			true, true, 10},
		"nobody knows": {supplies{"BAT0": energy("Unknown", "4000000", "40000000")}, true, false, 10},
		"charge": {supplies{"BAT0": {"type": "Battery", "status": "Discharging", "charge_now": "1500000", "charge_full": "5000000", "capacity": "31"}},
			true, true, 30},
		"capacity alone": {supplies{"test_battery": {"type": "Battery", "status": "Discharging", "capacity": "14"}}, true, true, 14},
		"no common measure": {supplies{"BAT0": energy("Discharging", "1", "2"), "BAT1": {"type": "Battery", "charge_now": "1", "charge_full": "10"}},
			true, true, 30},
		"nonsense of firmware": {supplies{"BAT0": {"type": "Battery", "status": "Discharging", "energy_now": "9", "energy_full": "0", "capacity": "12"}},
			true, true, 12},
		"more than full": {supplies{"BAT0": energy("Discharging", "41000000", "40000000")}, true, true, 100},
		"a UPS":          {supplies{"ups": {"type": "UPS", "status": "Discharging", "capacity": "60"}}, true, true, 60},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Sysfs(sysfs(t, tt.supplies))
			require.NoError(t, err)
			require.Equal(t, service.Power{Battery: tt.battery, Draining: tt.draining, Percent: tt.percent, Source: "sysfs"}, p)
		})
	}
}

func TestSysfsFaults(t *testing.T) {
	p, err := Sysfs(t.TempDir())
	require.NoError(t, err, "a kernel without power supplies")
	require.Equal(t, service.Power{}, p)

	well := map[string]string{"type": "Battery", "status": "Discharging", "capacity": "40"}
	p, err = Sysfs(sysfs(t, supplies{"BAT0": well, "BAT1": {"type": "Battery", "status": "Discharging"}}))
	require.ErrorIs(t, err, errNoCharge)
	require.ErrorContains(t, err, "BAT1")
	require.Equal(t, service.Power{Battery: true, Draining: true, Percent: 40, Source: "sysfs"}, p, "the other counts")

	p, err = Sysfs(sysfs(t, supplies{"BAT0": {"type": "Battery", "status": "Discharging", "capacity": "full"}}))
	require.ErrorContains(t, err, `BAT0/capacity holds "full", which is no number`)
	require.False(t, p.Battery, "of a charge that nobody knows nothing follows")

	root := sysfs(t, supplies{"BAT0": well})
	require.NoError(t, os.Mkdir(filepath.Join(root, class, "BAT1"), 0o755))
	p, err = Sysfs(root)
	require.NoError(t, err, "it is being removed")
	require.True(t, p.Battery)

	require.NoError(t, os.Mkdir(filepath.Join(root, class, "BAT1", "type"), 0o755))
	_, err = Sysfs(root)
	require.ErrorIs(t, err, unix.EISDIR)
	require.ErrorContains(t, err, "BAT1/type")

	file := filepath.Join(t.TempDir(), "class")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	_, err = Sysfs(filepath.Dir(file))
	require.NotErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "cannot list the power supplies")
}

func uevent(subsystem string) []byte {
	return []byte("change@/devices/x\x00ACTION=change\x00DEVPATH=/devices/x\x00SUBSYSTEM=" + subsystem + "\x00")
}

// sender is a socket of somebody's in the family of uevents.
func sender(t *testing.T) int {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may have uevents sent")
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// byKernel has the kernel itself broadcast a message (uevent_net_rcv, since Linux
// 4.18), as it does for a device.
func byKernel(t *testing.T, fd int, message []byte) {
	t.Helper()
	const header, someType = unix.SizeofNlMsghdr, 0x10
	buf := binary.NativeEndian.AppendUint32(nil, uint32(header+len(message)))
	buf = binary.NativeEndian.AppendUint16(buf, someType)
	buf = binary.NativeEndian.AppendUint16(buf, unix.NLM_F_REQUEST)
	buf = append(buf, make([]byte, 8)...) // sequence and port
	require.NoError(t, unix.Sendto(fd, append(buf, message...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

// bySomebody sends it to all who listen to the kernel.
func bySomebody(t *testing.T, fd int, message []byte) {
	t.Helper()
	require.NoError(t, unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}))
}

// Messages come in their order, so that what is not told of those before the last is
// never told.
func TestOnlyTheKernelIsHeard(t *testing.T) {
	fd := sender(t)
	u, err := hear()
	require.NoError(t, err)
	told, ended := make(chan struct{}, 10), make(chan struct{})
	go func() { defer close(ended); u.tell(func() { told <- struct{}{} }, slog.New(slog.DiscardHandler)) }()
	bySomebody(t, fd, uevent("power_supply"))
	byKernel(t, fd, uevent("net"))
	byKernel(t, fd, uevent("power_supply"))
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Fatal("the kernel was not heard")
	}
	byKernel(t, fd, uevent("power_supply"))
	<-told
	u.close()
	<-ended
	require.Empty(t, told)
}

// To whoever does not ask who sends, somebody sounds as the kernel does.
func TestSomebodyIsDelivered(t *testing.T) {
	fd := sender(t)
	u, err := hear()
	require.NoError(t, err)
	defer u.close()
	bySomebody(t, fd, uevent("power_supply"))
	buf := make([]byte, longest)
	var from unix.Sockaddr
	n := 0
	require.NoError(t, u.conn.Read(func(fd uintptr) bool {
		n, from, err = unix.Recvfrom(int(fd), buf, 0)
		return err != unix.EAGAIN
	}))
	require.NoError(t, err)
	require.True(t, ofPower(buf[:n]))
	require.False(t, fromKernel(from), "%+v", from)
}

func TestOfPower(t *testing.T) {
	require.True(t, ofPower(uevent("power_supply")))
	require.False(t, ofPower(uevent("power_supply2")))
	require.False(t, ofPower([]byte("change@/devices/SUBSYSTEM=power_supply")))
	require.False(t, ofPower(nil))
	require.False(t, fromKernel(&unix.SockaddrNetlink{Pid: 0, Groups: 2}), "udev's group")
	require.False(t, fromKernel(&unix.SockaddrUnix{}))
}

func TestSourceTellsOfChanges(t *testing.T) {
	fd := sender(t)
	battery := map[string]string{"type": "Battery", "status": "Charging", "capacity": "40"}
	root := sysfs(t, supplies{"BAT0": battery})
	s := Open(root, slog.New(slog.DiscardHandler))
	defer s.Close()
	require.Empty(t, s.News())
	require.NoError(t, os.WriteFile(filepath.Join(root, class, "BAT0", "capacity"), []byte("39\n"), 0o644))
	for range 5 {
		byKernel(t, fd, uevent("power_supply"))
	}
	select {
	case <-s.News():
	case <-time.After(10 * time.Second):
		t.Fatal("no news")
	}
	p, err := s.Read()
	require.NoError(t, err)
	require.Equal(t, 39.0, p.Percent)
}

// Whoever hears too late is told that something was lost.
func TestLostUevents(t *testing.T) {
	fd := sender(t)
	u, err := hear()
	require.NoError(t, err)
	require.NoError(t, u.conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) }))
	require.NoError(t, err)
	for range 200 {
		byKernel(t, fd, uevent("net"))
	}
	told, ended := make(chan struct{}, 1000), make(chan struct{})
	go func() { defer close(ended); u.tell(func() { told <- struct{}{} }, slog.New(slog.DiscardHandler)) }()
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Fatal("what was lost was not told")
	}
	u.close()
	<-ended
}

// An error has it looked at anew, once a second at most, and is no end of the news.
func TestUeventsThatCanNotBeReceived(t *testing.T) {
	fd := sender(t)
	u, err := hear()
	require.NoError(t, err)
	var failures atomic.Int32
	u.receive = func(fd int, p []byte, flags int) (int, unix.Sockaddr, error) {
		if failures.Add(1) <= 1 {
			return 0, nil, unix.ENOMEM
		}
		return unix.Recvfrom(fd, p, flags)
	}
	var log bytes.Buffer
	told, ended := make(chan struct{}, 10), make(chan struct{})
	go func() {
		defer close(ended)
		u.tell(func() { told <- struct{}{} }, slog.New(slog.NewTextHandler(&log, nil)))
	}()
	hears := func() {
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Fatal("it is deaf")
		}
	}
	hears() // of the error
	byKernel(t, fd, uevent("power_supply"))
	hears()
	u.close()
	<-ended
	require.Contains(t, log.String(), "cannot allocate memory")
}
