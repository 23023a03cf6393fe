package systemd

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// On an emulated host only the ratios of these figures tell something. Where
// systemd runs natively but without controllers, as in a container, they are
// those of launches without limits.

func benchmarkOnBothRoutes(b *testing.B, bench func(b *testing.B, backend *Backend, limits service.Limits)) {
	needSystemd(b)
	limits := service.Limits{service.MemoryMax: service.Of(64 << 20), service.CPUMax: service.Of(50 * service.UsecPerPercent)}
	for name, route := range routes {
		b.Run(name, func(b *testing.B) {
			backend, limits := newBackend(b, Config{Route: route}), limits
			for _, r := range backend.Enforces().Missing(limits) {
				limits[r] = service.Quota{}
			}
			release(b, start(b, backend, planned(b, limits, "sleep")))
			b.ResetTimer()
			began, busy := time.Now(), cpuTime(b, "1")
			bench(b, backend, limits)
			b.ReportMetric(float64(cpuTime(b, "1")-busy)/float64(time.Since(began)), "of-a-core-for-PID-1")
		})
	}
}

// cpuTime is what a process has used so far, to a hundredth of a second.
func cpuTime(b *testing.B, pid string) time.Duration {
	b.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	require.NoError(b, err)
	var ticks time.Duration
	for _, field := range strings.Fields(string(text))[13:15] { // "(systemd)" holds no space
		n, err := strconv.Atoi(field)
		require.NoError(b, err)
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}

func BenchmarkLaunch(b *testing.B) {
	benchmarkOnBothRoutes(b, func(b *testing.B, backend *Backend, limits service.Limits) {
		for range b.N {
			h, err := backend.Launch(within(b), planned(b, limits, "sleep"), unrecorded)
			require.NoError(b, err)
			b.StopTimer()
			release(b, h)
			b.StartTimer()
		}
	})
}

func BenchmarkRelease(b *testing.B) {
	benchmarkOnBothRoutes(b, func(b *testing.B, backend *Backend, limits service.Limits) {
		for range b.N {
			b.StopTimer()
			h, err := backend.Launch(within(b), planned(b, limits, "sleep"), unrecorded)
			require.NoError(b, err)
			b.StartTimer()
			release(b, h)
		}
	})
}

// BenchmarkLaunchAtOnce starts all at the same moment.
func BenchmarkLaunchAtOnce(b *testing.B) {
	benchmarkOnBothRoutes(b, func(b *testing.B, backend *Backend, limits service.Limits) {
		handles := make([]*handle, b.N)
		var wait sync.WaitGroup
		for i := range handles {
			l := planned(b, limits, "sleep")
			wait.Go(func() {
				h, err := backend.Launch(within(b), l, unrecorded)
				if err != nil {
					b.Error(err)
					return
				}
				handles[i] = h.(*handle)
			})
		}
		wait.Wait()
		b.StopTimer()
		for _, h := range handles {
			wait.Go(func() { release(b, h) })
		}
		wait.Wait()
	})
}
