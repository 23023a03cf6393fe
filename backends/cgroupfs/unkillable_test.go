package cgroupfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/cgroup"
)

// What is waited for is told also when no process is listed any more.
func TestUnkillableNamesWhatIsWaitedFor(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "svc-web-00000001"), 0o755))
	for _, file := range []string{"cgroup.controllers", "cgroup.procs", "cgroup.subtree_control", "svc-web-00000001/cgroup.procs"} {
		require.NoError(t, os.WriteFile(filepath.Join(root, file), nil, 0o644))
	}
	tree, err := cgroup.OpenFixture(root)
	require.NoError(t, err)
	h := &handle{group: tree.Group("/svc-web-00000001"), ref: service.Ref{Name: service.MustName("web")}}
	h.main = process.Lead(&process.Process{}) // has not ended
	require.ErrorContains(t, h.unkillable(), "the end of its main process is waited for")
	h.main = nil // had ended before it was adopted
	require.ErrorContains(t, h.unkillable(), "no process is listed in its cgroup /svc-web-00000001; that the kernel calls it empty is waited for")
}
