package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// violates tells whether a service is told to use too much.
func (w *world) violates(name, kind string) bool {
	for _, v := range (byGRPC{w}).status(name).Violations {
		if v.Kind == kind {
			return true
		}
	}
	return false
}

// TestViolations: what a service uses too much of is told by the status, the list and the
// events.
func TestViolations(t *testing.T) {
	anywhere(t)
	limits := fields{"memory_max": "64MiB", "memory_swap_max": "0", "cpu_percent": 20, "pids_max": 8}
	def := workload(t, "fat", "fat", "hog-memory", fmt.Sprint(56*mebibyte)).with(fields{"limits": limits})
	if !needsLimits(t, def) {
		return
	}
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(def.with(fields{"launch": mode}))
		w.register(workload(t, "busy", "busy", "hog-cpu", "1").with(fields{"launch": mode, "limits": limits}))
		w.register(workload(t, "forks", "forks", "fork-bomb", "plain", "0").with(fields{"launch": mode, "limits": limits}))
		w.register(workload(t, "idle", "idle", "sleep").with(fields{"launch": mode, "limits": limits}))
		for name, kinds := range map[string][]string{
			"fat": {"memory-warning"}, "busy": {"cpu-warning", "cpu-exceeded"}, "forks": {"pids-exceeded"}, "idle": nil,
		} {
			w.mustCLI("start", name)
			for _, kind := range kinds {
				eventually(t, name+" is told to be in "+kind, func() bool { return w.violates(name, kind) })
				require.Contains(t, w.mustCLI("events", name), kind)
				require.Contains(t, w.cli("status", name).stdout, kind+" since")
			}
		}
		require.Empty(t, byGRPC{w}.status("idle").Violations)
		w.mustCLI("kill", "forks")
		w.mustCLI("set", "fat", "memory_max=256MiB")
		w.mustCLI("set", "busy", "cpu_percent=max")
		eventually(t, "what is over is told to be", func() bool {
			return len(byGRPC{w}.status("fat").Violations)+len(byGRPC{w}.status("busy").Violations) == 0
		})
		require.Contains(t, w.mustCLI("events", "busy"), "violation-over")
	})
}

// TestCacheIsNoUse: whoever fills its memory_max with the files that it reads is not warned
// of, and whoever does so with memory of its own is.
func TestCacheIsNoUse(t *testing.T) {
	anywhere(t)
	def := workload(t, "reader", "reader", "cache", "/usr", "0", fmt.Sprint(160*mebibyte)).with(fields{
		"limits": fields{"memory_max": "64MiB", "memory_swap_max": "0"},
	})
	if !needsLimits(t, def) {
		return
	}
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(def.with(fields{"launch": mode}))
		w.register(workload(t, "fat", "fat", "cache", "/usr", "0", fmt.Sprint(mebibyte), fmt.Sprint(56*mebibyte)).with(fields{"launch": mode, "limits": def["limits"]}))
		w.mustCLI("start", "reader")
		var memory, file uint64
		eventually(t, "the cache fills the limit", func() bool {
			u := byGRPC{w}.usage("reader")
			memory, file = u.GetMemoryBytes(), u.GetMemoryFileBytes()
			return memory > 60*mebibyte
		})
		require.Greater(t, file, uint64(48*mebibyte))
		w.mustCLI("start", "fat")
		eventually(t, "memory is warned of", func() bool { return w.violates("fat", "memory-warning") })
		require.NotContains(t, w.mustCLI("events", "reader"), "memory-")
	})
}

// TestLadder: a service that stays above its level is throttled, then ended.
func TestLadder(t *testing.T) {
	anywhere(t)
	def := workload(t, "fat", "fat", "hog-memory", fmt.Sprint(56*mebibyte)).with(fields{
		"limits":      fields{"memory_max": "64MiB", "memory_swap_max": "0"},
		"enforcement": fields{"memory": "stop", "throttle_after": "2s", "stop_after": "8s", "livelock": "warn"},
		"restart":     fields{"policy": "never"},
	})
	if !needsLimits(t, def) {
		return
	}
	eachMode(t, func(t *testing.T, w *world, mode string) {
		// Of the CPU nothing is to be warned of.
		w.register(def.with(fields{"launch": mode, "limits": def["limits"].(fields).with(fields{"cpu_percent": "max"})}))
		byGRPC{w}.start("fat")
		eventually(t, "it is throttled", func() bool { return strings.Contains(w.mustCLI("events", "fat"), "throttled to memory_high") })
		x := w.ended("fat")
		require.Equal(t, gladsheimv1.Verdict_VERDICT_EXCEEDED, x.Verdict)
		require.Contains(t, x.Message, "memory-warning")
		for _, step := range []string{"warn", "throttle", "stop"} {
			require.Contains(t, w.mustCLI("metrics"), fmt.Sprintf("gladsheim_service_enforcements_total{service=\"fat\",step=%q} 1\n", step))
		}
	})
}

// TestLivelock: a service that memory_high keeps from doing anything else is freed, here
// to die of its memory_max, which is an end that is understood.
func TestLivelock(t *testing.T) {
	anywhere(t)
	def := workload(t, "stuck", "stuck", "hog-memory", fmt.Sprint(200*mebibyte)).with(fields{
		"limits":  fields{"memory_max": "96MiB", "memory_high": "32MiB", "memory_swap_max": "0"},
		"restart": fields{"policy": "never"},
	})
	if !needsLimits(t, def) {
		return
	}
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(def.with(fields{"launch": mode}))
		w.cli("start", "stuck")
		x := w.ended("stuck")
		require.Equal(t, gladsheimv1.Verdict_VERDICT_OWN_LIMIT_OOM, x.Verdict)
		events := w.mustCLI("events", "stuck")
		t.Log(events)
		require.Contains(t, events, "livelock")
		require.Less(t, x.EndedUnixMs-x.StartedUnixMs, int64(30_000))
	})
}
