package agent

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// freezing are the keys of one that is frozen when the battery is low.
const freezing = `"power": "deferrable", "low_battery": "freeze"`

// What is frozen to save the battery holds still, says why, and is thawed on AC as the
// process that it was, under the next agent too.
func TestLowBatteryFreezes(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.define(feed, freezing)
		h.open()
		h.startAll()
		before := h.Sequence()
		h.unplugged(14)
		require.Equal(t, []service.Name{sync1, mail, web}, h.cameTo(before, service.Held))
		frozen := func() {
			t.Helper()
			s := h.status(feed)
			require.Equal(t, service.PublicRunning, s.Machine.Public())
			require.True(t, s.Machine.Frozen)
			require.True(t, h.host.Frozen(feed))
			require.Equal(t, "frozen to save the battery; it is thawed on AC", s.Error)
			require.Equal(t, holder, s.LastActor)
			require.Contains(t, h.doctor()[0], "These services are stopped, and start again on AC: mail, sync, web. These services are frozen, and thawed on AC: feed.")
		}
		frozen()
		require.Equal(t, []string{"asked"}, h.reasons(feed, service.NoticeFrozen))
		h.reopen()
		frozen()
		h.plugged(14)
		settle()
		s := h.status(feed)
		require.False(t, s.Machine.Frozen)
		require.False(t, h.host.Frozen(feed))
		require.Empty(t, s.Error)
		require.EqualValues(t, 1, s.Machine.Incarnation)
		require.Equal(t, resumer, s.LastActor)
		h.is(web, service.Running)
		require.Empty(t, h.doctor())

		h.unplugged(10)
		frozen()
		h.unplugged(40)
		require.False(t, h.host.Frozen(feed), "the charge brings it back as well")
	})
}

// Who thaws it meanwhile gets it, and what somebody froze before or since stays so.
func TestTheUsersFreezeCounts(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.define(feed, freezing)
		h.define(sync1, freezing)
		h.open()
		h.startAll()
		_, err := h.Freeze(t.Context(), sync1, "alice")
		require.NoError(t, err)
		h.unplugged(10)
		require.Empty(t, h.status(sync1).Error)
		_, err = h.Thaw(t.Context(), feed, "alice")
		require.NoError(t, err)
		h.unplugged(9)
		require.False(t, h.host.Frozen(feed))
		_, err = h.Freeze(t.Context(), feed, "alice")
		require.NoError(t, err)
		h.plugged(10)
		settle()
		require.True(t, h.host.Frozen(feed))
		require.True(t, h.host.Frozen(sync1))
		h.is(web, service.Running)

		_, err = h.Thaw(t.Context(), feed, "alice")
		require.NoError(t, err)
		h.unplugged(10)
		require.True(t, h.status(feed).Machine.Spared)
		_, err = h.Freeze(t.Context(), feed, "alice")
		require.NoError(t, err)
		require.Empty(t, h.status(feed).Error, "it is for alice now")
		require.Equal(t, "alice", h.status(feed).LastActor)
		h.reopen()
		h.plugged(10)
		settle()
		require.True(t, h.host.Frozen(feed))
	})
}

// A stop counts more, and what is stopped does not come back.
func TestAStopOfTheFrozen(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.define(feed, freezing)
		h.open()
		h.startAll()
		h.unplugged(10)
		h.stop(feed)
		h.plugged(10)
		settle()
		h.is(feed, service.Stopped)
	})
}

// What can not be frozen is stopped: without cgroups, and what is not ready.
func TestWhatCanNotFreezeIsStopped(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		can := fake.Everything()
		can.Freeze = false
		h.enforces = &can
		h.define(feed, freezing)
		h.open()
		h.startAll()
		h.unplugged(10)
		h.is(feed, service.Held)
		require.Contains(t, h.log.String(), "a service can not be frozen to save the battery, and is stopped")
		h.plugged(10)
		settle()
		h.is(feed, service.Running)
	})
}

// That it is for the battery is on record before it is frozen, so that an agent that dies
// then leaves nothing frozen of which nobody knows why.
func TestSparingIsOnRecordBefore(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.define(feed, freezing)
		var recorded []string
		h.fault = func(operation string, ref service.Ref) error {
			if operation == "freeze" && ref.Name == feed {
				text, err := os.ReadFile(h.path("run/services/feed.json"))
				require.NoError(t, err)
				recorded = append(recorded, string(text))
			}
			return nil
		}
		h.open()
		h.start(feed)
		h.unplugged(10)
		require.Len(t, recorded, 1)
		require.Contains(t, recorded[0], `"Spared":true`)
	})
}

// One that is frozen when the host is on AC again already, as its freeze took its time, is
// thawed all the same.
func TestALateFreezeIsUndone(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.define(feed, freezing)
		h.open()
		h.startAll()
		require.NoError(t, h.thjalfi.Spare(t.Context(), feed, holder))
		settle()
		require.False(t, h.host.Frozen(feed))
		require.Empty(t, h.status(feed).Error)
	})
}

// What takes too long to freeze is stopped, however long that took.
func TestWhatFreezesTooSlowlyIsStopped(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.define(feed, freezing)
		h.fault = func(operation string, ref service.Ref) error {
			if operation == "freeze" && ref.Name == feed {
				time.Sleep(2 * stepTime)
			}
			return nil
		}
		h.open()
		h.start(feed)
		h.unplugged(10)
		pass(3 * stepTime)
		h.is(feed, service.Held)
		require.False(t, h.host.Frozen(feed))
	})
}

// What is frozen and ends since another ended that it is bound to, or by somebody's hand, is
// held like the others, under the next agent too, and comes back on AC.
func TestWhatEndsFrozenIsHeld(t *testing.T) {
	for name, end := range map[string]func(*house){
		"bound":  func(h *house) { h.crash(db) },
		"killed": func(h *house) { h.crash(feed) },
	} {
		t.Run(name, func(t *testing.T) {
			battery(t, func(t *testing.T, h *house) {
				h.define(db, `"power": "essential"`)
				h.define(feed, freezing, `"binds": ["db"]`)
				h.open()
				h.start(db)
				h.start(feed)
				h.unplugged(14)
				require.True(t, h.host.Frozen(feed))
				end(h)
				pass(time.Minute)
				h.is(db, service.Running)
				h.is(feed, service.Held)
				h.reopen()
				pass(time.Minute)
				h.is(feed, service.Held)
				h.plugged(14)
				settle()
				h.is(feed, service.Running)
				require.EqualValues(t, 2, h.status(feed).Machine.Incarnation)
			})
		})
	}
}

// One whose end has begun when it is to be thawed comes back all the same.
func TestWhatEndsAmidAThawComesBack(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.define(db, `"power": "essential"`)
		h.define(feed, freezing, `"binds": ["db"]`)
		h.fault = func(operation string, ref service.Ref) error {
			if operation == "thaw" && ref.Name == feed {
				h.host.Crash(db, service.Exit{Code: 1})
				time.Sleep(time.Second)
			}
			return nil
		}
		h.open()
		h.start(db)
		h.start(feed)
		h.unplugged(14)
		require.True(t, h.host.Frozen(feed))
		h.plugged(14)
		settle()
		pass(time.Minute)
		h.is(feed, service.Running)
		require.EqualValues(t, 2, h.status(feed).Machine.Incarnation)
	})
}
