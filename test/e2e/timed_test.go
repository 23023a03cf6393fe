package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

var jobs = fields{"type": "oneshot", "restart": fields{"policy": "never"}}

// TestJobs: a start is over when the job is, well or not, with how and its last lines.
func TestJobs(t *testing.T) {
	anywhere(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		w.register(workload(t, "good", "jobs", "exit", "0", "300ms").with(jobs).with(fields{"launch": mode}))
		took := stopwatch(func() { require.Contains(t, w.mustCLI("start", "good"), "done, in ") })
		require.GreaterOrEqual(t, took, 300*time.Millisecond)
		s := byGRPC{w}.status("good")
		require.True(t, s.Completed)
		require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, s.State)
		require.Equal(t, gladsheimv1.Verdict_VERDICT_CLEAN, s.LastExit.Verdict)

		w.register(fields{"name": "bad", "launch": mode, "exec": []string{"/bin/sh", "-c", "echo no room for the copy; exit 7"}}.with(jobs))
		failed := w.cli("start", "bad")
		require.NotZero(t, failed.code)
		require.Contains(t, failed.stderr, "exit code 7")
		require.Contains(t, failed.stderr, "no room for the copy")
		require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_CRASHED, byGRPC{w}.status("bad").State)

		w.register(workload(t, "long", "jobs", "sleep").with(jobs).with(fields{"launch": mode, "ready": fields{"timeout": "300ms"}}))
		failed = w.cli("start", "long")
		require.NotZero(t, failed.code)
		require.Contains(t, failed.stderr, "its job was not done within 300ms (ready.timeout)")
		require.Equal(t, gladsheimv1.Verdict_VERDICT_STARTUP_TIMEOUT, byGRPC{w}.status("long").LastExit.Verdict)
		require.Empty(t, marked(t, "jobs"))
	})
}

// TestAJobOutlivesTheAgent: the agent is killed amid a job; how it ends is exact, also when
// nobody was there to see it, and a retry with the same id is answered with that.
func TestAJobOutlivesTheAgent(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		for _, code := range []int{0, 5, 6} {
			name := fmt.Sprintf("code-%d", code)
			w.register(workload(t, name, name, "exit", fmt.Sprint(code), "5s").with(jobs).with(fields{"launch": mode}))
			request := &gladsheimv1.StartServiceRequest{ServiceName: name, RequestId: "once"}
			go func() { _, _ = w.services().StartService(contextFor(t), request) }() // whose answer is lost
			eventually(t, "it works", func() bool { return len(marked(t, name)) > 0 })
			w.leave(syscall.SIGKILL)
			if code == 6 { // nobody is there to see it
				eventually(t, "it has ended", func() bool { return len(marked(t, name)) == 0 })
			}
			w.begin()
			_, err := w.services().StartService(contextFor(t), request)
			s := byGRPC{w}.status(name)
			require.EqualValues(t, code, s.LastExit.GetExitCode())
			require.EqualValues(t, 1, s.Incarnation, "it ran once")
			require.Equal(t, code == 0, s.Completed)
			if code == 0 {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, fmt.Sprintf("exit code %d", code))
			}
		}
	})
}

// TestSchedule: runs are begun again and again, one at a time; a stop lets the schedule
// rest, over the death of the agent, until a start.
func TestSchedule(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		w.register(workload(t, "tick", "tick", "exit", "0", "100ms").with(jobs).with(fields{"launch": mode, "schedule": fields{"every": "1s"}}))
		runs := func() uint64 { return byGRPC{w}.status("tick").Incarnation }
		eventually(t, "three runs", func() bool { return runs() >= 3 })
		s := byGRPC{w}.status("tick")
		require.NotZero(t, s.NextRunUnixMs)
		require.NotZero(t, s.LastRunUnixMs)
		require.Equal(t, "schedule", s.LastActor)
		w.leave(syscall.SIGKILL)
		w.begin()
		before := runs()
		eventually(t, "it goes on", func() bool { return runs() > before })

		w.mustCLI("stop", "tick")
		w.mustCLI("stop", "tick") // it need not run
		rests := runs()
		w.leave(syscall.SIGKILL)
		w.begin()
		time.Sleep(2500 * time.Millisecond) // more than two runs would take
		s = byGRPC{w}.status("tick")
		require.Equal(t, rests, s.Incarnation, "an acknowledged stop was undone")
		require.True(t, s.SchedulePaused)
		require.Zero(t, s.NextRunUnixMs)
		require.Contains(t, w.mustCLI("list"), "its schedule rests")
		w.mustCLI("start", "tick")
		eventually(t, "it runs again", func() bool { return runs() >= rests+2 })
		w.mustCLI("stop", "tick")

		w.register(workload(t, "slow", "slow", "exit", "0", "2500ms").with(jobs).with(fields{"launch": mode, "schedule": fields{"every": "1s", "overlap": "queue"}}))
		eventually(t, "the second run", func() bool { return byGRPC{w}.status("slow").Incarnation >= 2 })
		require.Contains(t, w.mustCLI("events", "slow"), "waits until the one before has ended")
		require.LessOrEqual(t, len(marked(t, "slow")), 1)
		w.mustCLI("stop", "slow")
	})
}

// TestReload: by a signal, and by a program whose failure is the answer.
func TestReload(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		w.register(workload(t, "none", "reload", "sleep").with(fields{"launch": mode}))
		byGRPC{w}.start("none")
		refused := w.cli("reload", "none")
		require.NotZero(t, refused.code)
		require.Contains(t, refused.stderr, "its definition does not say how")

		w.register(workload(t, "by-signal", "reload", "ignore-term").with(fields{"launch": mode, "log": "file", "ready": fields{"type": "log", "pattern": "^ready"}, "stop": fields{"timeout": "100ms"}, "reload": fields{"signal": "SIGHUP"}}))
		require.NotZero(t, w.cli("reload", "by-signal").code, "it does not run")
		byGRPC{w}.start("by-signal")
		w.mustCLI("reload", "by-signal")
		eventually(t, "it gets the signal", func() bool { return strings.Contains(w.mustCLI("logs", "by-signal"), "signal 1") })
		require.Contains(t, w.mustCLI("events", "by-signal"), "SIGHUP, by ")

		at := w.path("reload-" + mode)
		require.NoError(t, os.MkdirAll(at, 0o777))
		program := []string{"/bin/sh", "-c", "echo the port is taken; test -e " + at + "/good"}
		w.register(workload(t, "by-program", "reload", "sleep").with(fields{"launch": mode, "reload": fields{"exec": program, "timeout": "10s"}}))
		byGRPC{w}.start("by-program")
		failed := w.cli("reload", "by-program")
		require.NotZero(t, failed.code)
		require.Contains(t, failed.stderr, "the port is taken")
		require.NoError(t, os.WriteFile(at+"/good", nil, 0o600))
		w.mustCLI("reload", "by-program")
		require.EqualValues(t, 1, byGRPC{w}.status("by-program").Incarnation)
		for _, name := range []string{"none", "by-signal", "by-program"} {
			byGRPC{w}.stop(name)
		}
	})
}
