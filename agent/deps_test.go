package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

var cache = service.MustName("cache")

const settled = `"ready": {"settle": "2s"}`

func requires(name service.Name) string { return fmt.Sprintf(`"requires": [%q]`, name) }

func (h *house) begin(name service.Name) <-chan error {
	return later(func() error {
		_, err := h.Start(h.t.Context(), name, service.StartOptions{Actor: "alice"})
		return err
	})
}

func TestAStartStartsWhatItRequires(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(cache, settled)
		h.register(db, settled, requires(cache))
		h.register(web, requires(db))
		done := h.begin(web)
		h.is(web, service.Waiting)
		h.is(db, service.Waiting)
		h.is(cache, service.Starting)
		require.Equal(t, "waits for db to be ready", h.status(web).WaitsFor)
		require.Equal(t, "it waits for db to be ready", h.status(web).Error)
		require.Equal(t, service.PublicStarting, h.status(web).Machine.Public())
		require.Equal(t, "alice", h.status(cache).LastActor, "in the name of who asked")
		pass(2 * time.Second)
		h.is(cache, service.Running)
		h.is(db, service.Starting)
		h.is(web, service.Waiting)
		require.Zero(t, h.host.Launches(web))
		pass(2 * time.Second)
		require.NoError(t, <-done)
		h.is(web, service.Running)
		require.Empty(t, h.status(web).WaitsFor)
		require.EqualValues(t, 1, h.status(web).Machine.Incarnation)
	})
}

func TestWhatIsRequiredStartsInParallel(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(cache, settled)
		h.register(db, settled)
		h.register(web, `"requires": ["db", {"service": "cache", "condition": "started"}]`)
		done := h.begin(web)
		require.Equal(t, "waits for db to be ready", h.status(web).WaitsFor)
		pass(2 * time.Second)
		require.NoError(t, <-done)
	})
}

// Somebody who starts what is being started already, because others require it, waits for
// that with them.
func TestAStartJoinsOneForOthers(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(cache, settled)
		h.register(db, settled, requires(cache))
		h.register(web, requires(db))
		all := h.begin(web)
		h.is(cache, service.Starting)
		h.is(db, service.Waiting)
		early := h.begin(db) // it waits itself
		first := h.begin(cache)
		pass(time.Second)
		require.Empty(t, first)
		pass(time.Second)
		require.NoError(t, <-first)
		h.is(db, service.Starting)
		late := h.begin(db)
		pass(2 * time.Second)
		require.NoError(t, <-early)
		require.NoError(t, <-late)
		require.NoError(t, <-all)
		for _, name := range []service.Name{cache, db, web} {
			require.Equal(t, 1, h.host.Launches(name))
			refused(t, <-h.begin(name), service.AlreadyRunning, "it is running")
		}
	})
}

func TestAStartJoinsTheFailureOfOneForOthers(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, settled)
		h.register(web, requires(db))
		h.host.Script(db, fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 3}}}, fake.Script{})
		done, joined := h.begin(web), h.begin(db)
		pass(time.Second)
		require.Equal(t, service.ReasonDependencyFailed, service.ReasonOf(<-done))
		err := <-joined
		refused(t, err, service.Unlaunchable, "cannot start db: it ended: exit code 3")
		require.Equal(t, service.ReasonExitedEarly, service.ReasonOf(err))
	})
}

func TestAStartOfSomethingElseDoesNotJoin(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, settled)
		h.register(web, requires(db))
		done := h.begin(web)
		with := service.StartOptions{Actor: "alice", Environment: map[string]string{"DEBUG": "1"}}
		_, err := h.Start(t.Context(), db, with)
		refused(t, err, service.AlreadyRunning, "it is starting")
		pass(2 * time.Second)
		require.NoError(t, <-done)

		// What somebody has started by itself is running already, as it was.
		h.stop(web)
		h.stop(db)
		own := h.begin(db)
		refused(t, <-h.begin(db), service.AlreadyRunning, "it is starting")
		pass(2 * time.Second)
		require.NoError(t, <-own)
	})
}

func TestAStartJoinsAJobForOthers(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, `"type": "oneshot"`)
		h.register(web, `"requires": [{"service": "db", "condition": "completed"}]`)
		h.host.Script(db, fake.Script{End: &fake.End{After: time.Second}})
		done, joined := h.begin(web), h.begin(db)
		h.is(db, service.Running)
		pass(time.Second)
		require.NoError(t, <-joined)
		require.NoError(t, <-done)
		require.Equal(t, 1, h.host.Launches(db))
	})
}

