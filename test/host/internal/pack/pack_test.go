package pack

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCopyFolder(t *testing.T) {
	src, dest := t.TempDir(), filepath.Join(t.TempDir(), "deep", "dest")
	require.NoError(t, os.MkdirAll(filepath.Join(src, "sub", "empty"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(src, "sub", "program"), []byte("#!"), 0o755))
	require.NoError(t, os.Symlink("sub/program", filepath.Join(src, "link")))

	require.NoError(t, Copy(src, dest))
	content, err := os.ReadFile(filepath.Join(dest, "link"))
	require.NoError(t, err)
	assert.Equal(t, "#!", string(content))
	info, err := os.Stat(filepath.Join(dest, "sub", "program"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o755), info.Mode())
	assert.DirExists(t, filepath.Join(dest, "sub", "empty"))
}

func TestCopyFileReplaces(t *testing.T) {
	dir := t.TempDir()
	src, dest := filepath.Join(dir, "src"), filepath.Join(dir, "dest")
	require.NoError(t, os.WriteFile(src, []byte("new"), 0o644))
	require.NoError(t, os.WriteFile(dest, []byte("old and longer"), 0o600))
	require.NoError(t, Copy(src, dest))
	content, err := os.ReadFile(dest)
	require.NoError(t, err)
	assert.Equal(t, "new", string(content))
}

func TestCopyOfNothing(t *testing.T) {
	assert.ErrorIs(t, Copy(filepath.Join(t.TempDir(), "none"), t.TempDir()), os.ErrNotExist)
}

func TestExtractRefusesToLeave(t *testing.T) {
	for _, name := range []string{"../x", "/etc/x", "0/../../x", "7/x"} {
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}))
		require.NoError(t, w.Close())
		assert.Error(t, Extract(&archive, Numbered([]string{t.TempDir()})), name)
	}
}
