package launch

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// BenchmarkStart takes turns with what Go's fork and exec alone cost, because
// only the ratio says something on a machine that does other work too.
func BenchmarkStart(b *testing.B) {
	b.Run("alone", func(b *testing.B) { benchmarkStart(b, request("/bin/true")) })
	b.Run("shim", func(b *testing.B) { withShim(b, request("/bin/true"), benchmarkStart) })
	b.Run("poured", func(b *testing.B) { withShim(b, logged(b, service.LogFullBlock, "/bin/true"), benchmarkStart) })
}

// BenchmarkOutput is a program that writes 64 MiB into its log, in pieces of 64 KiB.
func BenchmarkOutput(b *testing.B) {
	const size = 64 << 20
	for _, policy := range []service.LogFull{service.LogFullFail, service.LogFullBlock} {
		b.Run(policy.String(), func(b *testing.B) {
			req := logged(b, policy, "/bin/dd", "if=/dev/zero", "bs=64k", "count=1024", "status=none")
			withShim(b, req, func(b *testing.B, req Request) {
				b.SetBytes(size)
				for b.Loop() {
					c := run(b, newWatcher(b), req)
					<-c.Process().Exited()
					info, err := os.Stat(req.Launch.LogFile)
					require.NoError(b, err)
					require.EqualValues(b, size, info.Size())
					require.NoError(b, os.Truncate(req.Launch.LogFile, 0))
				}
			})
		})
	}
}

func logged(b *testing.B, policy service.LogFull, exec ...string) Request {
	req := request(exec...)
	req.Launch.LogFile, req.Launch.Spec.LogFull = filepath.Join(b.TempDir(), "web.log"), policy
	return req
}

func withShim(b *testing.B, req Request, run func(*testing.B, Request)) {
	req.Shim = NewShim(ShimConfig{Watcher: newWatcher(b), Dir: b.TempDir()})
	run(b, req)
	req.Shim.Released(req.Launch.Name, 1)
	require.NoError(b, req.Shim.Close())
}

func benchmarkStart(b *testing.B, req Request) {
	w := newWatcher(b)
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
