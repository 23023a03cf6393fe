package agent

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// The house has 4,000 MiB; 100 starts at once at the edge of a budget of half of that.
func TestMemoryBudget(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.settings.MemoryOvercommit = 50
		h.settings.MaxServices = 0
		h.open()
		names := make([]service.Name, 100)
		for i := range names {
			names[i] = service.MustName(fmt.Sprintf("s%d", i))
			h.register(names[i], `"limits": {"memory_max": "64MiB"}`)
			h.host.Script(names[i], fake.Script{LaunchTime: time.Duration(i%7) * time.Second})
		}
		var started atomic.Int32
		var all sync.WaitGroup
		for _, name := range names {
			all.Go(func() {
				_, err := h.Start(t.Context(), name, service.StartOptions{})
				if err == nil {
					started.Add(1)
				} else if service.KindOf(err) != service.Exhausted {
					t.Error(err)
				}
			})
		}
		all.Wait()
		require.EqualValues(t, 31, started.Load(), "31 times 64MiB are 1984MiB")
		require.Len(t, h.host.Processes(), 31)
		info, err := h.Host(t.Context())
		require.NoError(t, err)
		require.Equal(t, []uint64{2000 << 20, 1984 << 20}, []uint64{info.Budget, info.Promised})
	})
}

func TestBudgetAndWhatHasItsPlace(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.settings.MemoryOvercommit = 50
		h.open()
		h.register(web, `"limits": {"memory_max": "1GiB"}`)
		h.register(db, `"limits": {"memory_max": "900MiB"}`)
		h.register(mail, `"limits": {"memory_max": "100MiB"}`)
		h.register(feed, `"limits": {"memory_max": "max"}`)
		h.register(core)
		h.start(web)
		h.start(db)
		h.start(feed)
		_, err := h.Start(t.Context(), mail, service.StartOptions{})
		refused(t, err, service.Exhausted, "its memory_max, 100MiB, does not fit", "may use 1924MiB (web 1GiB, db 900MiB)",
			"allows 2000MiB together, 50% of this host's memory (resource_limits.memory_overcommit_percent)")
		h.is(mail, service.Stopped)
		_, err = h.Start(t.Context(), core, service.StartOptions{})
		refused(t, err, service.Exhausted, "its memory_max, 2GiB, does not fit") // the platform's default
		_, err = h.Start(t.Context(), web, service.StartOptions{})
		refused(t, err, service.AlreadyRunning)

		h.crash(web) // it keeps its place while it waits
		h.is(web, service.Backoff)
		_, err = h.Start(t.Context(), mail, service.StartOptions{})
		refused(t, err, service.Exhausted)
		pass(time.Minute)
		h.is(web, service.Running)
		_, err = h.Restart(t.Context(), web, service.StopOptions{})
		require.NoError(t, err)

		h.settings.MemoryOvercommit = 10 // who runs is left alone, also by the next agent
		h.reload()
		h.crash(web)
		pass(time.Minute)
		h.is(web, service.Running)
		h.reopen()
		h.is(web, service.Running)
		h.is(db, service.Running)
		_, err = h.Restart(t.Context(), db, service.StopOptions{})
		require.NoError(t, err)
		h.register(db, `"limits": {"memory_max": "901MiB"}`)
		_, err = h.Restart(t.Context(), db, service.StopOptions{})
		refused(t, err, service.Exhausted)
		h.is(db, service.Running)
		require.EqualValues(t, 2, h.status(db).Machine.Incarnation, "it was not stopped for it")

		h.stop(web)
		h.stop(db)
		h.start(mail)
		h.stop(mail)
		_, err = h.SetLimits(t.Context(), mail, service.Limits{service.MemoryMax: service.Of(500 << 20)}, service.Warnings{}, false, "alice")
		require.NoError(t, err)
		_, err = h.Start(t.Context(), mail, service.StartOptions{})
		refused(t, err, service.Exhausted, "500MiB")
		h.settings.MemoryOvercommit = 0
		h.reload()
		h.start(mail)
		h.start(core)
	})
}

// A start that fails gives its share back.
func TestBudgetAfterAFailedStart(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.settings.MemoryOvercommit = 50
		h.open()
		h.register(web, `"limits": {"memory_max": "2000MiB"}`, `"restart": {"policy": "never"}`)
		h.register(db, `"limits": {"memory_max": "2000MiB"}`)
		h.host.Script(web, fake.Script{LaunchTime: time.Second, LaunchError: &service.Error{Op: "launch", Kind: service.Unlaunchable, Permanent: true}})
		first := later(func() error { _, err := h.Start(t.Context(), web, service.StartOptions{}); return err })
		_, err := h.Start(t.Context(), db, service.StartOptions{})
		refused(t, err, service.Exhausted)
		require.Error(t, <-first)
		synctest.Wait()
		h.start(db)
	})
}

// What is held for the battery keeps its share, and comes back.
func TestBudgetOfWhatIsHeld(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.settings.MemoryOvercommit = 50
		h.define(web, `"limits": {"memory_max": "1500MiB"}`)
		h.define(core, `"limits": {"memory_max": "600MiB"}`)
		h.open()
		h.start(web)
		h.unplugged(10)
		h.is(web, service.Held)
		_, err := h.Start(t.Context(), core, service.StartOptions{})
		refused(t, err, service.Exhausted, "web 1500MiB")
		h.plugged(10)
		settle()
		h.is(web, service.Running)
	})
}

// The refusal names the budget, and hosts have no round number of bytes.
func TestBudgetIsInWholeMebibytes(t *testing.T) {
	of := budget(config.Agent{MemoryOvercommit: 50}, 2070061056)
	require.Equal(t, "987MiB", service.FormatSize(of.Memory))
	require.Equal(t, uint64(256<<20), budget(config.Agent{MemoryOvercommit: 50}, 512<<20).Memory)
	require.Zero(t, budget(config.Agent{}, 2070061056).Memory)
}
