package notify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var web = service.MustName("web")

const deadline = 10 * time.Second

func ours(pid int) (bool, error)   { return pid == os.Getpid(), nil }
func nobody(pid int) (bool, error) { return false, nil }

func newListener(t *testing.T) *Listener {
	t.Helper()
	l := New(filepath.Join(t.TempDir(), "notify"))
	t.Cleanup(l.Close)
	return l
}

// hall is a socket with somebody who hears it.
type hall struct {
	*testing.T
	*Listener
	path  string
	heard chan service.Heard
	leave func()
}

func open(t *testing.T, l *Listener, owns func(int) (bool, error)) *hall {
	t.Helper()
	path, err := l.Open(web, os.Geteuid())
	require.NoError(t, err)
	h := &hall{T: t, Listener: l, path: path, heard: make(chan service.Heard, 1000)}
	h.attend(owns)
	return h
}

func (h *hall) attend(owns func(int) (bool, error)) {
	h.Helper()
	var err error
	h.leave, err = h.Attend(web, owns, func(x service.Heard) { h.heard <- x })
	require.NoError(h, err)
}

func (h *hall) send(messages ...string) {
	h.Helper()
	c, err := net.Dial("unixgram", h.path)
	require.NoError(h, err)
	defer c.Close()
	for _, m := range messages {
		_, err := c.Write([]byte(m))
		require.NoError(h, err)
	}
}

func (h *hall) hears() service.Heard {
	h.Helper()
	select {
	case x := <-h.heard:
		return x
	case <-time.After(deadline):
		h.Fatal("nothing was heard")
		return service.Heard{}
	}
}

func (h *hall) hearsNothing() {
	h.Helper()
	select {
	case x := <-h.heard:
		h.Fatalf("heard %+v", x)
	case <-time.After(100 * time.Millisecond):
	}
}

func TestHear(t *testing.T) {
	h := open(t, newListener(t), ours)
	h.send("READY=1\nSTATUS=up", "FDSTORE=1", "STOPPING=1")
	require.Equal(t, service.Heard{Said: service.Notification{Ready: true, Status: "up", HasStatus: true}}, h.hears())
	require.Equal(t, service.Heard{Said: service.Notification{Stopping: true}}, h.hears(), "what says nothing is not told")
	h.leave()
	h.send("READY=1")
	h.hearsNothing()
}

// What is said before somebody attends waits, as does what is said between two who do.
func TestWhatIsSaidWaits(t *testing.T) {
	l := newListener(t)
	path, err := l.Open(web, os.Geteuid())
	require.NoError(t, err)
	h := &hall{T: t, Listener: l, path: path, heard: make(chan service.Heard, 1)}
	require.False(t, l.Unread(web))
	h.send("READY=1")
	require.True(t, l.Unread(web))
	h.attend(ours)
	require.True(t, h.hears().Said.Ready)
	require.False(t, l.Unread(web))
	h.leave()
	h.send("STOPPING=1")
	h.attend(ours)
	require.True(t, h.hears().Said.Stopping)
}

func TestStrangersAreDropped(t *testing.T) {
	h := open(t, newListener(t), nobody)
	for range 5 {
		h.send("READY=1")
	}
	x := h.hears()
	require.Equal(t, service.Notification{}, x.Said)
	require.EqualValues(t, 1, x.Dropped)
	require.Equal(t, fmt.Sprintf("process %d of uid %d, which is none of the service's, sent a message", os.Getpid(), os.Geteuid()), x.Why)
	require.Equal(t, service.Heard{Dropped: 2}, h.hears(), "why is told once")
	require.Equal(t, service.Heard{Dropped: 4}, h.hears())
	h.Hear(web) // the fifth, too
	h.attend(func(int) (bool, error) { return true, nil })
	h.send("READY=1")
	require.Equal(t, service.Heard{Said: service.Notification{Ready: true}, Dropped: 5}, h.hears())
}

func TestWhatCanNotBeReadIsTold(t *testing.T) {
	h := open(t, newListener(t), ours)
	h.send("MAINPID=x\nREADY=1", strings.Repeat("x", 5000))
	x := h.hears()
	require.True(t, x.Said.Ready)
	require.Contains(t, x.Why, `MAINPID="x"`)
	require.Contains(t, h.hears().Why, "at most 4096 are read")
}

// Who wants to know hears at once what was said before, and of what is none of that nothing.
func TestHearAtOnce(t *testing.T) {
	l := newListener(t)
	h := open(t, l, ours)
	for n := range 20 {
		h.send(fmt.Sprintf("STATUS=%d", n))
		l.Hear(web)
		select {
		case x := <-h.heard:
			require.Equal(t, fmt.Sprint(n), x.Said.Status)
		default:
			t.Fatal("it was not heard when Hear had returned")
		}
	}
	l.Hear(service.MustName("another"))
	h.leave()
	h.send("STATUS=late")
	l.Hear(web)
	require.Empty(t, h.heard)
}

