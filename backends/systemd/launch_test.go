package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/units"
)

func TestScopeAsSystemdShowsIt(t *testing.T) {
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		b := newBackend(t, cfg)
		l := planned(t, service.Limits{
			service.MemoryMax: service.Of(64 << 20), service.MemoryHigh: service.Of(48 << 20), service.MemorySwapMax: service.Of(0),
			service.CPUMax: service.Of(20 * service.UsecPerPercent), service.CPUWeight: service.Of(321),
			service.PidsMax: service.Of(50), service.IOWeight: service.Of(123), service.NoFile: service.Of(512),
		}, "sleep")
		l.Spec.Stop.Signal, l.Spec.Stop.Timeout = syscall.SIGINT, 7*time.Second
		h := start(t, b, l)
		require.Equal(t, units.Scope(l.Name, l.Incarnation), h.ref.Unit)
		cell := cellOf(h.ref.Unit)
		showsAll(t, h.ref.Unit, map[string]string{
			"ActiveState": "active", "SubState": "running", "Slice": cell, "ControlGroup": h.ref.Cgroup, "Transient": "yes",
			"Description": "Gladsheim service " + l.Name.String() + ", incarnation " + strconv.FormatUint(l.Incarnation, 10),
			"OOMPolicy":   "kill", "CollectMode": "inactive-or-failed", "Delegate": "no",
			"KillSignal": "2", "TimeoutStopUSec": "7s", "SendSIGHUP": "no",
			"MemoryMax": "67108864", "MemoryHigh": "50331648", "MemorySwapMax": "0", "CPUQuotaPerSecUSec": "200ms",
			"CPUWeight": "321", "TasksMax": "50", "IOWeight": "123",
		})
		require.Contains(t, show(t, h.ref.Unit, "Before"), agentUnit, "at a shutdown the agent ends first")
		showsAll(t, cell, map[string]string{
			"ActiveState": "active", "Slice": units.Slice, "ControlGroup": filepath.Dir(h.ref.Cgroup),
			"CPUWeight": "321", "IOWeight": "123", "MemoryMax": "infinity", "TasksMax": "infinity", "CPUQuotaPerSecUSec": "infinity",
		})
		require.Equal(t, "active", show(t, units.Slice, "ActiveState"))
		require.Equal(t, h.ref.Cgroup, cgroupOfProcess(t, h.ref.PID))
		require.Equal(t, strconv.Itoa(h.ref.PID), file(t, h.scope, "cgroup.procs"))
		for name, want := range map[string]string{
			"memory.max": "67108864", "memory.high": "50331648", "memory.swap.max": "0", "cpu.max": "20000 100000",
			"cpu.weight": "321", "pids.max": "50", "memory.oom.group": "1",
		} {
			require.Equal(t, want, file(t, h.scope, name), name)
		}
		require.Equal(t, "321", file(t, h.cell, "cpu.weight"))
		require.Contains(t, file(t, h.cell, "io.weight"), "default 123")
		release(t, h)
		require.Equal(t, "not-found", show(t, h.ref.Unit, "LoadState"))
		require.NotEqual(t, "active", show(t, cell, "ActiveState"))
	})
}

func TestNoLimitOfTheHostCreepsIn(t *testing.T) {
	needSystemd(t)
	h := start(t, newBackend(t, Config{}), planned(t, service.Limits{}, "sleep"))
	for _, name := range []string{"memory.max", "memory.high", "pids.max"} {
		require.Equal(t, "max", file(t, h.scope, name), name)
		require.Equal(t, "max", file(t, h.cell, name), name)
	}
}

func TestRootGoesBySystemdsOwnSocket(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	require.Equal(t, RoutePrivate, b.bus.current.route)
	b = newBackend(t, Config{PrivateSocket: "/nowhere"})
	require.Equal(t, RouteBus, b.bus.current.route)
	release(t, start(t, b, planned(t, service.Limits{}, "sleep")))
}

