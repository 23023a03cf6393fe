package systemd

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
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

func TestMain(m *testing.M) { goleak.VerifyTestMain(judged{m}) }

type judged struct{ *testing.M }

func (j judged) Run() int {
	defer func() {
		if judge.conn != nil {
			judge.conn.Close()
		}
	}()
	return j.M.Run()
}

// judge asks systemd on a connection of its own, and gets no signals: each of
// them would cost PID 1 time.
var judge struct {
	sync.Mutex
	conn *dbus.Conn
}

// loaded names the units that match a pattern.
func loaded(pattern string) ([]string, error) {
	judge.Lock()
	defer judge.Unlock()
	var err error
	if judge.conn == nil || !judge.conn.Connected() {
		if judge.conn, err = dbus.ConnectSystemBus(); err != nil {
			return nil, err
		}
	}
	var units [][]any
	err = judge.conn.Object("org.freedesktop.systemd1", manager).
		Call(managerInterface+".ListUnitsByPatterns", 0, []string{}, []string{pattern}).Store(&units)
	var names []string
	for _, u := range units {
		names = append(names, u[0].(string))
	}
	return names, err
}

const cgroupRoot = "/sys/fs/cgroup"

// routes are the two ways to PID 1; what must work must work on both.
var routes = map[string]Route{"private": RoutePrivate, "bus": RouteBus}

func needSystemd(t testing.TB) {
	t.Helper()
	if !slices.Contains(strings.Fields(os.Getenv("GLADSHEIM_TEST_OFFERS")), "systemd") {
		t.Skip("needs a host with systemd: GLADSHEIM_TEST_OFFERS does not name it")
	}
	_, err := loaded("none") // connects before a test counts what is open
	require.NoError(t, err)
}

// soak tells whether there is time for everything: `make soak`.
var soak = os.Getenv("GLADSHEIM_TEST_SOAK") != ""

// onBothRoutes runs a test once on each route; on hosts that are there for their
// version of systemd once, unless there is time.
func onBothRoutes(t *testing.T, test func(t *testing.T, cfg Config)) {
	needSystemd(t)
	for name, route := range routes {
		if os.Getenv("GLADSHEIM_TEST_HOST") == "systemd" || soak || name == mainRoute() {
			t.Run(name, func(t *testing.T) { test(t, Config{Route: route}) })
		}
	}
}

// mainRoute is the way on which a host goes through the conformance suite: each
// way is gone somewhere.
func mainRoute() string {
	if os.Getenv("GLADSHEIM_TEST_HOST") == "systemd-old" {
		return "bus"
	}
	return "private"
}

// newBackend is a backend as a fresh agent has it.
func newBackend(t testing.TB, cfg Config) *Backend {
	t.Helper()
	w, err := watch.New()
	require.NoError(t, err)
	cfg.Watcher = w
	cfg.Procfs, err = procfs.New("/proc")
	require.NoError(t, err)
	cfg.Tree, err = cgroup.Open(cgroupRoot)
	require.NoError(t, err)
	cfg.Shim = launch.NewShim(launch.ShimConfig{Watcher: w, Dir: backendtest.RunDir(t)})
	b, err := New(within(t), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, b.Close())
		require.NoError(t, cfg.Shim.Close())
		require.NoError(t, w.Close())
	})
	return b
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eventually looks again and again, ever more rarely, until what must become true
// is true. (The one of testify does so in a goroutine more, which some tests
// would count.)
func eventually(t *testing.T, condition func() bool, what string, args ...any) {
	t.Helper()
	wait := 5 * time.Millisecond
	for end := time.Now().Add(time.Minute); !condition(); <-time.After(wait) {
		if time.Now().After(end) {
			t.Fatalf(what, args...)
		}
		wait = min(2*wait, 100*time.Millisecond)
	}
}

func TestConformance(t *testing.T) {
	needSystemd(t)
	offers := service.Enforcement{OOMVerdict: true, KillAll: true, Freeze: true}
	for r := range offers.Limits {
		offers.Limits[r] = true
	}
	offers.Limits[service.MemoryZswapMax] = backendtest.HasZswap()
	offers.Limits[service.HugetlbMax] = false // systemd does not know the controller
	for name, route := range routes {
		if name != mainRoute() && !soak {
			continue
		}
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, backendtest.Subject{
				New:        func(t *testing.T) backends.Backend { return newBackend(t, Config{Route: route}) },
				Workload:   backendtest.Workload(t),
				Offers:     offers,
				CgroupRoot: cgroupRoot,
				KeepsExits: true,
				Residue:    residue,
			})
		})
	}
}

