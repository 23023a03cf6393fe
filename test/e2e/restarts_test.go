package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// crashed waits until a service is given up, and gives its ends, the first one first.
func (w *world) crashed(name string) []*gladsheimv1.ExitRecord {
	w.t.Helper()
	eventually(w.t, name+" is given up", func() bool {
		s := byGRPC{w}.status(name) // the record of an end may come a moment later
		return s.State == gladsheimv1.ServiceState_SERVICE_STATE_CRASHED && s.GetLastExit().GetIncarnation() == s.Incarnation
	})
	exits := byGRPC{w}.exits(name).Exits
	slices.Reverse(exits)
	return exits
}

// TestCrashLoops: whenever in its life a service crashes, each end is recorded, each wait
// is what the policy says, give or take a fifth, two instances never live at once, and in
// the end it is given up, which is told once (P19).
func TestCrashLoops(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		moments := []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, 1500 * time.Millisecond}
		name := func(after time.Duration) string { return fmt.Sprintf("crash-%d", after.Milliseconds()) }
		for _, after := range moments {
			w.register(workload(t, name(after), "crash", "exit", "3", after.String()).with(fields{
				"launch": mode, "restart": fields{"max_attempts": 3, "window": "10m", "backoff": "100ms", "max_backoff": "300ms", "deterministic": 0},
			}))
			w.cli("start", name(after)) // which may see it end
		}
		for _, after := range moments {
			exits := w.crashed(name(after))
			require.Len(t, exits, 4, "one start and three attempts")
			for i, x := range exits {
				require.EqualValues(t, i+1, x.Incarnation)
				require.EqualValues(t, 3, x.GetExitCode())
				require.Equal(t, gladsheimv1.Verdict_VERDICT_CRASH, x.Verdict)
				require.EqualValues(t, i+1, x.Seen, "they are alike")
				if i == 3 {
					require.Equal(t, "attempts", x.GivenUp)
					continue
				}
				nominal := min(100<<i, 300)
				require.InDelta(t, nominal, x.GetRestartWaitMs(), float64(nominal)/5)
				require.LessOrEqual(t, x.GetRestartWaitMs(), uint64(300))
				require.GreaterOrEqual(t, exits[i+1].StartedUnixMs-x.EndedUnixMs, int64(x.GetRestartWaitMs())-2, "attempt %d came early", i+1)
			}
			s := byGRPC{w}.status(name(after))
			require.Equal(t, "attempts", s.GivenUp)
			require.EqualValues(t, 4, s.RecentFailures)
			require.Contains(t, s.GetErrorMessage(), "it failed 4 times within 10m0s")
			require.Equal(t, 1, strings.Count(w.mustCLI("events", name(after)), "alert"))
		}
		require.Empty(t, marked(t, "crash"))
	})
}

// TestCleanEnds: what follows exit code 0, once or for ever, is for the policy, and is no
// failure (P20).
func TestCleanEnds(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		for _, policy := range []string{"on-failure", "never", "always"} {
			w.register(workload(t, policy, "clean", "exit", "0").with(fields{
				"launch": mode, "restart": fields{"policy": policy, "max_attempts": 1, "backoff": "50ms", "max_backoff": "50ms"},
			}))
			w.cli("start", policy)
		}
		eventually(t, "it goes on for ever", func() bool { return len(byGRPC{w}.exits("always").Exits) >= 8 })
		s := byGRPC{w}.status("always")
		require.Zero(t, s.RecentFailures)
		require.Zero(t, s.FailuresInARow)
		require.Empty(t, s.GivenUp)
		byGRPC{w}.stop("always")
		for _, policy := range []string{"on-failure", "never"} {
			require.Len(t, byGRPC{w}.exits(policy).Exits, 1)
			require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, byGRPC{w}.status(policy).State)
		}
	})
}

// TestExitCodesDecide: codes and signals may be clean, or the last.
func TestExitCodesDecide(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		rules := fields{"success": []any{3, "SIGUSR1"}, "never": []any{78, "SIGUSR2"}}
		for name, tt := range map[string]struct {
			policy  string
			program []string
			state   gladsheimv1.ServiceState
			verdict gladsheimv1.Verdict
		}{
			"clean-code":   {"on-failure", []string{"exit", "3"}, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, gladsheimv1.Verdict_VERDICT_CLEAN},
			"clean-signal": {"on-failure", []string{"signal", "10"}, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, gladsheimv1.Verdict_VERDICT_CLEAN},
			"last-code":    {"always", []string{"exit", "78"}, gladsheimv1.ServiceState_SERVICE_STATE_CRASHED, gladsheimv1.Verdict_VERDICT_CRASH},
			"last-signal":  {"on-failure", []string{"signal", "12"}, gladsheimv1.ServiceState_SERVICE_STATE_CRASHED, gladsheimv1.Verdict_VERDICT_CRASH},
		} {
			w.register(workload(t, name, "codes", tt.program...).with(fields{
				"launch": mode, "restart": fields{"policy": tt.policy, "max_attempts": 5, "backoff": "50ms", "exit_codes": rules},
			}))
			w.cli("start", name)
			require.Equal(t, tt.verdict, w.ended(name).Verdict, name)
			time.Sleep(300 * time.Millisecond) // more than the wait for another
			s := byGRPC{w}.status(name)
			require.Equal(t, tt.state, s.State, name)
			require.Len(t, byGRPC{w}.exits(name).Exits, 1, name)
			if tt.state == gladsheimv1.ServiceState_SERVICE_STATE_CRASHED {
				require.Equal(t, "exit-code", s.GivenUp)
			}
		}
	})
}

