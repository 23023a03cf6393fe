package systemd

import (
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/units"
)

const mebi = 1 << 20

// TestNoOOMIsMissed ends many services by want of memory, on a host that
// has no CPU time to spare, and wants each verdict, each peak and each CPU time.
func TestNoOOMIsMissed(t *testing.T) {
	needSystemd(t)
	many, together := 20, 8
	if soak {
		many = 200
	}
	b := newBackend(t, Config{})
	busy(t, 3)
	limits := service.Limits{service.MemoryMax: service.Of(24 * mebi), service.MemorySwapMax: service.Of(0)}
	launches := make(chan service.Launch, many)
	for range many {
		launches <- planned(t, limits, "hog-memory", strconv.Itoa(48*mebi))
	}
	close(launches)
	var wait sync.WaitGroup
	for range together {
		wait.Go(func() {
			for l := range launches {
				h, err := b.Launch(within(t), l, unrecorded)
				if err != nil {
					t.Error(err)
					continue
				}
				<-h.Exited()
				exit := h.Exit()
				remains, err := h.Release(within(t))
				u := remains.Usage
				if err != nil || exit.Signal != syscall.SIGKILL || remains.OOM != service.OOMOwn ||
					remains.OOMLevel != h.Ref().Cgroup || !u.OOMKills.Set || u.OOMKills.Value == 0 ||
					u.MemoryPeak.Value < 23*mebi || u.CPUTime == 0 {
					t.Errorf("%s: %v, %v, %+v", l.Name, err, exit, remains)
				}
			}
		})
	}
	wait.Wait()
}

// busy keeps n processes running that use all the CPU they get.
func busy(t *testing.T, n int) {
	t.Helper()
	for range n {
		c := exec.Command("sh", "-c", "while :; do :; done")
		require.NoError(t, c.Start())
		t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	}
}

// TestCountersOfAShortLife ends services that have used CPU time and memory
// but nothing else happens to them.
func TestCountersOfAShortLife(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	for range 20 {
		h := start(t, b, planned(t, service.Limits{}, "exit", "3"))
		require.Equal(t, service.Exit{Code: 3}, waitExit(t, h))
		eventually(t, func() bool { there, _ := h.scope.Exists(); return !there }, "systemd keeps the scope")
		u, err := h.Usage(t.Context())
		require.NoError(t, err)
		remains := release(t, h)
		require.Equal(t, service.OOMNone, remains.OOM)
		require.NotZero(t, remains.Usage.CPUTime)
		require.NotZero(t, remains.Usage.MemoryPeak.Value)
		require.False(t, remains.Usage.Throttled.Set, "it went with the scope, and nobody had read it")
		require.Equal(t, u.CPUTime, remains.Usage.CPUTime)
	}
}

func TestOOMOfTheSlice(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	systemctl(t, "set-property", "--runtime", units.Slice, "MemoryMax=32M", "MemorySwapMax=0")
	defer systemctl(t, "set-property", "--runtime", units.Slice, "MemoryMax=infinity", "MemorySwapMax=infinity")
	h := start(t, b, planned(t, service.Limits{service.MemoryMax: service.Of(512 * mebi)}, "hog-memory", strconv.Itoa(64*mebi)))
	applied, err := h.Limits(t.Context())
	require.NoError(t, err)
	require.Equal(t, "/"+units.Slice, applied[service.MemoryMax].SetBy)
	require.Equal(t, service.Of(32*mebi), applied[service.MemoryMax].Effective)
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, waitExit(t, h))
	remains := release(t, h)
	require.Equal(t, service.OOMAncestor, remains.OOM)
	require.Equal(t, "/"+units.Slice, remains.OOMLevel)
}

