package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

const deadline = 10 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newWatcher(t testing.TB) *watch.Watcher {
	t.Helper()
	w, err := watch.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	return w
}

func proc(t testing.TB) procfs.FS {
	t.Helper()
	fs, err := procfs.New("/proc")
	require.NoError(t, err)
	return fs
}

// fork starts a shell script as a child that nobody waits for yet.
func fork(t testing.TB, script string) (pid, pidfd int) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	require.NoError(t, err)
	defer null.Close()
	pid, err = syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Sys: &syscall.SysProcAttr{PidFD: &pidfd, Setsid: true},
	})
	require.NoError(t, err)
	return pid, pidfd
}

func child(t testing.TB, w *watch.Watcher, script string) *Process {
	t.Helper()
	pid, pidfd := fork(t, script)
	p, err := Child(w, pid, pidfd)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = p.Signal(syscall.SIGKILL)
		awaitExit(t, p)
		require.NoError(t, p.Close())
	})
	return p
}

func awaitExit(t testing.TB, p *Process) service.Exit {
	t.Helper()
	select {
	case <-p.Exited():
	case <-time.After(deadline):
		require.Fail(t, "the end was never told")
	}
	return p.Exit()
}

func TestExitOfAChildIsExact(t *testing.T) {
	w := newWatcher(t)
	for script, want := range map[string]service.Exit{
		"exit 0":        {},
		"exit 1":        {Code: 1},
		"exit 137":      {Code: 137},
		"exit 255":      {Code: 255},
		"kill -HUP $$":  {Signal: syscall.SIGHUP},
		"kill -KILL $$": {Signal: syscall.SIGKILL},
		"kill -SEGV $$": {Signal: syscall.SIGSEGV},
	} {
		t.Run(script, func(t *testing.T) {
			p := child(t, w, script)
			require.Equal(t, want, awaitExit(t, p))
			require.NoDirExists(t, "/proc/"+strconv.Itoa(p.PID()), "it is reaped")
		})
	}
}

func TestNothingIsToldOfOneThatLives(t *testing.T) {
	w := newWatcher(t)
	p := child(t, w, "exec sleep 1000")
	require.Equal(t, service.Exit{}, p.Exit())
	require.Equal(t, Used{}, p.Used())
	select {
	case <-p.Exited():
		require.Fail(t, "it has not ended")
	default:
	}
	start, err := proc(t).StartTicks(p.PID())
	require.NoError(t, err)
	require.Equal(t, start, p.StartTicks())
}

func TestUsedCountsTheWholeLife(t *testing.T) {
	w := newWatcher(t)
	p := child(t, w, `i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'`)
	awaitExit(t, p)
	require.True(t, p.Used().Known)
	require.Positive(t, p.Used().CPUTime)
}

func TestSignal(t *testing.T) {
	w := newWatcher(t)
	p := child(t, w, "trap 'exit 9' USR1; while :; do sleep 0.01; done")
	require.Eventually(t, func() bool { return p.Signal(syscall.SIGUSR1) != nil || ended(p) }, deadline, 20*time.Millisecond)
	require.Contains(t, []service.Exit{{Code: 9}, {Signal: syscall.SIGUSR1}}, awaitExit(t, p))
	err := p.Signal(syscall.SIGUSR1)
	require.Equal(t, service.NotRunning, service.KindOf(err))
	require.ErrorContains(t, err, "cannot signal: SIGUSR1 to process "+strconv.Itoa(p.PID()))
	exit := p.Exit()
	require.NoError(t, p.Close())
	require.NoError(t, p.Close())
	require.Error(t, p.Signal(syscall.SIGUSR1))
	require.Equal(t, exit, p.Exit(), "what was told stays")
}

func ended(p *Process) bool {
	select {
	case <-p.Exited():
		return true
	default:
		return false
	}
}

