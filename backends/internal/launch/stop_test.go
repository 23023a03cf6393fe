package launch

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/backends/internal/process"
)

// awaitStop is told of the next stop or of the next time that it goes on.
func awaitStop(t *testing.T, p *process.Process) <-chan struct{} {
	t.Helper()
	heard := make(chan struct{}, 1)
	_, told := p.AwaitStop(func() { heard <- struct{}{} })
	require.True(t, told)
	return heard
}

func within(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatal("in vain: " + what)
	}
}

// TestShimTellsOfStops: of each once, of nobody else's, and not to who does not want to
// know any more.
func TestShimTellsOfStops(t *testing.T) {
	f := newFamily(t, t.TempDir())
	p, other := f.run(t, "sleep 60"), f.run(t, "sleep 60")
	forgotten := func() { t.Error("it did not want to know any more") }
	forget, told := other.AwaitStop(forgotten)
	require.True(t, told)
	forget()
	for range 3 {
		heard := awaitStop(t, p)
		require.NoError(t, p.Signal(unix.SIGSTOP))
		within(t, heard, "that it is stopped")
		threads, err := p.Threads(f.fs)
		require.NoError(t, err)
		require.True(t, threads.Stopped)

		heard = awaitStop(t, p)
		require.NoError(t, p.Signal(unix.SIGCONT))
		within(t, heard, "that it goes on")
		threads, err = p.Threads(f.fs)
		require.NoError(t, err)
		require.False(t, threads.Stopped)
	}
	require.NoError(t, p.Signal(unix.SIGSTOP)) // one that is stopped ends as any other
	require.NoError(t, p.Signal(unix.SIGKILL))
	require.Equal(t, unix.SIGKILL, exitOf(t, p).Signal)
	_, err := p.Threads(f.fs)
	require.ErrorContains(t, err, "has ended")
	_, told = p.AwaitStop(forgotten)
	require.False(t, told, "it has ended")
}

// TestStopsOfTheAbsence: the next agent hears at once of what was stopped when none was
// there, and of what comes then.
func TestStopsOfTheAbsence(t *testing.T) {
	dir := t.TempDir()
	f := newFamily(t, dir)
	stopped, runs := f.leave(t, "sleep 60"), f.leave(t, "sleep 60")
	f.die()
	require.NoError(t, unix.Kill(stopped.PID(), unix.SIGSTOP))
	require.Eventually(t, func() bool { th, err := f.fs.Threads(stopped.PID()); return err == nil && th.Stopped }, time.Minute, time.Millisecond)

	second := newFamily(t, dir)
	found, err := Find(second.watcher, second.fs, second.Shim, stopped.PID(), stopped.StartTicks())
	require.NoError(t, err)
	threads, err := found.Threads(second.fs)
	require.NoError(t, err)
	require.True(t, threads.Stopped)
	heard := awaitStop(t, found)
	require.NoError(t, found.Signal(unix.SIGCONT))
	within(t, heard, "that it goes on")

	heard = awaitStop(t, found)
	again, err := Find(second.watcher, second.fs, second.Shim, runs.PID(), runs.StartTicks())
	require.NoError(t, err)
	others := awaitStop(t, again)
	l, err := second.find(t.Context())
	require.NoError(t, err)
	require.NoError(t, found.Signal(unix.SIGSTOP))
	within(t, heard, "that it is stopped")
	heard = awaitStop(t, found)
	l.hangUp() // what is stopped is told again on the next connection
	within(t, heard, "that it is stopped, once more")
	select {
	case <-others:
		t.Error("it was not stopped")
	default:
	}
	for _, p := range []*process.Process{found, again} {
		require.NoError(t, p.Signal(unix.SIGKILL))
		exitOf(t, p)
		require.NoError(t, p.Close())
	}
}

// TestStopsThatNobodyTells: who waits learns that the shim is no more, and asks in vain.
func TestStopsThatNobodyTells(t *testing.T) {
	f := newFamily(t, t.TempDir())
	p := f.run(t, "sleep 60")
	heard := awaitStop(t, p)
	require.NoError(t, unix.Kill(parentOf(t, f.fs, p.PID()), unix.SIGKILL))
	within(t, heard, "that nobody tells")
	require.Eventually(t, func() bool {
		forget, told := p.AwaitStop(func() {})
		if told { // it is being searched for
			forget()
		}
		return !told
	}, time.Minute, time.Millisecond)
	require.NoError(t, p.Signal(unix.SIGTERM))
	exitOf(t, p)
}

// TestAShimOfBefore: one that does not say so in the beginning tells of no stops.
func TestAShimOfBefore(t *testing.T) {
	f := newFamily(t, t.TempDir())
	p := f.run(t, "sleep 60")
	f.mu.Lock()
	f.line.stops = false // as an earlier version leaves it
	f.mu.Unlock()
	_, told := p.AwaitStop(func() {})
	require.False(t, told)
}

// TestACrowdOfStops: a child that is stopped again and again neither keeps others from
// being heard nor costs much, and how it stands in the end is told.
func TestACrowdOfStops(t *testing.T) {
	f := newFamily(t, t.TempDir())
	// Six at it, so that it has always stirred when it is asked about.
	restless := f.run(t, "for i in 1 2 3 4 5 6; do while kill -STOP $$ && kill -CONT $$; do :; done & done; wait")
	quiet := f.run(t, "sleep 60")
	shim := parentOf(t, f.fs, quiet.PID())
	used := func() time.Duration {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(shim), "schedstat"))
		require.NoError(t, err)
		n, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		require.NoError(t, err)
		return time.Duration(n)
	}
	before := used()
	for range 5 {
		within(t, awaitStop(t, restless), "that it is stopped or goes on")
	}
	require.Less(t, used()-before, 100*time.Millisecond)
	heard := awaitStop(t, quiet)
	require.NoError(t, quiet.Signal(unix.SIGSTOP))
	within(t, heard, "that it is stopped")
	require.Equal(t, unix.SIGKILL, func() unix.Signal {
		require.NoError(t, quiet.Signal(unix.SIGKILL))
		return exitOf(t, quiet).Signal
	}())
	require.NoError(t, restless.Signal(unix.SIGKILL))
	exitOf(t, restless)
}
