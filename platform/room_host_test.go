package platform

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

const containedVariable = "GLADSHEIM_TEST_CONTAINED"

// TestRoomInAContainer looks from within a cgroup namespace of its own, whose root has
// limits, as a container has it.
func TestRoomInAContainer(t *testing.T) {
	if os.Getenv(containedVariable) != "" {
		r, err := Detect().Room()
		require.NoError(t, err)
		require.Equal(t, service.Of(256<<20), r.Memory)
		require.Equal(t, "/sys/fs/cgroup/memory.max", r.MemoryBy)
		require.Positive(t, r.Used)
		require.Less(t, r.Used, r.Memory.Value)
		require.Equal(t, "0", r.CPUs.String())
		require.Equal(t, "/sys/fs/cgroup/cpuset.cpus.effective", r.CPUsBy)
		return
	}
	offers := strings.Fields(os.Getenv("GLADSHEIM_TEST_OFFERS"))
	if !slices.Contains(offers, "cgroup2") || slices.Contains(offers, "systemd") {
		t.Skip("needs a host with cgroup v2 whose root is not systemd's")
	}
	const root = "/sys/fs/cgroup"
	group := filepath.Join(root, "gladsheim-room")
	write := func(file, text string) { t.Helper(); require.NoError(t, os.WriteFile(file, []byte(text), 0)) }
	write(root+"/cgroup.subtree_control", "+memory +cpuset")
	require.NoError(t, os.Mkdir(group, 0o755))
	t.Cleanup(func() {
		// Its processes are gone, and are still counted for a moment.
		require.Eventually(t, func() bool { return os.Remove(group) == nil }, time.Minute, 10*time.Millisecond)
	})
	write(group+"/memory.max", "256M")
	write(group+"/cpuset.cpus", "0")
	dir, err := os.Open(group)
	require.NoError(t, err)
	defer dir.Close()
	self, err := os.Executable()
	require.NoError(t, err)
	c := exec.Command("unshare", "--cgroup", "--mount", "sh", "-c", `mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$0" -test.v -test.run 'TestRoomInAContainer$'`, self)
	c.Env = append(os.Environ(), containedVariable+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestRoomInAContainer")

	r, err := Detect().Room()
	require.NoError(t, err)
	require.False(t, r.Memory.Set, "the host itself has no limit")
}