func TestAZombieIsNotRunning(t *testing.T) {
	w := newWatcher(t)
	pid, pidfd := fork(t, "exit 3")
	awaitZombie(t, pidfd)
	p := &Process{pid: pid, pidfd: pidfd, remove: func() {}, exited: make(chan struct{})}
	own(pid)
	require.Equal(t, service.NotRunning, service.KindOf(p.Signal(syscall.SIGTERM)))
	require.NoError(t, p.Close())

	found, err := Find(w, proc(t), nil, pid, startOf(t, pid))
	require.NoError(t, err)
	require.Equal(t, service.Exit{Code: 3}, awaitExit(t, found), "it is our child after all")
	require.NoError(t, found.Close())
}

func awaitZombie(t testing.TB, pidfd int) {
	t.Helper()
	require.Eventually(t, func() bool { return Ended(pidfd) }, deadline, time.Millisecond)
}

func startOf(t testing.TB, pid int) uint64 {
	t.Helper()
	start, err := proc(t).StartTicks(pid)
	require.NoError(t, err)
	return start
}

func TestSignalGroupReachesAllAtOnceAndOutlivesTheLeader(t *testing.T) {
	// Its orphans are ours to reap: who else would, and when, depends on the host.
	require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	defer func() { require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)) }()
	w := newWatcher(t)
	p := child(t, w, "sleep 1000 & sleep 1000 & exit 4")
	require.Equal(t, service.Exit{Code: 4}, awaitExit(t, p))
	group := func() int {
		n := 0
		list, err := proc(t).Processes()
		require.NoError(t, err)
		for _, q := range list {
			if q.PGID == p.PID() && q.Alive() {
				n++
			}
		}
		return n
	}
	require.Equal(t, 2, group())
	err := p.SignalGroup(syscall.SIGKILL)
	if !kernelIs(t, 6, 9) {
		require.ErrorIs(t, err, unix.EINVAL)
		list, _ := proc(t).Processes()
		for _, q := range list {
			if q.PGID == p.PID() {
				_ = syscall.Kill(q.PID, syscall.SIGKILL)
				wait4(q.PID)
			}
		}
		return
	}
	require.NoError(t, err)
	require.Eventually(t, func() bool { return group() == 0 }, deadline, time.Millisecond)
	for range 2 {
		pid, _, found := zombie()
		require.True(t, found)
		reapStranger(pid)
	}
	require.Equal(t, service.NotRunning, service.KindOf(p.SignalGroup(syscall.SIGKILL)), "the group has no members once they are reaped")
}

func TestFind(t *testing.T) {
	w := newWatcher(t)
	cmd := exec.Command("sleep", "1000")
	require.NoError(t, cmd.Start())
	pid := cmd.Process.Pid
	start := startOf(t, pid)

	_, err := Find(w, proc(t), nil, pid, start+1)
	require.ErrorIs(t, err, ErrGone, "another process with the same number")
	_, err = Find(w, proc(t), nil, 1<<22+1, start)
	require.ErrorIs(t, err, ErrGone)

	p, err := Find(w, proc(t), nil, pid, start)
	require.NoError(t, err)
	require.Equal(t, pid, p.PID())
	require.NoError(t, p.Signal(syscall.SIGTERM))
	awaitExit(t, p)
	_ = cmd.Wait()
	require.NoError(t, p.Close())
	_, err = Find(w, proc(t), nil, pid, start)
	require.ErrorIs(t, err, ErrGone)
}

// grandchild starts a process whose parent is not us: a shell that waits for
// it, or never does.
func grandchild(t *testing.T, w *watch.Watcher, parent string) *Process {
	t.Helper()
	r, out, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", parent)
	cmd.Stdout = out
	require.NoError(t, cmd.Start())
	out.Close()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	buffer := make([]byte, 32)
	n, err := r.Read(buffer)
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buffer[:n])))
	require.NoError(t, err)
	p, err := Find(w, proc(t), nil, pid, startOf(t, pid))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// kernelIs tells whether this kernel is of a version or a later one. What it
// has is decided by that, not by asking it, or a broken call of ours would
// excuse itself.
func kernelIs(t *testing.T, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	require.NoError(t, unix.Uname(&name))
	var x, y int
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &x, &y)
	require.NoError(t, err)
	return x > major || x == major && y >= minor
}

