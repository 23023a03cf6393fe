package agent

import (
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// block makes a record unwritable and unremovable: a directory is in its place.
func (h *house) block(path string) {
	h.t.Helper()
	require.NoError(h.t, os.RemoveAll(h.path(path)))
	h.write(path+"/x", "")
}

func (h *house) unblock(path string) {
	h.t.Helper()
	require.NoError(h.t, os.RemoveAll(h.path(path)))
}

func TestStartThatCanNotBeRecorded(t *testing.T) {
	for _, record := range []string{"run/services/web.json", "state/services/web.json"} {
		opened(t, func(t *testing.T, h *house) {
			h.register(web, `"restart": {"policy": "never"}`)
			h.block(record)
			_, err := h.Start(t.Context(), web, service.StartOptions{})
			refused(t, err, service.HostUnavailable, "web.json", "nothing was begun")
			require.Zero(t, h.host.Launches(web))
			h.unblock(record)
			h.start(web)
		})
	}
}

func TestStopThatCanNotBeRecorded(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.block("run/services/web.json")
		_, err := h.Stop(t.Context(), web, service.StopOptions{})
		refused(t, err, service.HostUnavailable, "it ended", "web.json")
		require.Zero(t, h.host.IncarnationsAlive(web))
		require.Contains(t, h.reasons(web), "unrecorded")
	})
}

func TestLimitsThatCanNotBeKept(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.block("state/services/web.json")
		_, err := h.SetLimits(t.Context(), web, limits(pids, 50), service.Warnings{}, "dora")
		refused(t, err, service.HostUnavailable, "web.json")
	})
}

func TestLimitsOfARunningServiceThatCanNotBeKept(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.block("run/services/web.json")
		_, err := h.SetLimits(t.Context(), web, limits(pids, 50), service.Warnings{}, "dora")
		refused(t, err, service.HostUnavailable, "web.json")
	})
}

// What happened to a service since it was registered is not taken back with the
// registration.
func TestRollbackTakesBackItsOwn(t *testing.T) {
	before := skirnir.Wanted{Name: web, Document: []byte("old"), Generation: 1, Up: true, Limits: limits(pids, 1)}
	w := skirnir.Wanted{Name: web, Document: []byte("new"), Generation: 2, Limits: limits(memory, 1<<30)}
	undo(&w, before)
	require.Equal(t, skirnir.Wanted{
		Name: web, Document: []byte("old"), Generation: 1, Limits: limits(memory, 1<<30).Over(limits(pids, 1)),
	}, w, "it was stopped meanwhile, and its memory limited")
}

func TestExitThatCanNotBeKept(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.block("state/exits/web.json")
		s := h.stop(web)
		require.Contains(t, s.LastExit.Message, "could not be written")
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Len(t, exits, 1, "known as long as this agent lives")

		err = h.Unregister(t.Context(), web, "alice")
		refused(t, err, service.HostUnavailable, "web.json")
		require.Len(t, h.List(), 1, "it is there still")
		h.unblock("state/exits/web.json")
		require.NoError(t, h.Unregister(t.Context(), web, "alice"))
		require.Empty(t, h.List())
		h.reopen()
		require.Empty(t, h.List())
	})
}

// A service that could not be forgotten can be used as before.
func TestUnregisterThatFails(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.stop(web)
		h.block("run/services/web.json")
		refused(t, h.Unregister(t.Context(), web, "alice"), service.HostUnavailable, "web.json")
		h.unblock("run/services/web.json")
		require.EqualValues(t, 2, h.start(web).Machine.Incarnation)
		h.reopen()
		h.is(web, service.Running)
	})
}

// TestCrowd has callers do everything at once; the race detector watches.
func TestCrowd(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(db)
		h.open()
		h.host.Script(web, fake.Script{Term: &fake.End{After: time.Second}}, fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 1}}}, fake.Script{})
		var callers sync.WaitGroup
		for n := range uint64(12) {
			callers.Go(func() {
				dice := rand.New(rand.NewPCG(1, n))
				name := []service.Name{web, db}[n%2]
				ctx := t.Context()
				for range 12 {
					time.Sleep(time.Duration(dice.IntN(1000)) * time.Millisecond)
					switch dice.IntN(14) {
					case 0, 1, 2:
						_, _ = h.Start(ctx, name, service.StartOptions{})
					case 3:
						_, _ = h.Stop(ctx, name, service.StopOptions{})
					case 4:
						_, _ = h.Restart(ctx, name, service.StopOptions{})
					case 5:
						_, _ = h.Register(ctx, "web.json", []byte(doc(web, `"umask": "0`+string('0'+byte(n%8))+`7"`)), true, "alice")
					case 6:
						_ = h.Unregister(ctx, name, "alice")
					case 7:
						_, _ = h.SetLimits(ctx, name, limits(pids, 10+n), service.Warnings{}, "dora")
					case 8:
						h.Reload(ctx, h.settings)
					case 9:
						h.Doctor(ctx)
						_, _ = h.Host(ctx)
					case 10:
						_, _, _ = h.Usage(ctx, name)
						_, _ = h.Limits(ctx, name)
					case 11:
						h.List()
						h.Definitions()
						_, _ = h.Exits(name, 0)
					case 12:
						_, _ = h.Apply(ctx, []service.File{{Name: "web.json", Content: []byte(doc(web))}}, n%2 == 0, "alice")
					case 13:
						h.Recent(10, time.Time{})
						_, _ = h.Processes(ctx, name)
					}
				}
			})
		}
		callers.Wait()
		for _, name := range []service.Name{web, db} {
			_, _ = h.Stop(t.Context(), name, service.StopOptions{Force: true})
		}
		pass(time.Hour)
		require.Empty(t, h.host.Processes())
		for _, name := range []service.Name{web, db} {
			require.LessOrEqual(t, h.host.PeakAlive(name), 1)
		}
		before := h.List()
		h.reopen()
		require.Len(t, h.List(), len(before))
		require.Empty(t, h.host.Processes())
	})
}