func TestAStartThatJoinedIsNotRepeated(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, settled)
		h.register(web, requires(db))
		done := h.begin(web)
		ask := func() <-chan error {
			return later(func() error {
				_, err := h.Start(t.Context(), db, service.StartOptions{Actor: "alice", Request: service.Request{ID: "7d0c", Body: "a"}})
				return err
			})
		}
		joined := ask()
		pass(2 * time.Second)
		require.NoError(t, <-joined)
		require.NoError(t, <-done)
		h.stop(web)
		h.stop(db)
		require.NoError(t, <-ask())
		h.is(db, service.Stopped)
		require.Equal(t, 1, h.host.Launches(db))
	})
}

func TestAStartFailsWithWhatItRequires(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, `"restart": {"backoff": "1m"}`, settled)
		h.register(web, requires(db))
		h.host.Script(db, fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 3}}}, fake.Script{})
		done := h.begin(web)
		pass(time.Second)
		err := <-done
		refused(t, err, service.Unlaunchable, "cannot start web: it requires db to be ready", "cannot start db", "exit code 3")
		require.Equal(t, service.ReasonDependencyFailed, service.ReasonOf(err))
		h.is(web, service.Stopped)
		require.Zero(t, h.host.Launches(web), "nothing was launched")
		require.Zero(t, h.status(web).Machine.Failures)
		require.Contains(t, h.status(web).Error, "it requires db to be ready")
		h.is(db, service.Backoff)

		// Once it is there a start is one like any other.
		h.start(web)
		h.is(db, service.Running)
	})
}

// Before what runs is stopped for a restart, what it requires has to be there.
func TestARestartBringsUpWhatItRequiresFirst(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, `"restart": {"policy": "never"}`, settled)
		h.register(web, requires(db))
		h.start(web)
		h.stop(db)
		h.host.Script(db, fake.Script{End: &fake.End{Exit: service.Exit{Code: 3}}}, fake.Script{})
		_, err := h.Restart(t.Context(), web, service.StopOptions{Actor: "bob"})
		refused(t, err, service.Unlaunchable, "cannot restart web: it requires db, and runs on: cannot start db", "exit code 3")
		require.Equal(t, service.ReasonDependencyFailed, service.ReasonOf(err))
		h.is(web, service.Running)
		require.EqualValues(t, 1, h.status(web).Machine.Incarnation, "it was stopped")

		_, err = h.Restart(t.Context(), web, service.StopOptions{Actor: "bob"})
		require.NoError(t, err)
		h.is(db, service.Running)
		require.EqualValues(t, 2, h.status(web).Machine.Incarnation)
	})
}

func TestAStopOfWhatIsRequiredEndsTheWait(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, `"ready": {"type": "tcp", "address": "127.0.0.1:1", "timeout": "1h"}`)
		h.register(web, requires(db))
		done := h.begin(web)
		h.is(web, service.Waiting)
		h.stop(db)
		synctest.Wait()
		refused(t, <-done, service.Unlaunchable, "it requires db to be ready", "bob asked for it to stop")
	})
}

func TestAStopEndsAWaitAtOnce(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, `"ready": {"settle": "1h", "timeout": "2h"}`)
		h.register(web, requires(db))
		done := h.begin(web)
		h.is(web, service.Waiting)
		h.stop(web)
		refused(t, <-done, service.Conflict, "bob asked for it to stop")
		h.is(db, service.Starting)
		pass(2 * time.Hour)
		h.is(web, service.Stopped)
		require.Zero(t, h.host.Launches(web))
	})
}

// A database is down for a while, and its clients can not live without it: none of them is
// given up, and all are back soon after it.
func TestAnOutageIsNoFailureOfWhoRequires(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, `"restart": {"backoff": "1m", "max_backoff": "1h", "max_attempts": 100, "deterministic": 0}`)
		var clients []service.Name
		for i := range 20 {
			clients = append(clients, service.MustName(fmt.Sprintf("client%d", i)))
			h.register(clients[i], requires(db))
			h.start(clients[i])
		}
		h.crash(db)
		for _, c := range clients {
			h.crash(c)
			h.is(c, service.Waiting)
			s := h.status(c)
			require.Zero(t, s.Machine.Failures)
			require.Equal(t, "waits for db to be ready", s.WaitsFor)
			require.Contains(t, s.LastExit.Message, "that is no failure of its own: it waits for db to be ready")
			require.Equal(t, service.PublicRestarting, s.Machine.Public())
		}
		pass(30 * time.Second)
		for _, c := range clients {
			h.is(c, service.Waiting)
		}
		pass(33 * time.Second)
		h.is(db, service.Running)
		for _, c := range clients {
			h.is(c, service.Running)
			require.Zero(t, h.status(c).Machine.Failures)
			require.EqualValues(t, 1, h.status(c).Machine.Restarts)
		}
	})
}