func TestExitOfAStrangerIsExactWhereTheKernelKeepsIt(t *testing.T) {
	w := newWatcher(t)
	p := grandchild(t, w, `sh -c 'trap "exit 6" TERM; echo $$; while :; do sleep 0.01; done' & wait; exec sleep 1000`)
	require.NoError(t, p.Signal(syscall.SIGTERM))
	want := service.Exit{Unknown: UnknownExit}
	if kernelIs(t, 6, 15) { // PIDFD_INFO_EXIT
		want = service.Exit{Code: 6}
	}
	require.Equal(t, want, awaitExit(t, p))
}

// lateTeller is asked when the end has come already.
type lateTeller struct{ t *testing.T }

func (l lateTeller) Ended(pid int, _ uint64) (Told, bool, error) {
	require.NoError(l.t, syscall.Kill(pid, syscall.SIGTERM))
	require.Eventually(l.t, func() bool { _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); return err != nil }, deadline, time.Millisecond)
	time.Sleep(20 * time.Millisecond) // for the watcher, of whose look nobody tells
	return Told{}, false, nil
}

func (lateTeller) Await(_ int, _ uint64, tell func(Told, bool)) func() {
	tell(Told{Exit: service.Exit{Code: 42}}, true)
	return func() {}
}

func (lateTeller) AwaitStop(int, uint64, func()) (func(), bool) { return nil, false }

// TestTheTellerCountsMore: what ends before its parent was asked has ended as the
// parent says, and not as unknown.
func TestTheTellerCountsMore(t *testing.T) {
	w := newWatcher(t)
	stranger := grandchild(t, w, `sh -c 'trap "exit 6" TERM; echo $$; while :; do sleep 0.01; done' & wait; exec sleep 1000`)
	p, err := Find(w, proc(t), lateTeller{t}, stranger.PID(), stranger.StartTicks())
	require.NoError(t, err)
	require.Equal(t, service.Exit{Code: 42}, awaitExit(t, p))
	require.NoError(t, p.Close())
}

func TestEndOfAStrangerThatNobodyReapsIsToldAsUnknown(t *testing.T) {
	w := newWatcher(t)
	// The parent of the inner process becomes a program that never waits.
	p := grandchild(t, w, `sh -c 'echo $$; exec sleep 1000' & exec sleep 1000`)
	require.NoError(t, p.Signal(syscall.SIGKILL))
	require.Equal(t, service.Exit{Unknown: UnknownExit}, awaitExit(t, p))
	require.Equal(t, service.NotRunning, service.KindOf(p.Signal(syscall.SIGKILL)))
}

func TestTwoHoldersOfOneChild(t *testing.T) {
	w := newWatcher(t)
	for range 50 {
		pid, pidfd := fork(t, "trap 'exit 5' TERM; while :; do :; done")
		first, err := Child(w, pid, pidfd)
		require.NoError(t, err)
		second, err := Find(w, proc(t), nil, pid, first.StartTicks())
		require.NoError(t, err)
		require.NoError(t, first.Signal(syscall.SIGTERM))
		exit := awaitExit(t, first)
		if exit.Unknown != "" { // the other one was first
			exit = awaitExit(t, second)
		}
		require.Contains(t, []service.Exit{{Code: 5}, {Signal: syscall.SIGTERM}}, exit)
		require.Contains(t, []service.Exit{exit, {Unknown: UnknownExit}}, awaitExit(t, second))
		require.NoError(t, first.Close())
		require.NoError(t, second.Close())
	}
}

