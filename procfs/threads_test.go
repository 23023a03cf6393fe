package procfs

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// threads is a process of the given states, of which the first is that of the process.
func threads(t *testing.T, wait string, states ...byte) FS {
	files := map[string]string{"7/stat": stat(7, evil, states[0], 1, 7, 7), "7/wchan": wait}
	for i, state := range states {
		dir := "7/task/" + strconv.Itoa(7+i)
		files[dir+"/stat"] = stat(7+i, evil, state, 1, 7, 7)
		files[dir+"/status"] = "Name:\tvoluntary_ctxt_switches: 5\nvoluntary_ctxt_switches:\t10\nnonvoluntary_ctxt_switches:\t3\n"
	}
	return tree(t, files)
}

func TestThreads(t *testing.T) {
	for _, c := range []struct {
		states string
		wait   string
		want   service.Threads
	}{
		{states: "S"},
		{states: "R", want: service.Threads{Busy: true}},
		{states: "SD"}, // the others are not looked at
		{states: "T", want: service.Threads{Stopped: true, Held: true}},
		{states: "TTT", want: service.Threads{Stopped: true, Held: true}},
		{states: "TS"}, // about to stop, or to go on
		{states: "t"},  // traced
		{states: "Tt"}, // likewise
		{states: "ZT", want: service.Threads{Stopped: true, Held: true}}, // the first one has ended
		{states: "Z"}, // all have
		{states: "DS", want: service.Threads{Busy: true}}, // another one can run
		{states: "D", wait: "__refrigerator"},             // frozen by cgroup v1
		{states: "DTD", wait: "0", want: service.Threads{Held: true, Turns: 39, Busy: true}},
		{states: "DD", wait: "rpc_wait_bit_killable", want: service.Threads{Held: true, Turns: 26, Busy: true, Waits: "rpc_wait_bit_killable"}},
	} {
		t.Run(c.states+c.wait, func(t *testing.T) {
			got, err := threads(t, c.wait, []byte(c.states)...).Threads(7)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
	_, err := testTree(t).Threads(8)
	require.ErrorIs(t, err, ErrNoProcess)
}

// TestThreadsOfARealProcess: one that is stopped, and traced.
func TestThreadsOfARealProcess(t *testing.T) {
	fs, err := New("/proc")
	require.NoError(t, err)
	p := exec.Command("sleep", "60")
	require.NoError(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	stopped := func(want bool) {
		t.Helper()
		require.Eventually(t, func() bool {
			got, err := fs.Threads(p.Process.Pid)
			require.NoError(t, err)
			return got.Stopped == want && got.Held == want
		}, time.Minute, time.Millisecond)
	}
	stopped(false)
	require.NoError(t, p.Process.Signal(unix.SIGSTOP))
	stopped(true)
	require.NoError(t, p.Process.Signal(unix.SIGCONT))
	stopped(false)

	runtime.LockOSThread() // the thread is the tracer
	defer runtime.UnlockOSThread()
	require.NoError(t, unix.PtraceAttach(p.Process.Pid))
	_, err = unix.Wait4(p.Process.Pid, nil, unix.WUNTRACED, nil)
	require.NoError(t, err)
	traced, err := fs.Process(p.Process.Pid)
	require.NoError(t, err)
	require.Equal(t, byte('t'), traced.State)
	stopped(false)
	require.NoError(t, unix.PtraceDetach(p.Process.Pid))
}

func TestLoad(t *testing.T) {
	load, err := tree(t, map[string]string{"loadavg": "0.34 0.81 0.63 1/92 28761\n"}).Load()
	require.NoError(t, err)
	require.InDelta(t, 0.34, load, 1e-9)
	_, err = tree(t, map[string]string{"loadavg": "much\n"}).Load()
	require.ErrorContains(t, err, "loadavg")
	_, err = tree(t, nil).Load()
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestHoldersOfASocket(t *testing.T) {
	fs, err := New("/proc")
	require.NoError(t, err)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	file, err := l.(*net.UnixListener).File()
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(file.Fd()), &st))
	holders, err := fs.HoldersOf(st.Ino)
	require.NoError(t, err)
	require.Equal(t, []int{os.Getpid()}, holders)
	require.NoError(t, file.Close())
	require.NoError(t, l.Close())
	holders, err = fs.HoldersOf(st.Ino)
	require.NoError(t, err)
	require.Empty(t, holders)
}
