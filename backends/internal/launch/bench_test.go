package launch

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkStart takes turns with what Go's fork and exec alone cost, because
// only the ratio says something on a machine that does other work too.
func BenchmarkStart(b *testing.B) {
	b.Run("alone", func(b *testing.B) { benchmarkStart(b, nil) })
	b.Run("shim", func(b *testing.B) {
		shim := NewShim(ShimConfig{Watcher: newWatcher(b), Dir: b.TempDir()})
		benchmarkStart(b, shim)
		shim.Released(request().Launch.Name, 1)
		require.NoError(b, shim.Close())
	})
}

func benchmarkStart(b *testing.B, shim *Shim) {
	w := newWatcher(b)
	req := request("/bin/true")
	req.Shim = shim
	var start, open, raw []time.Duration
	for b.Loop() {
		began := time.Now()
		c, err := Start(b.Context(), w, req)
		require.NoError(b, err)
		started := time.Now()
		require.NoError(b, c.Open(b.Context()))
		open = append(open, time.Since(started))
		start = append(start, started.Sub(began))
		<-c.Process().Exited()
		require.NoError(b, c.Process().Close())

		began = time.Now()
		pid, err := syscall.ForkExec("/bin/true", []string{"/bin/true"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		require.NoError(b, err)
		raw = append(raw, time.Since(began))
		for err = syscall.EINTR; err == syscall.EINTR; {
			_, err = syscall.Wait4(pid, nil, 0, nil)
		}
	}
	for name, times := range map[string][]time.Duration{"start": start, "open": open, "raw": raw} {
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/10].Microseconds()), name+"-p10-µs")
		b.ReportMetric(float64(times[len(times)/2].Microseconds()), name+"-p50-µs")
	}
}
