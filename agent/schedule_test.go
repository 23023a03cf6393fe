package agent

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

const job = `"type": "oneshot", "restart": {"policy": "never"}`

// nightly is due at 03:00; bubbles begin at midnight.
func nightly(policies string) string {
	return `"schedule": {"cron": "0 3 * * *", "timezone": "UTC"` + policies + `}`
}

// takes has jobs take so long, and end well.
func (h *house) takes(name service.Name, d time.Duration) {
	h.host.Script(name, fake.Script{End: &fake.End{After: d}})
}

// told is what was told of a schedule.
func (h *house) told(name service.Name) (out []string) {
	for _, n := range h.Kept(0) {
		if n.Service == name && n.Reason == scheduler {
			out = append(out, n.Detail)
		}
	}
	return out
}

// runs wants so many to have been begun by now.
func (h *house) runs(name service.Name, n int) {
	h.t.Helper()
	require.Equal(h.t, n, h.host.Launches(name))
}

func TestARunIsBegunWhenItIsDue(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.takes(db, time.Minute)
		h.register(db, job, nightly(""))
		synctest.Wait()
		midnight := time.Now()
		require.Equal(t, midnight.Add(3*time.Hour).UnixMilli(), h.status(db).Timing.Next.UnixMilli())
		require.Zero(t, h.status(db).Timing.Last)
		pass(3*time.Hour - 1)
		h.runs(db, 0)
		pass(1)
		h.runs(db, 1)
		h.is(db, service.Running)
		require.Equal(t, scheduler, h.status(db).LastActor)
		require.Equal(t, midnight.Add(3*time.Hour).UnixMilli(), h.status(db).Timing.Last.UnixMilli())
		require.Equal(t, midnight.Add(27*time.Hour).UnixMilli(), h.status(db).Timing.Next.UnixMilli())
		pass(time.Minute)
		require.True(t, h.status(db).Completed())
		pass(24 * time.Hour)
		h.runs(db, 2)
		require.Empty(t, h.told(db))
	})
}

func TestAnIntervalCountsFromTheLastStart(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.takes(db, time.Minute)
		h.register(db, job, `"schedule": {"every": "1h"}`)
		pass(time.Hour - 1)
		h.runs(db, 0)
		pass(1)
		h.runs(db, 1)
		pass(30 * time.Minute)
		_, err := h.Start(t.Context(), db, service.StartOptions{Actor: "alice"})
		require.NoError(t, err)
		h.runs(db, 2)
		pass(59*time.Minute - time.Second)
		h.runs(db, 2)
		pass(time.Second)
		h.runs(db, 3)
	})
}

// A run that has waited for the end of the one before counts from where it begins.
func TestAnIntervalCountsFromAQueuedStart(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.takes(db, 90*time.Minute)
		h.register(db, job, `"schedule": {"every": "1h", "overlap": "queue"}`)
		pass(time.Hour)
		h.runs(db, 1)
		pass(90*time.Minute - 1)
		h.runs(db, 1)
		pass(1)
		h.runs(db, 2)
		require.Equal(t, time.Now().Add(time.Hour).UnixMilli(), h.status(db).Timing.Next.UnixMilli())
	})
}

func TestMissedRuns(t *testing.T) {
	for _, tt := range []struct {
		name, policy string
		down         time.Duration // from midnight
		reboot       bool
		runs         int
		told         string
	}{
		{"skip", "", 8 * time.Hour, false, 0, "was missed"},
		{"run", `, "missed": "run"`, 8 * time.Hour, false, 1, "was missed, and is made up for now"},
		{"run, after a reboot", `, "missed": "run"`, 8 * time.Hour, true, 1, "was missed, and is made up for now"},
		{"many are one", `, "missed": "run"`, 80 * time.Hour, true, 1, "was missed, and is made up for now"},
		{"none was due", `, "missed": "run"`, 2 * time.Hour, true, 0, ""},
		{"a little late", "", 3*time.Hour + 30*time.Second, false, 1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opened(t, func(t *testing.T, h *house) {
				h.takes(db, time.Minute)
				h.register(db, job, nightly(tt.policy))
				synctest.Wait()
				if tt.reboot {
					h.reboot()
				} else {
					h.close()
				}
				time.Sleep(tt.down)
				h.open()
				pass(2 * time.Minute)
				h.runs(db, tt.runs)
				if tt.told == "" {
					require.Empty(t, h.told(db))
				} else {
					require.Len(t, h.told(db), 1)
					require.True(t, strings.HasSuffix(h.told(db)[0], tt.told), h.told(db)[0])
				}
				h.reopen()
				h.runs(db, tt.runs)
				pass(24 * time.Hour)
				h.runs(db, tt.runs+1)
			})
		})
	}
}