// TestOOMWithoutAgent: what happened while no agent was there is told by the
// next one.
func TestOOMWithoutAgent(t *testing.T) {
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		first := newBackend(t, cfg)
		limits := service.Limits{service.MemoryMax: service.Of(24 * mebi), service.MemorySwapMax: service.Of(0)}
		h, err := first.Launch(within(t), planned(t, limits, "hog-memory", strconv.Itoa(48*mebi)), unrecorded)
		require.NoError(t, err)
		scope := h.(*handle).scope
		require.NoError(t, h.Close())
		require.NoError(t, first.Close())
		eventually(t, func() bool { there, _ := scope.Exists(); return !there }, "systemd keeps the scope")

		b := newBackend(t, cfg)
		found, err := b.Leftovers(within(t), nil)
		require.NoError(t, err)
		planned := h.Ref()
		planned.PID, planned.StartTicks, planned.BootID = 0, 0, ""
		require.Contains(t, found, planned)
		adopted, err := b.Adopt(within(t), h.Ref(), service.Launch{})
		require.NoError(t, err)
		keep(t, adopted)
		exit := waitExit(t, adopted)
		require.True(t, exit.Unknown != "" || exit == service.Exit{Signal: syscall.SIGKILL}, "%v", exit)
		remains := release(t, adopted)
		require.Equal(t, service.OOMOwn, remains.OOM)
		require.GreaterOrEqual(t, remains.Usage.MemoryPeak.Value, uint64(23*mebi))
		require.NotZero(t, remains.Usage.CPUTime)
	})
}

func TestLimitsStayThroughReloads(t *testing.T) {
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		b := newBackend(t, cfg)
		h := start(t, b, planned(t, service.Limits{
			service.MemoryMax: service.Of(64 * mebi), service.CPUMax: service.Of(20*service.UsecPerPercent + 1), service.CPUWeight: service.Of(77),
			service.PidsMax: service.Of(50), service.MemoryLow: service.Of(32 * mebi), service.CPUBurst: service.Of(10 * service.UsecPerPercent),
		}, "sleep"))
		_, err := h.Limit(within(t), service.Limits{
			service.MemoryMax: service.Of(80_000_000), service.CPUWeight: service.Of(78), service.IOWeight: service.Of(79),
			service.MemoryMin: service.Of(16 * mebi),
		})
		require.NoError(t, err)
		files := func() string {
			var all strings.Builder
			for _, name := range []string{"memory.max", "memory.oom.group", "cpu.max", "cpu.weight", "pids.max", "io.weight", "memory.low", "memory.min", "cpu.max.burst", "cgroup.procs"} {
				all.WriteString(name + " " + file(t, h.scope, name) + "\n")
			}
			all.WriteString("cell " + file(t, h.cell, "cpu.weight") + " " + file(t, h.cell, "io.weight") + "\n")
			all.WriteString("slice " + file(t, b.slice(), "memory.low") + " " + file(t, b.slice(), "memory.min") + "\n")
			return all.String()
		}
		before := files()
		require.Contains(t, before, "memory.max 79998976\n")
		require.Contains(t, before, "cpu.max 21000 100000\n")
		require.Contains(t, before, "cell 78 default 79")
		require.Contains(t, before, "cpu.max.burst 10000\n")
		require.Contains(t, before, "slice 33554432 16777216")
		for range 2 {
			systemctl(t, "daemon-reload")
			require.Equal(t, before, files())
		}
		require.Equal(t, h.ref.Cgroup, cgroupOfProcess(t, h.ref.PID))
		require.Equal(t, "79998976", show(t, h.ref.Unit, "MemoryMax"))
		require.Equal(t, "78", show(t, cellOf(h.ref.Unit), "CPUWeight"))
		applied, err := h.Limits(t.Context())
		require.NoError(t, err)
		require.Equal(t, service.Of(20*service.UsecPerPercent+1), applied[service.CPUMax].Requested)
		require.Equal(t, service.Of(21*service.UsecPerPercent), applied[service.CPUMax].Applied)
	})
}

// Block I/O is counted of a service that limits none.
func TestIOIsCounted(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	h, err := b.Launch(within(t), planned(t, service.Limits{}, "sleep"), unrecorded)
	require.NoError(t, err)
	defer func() {
		_, err := h.Release(within(t))
		require.NoError(t, err)
	}()
	u, err := h.Usage(within(t))
	require.NoError(t, err)
	require.True(t, u.IO.ReadBytes.Set, "io.stat is not there")
	require.True(t, u.IO.Writes.Set)
	require.True(t, u.IOPressure.Some.Set)
}
