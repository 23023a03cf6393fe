package logfile

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// keeper is one for a directory of the test's.
func keeper(t *testing.T, dir string) *Keeper {
	t.Helper()
	k, err := Open(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	require.NoError(t, err)
	t.Cleanup(k.Close)
	return k
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, deadline, 10*time.Millisecond, what)
}

func TestAKeeperCutsBySize(t *testing.T) {
	everywhere(t, func(t *testing.T, dir string) {
		k := keeper(t, dir)
		path := filepath.Join(dir, "web.log")
		k.Keep(path, service.LogRotation{Size: 64 << 10, Total: 1 << 30})
		w := writer(t, path) // it is there after it is to be kept
		_, err := w.Write(bytes.Repeat([]byte("x"), 65<<10))
		require.NoError(t, err)
		eventually(t, "it is cut", func() bool { return len(shelf(t, path)) == 2 })
		_, err = w.Write(bytes.Repeat([]byte("x"), 65<<10))
		require.NoError(t, err)
		eventually(t, "it is cut again", func() bool { return len(shelf(t, path)) == 3 })
		k.Forget(path)
		require.NotContains(t, k.kept, path)
	})
}

// A directory that somebody removed is made anew, and what comes into it is cut and
// read like any other log.
func TestADirectoryThatWasRemoved(t *testing.T) {
	everywhere(t, func(t *testing.T, dir string) {
		dir = filepath.Join(dir, "logs")
		k := keeper(t, dir)
		path := filepath.Join(dir, "web.log")
		k.Keep(path, service.LogRotation{Size: 64 << 10, Total: 1 << 30})
		for _, what := range []string{"x", "y"} {
			require.NoError(t, k.MakeDir())
			_, err := writer(t, path).Write(bytes.Repeat([]byte(what), 65<<10))
			require.NoError(t, err)
			eventually(t, "it is cut", func() bool { return len(shelf(t, path)) == 2 })
			stream, err := k.File(path).Open()
			require.NoError(t, err)
			defer stream.Close()
			end, err := stream.End()
			require.NoError(t, err)
			text, err := io.ReadAll(io.NewSectionReader(stream, stream.Oldest(), end-stream.Oldest()))
			require.NoError(t, err)
			require.True(t, strings.Repeat(what, 65<<10) == string(text), "%d bytes, %.10q", len(text), text)
			require.NoError(t, os.RemoveAll(dir))
		}
	})
}

// A log that nobody writes costs nothing: no alarm is set until the kernel tells
// that it is written.
func TestAKeeperSleeps(t *testing.T) {
	dir := t.TempDir()
	k := keeper(t, dir)
	path := filepath.Join(dir, "web.log")
	w := writer(t, path)
	k.Keep(path, busy)
	asleep := func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.kept[path].due.IsZero() && k.kept[path].wd >= 0
	}
	eventually(t, "it sleeps", asleep)
	_, err := w.Write(bytes.Repeat([]byte("x"), 70<<10))
	require.NoError(t, err)
	eventually(t, "it is cut", func() bool { return len(shelf(t, path)) == 2 })
}

func TestAKeeperCutsByAge(t *testing.T) {
	dir := t.TempDir()
	k := keeper(t, dir)
	path := filepath.Join(dir, "web.log")
	_, err := writer(t, path).Write(bytes.Repeat([]byte("x"), 10_000))
	require.NoError(t, err)
	k.Keep(path, service.LogRotation{Size: 1 << 20, Age: time.Second, Total: 1 << 30})
	eventually(t, "it is cut", func() bool {
		info, err := os.Stat(path)
		require.NoError(t, err)
		return info.Size() < 4097
	})
	require.Equal(t, []string{"web.log", "web.log.000000000000000"}, shelf(t, path))
}

// What can not be cut is told, until it can.
func TestAKeeperTellsWhatItCanNotCut(t *testing.T) {
	dir := t.TempDir()
	k := keeper(t, dir)
	path := filepath.Join(dir, "web.log")
	require.NoError(t, os.Mkdir(path, 0o700))
	k.Keep(path, busy)
	eventually(t, "it is told", func() bool { return strings.Contains(k.Failures()[path], "no regular file") })
	require.NoError(t, os.Remove(path))
	k.Keep(path, busy)
	eventually(t, "it is well", func() bool { return len(k.Failures()) == 0 })
}

func TestOpenWhereNoLogsCanBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := Open(file, slog.Default())
	require.ErrorContains(t, err, "cannot make the log directory")
}

func TestPause(t *testing.T) {
	require.Equal(t, shortest, pause(0, 0, time.Second, 1000), "it begins short")
	require.Equal(t, 2*shortest, pause(shortest, 1, time.Second, 1000), "and doubles")
	require.Equal(t, longest, pause(longest, 0, time.Second, 1000), "up to a longest")
	require.Equal(t, time.Second, pause(longest, 500, time.Second, 1000), "unless it may be full before")
	require.Equal(t, shortest, pause(longest, 1<<40, time.Second, 1000))
}

func TestAFullDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may mount")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, "size=1m,nr_inodes=10"))
	defer func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	k := keeper(t, dir)
	full := func() bool {
		full, err := k.Full()
		require.NoError(t, err)
		return full
	}
	require.False(t, full())
	w := writer(t, filepath.Join(dir, "web.log"))
	_, err := io.Copy(w, zeros{})
	require.ErrorIs(t, err, unix.ENOSPC)
	require.True(t, full(), "no block is left")
	require.NoError(t, w.Truncate(0))
	require.False(t, full())
	for i := range 8 {
		writer(t, filepath.Join(dir, fmt.Sprint(i)))
	}
	require.True(t, full(), "no inode is left")
}