// What is given up or stopped does not come back by itself, and who requires it waits.
func TestWhoRequiresWaitsForAsLongAsItTakes(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db)
		h.register(web, requires(db))
		h.start(web)
		h.stop(db)
		h.is(web, service.Running)
		h.crash(web)
		h.is(web, service.Waiting)
		pass(24 * time.Hour)
		h.is(web, service.Waiting)
		require.Equal(t, 1, h.host.Launches(web))
		h.start(db)
		pass(comeback)
		h.is(web, service.Running)
	})
}

// comeback is more than it takes until one is back that has waited.
const comeback = 2 * time.Second

func TestAWaitOutlivesTheAgent(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db)
		h.register(web, requires(db))
		h.start(web)
		h.stop(db)
		h.crash(web)
		h.is(web, service.Waiting)
		h.reopen()
		h.is(web, service.Waiting)
		h.is(db, service.Stopped)
		require.Equal(t, "waits for db to be ready", h.status(web).WaitsFor)
		h.start(db)
		pass(comeback)
		h.is(web, service.Running)
	})
}

func TestAStartThatWaitsOutlivesTheAgent(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, settled)
		h.register(web, requires(db))
		h.host.Script(db, fake.Script{LaunchTime: time.Hour}, fake.Script{})
		done := h.begin(web)
		h.is(web, service.Waiting)
		h.reopen()
		require.Error(t, <-done)
		h.is(web, service.Waiting)
		h.is(db, service.Starting)
		pass(2 * time.Second)
		h.is(web, service.Running)
	})
}

func TestAfterIsAnOrderAlone(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, settled)
		h.register(web, `"after": ["db"]`)
		h.start(web)
		h.is(db, service.Stopped)
		h.stop(web)
		db := h.begin(db)
		done := h.begin(web)
		h.is(web, service.Waiting)
		pass(2 * time.Second)
		require.NoError(t, <-done)
		require.NoError(t, <-db)
	})
}

func TestAFailureOfWhatItIsAfterDoesNotMatter(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, settled, `"restart": {"policy": "never"}`)
		h.register(web, `"after": ["db"]`)
		h.host.Script(db, fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 3}}}, fake.Script{})
		first, done := h.begin(db), h.begin(web)
		pass(time.Second)
		require.Error(t, <-first)
		require.NoError(t, <-done)
		h.is(db, service.Crashed)
	})
}

func TestTheBoundEndFirstAndComeBack(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db)
		h.register(cache, `"binds": ["db"]`)
		h.register(web, `"binds": ["cache"]`)
		h.start(web)
		h.stop(db)
		h.is(web, service.Waiting)
		h.is(cache, service.Waiting)
		var ended []service.Name
		for _, n := range h.Kept(0) {
			if n.Kind == service.NoticeExit {
				ended = append(ended, n.Service)
			}
		}
		require.Equal(t, []service.Name{web, cache, db}, ended)
		require.Equal(t, service.VerdictStopped, h.status(web).LastExit.Verdict)
		require.Contains(t, h.status(web).LastExit.RequestedBy, "cache")
		h.start(db)
		pass(2 * comeback)
		h.is(web, service.Running)
		h.is(cache, service.Running)

		// Who was stopped meanwhile stays so.
		h.stop(db)
		h.stop(web)
		h.start(db)
		pass(2 * comeback)
		h.is(web, service.Stopped)
		h.is(cache, service.Running)

		// It begins anew with what it is bound to, also when that fails.
		h.crash(db)
		h.is(cache, service.Waiting)
		pass(comeback + comeback)
		h.is(db, service.Running)
		h.is(cache, service.Running)
		before := h.status(cache).Machine.Incarnation
		_, err := h.Restart(t.Context(), db, service.StopOptions{Actor: "bob"})
		require.NoError(t, err)
		pass(comeback)
		h.is(cache, service.Running)
		require.Equal(t, before+1, h.status(cache).Machine.Incarnation)
		require.Zero(t, h.status(cache).Machine.Failures)
	})
}

func TestAutostartGoesInOrder(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(db, `"autostart": true, "priority": 1`, settled)
		h.define(cache, `"autostart": true, "priority": 900, "after": ["db"]`)
		h.define(web, `"autostart": true, "priority": 1000`, requires(cache))
		h.open()
		h.is(db, service.Starting)
		h.is(cache, service.Waiting)
		h.is(web, service.Waiting)
		pass(2 * time.Second)
		h.is(db, service.Running)
		h.is(cache, service.Running)
		h.is(web, service.Running)
		require.NotContains(t, h.log.String(), "autostart failed")
	})
}

// With the agent it waits for what it requires, whatever becomes of the first attempt.
func TestAutostartWaitsOn(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(db, `"autostart": true`, `"restart": {"backoff": "5s"}`, settled)
		h.define(web, `"autostart": true`, requires(db))
		h.host.Script(db, fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 3}}}, fake.Script{})
		h.open()
		pass(time.Second)
		h.is(db, service.Backoff)
		h.is(web, service.Waiting)
		pass(10 * time.Second)
		h.is(db, service.Running)
		h.is(web, service.Running)
	})
}

