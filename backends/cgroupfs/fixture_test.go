package cgroupfs

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/procfs"
)

// The backend works without a host up to where the kernel is needed.
func TestFixture(t *testing.T) {
	root := t.TempDir()
	for file, text := range map[string]string{
		"cgroup.controllers": "cpu memory pids", "cgroup.subtree_control": "cpu memory pids", "cgroup.procs": "1",
		"g/cgroup.controllers": "cpu memory pids", "g/cgroup.subtree_control": "cpu memory pids", "g/cgroup.type": "domain",
		"g/memory.max": "max", "g/memory.events": "oom_kill 0", "g/memory.events.local": "oom 0", "g/cpu.max": "max 100000", "g/cgroup.freeze": "0",
		"g/svc-web-0000001f/cgroup.procs": "", "g/svc-web-1f/cgroup.procs": "", "g/pause/cgroup.procs": "7",
	} {
		full := filepath.Join(root, file)
		require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
		require.NoError(t, os.WriteFile(full, []byte(text+"\n"), 0o644))
	}
	tree, err := cgroup.OpenFixture(root)
	require.NoError(t, err)
	fs, err := procfs.New("/proc")
	require.NoError(t, err)
	b := newBackend(t, Config{Tree: tree, Procfs: fs, Parent: "/g"})
	require.Equal(t, "cgroupfs", b.Name())
	want := service.Enforcement{OOMVerdict: true, KillAll: true, BornInside: true, Freeze: true}
	want.Limits[service.MemoryMax], want.Limits[service.CPUMax], want.Limits[service.NoFile] = true, true, true
	want.Limits[service.Rlimits] = true
	can := b.Enforces()
	require.Equal(t, "the controller memory is there, but "+root+"/g/memory.high is not: the kernel is too old for it, or built without", can.Why[service.MemoryHigh])
	require.Contains(t, can.Why[service.IOWeight], "the kernel does not offer the controller io")
	require.Empty(t, can.Why[service.MemoryMax])
	can.Why = want.Why
	require.Equal(t, want, can)
	ref := service.Ref{Backend: "cgroupfs", Name: service.MustName("web"), Incarnation: 31, Cgroup: "/g/svc-web-0000001f"}
	require.Equal(t, ref, b.Plan(service.Launch{Name: ref.Name, Incarnation: 31}))
	refs, err := b.Leftovers(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, []service.Ref{ref}, refs)

	ref.Incarnation, ref.Cgroup = 32, "/g/svc-web-00000020"
	_, err = b.Adopt(t.Context(), ref, service.Launch{})
	require.ErrorIs(t, err, backends.ErrGone)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = b.Adopt(ended, ref, service.Launch{})
	require.Equal(t, service.Cancelled, service.KindOf(err))
	_, err = b.Leftovers(ended, nil)
	require.Equal(t, service.Cancelled, service.KindOf(err))
	_, err = b.Launch(ended, service.Launch{Name: ref.Name}, backends.Birth{})
	require.Equal(t, service.Cancelled, service.KindOf(err))
	_, err = b.Launch(t.Context(), limited(plan("/bin/true"), limits(service.PidsMax, 5)), backends.Birth{})
	require.Equal(t, service.Unenforceable, service.KindOf(err))
}

func TestRoomForGate(t *testing.T) {
	asked := limits(service.MemoryMax, 1<<20, service.MemorySwapMax, 0, service.PidsMax, 5, service.CPUMax, 10_000, service.CPUWeight, 5)
	now, atOpening := roomForGate(asked)
	require.Equal(t, limits(service.MemoryMax, launch.GateMemory, service.MemorySwapMax, 0, service.PidsMax, gateTasks, service.CPUMax, gateCPU, service.CPUWeight, 5), now)
	require.Equal(t, limits(service.MemoryMax, 1<<20, service.PidsMax, 5, service.CPUMax, 10_000), atOpening)
	require.Equal(t, asked, atOpening.Over(now))
}