func TestOverlap(t *testing.T) {
	for _, tt := range []struct {
		policy string
		alive  uint64 // the incarnation that goes on at the second time
		runs   int    // in the end
		told   []string
	}{
		{"", 1, 1, []string{"is skipped: the one before goes on", "is skipped: the one before goes on"}},
		{`, "overlap": "queue"`, 1, 2, []string{"waits until the one before has ended", "is skipped: the one before goes on, and another waits already"}},
		{`, "overlap": "replace"`, 2, 3, []string{"replaces the one before, which goes on", "replaces the one before, which goes on"}},
	} {
		opened(t, func(t *testing.T, h *house) {
			h.takes(db, 55*time.Hour)
			h.register(db, job, nightly(tt.policy))
			pass(3 * time.Hour)
			h.runs(db, 1)
			pass(24*time.Hour + 2*time.Second)
			require.Equal(t, tt.alive, h.status(db).Machine.Incarnation)
			h.reopen() // what waits outlives the agent
			pass(24 * time.Hour)
			h.is(db, service.Running)
			pass(17 * time.Hour)
			h.runs(db, tt.runs)
			var told []string
			for _, line := range h.told(db) {
				told = append(told, strings.SplitN(line, "Z ", 2)[1])
			}
			require.Equal(t, tt.told, told)
			require.LessOrEqual(t, h.host.PeakAlive(db), 1)
		})
	}
}

// What somebody has stopped stays so, over the end of the agent and of the host, until
// somebody starts it (I5).
func TestAStopLetsTheScheduleRest(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.takes(db, time.Minute)
		h.register(db, job, nightly(`, "missed": "run"`))
		pass(2 * time.Hour)
		h.stop(db) // it does not run, and need not
		require.True(t, h.status(db).Machine.Paused)
		require.Zero(t, h.status(db).Timing.Next)
		pass(24 * time.Hour)
		h.runs(db, 0)
		h.reopen()
		pass(24 * time.Hour)
		h.runs(db, 0)
		h.reboot()
		time.Sleep(48 * time.Hour)
		h.open()
		pass(time.Hour)
		h.runs(db, 0)
		require.True(t, h.status(db).Machine.Paused)

		started := later(func() error {
			_, err := h.Start(t.Context(), db, service.StartOptions{Actor: "alice"})
			return err
		})
		pass(time.Minute)
		require.NoError(t, <-started)
		h.runs(db, 1)
		require.False(t, h.status(db).Machine.Paused)
		require.Empty(t, h.told(db), "what came while it rested was not missed")
		pass(24 * time.Hour)
		h.runs(db, 2)
	})
}

func TestAStopForgetsTheRunThatWaits(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.takes(db, 100*time.Hour)
		h.register(db, job, nightly(`, "overlap": "queue"`))
		pass(28 * time.Hour)
		require.True(t, h.wantedOf(db).Timing.Queued)
		h.stop(db)
		require.False(t, h.wantedOf(db).Timing.Queued)
		pass(240 * time.Hour)
		h.runs(db, 1)
	})
}

func TestAChangedScheduleHoldsAtOnce(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.takes(db, time.Minute)
		h.register(db, job, nightly(""))
		pass(time.Hour)
		h.register(db, job, `"schedule": {"cron": "30 1 * * *", "timezone": "UTC", "missed": "run"}`)
		synctest.Wait()
		h.runs(db, 0)
		pass(30 * time.Minute)
		h.runs(db, 1)
		h.register(db, job)
		pass(72 * time.Hour)
		h.runs(db, 1)
		require.Zero(t, h.status(db).Timing)
		require.NoError(t, h.Unregister(t.Context(), db, "alice"))
	})
}

// A run that can not be recorded is not begun, and is when it can.
func TestARunThatCanNotBeRecorded(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		var full atomic.Bool
		h.disk = func(call, path string) error {
			if full.Load() && call == "write" && strings.Contains(path, "state/services") {
				return syscall.ENOSPC
			}
			return nil
		}
		h.open()
		h.takes(db, time.Minute)
		h.register(db, job, nightly(""))
		pass(2 * time.Hour)
		full.Store(true)
		pass(time.Hour + 10*time.Second)
		h.runs(db, 0)
		full.Store(false)
		pass(rewriteAfter)
		h.runs(db, 1)
	})
}

func TestARunThatCanNotBeBegunIsTold(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.settings.MaxServices = 1
		h.reload()
		h.register(web)
		h.start(web)
		h.register(db, job, nightly(""))
		pass(4 * time.Hour)
		h.runs(db, 0)
		require.Len(t, h.told(db), 1)
		require.Contains(t, h.told(db)[0], "a run that was due could not be begun: cannot start db")
		require.Contains(t, h.status(db).Error, "cannot start db")
	})
}

// What the host cut off of a run comes back as the schedule says.
func TestARunThatTheHostCutsOff(t *testing.T) {
	for policy, runs := range map[string]int{"": 1, `, "missed": "run"`: 2} {
		opened(t, func(t *testing.T, h *house) {
			h.takes(db, 10*time.Hour)
			h.register(db, job, nightly(policy))
			pass(4 * time.Hour)
			h.runs(db, 1)
			h.reboot()
			h.open()
			pass(time.Minute)
			h.runs(db, runs)
		})
	}
}
