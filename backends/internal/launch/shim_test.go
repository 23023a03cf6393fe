package launch

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

// family is a Shim with a watcher of its own, as an agent has it.
type family struct {
	*Shim
	watcher *watch.Watcher
	fs      procfs.FS
}

func newFamily(t *testing.T, dir string) *family {
	t.Helper()
	w, err := watch.New()
	require.NoError(t, err)
	fs, err := procfs.New("/proc")
	require.NoError(t, err)
	f := &family{NewShim(ShimConfig{Watcher: w, Dir: dir}), w, fs}
	t.Cleanup(func() {
		f.released()
		require.NoError(t, f.Close())
		require.NoError(t, w.Close())
		require.Eventually(t, func() bool { return shims(t, fs) == 0 }, time.Minute, 5*time.Millisecond, "a shim that nobody needs stays")
	})
	return f
}

// shims counts those of this process that live.
func shims(t *testing.T, fs procfs.FS) (n int) {
	t.Helper()
	all, err := fs.Processes()
	require.NoError(t, err)
	for _, p := range all {
		if p.PPID == os.Getpid() && p.Alive() && strings.HasPrefix(fs.Command(p.PID), "gladsheim-shim") {
			n++
		}
	}
	return n
}

// released says that all ends of the one incarnation that the tests launch, again
// and again, were written down.
func (f *family) released() {
	req := request()
	f.Released(req.Launch.Name, req.Launch.Incarnation)
}

// run launches a shell script below the shim.
func (f *family) run(t *testing.T, script string) *process.Process {
	t.Helper()
	req := request("/bin/sh", "-c", script)
	req.Shim = f.Shim
	return run(t, f.watcher, req).Process()
}

// leave launches a script below the shim, whose end is for another to hear.
func (f *family) leave(t *testing.T, script string) *process.Process {
	t.Helper()
	req := request("/bin/sh", "-c", script)
	req.Shim = f.Shim
	c, err := Start(t.Context(), f.watcher, req)
	require.NoError(t, err)
	require.NoError(t, c.Open(t.Context()))
	require.NoError(t, c.Process().Close())
	return c.Process()
}

// die is what the shim sees of the death of an agent: it says no word any more.
func (f *family) die() {
	f.mu.Lock()
	f.closed = true
	l := f.line
	f.mu.Unlock()
	if l != nil { // else the shim has died before it
		l.hangUp()
	}
}

// parentOf is the number of a process's parent.
func parentOf(t *testing.T, fs procfs.FS, pid int) int {
	t.Helper()
	p, err := fs.Process(pid)
	require.NoError(t, err)
	return p.PPID
}

func exitOf(t *testing.T, p *process.Process) service.Exit {
	t.Helper()
	select {
	case <-p.Exited():
		return p.Exit()
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
		return service.Exit{}
	}
}

// gone waits until a process is no more.
func gone(t *testing.T, fs procfs.FS, pid int) {
	t.Helper()
	require.Eventually(t, func() bool { _, err := fs.Process(pid); return err != nil }, time.Minute, 5*time.Millisecond)
}

func TestShimTellsExactly(t *testing.T) {
	f := newFamily(t, t.TempDir())
	first := f.run(t, "exit 7")
	require.Equal(t, service.Exit{Code: 7}, exitOf(t, first))
	require.True(t, first.Used().Known)
	second := f.run(t, "sleep 60")
	shim := parentOf(t, f.fs, second.PID())
	require.NotEqual(t, os.Getpid(), shim)
	comm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(shim), "comm"))
	require.NoError(t, err)
	require.Equal(t, "gladsheim-shim", strings.TrimSpace(string(comm)))
	require.NoError(t, second.Signal(syscall.SIGSEGV))
	exit := exitOf(t, second)
	require.Equal(t, syscall.SIGSEGV, exit.Signal)
	require.Equal(t, service.NotRunning, service.KindOf(second.Signal(syscall.SIGTERM)))
}

