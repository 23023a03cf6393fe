package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// TestLimitsThatOthersChange: what somebody writes to a limit, or has systemd write, is
// told and set back; what we set ourselves is no drift.
func TestLimitsThatOthersChange(t *testing.T) {
	def := workload(t, "kept", "kept", "sleep").with(fields{"limits": fields{"memory_max": "64MiB", "memory_swap_max": "0", "pids_max": 50}})
	if !needsLimits(t, def) {
		return
	}
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(def.with(fields{"launch": mode}))
		s := byGRPC{w}.start("kept")
		checkPlace(t, s, mode)
		w.mustCLI("set", "kept", "pids_max=40")
		holds := func(file, want string) {
			t.Helper()
			start := time.Now()
			eventually(t, file+" is set back", func() bool { return cgroupFile(t, s.Cgroup, file) == want })
			t.Logf("%s was set back after %v", file, time.Since(start).Round(time.Millisecond))
		}
		require.NoError(t, os.WriteFile(filepath.Join("/sys/fs/cgroup", s.Cgroup, "memory.max"), []byte("max"), 0))
		holds("memory.max", fmt.Sprint(64*mebibyte))
		require.NoError(t, os.WriteFile(filepath.Join("/sys/fs/cgroup", s.Cgroup, "pids.max"), []byte("7"), 0))
		holds("pids.max", "40")
		if mode == "scope" {
			unit := filepath.Base(s.Cgroup)
			out, err := exec.Command("systemctl", "set-property", "--runtime", unit, "MemoryMax=1G").CombinedOutput()
			require.NoError(t, err, "%s", out)
			holds("memory.max", fmt.Sprint(64*mebibyte))
			out, err = exec.Command("systemctl", "daemon-reload").CombinedOutput()
			require.NoError(t, err, "%s", out)
			holds("memory.max", fmt.Sprint(64*mebibyte))
			holds("pids.max", "40")
		}
		eventually(t, "the drifts are told", func() bool {
			text := w.mustCLI("events", "kept")
			t.Log(text)
			return strings.Contains(text, "memory_max (memory.max) was 64MiB and is max") && strings.Contains(text, "pids_max (pids.max) was 40 and is 7")
		})
		require.NotContains(t, w.mustCLI("events", "kept"), "was 50", "our own change is none")
	})
}

// TestAForcedLimitKills: without --force nobody is killed for a limit, with it the kernel
// does, for the service's own limit.
func TestAForcedLimitKills(t *testing.T) {
	def := workload(t, "hog", "hog", "hog-memory", fmt.Sprint(100*mebibyte)).
		with(fields{"limits": fields{"memory_max": "256MiB", "memory_swap_max": "0"}})
	if !needsLimits(t, def) {
		return
	}
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(def.with(fields{"launch": mode}))
		s := byGRPC{w}.start("hog")
		eventually(t, "it has its memory", func() bool { return cgroupKey(t, s.Cgroup, "memory.stat", "anon") > 100*mebibyte })
		r := w.cli("set", "hog", "memory_max=48MiB")
		require.NotZero(t, r.code)
		require.Contains(t, r.stderr, "force")
		require.Equal(t, fmt.Sprint(256*mebibyte), cgroupFile(t, s.Cgroup, "memory.max"))
		require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, byGRPC{w}.status("hog").State)
		r = w.cli("set", "hog", "memory_max=48MiB", "--force") // it may be gone before it can be read back
		t.Logf("forced: %d, %s%s", r.code, r.stdout, r.stderr)
		require.Equal(t, gladsheimv1.Verdict_VERDICT_OWN_LIMIT_OOM, w.ended("hog").Verdict)
	})
}