// TestDeterministicCrash: a program that dies in the same way each time, but for the time
// and its pid in what it says, is given up before its attempts are used up; the history
// tells it as one.
func TestDeterministicCrash(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		w.register(fields{
			"name": "same", "launch": mode, "log": "file",
			"exec":    []string{"/bin/sh", "-c", `echo "$(date +%T.%N) [$$] cannot open the file /etc/$$/conf"; exit 4`},
			"restart": fields{"max_attempts": 100, "backoff": "50ms", "deterministic": 4},
		})
		w.cli("start", "same")
		exits := w.crashed("same")
		require.Len(t, exits, 4)
		for _, x := range exits {
			require.Equal(t, exits[0].Fingerprint, x.Fingerprint, "%s", x.LastLines)
		}
		s := byGRPC{w}.status("same")
		require.Equal(t, "deterministic", s.GivenUp)
		require.Contains(t, s.GetErrorMessage(), "deterministic")
		require.Contains(t, w.mustCLI("events", "same"), "deterministic")
		crashes := w.mustCLI("history", "same", "--crashes")
		require.Contains(t, crashes, exits[0].Fingerprint)
		require.Contains(t, crashes, "cannot open the file")
		require.Contains(t, crashes, "4 3 2 1")
		report := w.mustCLI("history", "same", "--crash", "4")
		for _, part := range []string{"exit code 4", "cannot open the file", "Seen: 4 times", "given up, since it is deterministic"} {
			require.Contains(t, report, part)
		}
		require.Contains(t, w.mustCLI("history", "same", "--crash", "1"), "attempt 1 of 100")
	})
}

// TestCountersOutliveTheAgent: however often the agent is killed while a service waits for
// its next attempt, that comes when it was to, and no attempt is given twice.
func TestCountersOutliveTheAgent(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		w.register(workload(t, "loop", "loop", "exit", "3").with(fields{
			"launch": mode, "restart": fields{"max_attempts": 3, "backoff": "1500ms", "max_backoff": "1500ms", "deterministic": 0},
		}))
		w.cli("start", "loop")
		for failures := uint32(1); failures <= 3; failures++ {
			eventually(t, "it failed again", func() bool {
				s := byGRPC{w}.status("loop")
				return s.RecentFailures == failures && s.Phase == "backoff"
			})
			w.leave(syscall.SIGKILL)
			w.begin()
			eventually(t, "the next agent knows, or takes up the end that was not on record yet", func() bool {
				return byGRPC{w}.status("loop").RecentFailures >= failures
			})
		}
		exits := w.crashed("loop")
		require.Len(t, exits, 4)
		for i, x := range exits[:3] {
			require.GreaterOrEqual(t, exits[i+1].StartedUnixMs-x.EndedUnixMs, int64(x.GetRestartWaitMs())-5)
		}
		w.leave(syscall.SIGKILL)
		w.begin()
		require.Equal(t, "attempts", byGRPC{w}.status("loop").GivenUp)
		require.Equal(t, 1, strings.Count(w.mustCLI("events", "loop"), "alert"), "it is said once")
	})
}

// TestAnEndInAStall: what ends while the agent is held up has failed once, and what was
// to become ready meanwhile has not (I11).
func TestAnEndInAStall(t *testing.T) {
	native(t)
	aMode(t, func(t *testing.T, w *world, mode string) {
		policy := fields{"max_attempts": 3, "backoff": "100ms"}
		w.register(workload(t, "dies", "dies", "sleep").with(fields{"launch": mode, "restart": policy}))
		w.register(workload(t, "lives", "lives", "sleep").with(fields{"launch": mode, "restart": policy}))
		byGRPC{w}.start("lives")
		pid := byGRPC{w}.start("dies").ProcessId
		require.NoError(t, w.daemon.Process.Signal(syscall.SIGSTOP))
		require.NoError(t, syscall.Kill(int(pid), syscall.SIGSEGV))
		time.Sleep(3 * time.Second)
		require.NoError(t, w.daemon.Process.Signal(syscall.SIGCONT))
		eventually(t, "it runs again", func() bool {
			s := byGRPC{w}.status("dies")
			return s.Incarnation == 2 && s.State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
		})
		require.EqualValues(t, 1, byGRPC{w}.status("dies").RecentFailures)
		require.Len(t, byGRPC{w}.exits("dies").Exits, 1)
		s := byGRPC{w}.status("lives")
		require.EqualValues(t, 1, s.Incarnation)
		require.Zero(t, s.RecentFailures)
	})
}

// TestThrashIsToldAndNoFailure: a service that memory_high keeps from getting anything
// done is reported, and is not restarted because it is late (R3).
func TestThrashIsToldAndNoFailure(t *testing.T) {
	anywhere(t)
	def := workload(t, "thrash", "thrash", "hog-memory", fmt.Sprint(200*mebibyte)).with(fields{
		"limits":      fields{"memory_high": "32MiB", "memory_swap_max": "0"},
		"enforcement": fields{"livelock": "warn"},
		"restart":     fields{"policy": "always"},
		"ready":       fields{"type": "process"},
	})
	if !needsLimits(t, def) {
		return
	}
	aMode(t, func(t *testing.T, w *world, mode string) {
		w.register(def.with(fields{"launch": mode}))
		byGRPC{w}.start("thrash")
		eventually(t, "it is told", func() bool { return w.violates("thrash", "livelock") })
		time.Sleep(15 * time.Second) // longer than what ends others
		s := byGRPC{w}.status("thrash")
		require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, s.State)
		require.EqualValues(t, 1, s.Incarnation)
		require.Zero(t, s.RecentFailures)
		require.Empty(t, byGRPC{w}.exits("thrash").Exits)
		w.mustCLI("kill", "thrash")
	})
}
