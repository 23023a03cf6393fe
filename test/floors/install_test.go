package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where nothing can be installed, what is missing is named.
func TestWhatIsMissingIsNamed(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"sh", "ls", "id"} {
		path, err := exec.LookPath(name)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(path, filepath.Join(dir, name)))
	}
	cmd := exec.Command("../host/install")
	cmd.Env = []string{"PATH=" + dir} // no jq in it, and no apt-get
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 1, cmd.ProcessState.ExitCode(), "%s", out)
	require.Contains(t, string(out), " jq")
	require.Contains(t, string(out), "as root on Debian")
}
