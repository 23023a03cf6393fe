package exec

import (
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/procfs"
)

// numbers is a /proc that tells a latest number, and lists nobody.
type numbers struct {
	dir   string
	looks int // an inotify
}

func newNumbers(t *testing.T, last int) *numbers {
	dir := t.TempDir()
	looks, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(looks) })
	n := &numbers{dir, looks}
	n.tell(t, last)
	_, err = unix.InotifyAddWatch(looks, dir, unix.IN_OPEN|unix.IN_ONLYDIR)
	require.NoError(t, err)
	return n
}

func (n *numbers) path() string { return filepath.Join(n.dir, "loadavg") }

func (n *numbers) tell(t *testing.T, last int) {
	require.NoError(t, os.WriteFile(n.path(), fmt.Appendf(nil, "0.00 0.00 0.00 1/1 %d\n", last), 0o644))
}

// lookedAt tells whether the list was opened since that was asked last.
func (n *numbers) lookedAt(t *testing.T) (looked bool) {
	events := make([]byte, 1<<16)
	size, err := unix.Read(n.looks, events)
	if err == unix.EAGAIN {
		return false
	}
	require.NoError(t, err)
	for at := 0; at < size; {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&events[at]))
		looked = looked || e.Mask&unix.IN_ISDIR != 0
		at += unix.SizeofInotifyEvent + int(e.Len)
	}
	return looked
}

func (n *numbers) fs(t *testing.T) procfs.FS {
	fs, err := procfs.New(n.dir)
	require.NoError(t, err)
	return fs
}

// What a program has left is looked for among all processes, unless nothing was forked at all.
func TestWhoEndsAloneIsNotLookedFor(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "exec sleep 1000"))
	n := newNumbers(t, 1<<30)
	all := b.proc
	b.proc, b.counts = n.fs(t), true
	defer func() { b.proc = all }()
	run := func(script string) {
		_, err := h.Run(t.Context(), backends.Program{Argv: []string{"/bin/sh", "-c", script}})
		require.NoError(t, err)
	}
	unseen := func() {
		t.Helper()
		for range 20 { // the host may be so busy that it takes too long
			if run(":"); !n.lookedAt(t) {
				return
			}
		}
		t.Error("all processes were looked at")
	}
	unseen()
	run("echo 0.00 0.00 0.00 1/1 1073741825 >" + n.path())
	require.True(t, n.lookedAt(t))
	unseen()
}

func TestWhoIsCertainToBeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNumbers(t, 100)
		b := &Backend{proc: n.fs(t), counts: true}
		pid := 99
		alone := func(meanwhile func()) bool {
			opening, barren := b.fork()
			require.False(t, barren(pid), "its gate is not open yet")
			opening()
			meanwhile()
			return barren(pid)
		}
		require.True(t, alone(func() {}))
		require.True(t, alone(func() { time.Sleep(sameNumbers - 1) }))
		require.False(t, alone(func() { time.Sleep(sameNumbers) }), "the numbers may have come round")
		require.False(t, alone(func() { n.tell(t, 101) }))
		require.False(t, alone(func() { require.NoError(t, os.Remove(n.path())) }))
		require.False(t, alone(func() { n.tell(t, 100) }), "nobody knows what it was before")
		require.True(t, alone(func() {}))
		pid = 101
		require.False(t, alone(func() {}), "the kernel does not tell of it")
		pid, b.counts = 99, false
		require.False(t, alone(func() {}), "it is not the kernel that tells")
	})
}

// BenchmarkRun is a program that does nothing, beside more and more processes of the host.
func BenchmarkRun(b *testing.B) {
	for _, others := range []int{0, 500, 2000} {
		b.Run(fmt.Sprint(others), func(b *testing.B) {
			for range others {
				cmd := osexec.Command("/bin/sleep", "1000")
				require.NoError(b, cmd.Start())
				defer func() {
					_ = cmd.Process.Kill()
					_ = cmd.Wait()
				}()
			}
			h := start(b, newBackend(b), plan(b, "exec sleep 1000"))
			var times []time.Duration
			used := usedCPU(b)
			for b.Loop() {
				began := time.Now()
				_, err := h.Run(b.Context(), backends.Program{Argv: []string{"/bin/true"}})
				require.NoError(b, err)
				times = append(times, time.Since(began))
			}
			b.ReportMetric(float64((usedCPU(b)-used).Microseconds())/float64(len(times)), "cpu-µs/op")
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds()), "run-p50-µs")
		})
	}
}

// usedCPU is the CPU time of this process alone.
func usedCPU(t testing.TB) time.Duration {
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