// TestEndsOfTheAbsence: what ended while no agent was there is told exactly, until
// it was heard of, and the process leaves when nobody needs it any more.
func TestEndsOfTheAbsence(t *testing.T) {
	dir := t.TempDir()
	f := newFamily(t, dir)
	word := filepath.Join(dir, "word")
	go7, killed, lives := f.leave(t, "while ! [ -e "+word+" ]; do sleep 0.01; done; exit 7"), f.leave(t, "sleep 60"), f.leave(t, "sleep 60")
	shim := parentOf(t, f.fs, lives.PID())
	f.die()
	require.NoError(t, os.WriteFile(word, nil, 0o600))
	before := time.Now()
	require.NoError(t, unix.Kill(killed.PID(), unix.SIGKILL))
	gone(t, f.fs, go7.PID())
	gone(t, f.fs, killed.PID())
	after := time.Now()

	second := newFamily(t, dir)
	found := func(p *process.Process) *process.Process {
		again, err := process.Find(second.watcher, second.fs, second, p.PID(), p.StartTicks())
		require.NoError(t, err)
		return again
	}
	require.Equal(t, service.Exit{Code: 7}, exitOf(t, found(go7)))
	dead := found(killed)
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, exitOf(t, dead))
	require.WithinRange(t, dead.ExitedAt(), before, after)
	_, err := process.Find(second.watcher, second.fs, second, go7.PID(), go7.StartTicks()+1)
	require.ErrorIs(t, err, process.ErrGone)
	survivor := found(lives)
	require.NoError(t, survivor.Signal(syscall.SIGTERM))
	require.Equal(t, service.Exit{Signal: syscall.SIGTERM}, exitOf(t, survivor))

	// Told again until it was heard of.
	again := found(go7)
	require.Equal(t, service.Exit{Code: 7}, exitOf(t, again))
	for _, p := range []*process.Process{again, survivor} {
		require.NoError(t, p.Close())
	}
	second.released()
	_, err = process.Find(second.watcher, second.fs, second, go7.PID(), go7.StartTicks())
	require.ErrorIs(t, err, process.ErrGone)
	require.NoError(t, second.Close())
	gone(t, f.fs, shim)
}

// TestAGateThatWasNotOpened: what an agent that dies leaves at its gate has never
// run, and that is told, also when the gate is still about to leave.
func TestAGateThatWasNotOpened(t *testing.T) {
	for name, leave := range map[string]func(*Child) error{
		"gone": func(c *Child) error { return c.socket.Close() },
		"leaving": func(c *Child) error {
			time.AfterFunc(100*time.Millisecond, func() { c.socket.Close() })
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := newFamily(t, dir)
			req := request("/bin/true")
			req.Shim = f.Shim
			c, err := Start(t.Context(), f.watcher, req)
			require.NoError(t, err)
			require.NoError(t, c.Ready(t.Context()))
			f.die()
			require.NoError(t, leave(c))
			if name == "gone" {
				gone(t, f.fs, c.PID())
			}
			second := newFamily(t, dir)
			found, err := Find(second.watcher, second.fs, second.Shim, c.PID(), c.StartTicks())
			require.NoError(t, err)
			require.True(t, found.Ended())
			require.Equal(t, service.NeverRan, found.Exit())
			require.NoError(t, found.Close())
			require.NoError(t, c.process.Close())
		})
	}
}

// TestAShimThatNobodyFindsLeaves: what it kept can not be asked for.
func TestAShimThatNobodyFindsLeaves(t *testing.T) {
	dir := t.TempDir()
	f := newFamily(t, dir)
	before, lives := f.leave(t, "sleep 60"), f.leave(t, "sleep 60")
	shim := parentOf(t, f.fs, lives.PID())
	f.die()
	require.NoError(t, unix.Kill(before.PID(), unix.SIGKILL))
	gone(t, f.fs, before.PID())
	require.NoError(t, os.Remove(f.path()))
	second := newFamily(t, dir)
	other := second.run(t, "sleep 60")
	require.NotEqual(t, shim, parentOf(t, f.fs, other.PID()), "it can not be the one that was lost")
	require.Equal(t, shim, parentOf(t, f.fs, lives.PID()), "it is there as long as its children are")
	require.NoError(t, unix.Kill(lives.PID(), unix.SIGKILL))
	gone(t, f.fs, shim)
	require.NoError(t, other.Signal(syscall.SIGKILL))
	exitOf(t, other)
}

// TestShimIsKilled: nobody dies with it, ends are unknown where the kernel does
// not tell, and the next child gets another.
func TestShimIsKilled(t *testing.T) {
	f := newFamily(t, t.TempDir())
	p := f.run(t, "sleep 60")
	shim := parentOf(t, f.fs, p.PID())
	require.NoError(t, unix.Kill(shim, unix.SIGKILL))
	require.Equal(t, service.Exit{Code: 3}, exitOf(t, f.run(t, "exit 3")))
	require.False(t, p.Ended())
	require.NoError(t, p.Signal(syscall.SIGTERM))
	exit := exitOf(t, p)
	if exit.Unknown == "" {
		require.Equal(t, service.Exit{Signal: syscall.SIGTERM}, exit)
	} else {
		require.Equal(t, process.ParentLost, exit.Unknown)
	}
}

