package agent

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Who resumes where an earlier agent ended gets exactly what came after it: what the
// next one found and did when it took the services up.
func TestEventsGoOnOverTheEndOfAnAgent(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.register(db)
		h.start(web)
		token, before := h.Sequence(), h.Kept(0)
		h.reopen()
		kept := h.Kept(0)
		require.Equal(t, before, kept[:len(before)], "as they were told")
		after := kept[len(before):]
		require.Equal(t, h.Kept(token), after)
		var reasons []string
		for i, n := range after {
			require.Equal(t, token+1+uint64(i), n.Sequence)
			require.Equal(t, web, n.Service)
			reasons = append(reasons, n.Reason)
		}
		require.Equal(t, []string{"adopt", "adopted", "adopted", "healthy"}, reasons)
		require.Equal(t, service.Running, after[2].State)
		require.Empty(t, h.doctor())
	})
}

// What an agent told and then did not come to do, or did and did not come to tell, is
// set right by the next one.
func TestEventsOfAnAgentThatDied(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		m := h.mortal()
		m.arrive()
		h.register(web)
		h.register(db)
		for _, row := range []struct {
			what  string
			calls int // that are made before its death
			do    func() error
			kind  service.NoticeKind
			name  service.Name
		}{
			{"a start that was told of and not recorded", 0, func() error { _, err := h.Start(t.Context(), web, service.StartOptions{}); return err }, service.NoticeState, web},
			{"a service that was forgotten, which was not told", 4, func() error { return h.Unregister(t.Context(), db, "alice") }, service.NoticeUnregistered, db},
		} {
			m.calls = row.calls + 1
			require.Error(t, row.do(), row.what)
			token := m.heard
			require.True(t, m.bury())
			pass(time.Second)
			m.arrive()
			after := h.Kept(token)
			require.Len(t, after, 1, row.what)
			require.Equal(t, row.kind, after[0].Kind)
			require.Equal(t, row.name, after[0].Service)
			require.Equal(t, service.Stopped, after[0].State)
			require.Equal(t, "restored", after[0].Reason)
		}
		require.Len(t, h.List(), 1)
		token := h.Sequence()
		h.reopen()
		require.Equal(t, token, h.Sequence(), "there is nothing to set right")
	})
}

// Events of another boot are nobody's; their numbers are not given again.
func TestEventsOfAnotherBoot(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		last := h.Sequence()
		h.reboot()
		h.open()
		require.Empty(t, h.Kept(0))
		require.Greater(t, h.Sequence(), last)
		require.Empty(t, h.doctor())
	})
}

func TestTheDoctorTellsOfLostEvents(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.close()
		h.write("run/events.ring", "something else")
		h.open()
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "events.ring.corrupt-")
		require.Contains(t, h.log.String(), "no ring of events")
		h.close()
		h.write("run/events.ring.new/x", "")
		h.open()
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "events are forgotten when the agent ends")
		h.close()
		require.NoError(t, os.RemoveAll(h.path("run/events.ring.new")))
		h.open()
		require.Empty(t, h.doctor())
	})
}
