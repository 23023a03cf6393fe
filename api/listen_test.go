package api

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestListenRefuses(t *testing.T) {
	dir := socketDir(t)
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o644))
	open := filepath.Join(dir, "open")
	require.NoError(t, os.Mkdir(open, 0o777))
	require.NoError(t, os.Chmod(open, 0o777))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(dir, link))
	live, err := net.Listen("unix", filepath.Join(dir, "live"))
	require.NoError(t, err)
	defer live.Close()

	for name, c := range map[string]struct {
		address string
		kind    service.Kind
		says    string
	}{
		"nothing":                {"", service.Invalid, "unix:///PATH"},
		"a scheme of its own":    {"http://127.0.0.1:1", service.Invalid, "unix:///PATH"},
		"abstract":               {"unix://@gladsheim", service.Invalid, "abstract"},
		"abstract by NUL":        {"unix://\x00gladsheim", service.Invalid, "abstract"},
		"relative":               {"unix://run/s", service.Invalid, "absolute"},
		"not plain":              {"unix:///run/../tmp/s", service.Invalid, "plain"},
		"too long":               {"unix:///" + strings.Repeat("x", 120), service.Invalid, "107"},
		"others may write there": {"unix://" + open + "/s", service.Invalid, "chmod go-w"},
		"through a link":         {"unix://" + link + "/s", service.Invalid, "no directory"},
		"in place of a file":     {"unix://" + file, service.Conflict, "no socket"},
		"answered":               {"unix://" + live.Addr().String(), service.Conflict, "running already"},
		"no parent":              {"unix://" + dir + "/a/b/s", service.HostUnavailable, "no such file"},
		"every interface":        {"tcp://0.0.0.0:0", service.Invalid, "loopback"},
		"no host":                {"tcp://:50060", service.Invalid, "loopback"},
		"elsewhere":              {"tcp://192.0.2.1:50060", service.Invalid, "ssh"},
		"no port":                {"tcp://127.0.0.1", service.Invalid, "port"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Listen(c.address)
			if l != nil {
				l.Close()
			}
			require.Error(t, err)
			require.Equal(t, c.kind, service.KindOf(err), "%v", err)
			require.Contains(t, err.Error(), c.says)
			require.Contains(t, err.Error(), "cannot listen on")
		})
	}
	kept, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "precious", string(kept))
}

func TestListenOnASocket(t *testing.T) {
	dir := filepath.Join(socketDir(t), "run")
	path := filepath.Join(dir, "s")
	old := syscall.Umask(0)
	l, err := Listen("unix://" + path)
	syscall.Umask(old)
	require.NoError(t, err)
	requireMode(t, dir, os.ModeDir|0o750)
	requireMode(t, path, os.ModeSocket|0o660)
	require.NoError(t, l.Close())
	require.NoFileExists(t, path)
}

// Whoever made the directory, and when, the group can pass it afterwards.
func TestRunDir(t *testing.T) {
	group := uint32(os.Getegid())
	if os.Geteuid() == 0 {
		group = testGroup
	}
	gid := func(path string) uint32 {
		info, err := os.Stat(path)
		require.NoError(t, err)
		return info.Sys().(*syscall.Stat_t).Gid
	}
	top := socketDir(t)
	missing := filepath.Join(top, "parent", "missing")
	require.NoError(t, makeRunDir(missing, group, true))
	requireMode(t, missing, os.ModeDir|0o750)
	require.Equal(t, group, gid(missing))

	made := filepath.Join(top, "made")
	require.NoError(t, os.Mkdir(made, 0o750))
	require.NoError(t, makeRunDir(made, 0, false))
	require.EqualValues(t, os.Getegid(), gid(made), "there is no group yet")
	require.NoError(t, makeRunDir(made, group, true))
	require.Equal(t, group, gid(made))
	requireMode(t, made, os.ModeDir|0o750)

	private := filepath.Join(top, "private")
	require.NoError(t, os.Mkdir(private, 0o700))
	require.NoError(t, makeRunDir(private, group, true))
	require.EqualValues(t, os.Getegid(), gid(private), "somebody meant it so")

	file := filepath.Join(top, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.ErrorContains(t, makeRunDir(file, group, true), "no directory")
	require.Error(t, makeRunDir(file+"/run", group, true))
}

func TestAStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	require.NoError(t, dead.Close())
	requireMode(t, path, os.ModeSocket|0o777&^umask())
	l, err := Listen("unix://" + path)
	require.NoError(t, err)
	defer l.Close()
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	conn.Close()
}

// TestASocketWhereManyKnock: one that answers late is in use, and nobody waits for it.
func TestASocketWhereManyKnock(t *testing.T) {
	path := filepath.Join(socketDir(t), "busy")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	require.NoError(t, unix.Listen(fd, 0))
	for {
		c, err := net.DialTimeout("unix", path, time.Minute)
		if err != nil {
			require.ErrorIs(t, err, unix.EAGAIN)
			break
		}
		defer c.Close()
	}
	_, err = Listen("unix://" + path)
	require.Equal(t, service.Conflict, service.KindOf(err))
	require.ErrorContains(t, err, "answers there")
	_, err = os.Lstat(path)
	require.NoError(t, err)
}

func TestListenOnLoopback(t *testing.T) {
	for _, address := range []string{"tcp://127.0.0.1:0", "tcp://localhost:0"} {
		l, err := Listen(address)
		require.NoError(t, err)
		require.True(t, l.Addr().(*net.TCPAddr).IP.IsLoopback())
		l.Close()
	}
}

func umask() os.FileMode {
	old := syscall.Umask(0)
	syscall.Umask(old)
	return os.FileMode(old)
}

func requireMode(t *testing.T, path string, want os.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, want, info.Mode())
}