func TestLeftoverUnitOfTheSameName(t *testing.T) {
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		b := newBackend(t, cfg)

		empty := planned(t, service.Limits{}, "sleep")
		systemctl(t, "start", cellOf(b.Plan(empty).Unit))
		release(t, start(t, b, empty))

		inhabited := planned(t, service.Limits{}, "sleep")
		ref := b.Plan(inhabited)
		run := exec.Command("systemd-run", "--scope", "--unit="+ref.Unit, "--slice="+cellOf(ref.Unit), "sleep", "1000")
		require.NoError(t, run.Start())
		defer func() { _ = run.Wait() }()
		group := b.tree.Group(ref.Cgroup)
		eventually(t, func() bool { lives, _ := group.Populated(); return lives }, "the previous instance never came")
		_, err := b.Launch(within(t), inhabited, backends.Birth{Identify: func(service.Ref) error { t.Error("identify was called"); return nil }})
		require.Equal(t, service.ReasonPreviousAlive, service.ReasonOf(err), "%v", err)
		require.Equal(t, service.Conflict, service.KindOf(err))
		lives, err := group.Populated()
		require.NoError(t, err)
		require.True(t, lives)

		found, err := b.Leftovers(within(t), nil)
		require.NoError(t, err)
		require.Contains(t, found, ref)
		h, err := b.Adopt(within(t), ref, service.Launch{})
		require.NoError(t, err)
		require.NotEmpty(t, waitExit(t, h).Unknown)
		require.Equal(t, 1, release(t, h).Leftovers)
		nothingOf(t, ref)
		require.NoError(t, h.Close())
	})
}

// TestLeftoverUnitThatFailed: systemd keeps it, and refuses its name to others.
func TestLeftoverUnitThatFailed(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	l := planned(t, service.Limits{}, "sleep")
	ref := b.Plan(l)
	run := exec.Command("systemd-run", "--scope", "--unit="+ref.Unit, "--slice="+cellOf(ref.Unit), "--property=RuntimeMaxSec=100ms", "sleep", "1000")
	require.Error(t, run.Run())
	eventually(t, func() bool { return show(t, ref.Unit, "ActiveState") == "failed" }, "it never failed")
	h := start(t, b, l)
	require.Equal(t, ref.Unit, h.ref.Unit)
	require.Equal(t, "active", show(t, ref.Unit, "ActiveState"))
	release(t, h)
}

// TestProcessesThatSystemdForgot: the cgroup tells the truth, not the unit.
func TestProcessesThatSystemdForgot(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	l := planned(t, service.Limits{}, "sleep")
	ref := b.Plan(l)
	dir := filepath.Join(cgroupRoot, ref.Cgroup)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	sleeper := exec.Command("sleep", "1000")
	require.NoError(t, sleeper.Start())
	defer func() { _ = sleeper.Wait() }()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(sleeper.Process.Pid)), 0o644))

	_, err := b.Launch(within(t), l, unrecorded)
	require.Equal(t, service.ReasonPreviousAlive, service.ReasonOf(err), "%v", err)
	found, err := b.Leftovers(within(t), nil)
	require.NoError(t, err)
	require.Contains(t, found, ref)
	h, err := b.Adopt(within(t), ref, service.Launch{})
	require.NoError(t, err)
	require.Equal(t, 1, release(t, h).Leftovers)
	require.NoError(t, h.Close())
	nothingOf(t, ref)
}