// TestAChildOfAnotherShim: of what a shim had made that is no more, or that nobody
// finds, the next shim knows nothing, and an agent that has heard of that one only
// must not wait for its word.
func TestAChildOfAnotherShim(t *testing.T) {
	dir := t.TempDir()
	f := newFamily(t, dir)
	stranger := f.leave(t, "sleep 60")
	require.NoError(t, unix.Kill(parentOf(t, f.fs, stranger.PID()), unix.SIGKILL))
	f.die()
	second := newFamily(t, dir)
	require.Equal(t, service.Exit{Code: 3}, exitOf(t, second.run(t, "exit 3"))) // there is another shim
	second.die()
	third := newFamily(t, dir)
	found, err := Find(third.watcher, third.fs, third.Shim, stranger.PID(), stranger.StartTicks())
	require.NoError(t, err)
	require.NoError(t, found.Signal(syscall.SIGTERM))
	exit := exitOf(t, found)
	if exit.Unknown == "" {
		require.Equal(t, service.Exit{Signal: syscall.SIGTERM}, exit)
	} else {
		require.Equal(t, process.ParentLost, exit.Unknown)
	}
	require.NoError(t, found.Close())
}

// TestAShimThatHangsUp: one that does so because it was not heard is there all the
// same, and what waits for its word gets it.
func TestAShimThatHangsUp(t *testing.T) {
	f := newFamily(t, t.TempDir())
	p, lives := f.run(t, "sleep 60"), f.run(t, "sleep 60")
	shim := parentOf(t, f.fs, p.PID())
	for range 3 {
		l, err := f.find(t.Context())
		require.NoError(t, err)
		l.hangUp()
	}
	require.NoError(t, p.Signal(syscall.SIGTERM))
	require.Equal(t, service.Exit{Signal: syscall.SIGTERM}, exitOf(t, p))
	require.Equal(t, shim, parentOf(t, f.fs, f.run(t, "sleep 60").PID()), "there is another beside it")
	require.False(t, lives.Ended())
}

// stoppedFamily has a shim that does nothing any more, with one child.
func stoppedFamily(t *testing.T) (f *family, child *process.Process, shim int) {
	t.Helper()
	f = newFamily(t, t.TempDir())
	child = f.run(t, "sleep 60")
	shim = parentOf(t, f.fs, child.PID())
	require.NoError(t, unix.Kill(shim, unix.SIGSTOP))
	t.Cleanup(func() { _ = unix.Kill(shim, unix.SIGCONT) })
	require.Eventually(t, func() bool { // each thread stops when it is its turn
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", shim))
		return err == nil && !slices.ContainsFunc(threads, func(stat string) bool {
			text, _ := os.ReadFile(stat)
			return !bytes.Contains(text, []byte(") T "))
		})
	}, time.Minute, time.Millisecond)
	return f, child, shim
}

// TestAShimThatDoesNotAnswer: a start gives up, an end that the kernel tells of is not
// waited for without bound, and the agent can leave.
func TestAShimThatDoesNotAnswer(t *testing.T) {
	f, p, shim := stoppedFamily(t)
	require.NoError(t, p.Signal(syscall.SIGTERM))
	req := request("/bin/true")
	req.Shim, req.Launch.Incarnation = f.Shim, 2
	hasty, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := Start(hasty, f.watcher, req)
	require.Equal(t, service.Timeout, service.KindOf(err), "%v", err)
	_, err = Start(t.Context(), f.watcher, req)
	require.ErrorContains(t, err, "has not answered")
	require.Equal(t, process.ParentLost, exitOf(t, p).Unknown)
	again := NewShim(f.cfg)
	for { // until too many knock
		fd, err := f.socket(unix.SOCK_NONBLOCK, unix.Connect)
		if err != nil {
			require.ErrorIs(t, err, unix.EAGAIN)
			break
		}
		defer unix.Close(fd)
	}
	_, err = Start(t.Context(), f.watcher, req)
	require.ErrorContains(t, err, "has not answered")
	zombie, err := Find(f.watcher, f.fs, again, p.PID(), p.StartTicks())
	require.NoError(t, err)
	require.False(t, zombie.Ended(), "its parent may tell yet")
	require.NoError(t, zombie.Close())
	_, _, err = again.Ended(p.PID(), p.StartTicks())
	require.ErrorContains(t, err, "ask the shim")
	closed := make(chan error)
	go func() { closed <- again.Close() }()
	select {
	case err := <-closed:
		require.NoError(t, err)
	case <-time.After(time.Minute):
		t.Fatal("an agent can not leave")
	}
	require.NoError(t, unix.Kill(shim, unix.SIGCONT))
	require.Equal(t, service.Exit{Code: 3}, exitOf(t, f.run(t, "exit 3")))
	third := NewShim(f.cfg)
	found, err := Find(f.watcher, f.fs, third, p.PID(), p.StartTicks())
	require.NoError(t, err)
	require.Equal(t, service.Exit{Signal: syscall.SIGTERM}, exitOf(t, found), "it knows it all the same")
	require.NoError(t, found.Close())
	require.NoError(t, third.Close())
}

