package platform

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMemoryLimit(t *testing.T) {
	root := t.TempDir()
	limit := func() (uint64, bool) { return Facts{CgroupRoot: root}.MemoryLimit() }
	_, limited := limit()
	require.False(t, limited, "a host")
	require.NoError(t, os.WriteFile(filepath.Join(root, "memory.max"), []byte("max\n"), 0o644))
	_, limited = limit()
	require.False(t, limited)
	require.NoError(t, os.WriteFile(filepath.Join(root, "memory.max"), []byte("536870912\n"), 0o644))
	bytes, limited := limit()
	require.True(t, limited)
	require.EqualValues(t, 512<<20, bytes)
	_, limited = Facts{}.MemoryLimit()
	require.False(t, limited)
}
