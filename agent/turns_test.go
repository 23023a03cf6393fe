package agent

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Ten may go at once, ten a second after those, in the order in which they asked.
func TestTurnsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns()
		began := time.Now()
		type waiter struct {
			name service.Name
			at   time.Time
		}
		var queue []waiter
		for i := range 50 {
			name := service.MustName(fmt.Sprintf("s%d", i))
			wait := turns.take(name)
			require.Equal(t, i < turnsAtOnce, wait == 0, "%d waits %v", i, wait)
			if wait > 0 {
				require.Equal(t, wait, turns.take(name), "who asks again does not lose its place, nor gain one")
				queue = append(queue, waiter{name, time.Now().Add(wait)})
			}
		}
		for i, w := range queue {
			if i > 0 {
				require.False(t, w.at.Before(queue[i-1].at))
			}
			time.Sleep(time.Until(w.at))
			require.Zero(t, turns.take(w.name))
		}
		require.InDelta(t, 4.0, time.Since(began).Seconds(), 0.01, "40 more at 10 a second")
		require.Empty(t, turns.waiting)

		require.NotZero(t, turns.take(web))
		turns.forget(web)
		require.Empty(t, turns.waiting)
	})
}

// A host whose services all fail at once is not thrown into a storm of restarts, and
// whoever looks sees why a service is late.
func TestRestartStorm(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		const many = 40
		var names []service.Name
		for i := range many {
			name := service.MustName(fmt.Sprintf("storm%d", i))
			names = append(names, name)
			h.define(name)
		}
		h.settings.MaxServices = many
		h.open()
		for _, name := range names {
			_, err := h.Start(t.Context(), name, service.StartOptions{Actor: "alice"})
			require.NoError(t, err)
		}
		for _, name := range names {
			h.host.Crash(name, service.Exit{Code: 1})
		}
		synctest.Wait()
		running := func() (n, late int) {
			for _, name := range names {
				s, err := h.Status(name)
				require.NoError(t, err)
				switch s.Machine.State {
				case service.Running:
					n++
				case service.Backoff:
					require.False(t, s.NextAttempt.IsZero())
					late++
				}
			}
			return n, late
		}
		pass(time.Second)
		n, late := running()
		require.Equal(t, turnsAtOnce, n)
		require.Equal(t, many-turnsAtOnce, late)
		s, err := h.Status(names[many-1])
		require.NoError(t, err)
		if s.Machine.State == service.Backoff {
			require.Contains(t, s.Error, "waits for its turn")
		}
		pass(time.Second + time.Millisecond)
		n, _ = running()
		require.Equal(t, turnsAtOnce+turnsPerSecond, n)
		pass(2 * time.Second)
		n, _ = running()
		require.Equal(t, many, n)
	})
}
