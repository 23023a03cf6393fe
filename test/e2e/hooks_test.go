package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// diary is a file into which hooks write.
type diary string

// hook is a shell line that is a hook.
func hook(line string) [][]string { return [][]string{{"/bin/sh", "-c", line}} }

// newDiary is in a directory that hooks may write in.
func (w *world) newDiary() diary {
	dir := filepath.Join(w.dir, "diary")
	require.NoError(w.t, os.MkdirAll(dir, 0o777))
	return diary(filepath.Join(dir, "lines"))
}

func (d diary) writes(text string) string { return "echo " + text + " >>" + string(d) }

func (d diary) read(t *testing.T) string {
	text, err := os.ReadFile(string(d))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return string(text)
}

// is wants the diary to hold this, and begins a new one.
func (d diary) is(t *testing.T, want string) {
	t.Helper()
	require.Equal(t, want, d.read(t))
	require.NoError(t, os.RemoveAll(string(d)))
}

// TestHooks: before and after the program, in its place, and who fails ends the start.
func TestHooks(t *testing.T) {
	aMode(t, func(t *testing.T, w *world, mode string) {
		d := w.newDiary()
		line := d.writes(`"$GLADSHEIM_HOOK $GLADSHEIM_SERVICE $GLADSHEIM_INCARNATION ${GLADSHEIM_MAIN_PID:+main} $GLADSHEIM_VERDICT $GLADSHEIM_EXIT_CODE $GLADSHEIM_EXIT_SIGNAL"`)
		web := workload(t, "web", "hooks", "sleep").with(fields{"launch": mode, "hooks": fields{
			"pre_start": hook(line), "post_start": hook(line), "pre_stop": hook(line), "post_stop": hook(line),
		}})
		w.register(web)
		byGRPC{w}.start("web")
		d.is(t, "pre_start web 1    \npost_start web 1 main   \n")
		byGRPC{w}.stop("web")
		d.is(t, "pre_stop web 1 main   \npost_stop web 1  stopped  SIGTERM\n")
		require.Empty(t, marked(t, "hooks"))
		told := w.mustCLI("events", "web")
		require.Contains(t, told, "pre_start: /bin/sh -c")
		require.Contains(t, told, "ended well after")

		w.register(fields{"name": "crashes", "launch": mode, "exec": []string{"/bin/sh", "-c", "sleep 1; exit 7"}, "restart": fields{"policy": "never"}, "hooks": fields{
			"pre_stop": hook(line), "post_stop": hook(line),
		}})
		byGRPC{w}.start("crashes")
		eventually(t, "it has crashed", func() bool {
			return byGRPC{w}.status("crashes").State == gladsheimv1.ServiceState_SERVICE_STATE_CRASHED
		})
		d.is(t, "post_stop crashes 1  crash 7 \n")

		w.register(workload(t, "unable", "hooks", "sleep").with(fields{"launch": mode, "restart": fields{"policy": "never"}, "hooks": fields{
			"pre_start": hook("echo looking; echo no such disk >&2; exit 3"), "post_stop": hook(line),
		}}))
		failed := w.cli("start", "unable")
		require.NotZero(t, failed.code)
		require.Contains(t, failed.stderr, "pre_start: /bin/sh -c")
		require.Contains(t, failed.stderr, "exit code 3: no such disk")
		require.Contains(t, failed.stderr, "looking")
		d.is(t, "post_stop unable 1  hook_failed  \n")
		s := byGRPC{w}.status("unable")
		require.Equal(t, gladsheimv1.Verdict_VERDICT_HOOK_FAILED, s.LastExit.Verdict)
		require.Contains(t, w.mustCLI("history", "unable", "--crashes"), "hook failed")

		w.register(workload(t, "slow", "hooks", "sleep").with(fields{"launch": mode, "restart": fields{"policy": "never"}, "hooks": fields{
			"post_start": hook("sleep 1000"), "timeout": "300ms",
		}}))
		failed = w.cli("start", "slow")
		require.NotZero(t, failed.code)
		require.Contains(t, failed.stderr, "it did not end within 300ms (hooks.timeout)")
		require.Empty(t, marked(t, "hooks"))

		w.register(workload(t, "waits", "hooks", "sleep").with(fields{"launch": mode, "hooks": fields{"pre_start": hook("sleep 1000"), "timeout": "1h"}}))
		started := make(chan result, 1)
		go func() { started <- w.cli("start", "waits") }()
		eventually(t, "the hook runs", func() bool { return strings.HasPrefix(byGRPC{w}.status("waits").Hook, "pre_start: ") })
		require.Contains(t, w.cli("status", "waits").stdout, "Runs now: pre_start: /bin/sh -c")
		w.mustCLI("stop", "waits")
		require.NotZero(t, (<-started).code)
		require.Equal(t, gladsheimv1.Verdict_VERDICT_STOPPED, byGRPC{w}.status("waits").LastExit.Verdict)
	})
}

