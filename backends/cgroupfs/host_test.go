package cgroupfs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/backendtest"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/units"
	"github.com/gladsheim/gladsheim/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const cgroupRoot = "/sys/fs/cgroup"

func offers(feature string) bool {
	return slices.Contains(strings.Fields(os.Getenv("GLADSHEIM_TEST_OFFERS")), feature)
}

func needHost(t *testing.T) cgroup.Tree {
	t.Helper()
	if !offers("cgroup2") {
		t.Skip("needs a host with cgroup v2: GLADSHEIM_TEST_OFFERS does not name it")
	}
	tree, err := cgroup.Open(cgroupRoot)
	require.NoError(t, err)
	return tree
}

// anchor is the cgroup of the delegated scope on a systemd host, made once.
var anchor = struct {
	sync.Mutex
	path string
}{}

// anchorScope plays the part of the systemd backend: a scope with Delegate=yes
// whose pause process sits in a leaf.
func anchorScope(t *testing.T, tree cgroup.Tree) string {
	t.Helper()
	anchor.Lock()
	defer anchor.Unlock()
	if anchor.path != "" {
		return anchor.path
	}
	found, err := filepath.Glob(filepath.Join(cgroupRoot, units.Slice, units.AnchorScope, "pause"))
	require.NoError(t, err)
	if len(found) == 0 {
		makeAnchor(t, tree)
	}
	anchor.path = filepath.Join("/", units.Slice, units.AnchorScope)
	return anchor.path
}

func makeAnchor(t *testing.T, tree cgroup.Tree) {
	t.Helper()
	c := exec.Command("systemd-run", "--quiet", "--scope", "--slice="+units.Slice, "--unit="+units.AnchorScope,
		"-p", "Delegate=cpu cpuset io memory pids", "sleep", "infinity")
	require.NoError(t, c.Start())
	group := tree.Group(filepath.Join("/", units.Slice, units.AnchorScope))
	require.Eventually(t, func() bool {
		pids, err := group.Processes()
		return err == nil && len(pids) == 1
	}, time.Minute, 10*time.Millisecond, "the anchor scope never came")
	pause := group.Child("pause")
	require.NoError(t, pause.Create(nil))
	require.NoError(t, pause.Add(c.Process.Pid))
	require.NoError(t, c.Process.Release(), "it outlives the tests")
}

// config is how this host's agent would configure the backend.
func config(t *testing.T) Config {
	t.Helper()
	tree := needHost(t)
	fs, err := procfs.New("/proc")
	require.NoError(t, err)
	if offers("systemd") {
		return Config{Tree: tree, Procfs: fs, Parent: anchorScope(t, tree)}
	}
	return Config{Tree: tree, Procfs: fs, Parent: "/gladsheim", Ours: true}
}

func newBackend(t *testing.T, c Config) *Backend {
	t.Helper()
	w, err := watch.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	c.Watcher = w
	c.Shim = launch.NewShim(launch.ShimConfig{Watcher: w, Dir: backendtest.RunDir(t)})
	t.Cleanup(func() { require.NoError(t, c.Shim.Close()) })
	b, err := New(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func TestHostConformance(t *testing.T) {
	needHost(t)
	everything := service.Enforcement{OOMVerdict: true, KillAll: true, BornInside: true, Freeze: true}
	for r := range everything.Limits {
		everything.Limits[r] = true
	}
	everything.Limits[service.MemoryZswapMax] = backendtest.HasZswap()
	everything.Limits[service.HugetlbMax] = !offers("systemd") // which passes the controller on to nobody
	backendtest.Run(t, backendtest.Subject{
		New:        func(t *testing.T) backends.Backend { return newBackend(t, config(t)) },
		Workload:   backendtest.Workload(t),
		Offers:     everything,
		CgroupRoot: cgroupRoot,
		KeepsExits: true,
	})
}

// run is one launched service.
type run struct {
	backends.Handle
	t      *testing.T
	launch service.Launch
}

var number = struct {
	sync.Mutex
	n uint64
}{}

// plan is a launch of argv under a name of its own.
func plan(argv ...string) service.Launch {
	number.Lock()
	defer number.Unlock()
	number.n++
	spec := service.Defaults()
	spec.Name = service.MustName("own-" + strconv.FormatUint(number.n, 10))
	spec.Exec = argv
	return service.Launch{Name: spec.Name, Incarnation: number.n, Spec: spec, Limits: spec.Limits}
}

func start(t *testing.T, b *Backend, l service.Launch) *run {
	t.Helper()
	h, err := b.Launch(within(t), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
	require.NoError(t, err)
	return keep(t, h, l)
}

func keep(t *testing.T, h backends.Handle, l service.Launch) *run {
	t.Cleanup(func() {
		_, err := h.Release(context.Background())
		require.NoError(t, err)
		require.NoError(t, h.Close())
	})
	return &run{Handle: h, t: t, launch: l}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func (r *run) group() cgroup.Group {
	return r.Handle.(*handle).group
}

func (r *run) wait() service.Exit {
	r.t.Helper()
	select {
	case <-r.Exited():
	case <-time.After(time.Minute):
		r.t.Fatal("it never ended")
	}
	return r.Exit()
}

func (r *run) release() service.Remains {
	r.t.Helper()
	remains, err := r.Release(within(r.t))
	require.NoError(r.t, err)
	return remains
}

func (r *run) processes(n int) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		list, err := r.Processes(r.t.Context())
		require.NoError(r.t, err)
		return len(list) == n
	}, time.Minute, 5*time.Millisecond, "there were never %d processes", n)
}

func limits(pairs ...any) service.Limits {
	var l service.Limits
	for i := 0; i < len(pairs); i += 2 {
		l[pairs[i].(service.Resource)] = service.Of(uint64(pairs[i+1].(int)))
	}
	return l
}
