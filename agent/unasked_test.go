package agent

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// Its time counts anew when nobody knows since when it works.
func TestABoundedJobIsTakenUp(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(db, job, `"ready": {"timeout": "1h"}`)
		h.open()
		h.takes(db, 30*time.Minute)
		_ = later(func() error {
			_, err := h.Start(context.Background(), db, service.StartOptions{Actor: "alice"})
			return err
		})
		h.is(db, service.Running)
		pass(time.Minute)
		h.close()
		h.lose("run")
		h.open()
		pass(time.Second)
		h.is(db, service.Running)
	})
}

// What was stopped while it was held stays so, though another requires it.
func TestTheMainsUndoNoStop(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.settings.StopServicesBelow, h.settings.ReduceMonitoringBelow = 15, 30
		h.define(db, `"power": "deferrable"`)
		h.define(web, `"power": "deferrable"`, requires(db))
		h.open()
		h.start(web)
		h.unplugged(14)
		settle()
		h.is(db, service.Held)
		h.is(web, service.Held)
		h.stop(db)
		h.plugged(14)
		pass(2 * time.Minute)
		h.is(db, service.Stopped)
	})
}

// A run that nobody asked for just now does not start what somebody has stopped.
func TestAScheduleUndoesNoStop(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db)
		h.takes(web, time.Second)
		h.register(web, job, `"schedule": {"every": "1m"}`, requires(db))
		h.start(db)
		h.stop(db)
		pass(2 * time.Minute)
		h.is(db, service.Stopped)
	})
}

// Nor what was given up.
func TestAScheduleUndoesNoGiveUp(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, settled, `"restart": {"policy": "on-failure", "max_attempts": 2, "backoff": "1s"}`)
		h.host.Script(db, fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 3}}})
		h.register(web, job, `"schedule": {"every": "1m"}`, requires(db))
		pass(24 * time.Hour)
		n := 0
		for _, r := range h.reasons(db) {
			if r == "alert" {
				n++
			}
		}
		require.LessOrEqual(t, h.host.Launches(db), 3)
	})
}

// One that waits for hours keeps none of a lower priority from its start.
func TestAWaitKeepsNobodyElse(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(db, job, `"autostart": true`, `"priority": 900`)
		h.takes(db, 3*time.Hour)
		h.define(web, `"autostart": true`, `"priority": 900`, `"requires": [{"service": "db", "condition": "completed"}]`)
		h.define(mail, `"autostart": true`, `"priority": 1`)
		h.open()
		pass(time.Hour)
		h.is(web, service.Waiting)
		h.is(mail, service.Running)
	})
}

// A run that waits for what it needs is one, however often its time comes.
func TestRunsDoNotPileUp(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db)
		h.takes(web, time.Second)
		h.register(web, job, `"schedule": {"every": "1s"}`, requires(db))
		h.start(db)
		_, err := h.Freeze(t.Context(), db, "bob")
		require.NoError(t, err)
		pass(2 * time.Second)
		before := runtime.NumGoroutine()
		pass(time.Hour)
		require.Less(t, runtime.NumGoroutine(), before+100)
	})
}

// A wait is known when the run directory is lost: no end is made up for it.
func TestAWaitIsRecalled(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(db)
		h.define(web, requires(db))
		h.open()
		h.start(web)
		h.stop(db)
		h.crash(web)
		h.is(web, service.Waiting)
		exits, _ := h.Exits(web, 0)
		n := len(exits)
		h.close()
		h.lose("run")
		h.open()
		pass(time.Second)
		exits, _ = h.Exits(web, 0)
		require.Len(t, exits, n)
		h.is(web, service.Waiting)
	})
}

func TestAWaitOfWhatIsBoundIsRecalled(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(db)
		h.define(web, `"binds": ["db"]`, `"restart": {"policy": "never"}`)
		h.open()
		h.start(web)
		h.stop(db)
		h.is(web, service.Waiting)
		h.close()
		h.lose("run")
		h.open()
		pass(time.Second)
		h.is(web, service.Waiting)
	})
}

// also when those that are bound to it take longer to end than he has time.
func TestAStopGoesOnWithoutItsCaller(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db)
		h.register(web, `"binds": ["db"]`, `"stop": {"timeout": "30s"}`)
		h.host.Script(web, fake.Script{Term: &fake.End{After: 20 * time.Second}})
		h.start(web)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := h.Stop(ctx, db, service.StopOptions{Actor: "bob"})
		refused(t, err, service.Timeout, "it goes on without you")
		pass(time.Minute)
		h.is(db, service.Stopped)
	})
}

// A start that comes to nothing ends no wait that was there before.
func TestAStartEndsNoWait(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, settled, `"restart": {"policy": "never"}`)
		h.register(web, requires(db))
		h.start(web)
		h.host.Script(db, fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 3}}})
		h.crash(db)
		h.crash(web)
		h.is(web, service.Waiting)
		done := later(func() error {
			_, err := h.Start(context.Background(), web, service.StartOptions{Actor: "alice"})
			return err
		})
		pass(5 * time.Second)
		require.Error(t, <-done)
		h.host.Script(db, fake.Script{})
		h.start(db)
		pass(time.Minute)
		h.is(web, service.Running)
	})
}

func TestAJobEndsNoWait(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db, settled, `"restart": {"policy": "never"}`)
		h.register(web, requires(db))
		h.register(cache, job, `"schedule": {"every": "1m"}`, requires(web))
		h.takes(cache, time.Second)
		h.start(web)
		h.host.Script(db, fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 3}}})
		h.crash(db)
		h.crash(web)
		h.is(web, service.Waiting)
		pass(65 * time.Second)
		h.stop(cache) // its schedule rests
		h.host.Script(db, fake.Script{})
		h.start(db)
		pass(time.Minute)
		h.is(web, service.Running)
	})
}