// TestHooksAndTheEndOfTheAgent: what an agent was at when it was killed, the next one does
// again, once each, and leaves nothing of the first.
func TestHooksAndTheEndOfTheAgent(t *testing.T) {
	oneOfAKind(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		d := w.newDiary()
		// The first of each kind waits, with a child. A launch that was cut off is followed by
		// post_stop as well, which is not what this is about.
		slow := func(kind string) [][]string {
			once := string(d) + "." + kind
			return hook(d.writes(kind) + "; test -e " + once + " || { : >" + once + "; sleep 1000 & sleep 1000; }")
		}
		last := slow("post_stop")
		last[0][2] = "test -e " + string(d) + ".pre_stop || exit 0; " + last[0][2]
		w.register(workload(t, "web", "again", "sleep").with(fields{"launch": mode, "stop": fields{"timeout": "1h"}, "hooks": fields{
			"pre_start": slow("pre_start"), "post_start": slow("post_start"), "pre_stop": slow("pre_stop"), "post_stop": last, "timeout": "1h",
		}}))
		runs := func(kind string) func() bool {
			return func() bool { return strings.HasPrefix(byGRPC{w}.status("web").Hook, kind+": ") }
		}
		go func() {
			_, _ = w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: "web"})
		}()
		for _, kind := range []string{"pre_start", "post_start"} {
			eventually(t, kind, runs(kind))
			eventually(t, kind+" waits", func() bool { return strings.Count(d.read(t), kind) == 1 })
			w.leave(syscall.SIGKILL)
			w.begin()
		}
		eventually(t, "it runs", func() bool { return byGRPC{w}.status("web").State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING })
		require.Len(t, marked(t, "again"), 1)
		go func() {
			_, _ = w.services().StopService(contextFor(t), &gladsheimv1.StopServiceRequest{ServiceName: "web"})
		}()
		for _, kind := range []string{"pre_stop", "post_stop"} {
			eventually(t, kind, runs(kind))
			eventually(t, kind+" waits", func() bool { return strings.Count(d.read(t), kind) == 1 })
			w.leave(syscall.SIGKILL)
			w.begin()
		}
		eventually(t, "it has ended", func() bool { return byGRPC{w}.status("web").State == gladsheimv1.ServiceState_SERVICE_STATE_STOPPED })
		require.Empty(t, marked(t, "again"))
		got := strings.Fields(d.read(t))
		require.Equal(t, strings.Fields("pre_start pre_start post_start post_start pre_stop pre_stop post_stop post_stop"), got)
		var x *gladsheimv1.ExitRecord // it is told a moment later than the state; the first is of the launch that was cut off
		eventually(t, "how it ended is told", func() bool { x = byGRPC{w}.status("web").LastExit; return x.GetIncarnation() == 2 })
		require.Equal(t, gladsheimv1.Verdict_VERDICT_STOPPED, x.Verdict)
		require.EqualValues(t, syscall.SIGTERM, x.GetSignal())
	})
}

// TestAStopIsAnsweredInTime: hooks of an end are within its time.
func TestAStopIsAnsweredInTime(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		w.register(workload(t, "web", "in-time", "ignore-term").with(fields{"launch": mode, "stop": fields{"timeout": "500ms"}, "hooks": fields{"pre_stop": hook("sleep 1000"), "timeout": "1h"}}))
		byGRPC{w}.start("web")
		took := stopwatch(func() { w.mustCLI("stop", "web") })
		require.Less(t, took, 30*time.Second)
		require.Empty(t, marked(t, "in-time"))
		require.EqualValues(t, syscall.SIGKILL, byGRPC{w}.status("web").LastExit.GetSignal())
		require.Contains(t, w.mustCLI("logs", "web"), "signal 15", "it was told to end")
	})
}

// TestHooksOfAnAgentThatIsHeldUp: a hook that has ended in time, while the agent was
// stopped for longer, has not failed.
func TestHooksOfAnAgentThatIsHeldUp(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		const many = 6 // what is late is seen in any order
		results := make(chan result, many)
		for n := range many {
			name := fmt.Sprintf("web-%d", n)
			w.register(workload(t, name, "held-up", "sleep").with(fields{"launch": mode, "restart": fields{"policy": "never"}, "hooks": fields{"pre_start": hook("sleep 2"), "timeout": "6s"}}))
			go func() { results <- w.cli("start", name) }()
		}
		for n := range many {
			eventually(t, "its hook runs", func() bool { return byGRPC{w}.status(fmt.Sprintf("web-%d", n)).Hook != "" })
		}
		require.NoError(t, w.daemon.Process.Signal(syscall.SIGSTOP))
		time.Sleep(8 * time.Second)
		require.NoError(t, w.daemon.Process.Signal(syscall.SIGCONT))
		for range many {
			started := <-results
			require.Zero(t, started.code, "%s", started.stderr)
		}
		for n := range many {
			byGRPC{w}.stop(fmt.Sprintf("web-%d", n))
		}
	})
}
