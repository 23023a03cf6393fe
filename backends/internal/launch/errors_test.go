package launch

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/watch"
)

// attempt starts req and opens its gate; it must fail and leave nothing.
func attempt(t *testing.T, req Request) *service.Error {
	t.Helper()
	w := newWatcher(t)
	before := openFiles(t)
	c, err := Start(t.Context(), w, req)
	if err == nil {
		err = c.Open(t.Context())
		require.Error(t, err)
		require.NoDirExists(t, procPath(c.PID()))
	}
	require.Equal(t, before, openFiles(t))
	var failure *service.Error
	require.ErrorAs(t, err, &failure)
	require.Equal(t, service.Unlaunchable, failure.Kind, "%v", err)
	require.Equal(t, req.Launch.Name, failure.Service)
	require.True(t, strings.HasPrefix(err.Error(), "cannot start web: "), "%v", err)
	return failure
}

func writeFile(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	require.NoError(t, os.Chmod(path, mode))
	return path
}

func TestEachExecErrorComesBackAsItself(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	file := func(name, content string, mode os.FileMode) string { return writeFile(t, path(name), content, mode) }
	binary, err := os.ReadFile("/bin/true")
	require.NoError(t, err)
	loader := interpreter("/bin/true")
	require.NotEmpty(t, loader)
	loader = strings.Trim(loader, `"`)
	foreign := bytes.Replace(binary, []byte(loader), []byte(loader[:len(loader)-1]+"~"), 1)
	require.NoError(t, os.Symlink(path("loop2"), path("loop1")))
	require.NoError(t, os.Symlink(path("loop1"), path("loop2")))
	busy, err := os.OpenFile(file("busy", string(binary), 0o755), os.O_WRONLY, 0)
	require.NoError(t, err)
	defer busy.Close()

	for _, row := range []struct {
		name      string
		exec      []string
		reason    service.Reason
		transient bool
		errno     syscall.Errno
		text      string
	}{
		{"ENOENT", []string{path("absent")}, service.ReasonExecNotFound, false, unix.ENOENT, "execute " + path("absent") + ": no such file or directory"},
		{"ENOTDIR", []string{file("plain", "", 0o644) + "/x"}, service.ReasonExecNotFound, false, unix.ENOTDIR, "not a directory"},
		{"ENAMETOOLONG", []string{"/" + strings.Repeat("x", 300)}, service.ReasonExecNotFound, false, unix.ENAMETOOLONG, "file name too long"},
		{"ENOENT of the #! interpreter", []string{file("script", "#!/nowhere/python9 -u\n", 0o755)}, service.ReasonExecNotFound, false, unix.ENOENT, `its interpreter "/nowhere/python9" does not exist`},
		{"ENOENT of the loader", []string{file("foreign", string(foreign), 0o755)}, service.ReasonExecNotFound, false, unix.ENOENT, "its interpreter \"" + loader[:len(loader)-1] + "~\" does not exist"},
		{"EACCES mode", []string{file("mode", string(binary), 0o644)}, service.ReasonExecDenied, false, unix.EACCES, "its mode, 0644, allows nobody to execute it"},
		{"EACCES directory", []string{dir}, service.ReasonExecDenied, false, unix.EACCES, "it is a directory"},
		{"EACCES device", []string{"/dev/null"}, service.ReasonExecDenied, false, unix.EACCES, "it is not a regular file"},
		{"EACCES of the interpreter", []string{file("script2", "#!"+path("mode")+"\n", 0o755)}, service.ReasonExecDenied, false, unix.EACCES, path("mode")},
		{"ENOEXEC", []string{file("text", "hello\n", 0o755)}, service.ReasonExecFormat, false, unix.ENOEXEC, "exec format error"},
		{"ENOEXEC empty", []string{file("empty", "", 0o755)}, service.ReasonExecFormat, false, unix.ENOEXEC, "exec format error"},
		{"E2BIG one", []string{"/bin/true", strings.Repeat("x", 128<<10)}, service.ReasonExecTooBig, false, unix.E2BIG, "argument list too long"},
		{"E2BIG all", append([]string{"/bin/true"}, repeat(strings.Repeat("x", 100<<10), 100)...), service.ReasonExecTooBig, false, unix.E2BIG, "argument list too long"},
		{"ETXTBSY", []string{busy.Name()}, service.ReasonExecBusy, true, unix.ETXTBSY, "text file busy"},
		{"ELOOP", []string{path("loop1")}, service.ReasonExecLoop, false, unix.ELOOP, "too many levels of symbolic links"},
	} {
		t.Run(row.name, func(t *testing.T) {
			failure := attempt(t, request(row.exec...))
			require.Equal(t, row.reason, failure.Reason, "%v", failure)
			require.Equal(t, !row.transient, failure.Permanent)
			require.ErrorIs(t, failure, row.errno)
			require.ErrorContains(t, failure, row.text)
			require.ErrorContains(t, failure, "execute "+row.exec[0])
		})
	}
}

