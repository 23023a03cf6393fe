package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// unanswered is a health check that nobody answers.
const unanswered = `"health": {"type": "tcp", "address": "127.0.0.1:1", "interval": "24h", "timeout": "1h", "threshold": 1000}`

// rolling is a rolling restart under way.
type rolling struct {
	mu    sync.Mutex
	steps []string
	done  <-chan error
	leave context.CancelFunc
}

var stepWords = map[service.RollingStep]string{
	service.RollingBegun: "begun", service.RollingReady: "ready", service.RollingDone: "done", service.RollingFailed: "failed", service.RollingUntouched: "untouched",
}

func (h *house) roll(each time.Duration, names ...service.Name) *rolling {
	r := &rolling{}
	var ctx context.Context
	ctx, r.leave = context.WithCancel(h.t.Context())
	opts := service.RollingOptions{Stop: service.StopOptions{Actor: "alice"}, Each: each}
	r.done = later(func() error {
		return h.RollingRestart(ctx, names, opts, func(p service.Rolling) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.steps = append(r.steps, fmt.Sprintf("%s %s", stepWords[p.Step], p.Service))
			return nil
		})
	})
	return r
}

func (r *rolling) told() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.steps)
}

// rank has three services run, of which the second has a health check that asks.
func (h *house) rank(keys ...string) (one, two, three service.Name) {
	one, two, three = service.MustName("one"), service.MustName("two"), service.MustName("three")
	h.register(one)
	h.register(two, append([]string{unanswered, `"restart": {"policy": "never"}`}, keys...)...)
	h.register(three)
	for _, name := range []service.Name{one, two, three} {
		h.start(name)
	}
	synctest.Wait()
	return one, two, three
}

func (h *house) incarnations(names ...service.Name) (out []uint64) {
	for _, name := range names {
		out = append(out, h.status(name).Machine.Incarnation)
	}
	return out
}

func (h *house) judge(name service.Name, verdict service.HealthStatus) {
	h.keepHealth(name, service.Health{Status: verdict, Strategy: service.CheckTCP, Message: "so it is"})
	synctest.Wait()
}

func TestRollingRestart(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		one, two, three := h.rank()
		r := h.roll(0, three, two, one)
		require.Equal(t, []string{"begun three", "done three", "begun two", "ready two"}, r.told())
		pass(time.Hour) // the definition allows more
		require.Equal(t, []uint64{1, 2, 2}, h.incarnations(one, two, three), "the next waits for its health")
		h.judge(two, service.Healthy)
		require.NoError(t, <-r.done)
		require.Equal(t, []string{"begun three", "done three", "begun two", "ready two", "done two", "begun one", "done one"}, r.told())
		require.Equal(t, []uint64{2, 2, 2}, h.incarnations(one, two, three))
	})
}

func TestARollingRestartEndsWithTheFirstThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		brief bool // its second incarnation ends before it has settled
		keys  []string
		each  time.Duration
		fail  func(h *house, two service.Name)
		kind  service.Kind
		want  string
		last  []string
	}{
		"not ready": {true, []string{`"ready": {"settle": "5s"}`}, 0,
			func(*house, service.Name) { pass(5 * time.Second) },
			service.Unlaunchable, "cannot start two: it ended: exit code 3", []string{"begun two", "failed two"}},
		"not ready in time": {false, []string{`"ready": {"settle": "5s"}`}, 2 * time.Second,
			func(*house, service.Name) { pass(2 * time.Second) },
			service.Timeout, "cannot restart two: it was not ready within 2s; the restart goes on", []string{"begun two", "failed two"}},
		"unhealthy": {false, nil, 0,
			func(h *house, two service.Name) { h.judge(two, service.Ill) },
			service.Unlaunchable, "cannot restart two: it is ready, and unhealthy: so it is", []string{"begun two", "ready two", "failed two"}},
		"not healthy in time": {false, nil, time.Minute,
			func(*house, service.Name) { pass(time.Minute) },
			service.Timeout, "cannot restart two: it is ready, and was not healthy within 1m0s", []string{"begun two", "ready two", "failed two"}},
		"ended": {false, nil, 0,
			func(h *house, two service.Name) { h.crash(two) },
			service.Unlaunchable, "cannot restart two: it was ready, and runs no more before it was healthy", []string{"begun two", "ready two", "failed two"}},
	} {
		t.Run(name, func(t *testing.T) {
			opened(t, func(t *testing.T, h *house) {
				if c.brief {
					h.host.Script(service.MustName("two"), fake.Script{}, fake.Script{End: &fake.End{After: 4 * time.Second, Exit: service.Exit{Code: 3}}})
				}
				one, two, three := h.rank(c.keys...)
				r := h.roll(c.each, one, two, three)
				c.fail(h, two)
				err := <-r.done
				require.ErrorContains(t, err, c.want)
				require.Equal(t, c.kind, service.KindOf(err))
				require.Equal(t, slices.Concat([]string{"begun one", "done one"}, c.last, []string{"untouched three"}), r.told())
				require.EqualValues(t, 1, h.status(three).Machine.Incarnation)
			})
		})
	}
}

// Whoever goes away has the one in hand come to its end, and no further one begun.
func TestARollingRestartWithoutItsCaller(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		one, two, three := h.rank(`"ready": {"settle": "5s"}`)
		r := h.roll(0, one, two, three)
		require.Equal(t, []string{"begun one", "done one", "begun two"}, r.told())
		r.leave()
		synctest.Wait()
		require.Equal(t, service.Cancelled, service.KindOf(<-r.done))
		h.is(two, service.Starting)
		pass(5 * time.Second)
		h.is(two, service.Running)
		pass(time.Hour)
		require.Equal(t, []uint64{2, 2, 1}, h.incarnations(one, two, three))
	})
}
