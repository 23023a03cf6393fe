package e2e

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFsck: it has nothing to say of a host with services, and finds a second copy
// of one of them that nobody launched, where it would live here.
func TestFsck(t *testing.T) {
	oneOfAKind(t)
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(workload(t, "twin", "twin", "fork", "2").with(fields{"launch": mode}))
		byGRPC{w}.start("twin")
		fsck := []string{"-o", "json", "fsck", "--state-dir", w.path("state"), "--agent-log", w.path("daemon.log")}
		var report struct {
			Findings         []struct{ Invariant, Service, Text string }
			Unchecked, Notes []string // notes are of other agents, if the host has any
		}
		require.NoError(t, json.Unmarshal([]byte(w.mustCLI(fsck...)), &report))
		require.NotNil(t, report.Findings)
		require.Empty(t, report.Findings)
		require.NotNil(t, report.Unchecked)
		require.Empty(t, report.Unchecked)
		require.NotNil(t, report.Notes)

		remove := w.plantCopy("twin", 0xfff)
		r := w.cli(fsck...)
		remove()
		require.Equal(t, 1, r.code, r.stdout+r.stderr)
		require.NoError(t, json.Unmarshal([]byte(r.stdout), &report))
		found := map[string]bool{}
		for _, f := range report.Findings {
			require.Equal(t, "twin", f.Service, f.Text)
			found[f.Invariant] = true
		}
		require.Equal(t, map[string]bool{"I2": true, "I3": true}, found, r.stdout)
		require.Equal(t, "0 findings\n", w.mustCLI("fsck", "--state-dir", w.path("state")))
	})
}

// plantCopy starts a process that looks like another incarnation of a service.
func (w *world) plantCopy(name string, incarnation uint32) (remove func()) {
	w.t.Helper()
	copied := exec.Command("/bin/sleep", "infinity")
	group := ""
	switch {
	case !limited(w.t): // by the limit that the exec backend marks its processes with
		sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s\x00%s", os.Geteuid(), w.path("state"), name))
		brand := 1<<62 | uint64(binary.BigEndian.Uint32(sum[:])>>2)<<32 | uint64(incarnation)
		copied = exec.Command("prlimit", fmt.Sprintf("--rttime=%d", brand), "/bin/sleep", "infinity")
	case offers(w.t, "systemd"):
		group = "/sys/fs/cgroup/gladsheim.slice/gladsheim-cgroups.scope"
	default:
		group = "/sys/fs/cgroup/gladsheim"
	}
	require.NoError(w.t, copied.Start())
	if group != "" {
		group = filepath.Join(group, fmt.Sprintf("svc-%s-%08x", name, incarnation))
		require.NoError(w.t, os.Mkdir(group, 0o755))
		require.NoError(w.t, os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Append(nil, copied.Process.Pid), 0o600))
	}
	return func() {
		require.NoError(w.t, copied.Process.Kill())
		_ = copied.Wait()
		if group != "" {
			eventually(w.t, "the cgroup goes", func() bool { return os.Remove(group) == nil })
		}
	}
}