func repeat(s string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = s
	}
	return list
}

func TestProgramOnANoexecMountIsDenied(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may mount")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("none", dir, "tmpfs", unix.MS_NOEXEC, "size=1m"))
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	program := writeFile(t, filepath.Join(dir, "true"), "#!/bin/sh\n", 0o755)
	failure := attempt(t, request(program))
	require.Equal(t, service.ReasonExecDenied, failure.Reason)
	require.True(t, failure.Permanent)
	require.ErrorContains(t, failure, "mounted noexec")
}

func TestBadDirectoryIsNamed(t *testing.T) {
	dir := t.TempDir()
	plain := writeFile(t, filepath.Join(dir, "plain"), "", 0o644)
	magic := filepath.Join(dir, "magic")
	require.NoError(t, os.Symlink("/proc/self/root/tmp", magic))
	for _, row := range []struct {
		dir   string
		errno syscall.Errno
	}{
		{filepath.Join(dir, "absent"), unix.ENOENT},
		{plain, unix.ENOTDIR},
		{magic, unix.ELOOP},
	} {
		t.Run(filepath.Base(row.dir), func(t *testing.T) {
			req := request("/bin/true")
			req.Launch.Spec.WorkingDirectory = row.dir
			failure := attempt(t, req)
			require.Equal(t, service.ReasonBadDirectory, failure.Reason)
			require.True(t, failure.Permanent)
			require.ErrorIs(t, failure, row.errno)
			require.ErrorContains(t, failure, "change directory to "+row.dir)
		})
	}
}

func TestUnknownUserAndGroupAreNamed(t *testing.T) {
	for _, row := range []struct {
		user, group string
		reason      service.Reason
		text        string
	}{
		{"nosuchuser", "", service.ReasonUnknownUser, `unknown user "nosuchuser"`},
		{"", "nosuchgroup", service.ReasonUnknownGroup, `unknown group "nosuchgroup"`},
		{"root", "nosuchgroup", service.ReasonUnknownGroup, `unknown group "nosuchgroup"`},
		{"4200000000", "", service.ReasonUnknownUser, "a group must be given too"},
		// No spelling of a number but the plain one may become a user.
		{"0day", "", service.ReasonUnknownUser, `"0day"`},
		{"+0", "", service.ReasonUnknownUser, `"+0"`},
		{"-1", "", service.ReasonUnknownUser, `"-1"`},
		{" 0", "", service.ReasonUnknownUser, `" 0"`},
		{"0x0", "", service.ReasonUnknownUser, `"0x0"`},
		{"٠", "", service.ReasonUnknownUser, `"٠"`},
		{"4294967296", "", service.ReasonUnknownUser, `"4294967296"`},
		{"4294967295", "", service.ReasonUnknownUser, `"4294967295"`},
		{"", "4294967295", service.ReasonUnknownGroup, `"4294967295"`},
	} {
		t.Run(row.user+":"+row.group, func(t *testing.T) {
			req := request("/bin/true")
			req.Launch.Spec.User, req.Launch.Spec.Group = row.user, row.group
			failure := attempt(t, req)
			require.Equal(t, row.reason, failure.Reason, "%v", failure)
			require.True(t, failure.Permanent)
			require.ErrorContains(t, failure, row.text)
		})
	}
}

