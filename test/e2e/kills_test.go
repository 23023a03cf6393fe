package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
	"github.com/gladsheim/gladsheim/test/auditor"
)

// TestKillsAtRandom: the agent is killed at random moments while callers start and
// stop some services as fast as they can, and others just run. After each kill the
// next agent takes up what there is, and the auditor finds nothing: none of those
// that run was lost, none lives twice, every acknowledged start and stop holds, and
// every end has its record.
func TestKillsAtRandom(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			if mode == "cgroup" {
				oneOfAKind(t)
			}
			w := newWorld(t)
			steady, busy := crowd(10), crowd(4)
			for name, defs := range map[string]int{"steady": steady, "busy": busy} {
				for i := range defs {
					w.register(fields{"name": fmt.Sprintf("%s-%d", name, i), "exec": []string{"/bin/sleep", "infinity"}, "launch": mode})
				}
			}
			var bare []string
			for i := range steady {
				bare = append(bare, fmt.Sprintf("steady-%d", i))
				byGRPC{w}.start(bare[i])
			}
			since, err := auditor.Take(t.Context(), w.auditorHost())
			require.NoError(t, err)
			require.Len(t, since.Instances, steady)
			for n := range kills(t) {
				acked := make([][]auditor.Ack, busy)
				var callers sync.WaitGroup
				for i := range busy {
					callers.Go(func() { acked[i] = w.traffic(fmt.Sprintf("busy-%d", i)) })
				}
				moment := time.Duration(rand.Int64N(int64(time.Second)))
				time.Sleep(moment) // that is the moment
				w.leave(syscall.SIGKILL)
				callers.Wait()
				w.begin()
				what := fmt.Sprintf("kill %d, %v after the agent was ready", n, moment)
				r, err := auditor.Audit(t.Context(), w.auditorHost(),
					auditor.Expectation{Since: since, Acked: slices.Concat(acked...), Bare: bare, Quiet: true}, settle)
				require.NoError(t, err)
				require.Empty(t, r.Findings, "%s\n%s", what, w.daemonLog())
				require.Empty(t, r.Unchecked, what)
			}
		})
	}
}

// kills is how often the agent is killed: GLADSHEIM_TEST_KILLS times, if that is set.
func kills(t *testing.T) int {
	if text := os.Getenv("GLADSHEIM_TEST_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		return n
	}
	if soak {
		return 200
	}
	return 5
}

// crowd is a number of services, ten times as many where there is time.
func crowd(n int) int {
	if soak {
		return 10 * n
	}
	return n
}

// traffic starts and stops a service some times, or until the agent is gone. It
// gives what the agent has acknowledged, unless the last answer was lost: then
// nobody knows what holds.
func (w *world) traffic(name string) (acked []auditor.Ack) {
	ask := map[auditor.Deed]func() (*gladsheimv1.ServiceStatus, error){
		auditor.Started: func() (*gladsheimv1.ServiceStatus, error) {
			return w.services().StartService(w.t.Context(), &gladsheimv1.StartServiceRequest{ServiceName: name})
		},
		auditor.Stopped: func() (*gladsheimv1.ServiceStatus, error) {
			return w.services().StopService(w.t.Context(), &gladsheimv1.StopServiceRequest{ServiceName: name})
		},
	}
	deed := auditor.Started
	for range rand.IntN(10) {
		s, err := ask[deed]()
		switch status.Code(err) {
		case codes.OK:
			acked = append(acked, auditor.Ack{Service: name, Deed: deed, Incarnation: s.GetIncarnation()})
		case codes.AlreadyExists, codes.FailedPrecondition: // it is so already
		default:
			return nil
		}
		if deed == auditor.Started {
			deed = auditor.Stopped
		} else {
			deed = auditor.Started
		}
	}
	return acked
}
