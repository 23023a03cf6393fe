package platform

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestRoom(t *testing.T) {
	two := func() service.Numbers { return service.Numbers{{First: 4, Last: 5}} }
	own := Room{CPUs: two(), CPUsBy: "sched_getaffinity"}
	for name, c := range map[string]struct {
		files map[string]string
		want  func(root string) Room
	}{
		"nothing is told": {nil, func(string) Room { return own }},
		"the root of a host": {
			map[string]string{"cpuset.cpus.effective": "0-7,9", "memory.stat": "inactive_file 300"},
			func(root string) Room {
				return Room{CPUs: service.Numbers{{First: 0, Last: 7}, {First: 9, Last: 9}}, CPUsBy: root + "/cpuset.cpus.effective"}
			},
		},
		"a container that is free": {
			map[string]string{"memory.max": "max", "memory.current": "5", "cpuset.cpus.effective": ""},
			func(string) Room { return own },
		},
		"a container": {
			map[string]string{
				"memory.max": "536870912", "memory.current": "1000", "memory.stat": "anon 500\ninactive_anon 7\nactive_file 50\ninactive_file 300",
				"cpuset.cpus.effective": "3",
			},
			func(root string) Room {
				return Room{
					Memory: service.Of(512 << 20), Used: 700, MemoryBy: root + "/memory.max",
					CPUs: service.Numbers{{First: 3, Last: 3}}, CPUsBy: root + "/cpuset.cpus.effective",
				}
			},
		},
		"all of it can be given back": {
			map[string]string{"memory.max": "4096", "memory.current": "100", "memory.stat": "inactive_file 300"},
			func(root string) Room {
				return Room{Memory: service.Of(4096), MemoryBy: root + "/memory.max", CPUs: two(), CPUsBy: "sched_getaffinity"}
			},
		},
	} {
		root := hostFiles(t, c.files)
		r, err := roomBelow(root, two)
		require.NoError(t, err, name)
		require.Equal(t, c.want(root), r, name)
	}
	r, err := roomBelow("", two)
	require.NoError(t, err)
	require.Equal(t, own, r, "no cgroup v2")
	r, err = roomBelow("", func() service.Numbers { return nil })
	require.NoError(t, err)
	require.Equal(t, Room{}, r)
	require.Equal(t, runtime.NumCPU(), affinity().Count(), "as Go has asked")
}

func TestRoomOfBrokenFiles(t *testing.T) {
	for file, text := range map[string]string{
		"memory.max": "much", "memory.current": "", "memory.stat": "inactive_file -3", "cpuset.cpus.effective": "0-",
	} {
		files := map[string]string{"memory.max": "4096", "memory.current": "100", "memory.stat": "inactive_file 3", "cpuset.cpus.effective": "0"}
		files[file] = text
		_, err := roomBelow(hostFiles(t, files), affinity)
		require.ErrorContains(t, err, "/"+file+" holds", file)
	}
}

func hostFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(text+"\n"), 0o644))
	}
	return root
}