func TestAOneshotIsRequiredToBeDone(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, `"type": "oneshot"`)
		h.register(web, `"requires": [{"service": "db", "condition": "completed"}]`)
		h.host.Script(db, fake.Script{End: &fake.End{After: time.Minute}})
		done := h.begin(web)
		require.Equal(t, "waits for db to have done its job", h.status(web).WaitsFor)
		pass(time.Minute)
		require.NoError(t, <-done)
		h.stop(web)
		h.start(web)
		require.Equal(t, 1, h.host.Launches(db), "it is done")
	})
}

func TestCirclesAndUnknownNamesAreRefused(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		_, err := h.Register(t.Context(), "web.json", []byte(doc(web, requires(db))), false, "alice")
		refused(t, err, service.Invalid, "web.json:1:", "requires[0]: no service db is registered or defined")
		h.register(db)
		h.register(web, requires(db))
		_, err = h.Register(t.Context(), "new.json", []byte(doc(db, `"after": ["web"]`)), true, "alice")
		refused(t, err, service.Invalid, "new.json:1:", "after[0]: leads back to db: web requires db (web (registered):1:")

		// A set is seen as one.
		files := []service.File{
			{Name: "a.json", Content: []byte(doc(service.MustName("a"), `"requires": ["b"]`))},
			{Name: "b.json", Content: []byte(doc(service.MustName("b"), `"requires": ["a"]`))},
		}
		_, err = h.Apply(t.Context(), files, service.ApplyOptions{}, "alice")
		refused(t, err, service.Invalid, "a.json:1:", "leads back to a: b requires a (b.json:1:", "leads back to b: a requires b (a.json:1:")
		files[1].Content = []byte(doc(service.MustName("b")))
		_, err = h.Apply(t.Context(), files, service.ApplyOptions{}, "alice")
		require.NoError(t, err)

		err = h.Unregister(t.Context(), db, "alice")
		refused(t, err, service.Conflict, "it is named by web (requires[0])")
		require.Equal(t, service.ReasonInUse, service.ReasonOf(err))
		require.NoError(t, h.Unregister(t.Context(), web, "alice"))
		require.NoError(t, h.Unregister(t.Context(), db, "alice"))

		_, err = h.Register(t.Context(), "c.json", []byte(doc(cache, `"requires": [{"service": "a", "condition": "completed"}]`)), false, "alice")
		refused(t, err, service.Invalid, "a is no oneshot, and is never done")
	})
}

// Of a directory those alone are refused that are in the circle or name nobody.
func TestOneCircleKeepsNobodyElse(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(db, `"autostart": true`, requires(cache))
		h.define(cache, `"autostart": true`, `"after": ["db"]`)
		h.define(web, `"autostart": true`)
		lost := service.MustName("lost")
		h.define(lost, `"requires": ["nobody"]`)
		h.open()
		h.is(web, service.Running)
		require.Len(t, h.Definitions(), 1)
		faults := h.doctor()
		require.Len(t, faults, 3)
		for _, want := range []string{"db.json:1:", "cache.json:1:", "no service nobody is registered or defined"} {
			require.True(t, slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, want) }), "%s in %v", want, faults)
		}

		// Mended, all come. One that becomes faulty stays what it was.
		h.define(cache)
		h.reload()
		h.start(db)
		h.is(cache, service.Running)
		h.define(cache, requires(db))
		h.reload()
		require.Empty(t, h.status(cache).Spec.Requires)
		require.Len(t, h.doctor(), 3, "both of the circle, and the one from before")
	})
}

func TestWhatIsFrozenServesNobody(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db)
		h.register(web, requires(db))
		h.start(db)
		_, err := h.Freeze(t.Context(), db, "bob")
		require.NoError(t, err)
		done := h.begin(web)
		h.is(web, service.Waiting)
		_, err = h.Thaw(t.Context(), db, "bob")
		require.NoError(t, err)
		require.NoError(t, <-done)
	})
}

// One that requires what is held, and is itself of more worth, waits until AC.
func TestTheBatteryHoldsWhatIsRequired(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.settings.StopServicesBelow, h.settings.ReduceMonitoringBelow = 15, 30
		h.define(db, `"power": "deferrable"`)
		h.define(web, `"power": "essential"`, `"binds": ["db"]`)
		h.open()
		h.start(web)
		h.unplugged(14)
		settle()
		h.is(db, service.Held)
		h.is(web, service.Waiting)
		h.plugged(14)
		pass(time.Minute)
		h.is(db, service.Running)
		h.is(web, service.Running)
		require.Zero(t, h.status(web).Machine.Failures)
	})
}