// A flood is read at a pace, and what is not lost for that.
func TestFlood(t *testing.T) {
	h := open(t, newListener(t), ours)
	began := time.Now()
	c, err := net.Dial("unixgram", h.path)
	require.NoError(t, err)
	defer c.Close()
	for range 2*pace + 2 {
		_, err := c.Write([]byte("WATCHDOG=1"))
		require.NoError(t, err)
	}
	for range 2*pace + 2 {
		require.True(t, h.hears().Said.Alive)
	}
	require.GreaterOrEqual(t, time.Since(began), 2*time.Second)
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

// Descriptors that come with a message are closed, which is what tells whoever waits for
// that that it was read.
func TestDescriptorsAreClosed(t *testing.T) {
	h := open(t, newListener(t), ours)
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(c)
	before := descriptors(t)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	files := make([]int, 100)
	for i := range files {
		files[i] = int(w.Fd())
	}
	err = unix.Sendmsg(c, []byte("READY=1\nFDSTORE=1"), unix.UnixRights(files...), &unix.SockaddrUnix{Name: h.path}, 0)
	require.NoError(t, err)
	w.Close()
	require.True(t, h.hears().Said.Ready)
	require.NoError(t, r.SetReadDeadline(time.Now().Add(deadline)))
	_, err = r.Read(make([]byte, 1))
	require.ErrorContains(t, err, "EOF")
	require.Equal(t, before+1, descriptors(t))
}

// The next agent makes the socket anew under the path that the service knows.
func TestAnotherListener(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "notify")
	first := New(dir)
	h := open(t, first, ours)
	first.Close()
	require.FileExists(t, h.path)
	_, err := net.Dial("unixgram", h.path)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	_, err = first.Open(web, os.Geteuid())
	require.ErrorIs(t, err, os.ErrClosed)

	second := New(dir)
	defer second.Close()
	second.Sweep(func(name string) bool { return name == "web" })
	again := open(t, second, ours)
	require.Equal(t, h.path, again.path)
	again.send("READY=1")
	require.True(t, again.hears().Said.Ready)
	require.True(t, second.Has(web))
	second.Forget(web)
	require.False(t, second.Has(web))
	require.False(t, second.Unread(web))
	require.NoFileExists(t, again.path)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "old"), nil, 0o600))
	second.Sweep(func(string) bool { return false })
	require.NoFileExists(t, filepath.Join(dir, "old"))
}

func TestWhoMaySend(t *testing.T) {
	l := newListener(t)
	path, err := l.Open(web, os.Geteuid())
	require.NoError(t, err)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	if os.Geteuid() != 0 {
		_, err := l.Open(web, os.Geteuid()+1)
		require.ErrorIs(t, err, os.ErrPermission)
		require.NoFileExists(t, path)
		return
	}
	require.NoError(t, os.Chmod(filepath.Dir(filepath.Dir(path)), 0o750))
	_, err = l.Open(web, 12345)
	require.NoError(t, err)
	info, err = os.Lstat(path)
	require.NoError(t, err)
	require.EqualValues(t, 12345, info.Sys().(*syscall.Stat_t).Uid)
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		info, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o001), info.Mode().Perm()&0o007, "others pass through %s, and no more", dir)
	}
}

func TestAPathThatIsTooLong(t *testing.T) {
	l := New("/" + strings.Repeat("x", 104))
	_, err := l.Open(web, os.Geteuid())
	require.ErrorContains(t, err, "give the agent a shorter run directory")
	_, err = l.Attend(web, ours, nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	l.Close()
}

func TestEndedIsKnown(t *testing.T) {
	pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{})
	require.NoError(t, err)
	pidfd, err := unix.PidfdOpen(pid, 0)
	require.NoError(t, err)
	defer unix.Close(pidfd)
	_, err = syscall.Wait4(pid, nil, 0, nil)
	require.NoError(t, err)
	require.True(t, readable(pidfd))
	l := letter{from: unix.Ucred{Pid: int32(pid)}, pidfd: pidfd}
	require.Contains(t, l.stranger(nobody), "had ended before")
	l.pidfd = -1
	require.Contains(t, l.stranger(nobody), "none of the service's")
	require.Contains(t, l.stranger(func(int) (bool, error) { return false, errors.New("no /proc") }), "no /proc")
	require.Contains(t, letter{}.stranger(ours), "does not tell the number")
}