// TestALostAnswerMakesNoSecondGate: whoever tries again does so with another socket, so
// that what was made for the first attempt leaves.
func TestALostAnswerMakesNoSecondGate(t *testing.T) {
	f, _, shim := stoppedFamily(t)
	f.mu.Lock()
	l := f.line
	f.mu.Unlock()
	req := request("/bin/sh", "-c", "sleep 60")
	req.Shim = f.Shim
	started := make(chan *Child, 1)
	go func() {
		c, err := Start(t.Context(), f.watcher, req)
		assert.NoError(t, err)
		started <- c
	}()
	raw, err := l.conn.SyscallConn()
	require.NoError(t, err)
	require.Eventually(t, func() bool { // until it has asked: what nobody has read is counted (unix(7))
		unread := 0
		require.NoError(t, raw.Control(func(fd uintptr) { unread, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }))
		require.NoError(t, err)
		return unread > 0
	}, time.Minute, time.Millisecond)
	l.hangUp()
	require.NoError(t, unix.Kill(shim, unix.SIGCONT))
	c := <-started
	require.NotNil(t, c)
	require.NoError(t, c.Open(t.Context()))
	require.Eventually(t, func() bool {
		all, err := f.fs.Processes()
		require.NoError(t, err)
		return !slices.ContainsFunc(all, func(p procfs.Process) bool { return p.PPID == shim && p.Name == gate.Name && p.Alive() })
	}, time.Minute, time.Millisecond, "a gate stays")
	command, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.PID()), "cmdline"))
	require.NoError(t, err)
	require.Contains(t, string(command), "sleep 60", "another one runs the program")
	require.NoError(t, c.Process().Signal(syscall.SIGKILL))
	exitOf(t, c.Process())
	require.NoError(t, c.Process().Close())
}

// TestNobodyElseReachesTheShim: who could talk to it would fork as we do.
func TestNobodyElseReachesTheShim(t *testing.T) {
	f := newFamily(t, t.TempDir())
	f.run(t, "true")
	info, err := os.Lstat(f.path())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

// TestGateOfAShimIsABirthLikeAny: what the program finds is the same as from a
// gate of our own.
func TestGateOfAShimIsABirthLikeAny(t *testing.T) {
	dir := t.TempDir()
	f := newFamily(t, dir)
	seen := func(shim *Shim) string {
		file := filepath.Join(dir, "seen")
		req := request("/bin/sh", "-c", "exec >"+file+`; ls -l /proc/self/fd | grep -c '[0-9] ->'; env; pwd; umask; cat /proc/self/oom_score_adj; ulimit -a;
			grep -E 'Sig(Blk|Ign|Cgt)|NoNewPrivs|Groups' /proc/self/status; ps -o sid= -p $$ | tr -d ' ' | grep -qx $$ && echo leads`)
		req.Shim = shim
		c := run(t, f.watcher, req)
		require.Equal(t, service.Exit{}, exitOf(t, c.Process()))
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		return string(text)
	}
	require.Equal(t, seen(nil), seen(f.Shim))
}

// TestShimTellsOfStrays: whoever holds a process that was not the shim's hears how it ended
// once it is, as an orphan.
func TestShimTellsOfStrays(t *testing.T) {
	f := newFamily(t, t.TempDir())
	at := filepath.Join(t.TempDir(), "pid")
	p := f.run(t, "sh -c 'exec sleep 1000' & echo $! > "+at+".new; mv "+at+".new "+at+"; wait")
	var text []byte
	require.Eventually(t, func() bool { text, _ = os.ReadFile(at); return len(text) > 0 }, time.Minute, time.Millisecond)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	ticks, err := f.fs.StartTicks(pid)
	require.NoError(t, err)
	stray, err := process.Find(f.watcher, f.fs, f.Shim, pid, ticks)
	require.NoError(t, err)
	require.NoError(t, p.Signal(unix.SIGKILL))
	exitOf(t, p)
	require.NoError(t, stray.Signal(unix.SIGKILL))
	require.Equal(t, service.Exit{Signal: unix.SIGKILL}, exitOf(t, stray))
	require.NoError(t, stray.Close())
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Empty(t, f.strays)
}
