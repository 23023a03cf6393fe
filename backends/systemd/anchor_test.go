package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/units"
)

func removeAnchor(t *testing.T) {
	_ = exec.Command("systemctl", "kill", "--signal=KILL", units.AnchorScope).Run()
	_ = exec.Command("systemctl", "stop", units.AnchorScope).Run()
	eventually(t, func() bool { return show(t, units.AnchorScope, "ActiveState") != "active" }, "the anchor will not go")
}

// sleeper is the process that keeps the anchor.
func sleeper(t *testing.T, b *Backend, path string) int {
	t.Helper()
	pids, err := b.tree.Group(path).Child(PauseLeaf).Processes()
	require.NoError(t, err)
	require.Len(t, pids, 1)
	return pids[0]
}

func TestAnchor(t *testing.T) {
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		defer removeAnchor(t)
		b := newBackend(t, cfg)
		path, err := b.EnsureAnchor(within(t))
		require.NoError(t, err)
		require.Equal(t, filepath.Join("/", units.Slice, units.AnchorScope), path)
		showsAll(t, units.AnchorScope, map[string]string{
			"ActiveState": "active", "Slice": units.Slice, "Delegate": "yes", "OOMPolicy": "continue", "ControlGroup": path, "TasksMax": "infinity",
		})
		require.Contains(t, show(t, units.AnchorScope, "Before"), agentUnit, "at a shutdown the agent ends first")
		pid := sleeper(t, b, path)
		require.Empty(t, file(t, b.tree.Group(path), "cgroup.procs"))
		passed := strings.Fields(file(t, b.tree.Group(path), "cgroup.subtree_control"))
		require.Subset(t, passed, []string{"cpu", "io", "memory", "pids"})

		var wait sync.WaitGroup
		for range 5 {
			wait.Go(func() {
				if again, err := b.EnsureAnchor(within(t)); err != nil || again != path {
					t.Errorf("%q, %v", again, err)
				}
			})
		}
		wait.Wait()
		fresh := newBackend(t, cfg)
		again, err := fresh.EnsureAnchor(within(t))
		require.NoError(t, err)
		require.Equal(t, path, again)
		require.Equal(t, pid, sleeper(t, b, path))
	})
}

func TestAnchorAndItsServicesStayThroughReloads(t *testing.T) {
	needSystemd(t)
	defer removeAnchor(t)
	b := newBackend(t, Config{})
	path, err := b.EnsureAnchor(within(t))
	require.NoError(t, err)
	g := b.tree.Group(path).Child("svc-test-00000001")
	require.NoError(t, g.Create([]string{"memory", "pids"}))
	require.NoError(t, g.Apply(service.Limits{service.MemoryMax: service.Of(64 * mebi), service.PidsMax: service.Of(9)}))
	for range 3 {
		systemctl(t, "daemon-reload")
	}
	systemctl(t, "set-property", "--runtime", units.AnchorScope, "CPUWeight=200")
	require.Equal(t, "67108864", file(t, g, "memory.max"))
	require.Equal(t, "9", file(t, g, "pids.max"))
	sleeper(t, b, path)
	require.NoError(t, g.Remove())
}

// TestAnchorOutlivesTheAgent makes it in a process that is killed.
func TestAnchorOutlivesTheAgent(t *testing.T) {
	needSystemd(t)
	const asAgent = "GLADSHEIM_TEST_ANCHOR_AGENT"
	if os.Getenv(asAgent) != "" {
		b := newBackend(t, Config{})
		_, err := b.EnsureAnchor(within(t))
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGKILL))
	}
	defer removeAnchor(t)
	agent := exec.Command("/proc/self/exe", "-test.run=^TestAnchorOutlivesTheAgent$")
	agent.Env = append(os.Environ(), asAgent+"=1")
	output, err := agent.CombinedOutput()
	require.ErrorContains(t, err, "killed", "%s", output)

	b := newBackend(t, Config{})
	pids, err := b.tree.Group("/" + units.Slice).Child(units.AnchorScope).Child(PauseLeaf).Processes()
	require.NoError(t, err)
	require.Len(t, pids, 1)
	path, err := b.EnsureAnchor(within(t))
	require.NoError(t, err)
	require.Equal(t, pids[0], sleeper(t, b, path))
}

func TestAnchorIsMadeAgainWhenItsProcessWasKilled(t *testing.T) {
	needSystemd(t)
	defer removeAnchor(t)
	b := newBackend(t, Config{})
	path, err := b.EnsureAnchor(within(t))
	require.NoError(t, err)
	anchor := b.tree.Group(path)
	for range 3 {
		require.NoError(t, syscall.Kill(sleeper(t, b, path), syscall.SIGKILL))
		// At once, while systemd may still be removing the scope.
		eventually(t, func() bool { held, _ := anchor.Child(PauseLeaf).Populated(); return !held }, "it would not die")
		again, err := b.EnsureAnchor(within(t))
		require.NoError(t, err)
		require.Equal(t, path, again)
		sleeper(t, b, path)
		require.Equal(t, "active", show(t, units.AnchorScope, "ActiveState"))
	}
}

func TestAnchorIsRepairedAroundLivingServices(t *testing.T) {
	needSystemd(t)
	defer removeAnchor(t)
	b := newBackend(t, Config{})
	path, err := b.EnsureAnchor(within(t))
	require.NoError(t, err)
	g := b.tree.Group(path).Child("svc-test-00000002")
	require.NoError(t, g.Create([]string{"memory"}))
	lives := exec.Command("sleep", "1000")
	require.NoError(t, lives.Start())
	defer func() { _ = lives.Process.Kill(); _ = lives.Wait() }()
	require.NoError(t, g.Add(lives.Process.Pid))

	first := sleeper(t, b, path)
	require.NoError(t, syscall.Kill(first, syscall.SIGKILL))
	leaf := b.tree.Group(path).Child(PauseLeaf)
	eventually(t, func() bool { held, _ := leaf.Populated(); return !held }, "it would not die")
	freeze := func(frozen string) {
		require.NoError(t, os.WriteFile(filepath.Join(cgroupRoot, path, "cgroup.freeze"), []byte(frozen), 0))
	}
	freeze("1")
	eventually(t, func() bool { frozen, err := leaf.Frozen(); return err == nil && frozen }, "it does not freeze")
	_, err = b.EnsureAnchor(within(t))
	freeze("0")
	require.ErrorContains(t, err, path+" is frozen", "a fork into it would wait for ever")
	again, err := b.EnsureAnchor(within(t))
	require.NoError(t, err)
	require.Equal(t, path, again)
	require.NotEqual(t, first, sleeper(t, b, path))
	require.Equal(t, strconv.Itoa(lives.Process.Pid), file(t, g, "cgroup.procs"))
	require.NoError(t, lives.Process.Kill())
	_ = lives.Wait()
	require.NoError(t, g.Remove())
}
