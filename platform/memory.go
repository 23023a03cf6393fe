package platform

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// MemoryLimit is what everything in this container may use together, in bytes: the
// memory.max of the root of its cgroup namespace (cgroup_namespaces(7)), read anew. The
// root of a host has none, nor has a container that shares the host's namespace.
func (f Facts) MemoryLimit() (bytes uint64, limited bool) {
	if f.CgroupRoot == "" {
		return 0, false
	}
	data, err := os.ReadFile(filepath.Join(f.CgroupRoot, "memory.max"))
	if err != nil {
		return 0, false
	}
	bytes, err = strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return bytes, err == nil // else it is "max"
}