func TestWhatAPlainUserMayNotDoIsNamed(t *testing.T) {
	if ranAsNobody(t) {
		return
	}
	limit := unix.Rlimit{}
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	locked := filepath.Join(t.TempDir(), "locked")
	require.NoError(t, os.Mkdir(locked, 0))

	for _, row := range []struct {
		name   string
		change func(*Request)
		reason service.Reason
		text   string
	}{
		{"user", func(r *Request) { r.Launch.Spec.User = "root" }, service.ReasonNoPermission, "operation not permitted; only root may"},
		{"group", func(r *Request) { r.Launch.Spec.Group = "root" }, service.ReasonNoPermission, "operation not permitted; only root may"},
		{"oom_score_adj", func(r *Request) { r.Launch.Spec.OOMScoreAdj = -500 }, service.ReasonNoPermission, "set oom_score_adj"},
		{"nofile", func(r *Request) { r.Launch.Limits[service.NoFile] = service.Of(limit.Max + 1) }, service.ReasonNoPermission, "set the limit of open files"},
		{"directory", func(r *Request) { r.Launch.Spec.WorkingDirectory = locked }, service.ReasonBadDirectory, "permission denied"},
		{"program", func(r *Request) { r.Launch.Spec.Exec = []string{locked + "/x"} }, service.ReasonExecDenied, "a directory above it may not be entered"},
	} {
		t.Run(row.name, func(t *testing.T) {
			req := request("/bin/true")
			row.change(&req)
			failure := attempt(t, req)
			require.Equal(t, row.reason, failure.Reason, "%v", failure)
			require.True(t, failure.Permanent)
			require.ErrorContains(t, failure, row.text)
		})
	}
}

func TestWantOfProcessesIsNotPermanent(t *testing.T) {
	if ranAsNobody(t) {
		return
	}
	old := unix.Rlimit{}
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NPROC, &old))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 1, Max: old.Max}))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NPROC, &old)) }()
	failure := attempt(t, request("/bin/true"))
	require.Equal(t, service.ReasonNoResources, failure.Reason, "%v", failure)
	require.False(t, failure.Permanent)
	require.ErrorIs(t, failure, unix.EAGAIN)
}

func TestWantOfDescriptorsIsNotPermanent(t *testing.T) {
	old := unix.Rlimit{}
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	w := newWatcher(t)
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) }()
	// Whatever the number of descriptors that it may open before it fails.
	started := 0
	for spare := range uint64(12) {
		lowest, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(lowest))
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(lowest) + spare, Max: old.Max}))
		c, err := Start(t.Context(), w, request("/bin/true"))
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
		if err == nil {
			started++
			c.Abandon()
			continue
		}
		require.Equal(t, service.ReasonNoResources, service.ReasonOf(err), "%v", err)
		require.ErrorIs(t, err, unix.EMFILE)
	}
	require.Positive(t, started, "the limit was never high enough")
	require.Less(t, started, 12, "the limit was never too low")
}

// A child whose end can not be watched is killed and reaped, and its descriptor
// is closed once: closed twice, it might be another's by then.
func TestChildThatCanNotBeWatchedIsReaped(t *testing.T) {
	closed, err := watch.New()
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	files := openFiles(t)
	for range 20 {
		_, err := Start(t.Context(), closed, request("/bin/sleep", "1000"))
		require.Equal(t, service.Unlaunchable, service.KindOf(err))
		require.ErrorContains(t, err, "cannot watch process")
	}
	require.Zero(t, children(t))
	require.Equal(t, files, openFiles(t))
}
