package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// eachMode runs f in a world of its own for each way of launching.
func eachMode(t *testing.T, f func(t *testing.T, w *world, mode string)) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) { f(t, newWorld(t), mode) })
	}
}

// needsLimits is for stories that only a host with cgroup v2 can tell; on the
// others the refusal of the very same definition is the story.
func needsLimits(t *testing.T, def fields) (ok bool) {
	if limited(t) {
		return true
	}
	w := newWorld(t)
	_, err := w.catalog().Register(contextFor(t), &gladsheimv1.RegisterRequest{Definition: def.json(t), File: "test.json"})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "%v", err)
	for limit := range def["limits"].(fields) {
		require.ErrorContains(t, err, limit)
	}
	return false
}

// TestMemoryHogIsKilledByTheKernel: the verdict, the level and the peak of an
// OOM kill come from the kernel's counters.
func TestMemoryHogIsKilledByTheKernel(t *testing.T) {
	def := workload(t, "hog", "hog-token", "hog-memory", fmt.Sprint(256*mebibyte)).
		with(fields{"limits": fields{"memory_max": "48MiB", "memory_swap_max": "0"}})
	if !needsLimits(t, def) {
		return
	}
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(def.with(fields{"launch": mode}))
		w.mustCLI("start", "hog")
		var s *gladsheimv1.ServiceStatus
		eventually(t, "the hog is killed", func() bool {
			s = byGRPC{w}.status("hog")
			return s.State == gladsheimv1.ServiceState_SERVICE_STATE_CRASHED && s.LastExit != nil
		})
		x := s.LastExit
		require.Equal(t, gladsheimv1.Verdict_VERDICT_OWN_LIMIT_OOM, x.Verdict, "%v", x)
		require.EqualValues(t, 9, x.GetSignal())
		require.NotNil(t, x.MemoryPeakBytes, "%v", x)
		require.InDelta(t, 48*mebibyte, float64(x.GetMemoryPeakBytes()), 2*mebibyte)
		require.Contains(t, x.OomLevel, "hog")
		require.Empty(t, marked(t, "hog-token"))
		r := w.cli("status", "hog")
		require.Equal(t, 3, r.code)
		require.Contains(t, strings.ToLower(r.stdout), "oom")
	})
}

// TestCPUHogGetsItsShare measures by cpu.stat over five seconds.
func TestCPUHogGetsItsShare(t *testing.T) {
	def := workload(t, "spin", "spin-token", "hog-cpu", "2").with(fields{"limits": fields{"cpu_percent": 20}})
	if !needsLimits(t, def) {
		return
	}
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(def.with(fields{"launch": mode}))
		s := byGRPC{w}.start("spin")
		// A busy machine starves an emulated one, clock and all: one undisturbed
		// measurement is enough.
		var share, told float64
		for range 6 {
			byGRPC{w}.usage("spin")
			before, start := cgroupKey(t, s.Cgroup, "cpu.stat", "usage_usec"), time.Now()
			<-time.After(5 * time.Second) // the measurement is over time
			used, passed := cgroupKey(t, s.Cgroup, "cpu.stat", "usage_usec")-before, time.Since(start)
			told = float64(byGRPC{w}.usage("spin").CpuPercent)
			if share = 100 * float64(used) / float64(passed.Microseconds()); share >= 18 && share <= 22 {
				break
			}
		}
		require.InDelta(t, 20, share, 2, "percent of one core")
		require.InDelta(t, share, told, 3, "as the agent tells it")
		u := byGRPC{w}.usage("spin")
		require.NotZero(t, u.GetThrottledUsec())
		byGRPC{w}.stop("spin")
		x := byGRPC{w}.exits("spin").Exits[0]
		require.NotZero(t, x.GetCpuTimeUsec())
		if mode == "scope" { // its count goes with the scope: absent, and not 0
			require.Nil(t, x.ThrottledUsec)
		} else {
			require.NotZero(t, x.GetThrottledUsec())
		}
	})
}