// residue asks systemd, and looks for cells, whose escaped names the suite
// does not know.
func residue(name service.Name) ([]string, error) {
	names, err := loaded(ours + "*")
	if err != nil {
		return nil, err
	}
	cells, err := filepath.Glob(filepath.Join(cgroupRoot, units.Slice, "*"))
	if err != nil {
		return nil, err
	}
	for _, cell := range cells {
		names = append(names, filepath.Base(cell))
	}
	return slices.DeleteFunc(names, func(n string) bool {
		of, _, ok := parseUnit(n)
		return !ok || !strings.HasPrefix(of.String(), name.String())
	}), nil
}

var lastNumber atomic.Uint64

// planned is a launch of the workload in the given mode, under a name of its own.
func planned(t testing.TB, limits service.Limits, mode ...string) service.Launch {
	t.Helper()
	n := lastNumber.Add(1)
	spec := service.Defaults()
	spec.Name = service.MustName(fmt.Sprintf("my-own_test-%04d", n))
	spec.Exec = append([]string{workload(t), "-t", spec.Name.String()}, mode...)
	spec.Limits = limits
	return service.Launch{Name: spec.Name, Incarnation: n, Spec: spec, Limits: limits,
		LogFile: filepath.Join(t.TempDir(), "log")}
}

func workload(t testing.TB) string {
	t.Helper()
	path := os.Getenv("GLADSHEIM_WORKLOAD")
	if path == "" {
		t.Fatal("GLADSHEIM_WORKLOAD does not name the workload")
	}
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	return path
}

var unrecorded = backends.Birth{Identify: func(service.Ref) error { return nil }}

// start launches, and sees to it that nothing is left.
func start(t testing.TB, b *Backend, l service.Launch) *handle {
	t.Helper()
	h, err := b.Launch(within(t), l, unrecorded)
	require.NoError(t, err)
	return keep(t, h)
}

func keep(t testing.TB, h backends.Handle) *handle {
	t.Helper()
	t.Cleanup(func() {
		_, err := h.Release(within(t))
		require.NoError(t, err)
		require.NoError(t, h.Close())
		nothingOf(t, h.Ref())
	})
	return h.(*handle)
}

func nothingOf(t testing.TB, ref service.Ref) {
	t.Helper()
	left, err := residue(ref.Name)
	require.NoError(t, err)
	require.Empty(t, left)
}

func waitExit(t testing.TB, h backends.Handle) service.Exit {
	t.Helper()
	select {
	case <-h.Exited():
	case <-time.After(time.Minute):
		t.Fatal("it never ended")
	}
	return h.Exit()
}

func release(t testing.TB, h backends.Handle) service.Remains {
	t.Helper()
	remains, err := h.Release(within(t))
	require.NoError(t, err)
	return remains
}

// show asks systemctl for a property of a unit.
func show(t testing.TB, unit, property string) string {
	t.Helper()
	text, err := exec.Command("systemctl", "show", "--value", "-p", property, unit).Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(text))
}

// showsAll compares properties of a unit with what systemctl shows at once.
func showsAll(t testing.TB, unit string, want map[string]string) {
	t.Helper()
	names := strings.Join(slices.Collect(maps.Keys(want)), ",")
	text, err := exec.Command("systemctl", "show", "-p", names, unit).Output()
	require.NoError(t, err)
	got := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		got[name] = value
	}
	require.Equal(t, want, got)
}

func systemctl(t testing.TB, args ...string) {
	t.Helper()
	output, err := exec.Command("systemctl", args...).CombinedOutput()
	require.NoError(t, err, "systemctl %v: %s", args, output)
}

// file reads a file of a cgroup.
func file(t testing.TB, g cgroup.Group, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cgroupRoot, g.Path(), name))
	require.NoError(t, err)
	return strings.TrimSpace(string(text))
}

// cgroupOfProcess asks /proc.
func cgroupOfProcess(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	require.NoError(t, err)
	_, path, ok := strings.Cut(string(text), "0::")
	require.True(t, ok, "%q", text)
	return strings.TrimSpace(path)
}
