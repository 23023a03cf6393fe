package e2e

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// Of thirty starts at once as many succeed as fit into the budget, and an agent that is
// killed and comes back refuses nobody who runs.
func TestTheBudgetOfMemory(t *testing.T) {
	anywhere(t)
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			host := func() *gladsheimv1.HostInfo {
				h, err := gladsheimv1.NewHostServiceClient(w.conn).GetHost(contextFor(t), &gladsheimv1.GetHostRequest{})
				require.NoError(t, err)
				return h
			}
			w.configure(`"resource_limits": {"max_services": 300, "memory_overcommit_percent": 200}`)
			eventually(t, "the budget is that of the file", func() bool { return host().MemoryBudgetBytes != nil })
			const all, fit = 30, 10
			share := host().GetMemoryBudgetBytes() / fit &^ 4095
			name := func(i int) string { return fmt.Sprintf("s%d", i) }
			for i := range all {
				w.register(workload(t, name(i), "budget", "fork", "1").with(fields{
					"launch": mode, "log": "null", "limits": limits(t, fields{"memory_max": share}),
				}))
			}
			var started atomic.Int32
			var starts sync.WaitGroup
			for i := range all {
				starts.Go(func() {
					_, err := w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: name(i)})
					switch {
					case err == nil:
						started.Add(1)
					case status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "memory_overcommit_percent"):
						t.Error(err)
					}
				})
			}
			starts.Wait()
			require.EqualValues(t, fit, started.Load())
			require.Equal(t, fit*share, host().GetMemoryPromisedBytes())

			eventually(t, "each has a child", func() bool { return len(marked(t, "budget")) == 2*fit })
			w.leave(syscall.SIGKILL)
			w.begin()
			require.Len(t, marked(t, "budget"), 2*fit)
			require.Equal(t, fit*share, host().GetMemoryPromisedBytes())
			r := w.cli("start", "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10")
			require.NotZero(t, r.code)
			require.Contains(t, r.stdout+r.stderr, "does not fit: services that run may use")
		})
	}
}
