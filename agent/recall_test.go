package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// With the record lost of what is, within a boot, what has ended stays as it was, and
// what was to be tried again is tried again (I11). A reboot brings back what was wanted.
func TestEndedAndLost(t *testing.T) {
	once, failed, stopped, asked := service.MustName("once"), service.MustName("failed"), service.MustName("stopped"), service.MustName("asked")
	retried, spent := service.MustName("retried"), service.MustName("spent")
	inside(t, func(t *testing.T, h *house) {
		h.define(once, `"autostart": true`)
		h.define(failed, `"autostart": true`, `"restart": {"policy": "never"}`)
		h.define(stopped, `"autostart": true`)
		h.define(asked)
		h.define(retried, `"restart": {"backoff": "1m"}`)
		h.define(spent, `"restart": {"max_attempts": 1}`)
		h.open()
		for _, name := range []service.Name{asked, retried, spent} {
			h.start(name)
		}
		h.host.Crash(once, service.Exit{})
		h.host.Crash(asked, service.Exit{})
		h.host.Crash(failed, service.Exit{Code: 5})
		h.stop(stopped)
		h.crash(spent)
		pass(time.Second)
		h.crash(spent)
		h.crash(retried)
		states := map[service.Name]service.State{
			once: service.Stopped, asked: service.Stopped, failed: service.Crashed, stopped: service.Stopped, spent: service.Crashed, retried: service.Backoff,
		}
		for range 2 { // the second agent finds less than the first
			before := h.List()
			h.close()
			h.lose("run")
			h.open()
			for i, now := range h.List() {
				was := before[i]
				require.Equal(t, states[now.Name].String(), now.Machine.State.String(), now.Name)
				require.Equal(t, was.Machine.Incarnation, now.Machine.Incarnation, now.Name)
				require.Equal(t, was.Machine.Up, now.Machine.Up, now.Name)
				require.Equal(t, was.Machine.Failures, now.Machine.Failures, now.Name)
				require.Equal(t, was.LastExit.Incarnation, now.LastExit.Incarnation, now.Name)
			}
		}
		pass(30 * time.Second)
		h.is(retried, service.Backoff)
		pass(time.Hour)
		h.is(retried, service.Running)
		for name, launches := range map[service.Name]int{once: 1, asked: 1, failed: 1, stopped: 1, spent: 2, retried: 2} {
			require.Equal(t, launches, h.host.Launches(name), name)
		}
		h.start(failed)
		require.EqualValues(t, 2, h.status(failed).Machine.Incarnation)
		h.stop(failed)
		h.reboot()
		h.lose("run")
		h.open()
		for name, state := range map[service.Name]service.State{
			once: service.Running, asked: service.Running, stopped: service.Running, retried: service.Running, spent: service.Running, failed: service.Running,
		} {
			h.is(name, state)
		}
	})
}

// What ran when the record of it was lost, and has ended since without a trace, has
// ended unseen: the restart policy decides.
func TestLostAndEnded(t *testing.T) {
	twice, never, always := service.MustName("twice"), service.MustName("never"), service.MustName("always")
	inside(t, func(t *testing.T, h *house) {
		h.define(web, `"restart": {"policy": "never"}`, `"autostart": true`)
		h.define(never, `"restart": {"policy": "never"}`)
		h.define(twice, `"restart": {"policy": "never"}`)
		h.define(always, `"restart": {"policy": "always"}`)
		h.open()
		for _, name := range []service.Name{never, twice, always} {
			h.start(name)
		}
		h.stop(twice)
		h.start(twice)
		h.close()
		h.lose("run")
		for _, name := range []service.Name{web, never, twice, always} {
			h.host.Crash(name, service.Exit{})
		}
		h.open()
		pass(time.Hour)
		h.is(always, service.Running)
		for name, incarnation := range map[service.Name]uint64{web: 1, never: 1, twice: 2} {
			h.is(name, service.Crashed)
			require.EqualValues(t, incarnation, h.status(name).Machine.Incarnation)
			require.Equal(t, service.Exit{Unknown: "agent_was_down"}, h.status(name).LastExit.Exit)
			exits, err := h.Exits(name, 0)
			require.NoError(t, err)
			require.Len(t, exits, int(incarnation))
		}
		require.Empty(t, h.doctor()[3:], "beside the three that crashed")
	})
}

