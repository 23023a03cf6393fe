package launch

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestReadyThenOpen(t *testing.T) {
	w := newWatcher(t)
	c, err := Start(t.Context(), w, request("/bin/sh", "-c", "exit 3"))
	require.NoError(t, err)
	require.NoError(t, c.Ready(t.Context()))
	require.Equal(t, "0000000000000000", statusOf(t, c.PID())["SigCgt"], "it only waits")
	require.NoError(t, c.Open(t.Context()))
	require.Equal(t, service.Exit{Code: 3}, awaitExit(t, c))
	require.NoError(t, c.Process().Close())
	require.Error(t, c.Ready(t.Context()))
}

func TestReadyTellsWhatOpenWould(t *testing.T) {
	w := newWatcher(t)
	gone := func(c *Child, err error, kind service.Kind) {
		t.Helper()
		require.Equal(t, kind, service.KindOf(err), "%v", err)
		require.NoDirExists(t, procPath(c.PID()))
		require.Error(t, c.Open(t.Context()))
	}

	req := request("/bin/true")
	req.Launch.Limits[service.NoFile] = service.Of(1 << 60) // more than fs.nr_open
	c, err := Start(t.Context(), w, req)
	require.NoError(t, err)
	err = c.Ready(t.Context())
	gone(c, err, service.Unlaunchable)
	require.ErrorContains(t, err, "set the limit of open files")

	c, err = Start(t.Context(), w, request("/bin/true"))
	require.NoError(t, err)
	require.NoError(t, c.Process().Signal(syscall.SIGKILL))
	awaitExit(t, c)
	err = c.Ready(t.Context())
	if err == nil { // it was ready before it was killed
		err = c.Open(t.Context())
	}
	gone(c, err, service.Unlaunchable)

	c, err = Start(t.Context(), w, request("/bin/true"))
	require.NoError(t, err)
	require.NoError(t, c.Process().Signal(syscall.SIGSTOP))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = c.Ready(ctx)
	if err == nil {
		err = c.Open(ctx)
	}
	gone(c, err, service.Cancelled)
}

// cgroupHere makes a cgroup v2 group beside our own, or skips: where the host
// offers cgroup2 that must work.
func cgroupHere(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	reason := "no cgroup v2 is mounted"
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != "cgroup2" {
			continue
		}
		dir := filepath.Join(fields[1], "launch-test")
		if err = os.Mkdir(dir, 0o755); err == nil {
			t.Cleanup(func() {
				require.Eventually(t, func() bool { return os.Remove(dir) == nil }, deadline, deadline/1000)
			})
			return dir
		}
		reason = err.Error()
	}
	if strings.Contains(os.Getenv("GLADSHEIM_TEST_OFFERS"), "cgroup2") && os.Geteuid() == 0 {
		require.Fail(t, reason)
	}
	t.Skip(reason)
	return ""
}

func TestBornInACgroup(t *testing.T) {
	dir := cgroupHere(t)
	w := newWatcher(t)
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	inside := func(c *Child) {
		t.Helper()
		text, err := os.ReadFile(procPath(c.PID()) + "/cgroup")
		require.NoError(t, err)
		require.Contains(t, string(text), "launch-test\n")
	}

	req := request("/bin/sleep", "1000")
	req.CgroupFD = fd
	c, err := Start(t.Context(), w, req)
	require.NoError(t, err)
	inside(c)
	require.NoError(t, c.Open(t.Context()))
	inside(c)
	end(t, c)

	pause, err := StartPause(w, fd)
	require.NoError(t, err)
	inside(pause)
	require.NoError(t, pause.Open(t.Context()))
	end(t, pause)

	// A directory that is no cgroup.
	other, err := unix.Open(t.TempDir(), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(other)
	req.CgroupFD = other
	failure := attempt(t, req)
	require.ErrorContains(t, failure, "fork")
}