// TestThousandsOfExitsAtOnce ends all children by closing the one pipe that
// each of them reads from; a signal for each would come too late for a storm.
func TestThousandsOfExitsAtOnce(t *testing.T) {
	children := 5000
	if os.Getenv("GLADSHEIM_TEST_HOST") != "" {
		children = 500 // on an emulated machine
	}
	w := newWatcher(t)
	gate, open, err := os.Pipe()
	require.NoError(t, err)
	held := make([]*Process, children)
	for i := range held {
		var pidfd int
		pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "read line; exit " + strconv.Itoa(i%256)}, &syscall.ProcAttr{
			Files: []uintptr{gate.Fd(), gate.Fd(), gate.Fd()}, Sys: &syscall.SysProcAttr{PidFD: &pidfd},
		})
		require.NoError(t, err)
		held[i], err = Child(w, pid, pidfd)
		require.NoError(t, err)
	}
	require.NoError(t, gate.Close())
	began := time.Now()
	require.NoError(t, open.Close())
	for i, p := range held {
		require.Equal(t, service.Exit{Code: i % 256}, awaitExit(t, p))
	}
	t.Logf("%d exits in %v", children, time.Since(began))
	for _, p := range held {
		require.NoDirExists(t, "/proc/"+strconv.Itoa(p.PID()), "it is reaped")
		require.NoError(t, p.Close())
	}
}

func TestCloseWhileItEnds(t *testing.T) {
	w := newWatcher(t)
	for range 100 {
		pid, pidfd := fork(t, ":")
		p, err := Child(w, pid, pidfd)
		require.NoError(t, err)
		require.NoError(t, p.Close())
		wait4(pid) // reaped by it, or left to us
	}
	require.Empty(t, children.held)
}

// wait4 waits for the child pid, if it is one still.
func wait4(pid int) {
	for {
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
			return
		}
	}
}

func TestReapSparesWhatIsHeld(t *testing.T) {
	w := newWatcher(t)
	p := child(t, w, "exec sleep 1000")
	require.False(t, reapStranger(p.PID()))
	strange, _, found := zombie()
	require.False(t, found, "%d", strange)

	pid, pidfd := fork(t, "exit 1")
	defer unix.Close(pidfd)
	awaitZombie(t, pidfd)
	dead, held, found := zombie()
	require.True(t, found)
	require.False(t, held)
	require.Equal(t, pid, dead)
	require.True(t, reapStranger(pid))
	require.False(t, reapStranger(pid))
}

func TestReleasedWakes(t *testing.T) {
	w := newWatcher(t)
	wake := make(chan struct{}, 1)
	stop := whenReleased(wake)
	p := child(t, w, "exit 0")
	awaitExit(t, p)
	select {
	case <-wake:
	case <-time.After(deadline):
		require.Fail(t, "not woken")
	}
	stop()
	require.Empty(t, children.wake)
}

func TestChildThatIsGoneCanNotBeHeld(t *testing.T) {
	w := newWatcher(t)
	pid, pidfd := fork(t, ":")
	wait4(pid)
	_, err := Child(w, pid, pidfd)
	require.ErrorIs(t, err, procfs.ErrNoProcess)
	require.NoError(t, unix.Close(pidfd), "it is still the caller's")
}

func TestChildThatCanNotBeWatchedStaysTheCallers(t *testing.T) {
	closed, err := watch.New()
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	pid, pidfd := fork(t, "exec sleep 1000")
	_, err = Child(closed, pid, pidfd)
	require.ErrorIs(t, err, os.ErrClosed)
	require.NoError(t, unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0))
	wait4(pid)
	require.NoError(t, unix.Close(pidfd))

	begun, err := proc(t).StartTicks(os.Getpid())
	require.NoError(t, err)
	next, err := unix.PidfdOpen(os.Getpid(), 0)
	require.NoError(t, err)
	require.NoError(t, unix.Close(next))
	_, err = Find(closed, proc(t), nil, os.Getpid(), begun)
	require.ErrorIs(t, err, os.ErrClosed)
	require.ErrorIs(t, unix.Close(next), unix.EBADF, "nobody else has this one")
}