// What the policy had begun again, or somebody was stopping, when the record was lost
// has an end of its own; what was not begun yet has none.
func TestEachEndHasItsRecord(t *testing.T) {
	relaunched, stopping, cut, again := service.MustName("relaunched"), service.MustName("stopping"), service.MustName("cut"), service.MustName("again")
	inside(t, func(t *testing.T, h *house) {
		h.define(relaunched, `"restart": {"policy": "never"}`)
		h.define(stopping, `"restart": {"policy": "always"}`)
		h.define(cut, `"restart": {"policy": "never"}`)
		h.define(again, `"restart": {"policy": "always"}`)
		h.host.Script(stopping, fake.Script{Stubborn: true})
		h.open()
		for _, name := range []service.Name{relaunched, stopping, cut, again} {
			h.start(name)
		}
		h.crash(again)
		pass(time.Minute)
		h.is(again, service.Running)
		for _, name := range []service.Name{relaunched, cut} {
			_, err := h.Restart(t.Context(), name, service.StopOptions{Actor: "eve"})
			require.NoError(t, err)
		}
		go func() { _, _ = h.Stop(t.Context(), stopping, service.StopOptions{Actor: "eve"}) }()
		synctest.Wait()
		require.Equal(t, service.Stopping, h.status(stopping).Machine.State)
		h.close()
		h.lose("run")
		for _, name := range []service.Name{relaunched, stopping, cut, again} {
			h.host.Crash(name, service.Exit{})
		}
		store, err := skirnir.OpenStore(h.path("state"), h.path("run"), func(string) error { return nil })
		require.NoError(t, err)
		left, err := store.Load()
		require.NoError(t, err)
		for _, w := range left.Wanted {
			if w.Name == cut { // the agent did not get so far
				w.Latest = 1
				require.NoError(t, store.SaveWanted(w))
			}
		}
		h.open()
		pass(time.Second)
		for name, ends := range map[service.Name]int{relaunched: 2, stopping: 1, cut: 1, again: 2} {
			exits, err := h.Exits(name, 0)
			require.NoError(t, err)
			require.Len(t, exits, ends, name)
		}
		h.is(relaunched, service.Crashed)
		h.is(stopping, service.Stopped)
		h.is(cut, service.Running)
		require.EqualValues(t, 2, h.status(cut).Machine.Incarnation)
		require.Equal(t, service.Exit{Unknown: "agent_was_down"}, h.status(relaunched).LastExit.Exit)
		h.start(relaunched)
		h.start(stopping)
		require.EqualValues(t, 3, h.status(relaunched).Machine.Incarnation)
		require.EqualValues(t, 2, h.status(stopping).Machine.Incarnation)
	})
}

// An agent that dies in the middle of a launch is no loss of a record: the next one
// finishes what was recorded.
func TestBegunIsRecordedAfterTheIntent(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"restart": {"policy": "never"}`)
		h.host.Script(web, fake.Script{LaunchTime: time.Hour}, fake.Script{})
		h.block("state/services/web.json")
		_, err := h.Start(t.Context(), web, service.StartOptions{})
		refused(t, err, service.HostUnavailable)
		r := h.path("run/services/web.json")
		require.FileExists(t, r, "the intent comes first")
	})
}

// No number is given twice, also when the host goes down and takes what was; and of
// what ran then it is on record that it ended, and that nobody knows how.
func TestNoNumberIsGivenTwice(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web, `"restart": {"backoff": "1s"}`)
		h.open()
		h.start(web)
		next := uint64(1) // the incarnation that runs when the host goes down
		again := func() {
			t.Helper()
			h.is(web, service.Running)
			require.Equal(t, next, h.status(web).Machine.Incarnation)
			h.reboot()
			h.open()
			h.is(web, service.Running)
			require.Equal(t, next+1, h.status(web).Machine.Incarnation)
			exits, err := h.Exits(web, 1)
			require.NoError(t, err)
			require.Equal(t, next, exits[0].Incarnation)
			require.Equal(t, service.Exit{Unknown: hostWentDown}, exits[0].Exit)
			require.Equal(t, service.VerdictUnknown, exits[0].Verdict)
			next++
		}
		again()
		again()
		h.crash(web)
		pass(time.Minute)
		next++
		again()
		_, err := h.Restart(t.Context(), web, service.StopOptions{})
		require.NoError(t, err)
		next++
		again()
		h.stop(web)
		h.start(web)
		next++
		again()
		h.stop(web)
		h.reboot()
		h.open()
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Equal(t, service.VerdictStopped, exits[0].Verdict, "it had ended before")
		h.start(web)
		require.Equal(t, next+1, h.status(web).Machine.Incarnation)
	})
}
