package agent

import (
	"context"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// planted is a violation that the model has to find: something is wrong with the
// host, or with what an agent leaves to the next.
type planted struct {
	launched func(*told, service.Launch, backends.Handle) backends.Handle // each launch
	between  func(*told)                                                  // two agents
	deaf     bool                                                         // the disk does not sync
}

// liar is an incarnation that is said to have ended as it did not.
type liar struct{ backends.Handle }

func (liar) Exit() service.Exit { return service.Exit{Code: 3} }

// leaky is one of which something stays.
type leaky struct{ backends.Handle }

func (l leaky) Release(ctx context.Context) (service.Remains, error) {
	return service.Remains{Usage: service.Usage{Source: "cgroup"}}, l.Kill(ctx)
}

func twice(w *told, l service.Launch, h backends.Handle) backends.Handle {
	l.Incarnation += 1000
	_, err := fake.New(fake.Config{Host: w.host}).Launch(context.Background(), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
	require.NoError(w.t, err)
	return h
}

// amend changes what an agent has left.
func (w *told) amend(wanted func(*skirnir.Wanted), actual func(*skirnir.Actual), exits func(*[]service.ExitRecord)) {
	store, err := skirnir.OpenStore(w.path("state"), w.path("run"), func(string) error { return nil })
	require.NoError(w.t, err)
	left, err := store.Load()
	require.NoError(w.t, err)
	for _, r := range left.Wanted {
		wanted(&r)
		require.NoError(w.t, store.SaveWanted(r))
	}
	for _, r := range left.Actual {
		actual(&r)
		require.NoError(w.t, store.SaveActual(r))
	}
	for name, x := range left.Exits {
		exits(&x)
		require.NoError(w.t, store.SaveExits(name, x))
	}
}

func asTheyAre[T any](*T) {}

var violations = map[string]struct {
	planted
	fault string
}{
	"two at once":       {planted{launched: twice}, "I2: 2 incarnations"},
	"an invented exit":  {planted{launched: func(_ *told, _ service.Launch, h backends.Handle) backends.Handle { return liar{h} }}, "I6: "},
	"something is left": {planted{launched: func(_ *told, _ service.Launch, h backends.Handle) backends.Handle { return leaky{h} }}, "I3: nobody knows of"},
	"services end with the agent": {planted{between: func(w *told) {
		for _, a := range w.accounts {
			w.ifAlive(a, func() { w.host.Crash(a.name, service.Exit{Signal: syscall.SIGTERM}) })
		}
	}}, "I1: 1 ends of"},
	"nothing is synced":          {planted{deaf: true}, "and does not after a power cut"},
	"a synced stop is forgotten": {planted{between: func(w *told) { w.deaf = true }}, "and does after a power cut"},
	"a synced start is forgotten": {planted{between: func(w *told) {
		w.amend(func(r *skirnir.Wanted) { r.Up = false }, asTheyAre, asTheyAre)
	}}, "and does not after a power cut"},
	"a stop is undone": {planted{between: func(w *told) {
		w.amend(asTheyAre, func(r *skirnir.Actual) {
			if r.Machine.State == service.Stopped {
				r.Machine.State, r.Machine.Cause = service.Stopping, service.CauseNone
				r.Machine.Policy.When, r.Machine.Failed = service.RestartAlways, true
			}
		}, asTheyAre)
	}}, "a stop of"},
	"a registration is forgotten": {planted{between: func(w *told) { w.lose("state/services/web.json") }}, "that it is registered"},
	"a request is forgotten": {planted{between: func(w *told) {
		w.amend(asTheyAre, func(r *skirnir.Actual) { r.Asked = nil }, asTheyAre)
	}}, "after retry of"},
	"a restart too many is counted": {planted{between: func(w *told) {
		w.amend(asTheyAre, func(r *skirnir.Actual) { r.Machine.Restarts++ }, asTheyAre)
	}}, "restarts are counted"},
	"events are forgotten": {planted{between: func(w *told) { w.lose("run/events.ring") }}, "is followed by"},
	"a record of an end is forgotten": {planted{between: func(w *told) {
		w.amend(asTheyAre, asTheyAre, func(x *[]service.ExitRecord) { *x = (*x)[:max(0, len(*x)-1)] })
	}}, "no record of the end"},
	"an end is recorded twice": {planted{between: func(w *told) {
		w.amend(asTheyAre, asTheyAre, func(x *[]service.ExitRecord) { *x = append(*x, (*x)[max(0, len(*x)-1):]...) })
	}}, "two records of incarnation"},
}

// TestTheModelFinds plants a violation of each promise, and wants it found within a
// few tales: a model that can not fail says nothing.
func TestTheModelFinds(t *testing.T) {
	long := rapid.Custom(func(t *rapid.T) tale { return drawTale(t, 30) })
	for name, v := range violations {
		t.Run(name, func(t *testing.T) {
			for seed := 1; ; seed++ {
				require.Less(t, seed, 100, "it is not found")
				faults := tell(t, long.Example(seed), v.planted)
				if strings.Contains(strings.Join(faults, "\n"), v.fault) {
					t.Logf("found in tale %d: %v", seed, faults)
					return
				}
			}
		})
	}
}
