package launch

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/watch"
)

const deadline = 10 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(actorVariable) != "" {
		act()
	}
	goleak.VerifyTestMain(m)
}

func newWatcher(t testing.TB) *watch.Watcher {
	t.Helper()
	w, err := watch.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	return w
}

// request asks for a program with the defaults of a definition.
func request(exec ...string) Request {
	spec := service.Defaults()
	spec.Name = service.MustName("web")
	spec.Exec = exec
	return Request{CgroupFD: -1, Launch: service.Launch{Name: spec.Name, Incarnation: 1, Spec: spec}}
}

// run starts req and opens its gate; the program is killed at the end.
func run(t testing.TB, w *watch.Watcher, req Request) *Child {
	t.Helper()
	c, err := Start(t.Context(), w, req)
	require.NoError(t, err)
	require.NoError(t, c.Open(t.Context()))
	t.Cleanup(func() { end(t, c) })
	return c
}

func end(t testing.TB, c *Child) {
	t.Helper()
	_ = c.Process().Signal(syscall.SIGKILL)
	awaitExit(t, c)
	require.NoError(t, c.Process().Close())
}

func awaitExit(t testing.TB, c *Child) service.Exit {
	t.Helper()
	select {
	case <-c.Process().Exited():
	case <-time.After(deadline):
		require.Fail(t, "the child did not end")
	}
	return c.Process().Exit()
}

func TestProgramRunsAndItsExitIsExact(t *testing.T) {
	w := newWatcher(t)
	for _, row := range []struct {
		script string
		want   service.Exit
	}{
		{"exit 0", service.Exit{}},
		{"exit 7", service.Exit{Code: 7}},
		{"exit 255", service.Exit{Code: 255}},
		{"kill -TERM $$", service.Exit{Signal: syscall.SIGTERM}},
		{"kill -KILL $$", service.Exit{Signal: syscall.SIGKILL}},
		{"kill -SEGV $$", service.Exit{Signal: syscall.SIGSEGV}},
	} {
		t.Run(row.script, func(t *testing.T) {
			c := run(t, w, request("/bin/sh", "-c", row.script))
			require.Equal(t, row.want, awaitExit(t, c))
		})
	}
}

func TestNothingRunsBeforeTheGateOpens(t *testing.T) {
	w := newWatcher(t)
	mark := filepath.Join(t.TempDir(), "mark")
	c, err := Start(t.Context(), w, request("/bin/sh", "-c", "touch "+mark))
	require.NoError(t, err)
	require.Positive(t, c.PID())
	require.NotZero(t, c.StartTicks())
	require.Equal(t, "gladsheim-gate", processName(t, c.PID()))

	c.Abandon()
	c.Abandon()
	require.NoFileExists(t, mark)
	require.NoDirExists(t, procPath(c.PID()))
	require.Error(t, c.Open(t.Context()))

	c = run(t, w, request("/bin/sh", "-c", "touch "+mark))
	awaitExit(t, c)
	require.FileExists(t, mark)
	c.Abandon() // after Open it does nothing
}

func TestTheProgramRunsWhenOpenReturns(t *testing.T) {
	w := newWatcher(t)
	for range 20 {
		c := run(t, w, request("/bin/sleep", "1000"))
		command, err := os.ReadFile(procPath(c.PID()) + "/cmdline")
		require.NoError(t, err)
		require.Equal(t, "/bin/sleep\x001000\x00", string(command))
	}
}

func TestGateKilledBeforeItOpensReportsItsRealEnd(t *testing.T) {
	w := newWatcher(t)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(service.SignalName(signal), func(t *testing.T) {
			c, err := Start(t.Context(), w, request("/bin/true"))
			require.NoError(t, err)
			awaitDefaultSignals(t, c.PID())
			require.NoError(t, c.Process().Signal(signal))
			awaitExit(t, c)

			err = c.Open(t.Context())
			require.Equal(t, service.Unlaunchable, service.KindOf(err))
			require.ErrorContains(t, err, service.SignalName(signal))
			require.NoDirExists(t, procPath(c.PID()))
		})
	}
}

func TestOpenGivesUpWithItsContext(t *testing.T) {
	w := newWatcher(t)
	for _, row := range []struct {
		context func() (context.Context, context.CancelFunc)
		want    service.Kind
	}{
		{func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) }, service.Cancelled},
		{func() (context.Context, context.CancelFunc) {
			return context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		}, service.Timeout},
	} {
		c, err := Start(t.Context(), w, request("/bin/sleep", "1000"))
		require.NoError(t, err)
		// Stopped, so that it can not be done before the context is.
		require.NoError(t, c.Process().Signal(syscall.SIGSTOP))
		ctx, cancel := row.context()
		cancel()
		err = c.Open(ctx)
		require.Equal(t, row.want, service.KindOf(err), "%v", err)
		require.NoDirExists(t, procPath(c.PID()))
	}
}