// TestForkBombIsGoneWithinASecond: of kill, no process survives.
func TestForkBombIsGoneWithinASecond(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode string) {
		// Where nothing bounds it the bomb bounds itself, for the sake of the machine.
		bound := "0"
		if !limited(t) {
			bound = "200"
		}
		// The bomb may have half a core: what is measured is the kill.
		w.register(workload(t, "bomb", "bomb-token", "fork-bomb", "setsid", bound).with(fields{
			"launch": mode, "limits": limits(t, fields{"pids_max": 100, "cpu_percent": 50}),
		}))
		w.mustCLI("start", "bomb")
		eventually(t, "the bomb goes off", func() bool { return len(marked(t, "bomb-token")) > 10 })
		took := stopwatch(func() {
			_, err := w.runtime().Kill(contextFor(t), &gladsheimv1.KillRequest{ServiceName: "bomb"})
			require.NoError(t, err)
		})
		require.Empty(t, marked(t, "bomb-token"), "survivors")
		patient := time.Second
		if limited(t) { // an emulated machine is ten times slower, and more when it is not alone
			patient = 10 * time.Second
		}
		require.LessOrEqual(t, took, patient)
	})
}

// TestStubbornTreeIsGoneAfterStop: double-forked sessions that ignore SIGTERM
// do not outlive a stop, and the record tells of them.
func TestStubbornTreeIsGoneAfterStop(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(workload(t, "tree", "tree-token", "tree", "3").with(fields{"launch": mode, "stop": fields{"timeout": "500ms"}}))
		w.mustCLI("start", "tree")
		eventually(t, "the tree has grown", func() bool { return len(marked(t, "tree-token")) >= 4 })
		w.mustCLI("stop", "tree")
		require.Empty(t, marked(t, "tree-token"), "survivors")
		x := byGRPC{w}.exits("tree").Exits[0]
		require.True(t, x.KilledAfterTimeout, "%v", x)
		require.Equal(t, gladsheimv1.Verdict_VERDICT_STOPPED, x.Verdict)
	})
}

// TestLeftoversOfACrashAreKilled: a main process that leaves daemons behind
// takes them along.
func TestLeftoversOfACrashAreKilled(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(workload(t, "forker", "left-token", "double-fork").with(fields{"launch": mode}))
		w.mustCLI("start", "forker")
		var x *gladsheimv1.ExitRecord
		eventually(t, "the end is recorded", func() bool {
			exits := byGRPC{w}.exits("forker").Exits
			if len(exits) > 0 {
				x = exits[0]
			}
			return x != nil
		})
		require.NotZero(t, x.LeftoversKilled, "%v", x)
		require.Empty(t, marked(t, "left-token"))
	})
}

// TestExitsAreExact: a code is that code, a signal is that signal.
func TestExitsAreExact(t *testing.T) {
	w := newWorld(t)
	for i, want := range []struct {
		mode    []string
		code    int32
		signal  int32
		verdict gladsheimv1.Verdict
	}{
		{[]string{"exit", "0"}, 0, 0, gladsheimv1.Verdict_VERDICT_CLEAN},
		{[]string{"exit", "7"}, 7, 0, gladsheimv1.Verdict_VERDICT_CRASH},
		{[]string{"exit", "137"}, 137, 0, gladsheimv1.Verdict_VERDICT_CRASH},
		{[]string{"signal", "11"}, 0, 11, gladsheimv1.Verdict_VERDICT_CRASH},
	} {
		name := fmt.Sprintf("end%d", i)
		w.register(workload(t, name, name+"-token", want.mode...))
		_, _ = w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: name})
		var x *gladsheimv1.ExitRecord
		eventually(t, "the end is recorded", func() bool {
			exits := byGRPC{w}.exits(name).Exits
			if len(exits) > 0 {
				x = exits[0]
			}
			return x != nil
		})
		require.Equal(t, want.code, x.GetExitCode(), "%v", x)
		require.Equal(t, want.signal, x.GetSignal())
		require.Equal(t, want.verdict, x.Verdict)
	}
}