func TestStoppedBySomebodyElse(t *testing.T) {
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		b := newBackend(t, cfg)
		l := planned(t, service.Limits{}, "fork", "3")
		l.Spec.Stop.Signal = syscall.SIGINT
		h := start(t, b, l)
		systemctl(t, "stop", h.ref.Unit)
		require.Equal(t, service.Exit{Signal: syscall.SIGINT}, waitExit(t, h))
		remains := release(t, h)
		require.Zero(t, remains.Leftovers)
		require.Equal(t, "systemd", remains.Stopper)

		h = start(t, b, planned(t, service.Limits{}, "sleep"))
		systemctl(t, "stop", cellOf(h.ref.Unit))
		require.Equal(t, service.Exit{Signal: syscall.SIGTERM}, waitExit(t, h))
		_, err := h.Limits(t.Context())
		require.Equal(t, service.NotRunning, service.KindOf(err), "%v", err)
		remains = release(t, h)
		require.Equal(t, service.OOMNone, remains.OOM)
		require.Equal(t, "systemd", remains.Stopper)

		// The stop waits until we have killed what does not heed it.
		l = planned(t, service.Limits{}, "ignore-term")
		h = start(t, b, l)
		eventually(t, func() bool { text, _ := os.ReadFile(l.LogFile); return strings.Contains(string(text), "ready") }, "it is not ready")
		systemctl(t, "stop", "--no-block", h.ref.Unit)
		eventually(t, func() bool { return show(t, h.ref.Unit, "ActiveState") == "deactivating" }, "nobody stops it")
		require.Equal(t, "systemd", release(t, h).Stopper)
	})
}

// TestLaunchWhileTheSliceIsStopped: a launch waits for the end of a stop that
// somebody has begun and that takes its time.
func TestLaunchWhileTheSliceIsStopped(t *testing.T) {
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		b := newBackend(t, cfg)
		l := planned(t, service.Limits{}, "ignore-term")
		l.Spec.Stop.Timeout = 3 * time.Second // then systemd kills it
		h := start(t, b, l)
		eventually(t, func() bool { text, _ := os.ReadFile(l.LogFile); return strings.Contains(string(text), "ready") }, "it is not ready")
		systemctl(t, "stop", "--no-block", units.Slice)
		eventually(t, func() bool { return show(t, h.ref.Unit, "ActiveState") == "deactivating" }, "nobody stops it")
		next := start(t, b, planned(t, service.Limits{}, "sleep"))
		require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, waitExit(t, h), "the stop was over before")
		require.Equal(t, next.ref.Cgroup, cgroupOfProcess(t, next.ref.PID))
		require.Equal(t, "systemd", release(t, h).Stopper)
	})
}

// TestNotStoppedBySomebodyElse: what is no stop is not told as one.
func TestNotStoppedBySomebodyElse(t *testing.T) {
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		b := newBackend(t, cfg)
		for name, end := range map[string]func(h *handle){
			"released":            func(*handle) {},
			"ended by itself":     func(h *handle) { require.NoError(t, h.Signal(within(t), syscall.SIGTERM)); waitExit(t, h) },
			"killed by systemctl": func(h *handle) { systemctl(t, "kill", "--signal=KILL", h.ref.Unit); waitExit(t, h) },
			"started by systemctl, to which it answers that it runs": func(h *handle) {
				systemctl(t, "start", h.ref.Unit)
				eventually(t, func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.foreign == "" }, "that it has ended is not heard")
				require.NoError(t, h.Signal(within(t), syscall.SIGTERM))
				waitExit(t, h)
			},
		} {
			t.Run(name, func(t *testing.T) {
				h := start(t, b, planned(t, service.Limits{}, "sleep"))
				end(h)
				require.Empty(t, release(t, h).Stopper)
			})
		}
	})
}

func TestAdoptNeedsARecordOfOurs(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	ref := b.Plan(planned(t, service.Limits{}, "sleep"))
	ref.Cgroup = "/system.slice/dbus.service"
	_, err := b.Adopt(within(t), ref, service.Launch{})
	require.Equal(t, service.Invalid, service.KindOf(err), "%v", err)
	ref = b.Plan(planned(t, service.Limits{}, "sleep"))
	ref.BootID = "of another boot"
	_, err = b.Adopt(within(t), ref, service.Launch{})
	require.ErrorIs(t, err, backends.ErrGone)
}

func TestNoSystemd(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	_, err := New(t.Context(), Config{Watcher: b.watcher, Procfs: b.fs, Tree: b.tree, Route: RoutePrivate, PrivateSocket: "/nowhere"})
	require.Equal(t, service.HostUnavailable, service.KindOf(err))
	require.ErrorContains(t, err, "/nowhere")
}