// A plan that does not fit into the socket waits for the gate to read it, but
// not longer than its caller.
func TestStartGivesUpWithItsContext(t *testing.T) {
	req := request("/bin/true")
	req.Launch.Spec.Environment = map[string]string{}
	for i := range 64 {
		req.Launch.Spec.Environment[strconv.Itoa(i)] = strings.Repeat("x", 1<<20)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for ctx.Err() == nil { // the test has no other child
			for _, pid := range childPIDs() {
				if name, _ := os.ReadFile(procPath(pid) + "/comm"); string(name) == "gladsheim-gate\n" {
					_ = syscall.Kill(pid, syscall.SIGSTOP)
					return
				}
			}
		}
	}()
	_, err := Start(ctx, newWatcher(t), req)
	cancel()
	require.Equal(t, service.Cancelled, service.KindOf(err), "%v", err)
	require.Zero(t, children(t))
}

func TestArgumentsAndEnvironmentArriveAsTheyAre(t *testing.T) {
	w := newWatcher(t)
	args := []string{"/bin/sleep", "1000", "", "two words", "new\nline", "ünïcode", "\xff\xfe", strings.Repeat("x", 100_000)}
	req := request(args...)
	req.Launch.Spec.Environment = map[string]string{"EMPTY": "", "B": "2=2", "A": "1"}
	req.Launch.Spec.Exec = append([]string{"/bin/sh", "-c", "exec 2>/dev/null; read x < /dev/tty; kill -STOP $$"}, args...)
	c := run(t, w, req)

	command, err := os.ReadFile(procPath(c.PID()) + "/cmdline")
	require.NoError(t, err)
	require.Equal(t, strings.Join(req.Launch.Spec.Exec, "\x00")+"\x00", string(command))
	environment, err := os.ReadFile(procPath(c.PID()) + "/environ")
	require.NoError(t, err)
	require.Equal(t, "A=1\x00B=2=2\x00EMPTY=\x00PATH="+Path+"\x00", string(environment))
}

func TestOutputIsAppendedToTheLog(t *testing.T) {
	w := newWatcher(t)
	log := filepath.Join(t.TempDir(), "web.log")
	require.NoError(t, os.WriteFile(log, []byte("before\n"), 0o640))
	req := request("/bin/sh", "-c", "echo out; echo err >&2")
	req.Launch.LogFile = log
	awaitExit(t, run(t, w, req))
	data, err := os.ReadFile(log)
	require.NoError(t, err)
	require.Equal(t, "before\nout\nerr\n", string(data))
}

func TestLogThatIsNotAPlainFileIsRefused(t *testing.T) {
	w := newWatcher(t)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.WriteFile(path("file"), nil, 0o640))
	require.NoError(t, os.Link(path("file"), path("twin")))
	require.NoError(t, os.WriteFile(path("target"), nil, 0o640))
	require.NoError(t, os.Symlink(path("target"), path("link")))
	require.NoError(t, syscall.Mkfifo(path("fifo"), 0o640))
	require.NoError(t, os.Mkdir(path("dir"), 0o750))

	for _, row := range []struct{ name, want string }{
		{"twin", "2 names"},
		{"link", "too many levels of symbolic links"},
		{"fifo", "no such device or address"},
		{"dir", "is a directory"},
		{"absent/web.log", "no such file or directory"},
	} {
		t.Run(row.name, func(t *testing.T) {
			req := request("/bin/true")
			req.Launch.LogFile = path(row.name)
			_, err := Start(t.Context(), w, req)
			require.Equal(t, service.Unlaunchable, service.KindOf(err))
			require.ErrorContains(t, err, "cannot start web: open the log")
			require.ErrorContains(t, err, row.want)
		})
	}
}

func TestPauseOutlivesTheSocketAndDiesBySignal(t *testing.T) {
	w := newWatcher(t)
	c, err := StartPause(w, -1)
	require.NoError(t, err)
	require.NoError(t, c.Open(t.Context()))
	require.Equal(t, "gladsheim-pause", processName(t, c.PID()))
	files, err := os.ReadDir(procPath(c.PID()) + "/fd")
	require.NoError(t, err)
	require.Len(t, files, 3)
	require.NoError(t, c.Process().Signal(syscall.SIGTERM))
	require.Equal(t, service.Exit{Signal: syscall.SIGTERM}, awaitExit(t, c))
	require.NoError(t, c.Process().Close())

	c, err = StartPause(w, -1)
	require.NoError(t, err)
	c.Abandon()
	require.NoDirExists(t, procPath(c.PID()))
}