// All orphans are reaped, and a child that is held is left to its Process.
func TestReaperSparesWhatIsHeld(t *testing.T) {
	require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	defer func() { require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)) }()
	w := newWatcher(t)
	r := StartReaper(proc(t))
	defer r.Stop()
	held := child(t, w, "for i in 1 2 3 4 5 6 7 8 9; do (sleep 0 & sleep 0 &) ; done; wait; exit 7")
	require.Equal(t, service.Exit{Code: 7}, awaitExit(t, held))
	require.Eventually(t, func() bool {
		_, _, zombie := zombie()
		return !zombie
	}, deadline, time.Millisecond)
	r.Stop()
}

// reuse makes the kernel give the number pid to a new process.
func reuse(t *testing.T, pid int) *exec.Cmd {
	t.Helper()
	for range 200 {
		// Whoever forks in between takes the number away; then again.
		err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0)
		if err != nil {
			t.Skipf("the next number can not be chosen here: %v", err)
		}
		cmd := exec.Command("/bin/sleep", "1000")
		require.NoError(t, cmd.Start())
		if cmd.Process.Pid == pid {
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			return cmd
		}
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
	t.Fatal("somebody else always took the number")
	return nil
}

func TestABystanderWithTheSameNumberIsNotTouched(t *testing.T) {
	w := newWatcher(t)
	pid, pidfd := fork(t, "exec sleep 1000")
	p, err := Child(w, pid, pidfd)
	require.NoError(t, err)
	defer p.Close()
	time.Sleep(30 * time.Millisecond) // start ticks are 10 ms apart
	require.NoError(t, p.Signal(syscall.SIGKILL))
	awaitExit(t, p)

	bystander := reuse(t, pid)
	require.Equal(t, service.NotRunning, service.KindOf(p.Signal(syscall.SIGKILL)))
	require.Error(t, p.SignalGroup(syscall.SIGKILL))
	_, err = Find(w, proc(t), nil, pid, p.StartTicks())
	require.ErrorIs(t, err, ErrGone)
	require.NoError(t, p.Close())
	found, err := proc(t).Process(bystander.Process.Pid)
	require.NoError(t, err)
	require.True(t, found.Alive())
	require.NoError(t, bystander.Process.Signal(syscall.Signal(0)))
}

func TestMark(t *testing.T) {
	pid, ticks, ok := ParseMark(Mark(4711, 1<<63))
	require.True(t, ok)
	require.Equal(t, 4711, pid)
	require.Equal(t, uint64(1<<63), ticks)
	for _, other := range []string{"", "4711", "4711 ", " 4711 1", "4711 1 ", "0 1", "-3 1", "4711 -1", "04711 1", "x 1", "4711 1\x00"} {
		_, _, ok := ParseMark(other)
		require.False(t, ok, "%q", other)
	}
}

func TestWhoIsBelievable(t *testing.T) {
	fs := proc(t)
	is := func(ok bool, err error) func() (bool, error) { return func() (bool, error) { return ok, err } }
	unasked := func() (bool, error) { t.Error("it does not live"); return true, nil }
	self := os.Getpid()
	ticks, err := fs.StartTicks(self)
	require.NoError(t, err)
	now := uint64(procfs.SinceBoot() / procfs.Ticks(1))
	broken := errors.New("the host is broken")
	for name, tt := range map[string]struct {
		pid     int
		ticks   uint64
		belongs func() (bool, error)
		want    bool
		err     error
	}{
		"lives and belongs":              {self, ticks, is(true, nil), true, nil},
		"lives elsewhere":                {self, ticks, is(false, nil), false, nil},
		"lived a moment ago":             {self, ticks, is(false, procfs.ErrNoProcess), true, nil},
		"nobody can tell":                {self, ticks, is(false, broken), false, broken},
		"had its number before":          {self, ticks - 1, unasked, true, nil},
		"may get its number later":       {self, now + 1000, unasked, false, nil},
		"no number that any process has": {1 << 23, ticks, unasked, true, nil},
		"not yet born":                   {1 << 23, now + 1000, unasked, false, nil},
	} {
		got, err := Believable(fs, tt.pid, tt.ticks, tt.belongs)
		require.ErrorIs(t, err, tt.err, name)
		require.Equal(t, tt.want, got, name)
	}
}
