package backendtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Workload gives the path of the built workload program: what
// GLADSHEIM_WORKLOAD names, as on a test host, else one that is built here.
// Building it is the only use of os/exec in the suite.
func Workload(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("GLADSHEIM_WORKLOAD"); path != "" {
		path, err := filepath.Abs(path)
		require.NoError(t, err)
		require.FileExists(t, path, "GLADSHEIM_WORKLOAD")
		return path
	}
	path := filepath.Join(t.TempDir(), "workload")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/gladsheim/gladsheim/test/workload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := build.CombinedOutput()
	require.NoError(t, err, "cannot build the workload: %s", output)
	return path
}

// publish copies the workload to where every user may execute it.
func publish(t *testing.T, workload string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "workload-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "workload")
	program, err := os.ReadFile(workload)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, program, 0o755))
	require.NoError(t, os.Chmod(path, 0o755))
	return path
}
