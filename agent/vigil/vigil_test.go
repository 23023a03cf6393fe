package vigil

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The time of a question passes only while we are awake. That a part is over is seen
// late here, as when the process was stopped.
func TestAwake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, v := Keep(t.Context(), time.Second)
		time.Sleep(time.Second - 1)
		require.NoError(t, ctx.Err())
		time.Sleep(1)
		synctest.Wait()
		require.ErrorIs(t, context.Cause(ctx), context.DeadlineExceeded)
		time.Sleep(time.Hour)
		require.Zero(t, v.Leave(), "what is after its time does not count")

		ctx, v = Keep(t.Context(), time.Second)
		time.Sleep(100 * time.Millisecond)
		v.timer.Stop()
		time.Sleep(time.Hour)
		v.tick()
		time.Sleep(time.Second - part - 1)
		require.NoError(t, ctx.Err(), "it had no more than one part of its time")
		time.Sleep(1)
		synctest.Wait()
		require.ErrorIs(t, context.Cause(ctx), context.DeadlineExceeded)
		require.Equal(t, time.Hour+100*time.Millisecond-part, v.Leave())

		ctx, v = Keep(t.Context(), time.Second)
		v.timer.Stop()
		time.Sleep(time.Minute)
		require.Equal(t, time.Minute-part, v.Leave(), "although nobody has seen yet that a part is over")
		require.ErrorIs(t, context.Cause(ctx), context.Canceled)
	})
}

// A host that is a bit late each time was not asleep.
func TestBusyIsNotAsleep(t *testing.T) {
	const timeout, parts = 10 * time.Second, 10 * time.Second / part
	for name, tt := range map[string]struct {
		late, once time.Duration // for each part, and for one of them besides
		slept      time.Duration
	}{
		"punctual":       {0, 0, 0},
		"busy":           {100 * time.Millisecond, 0, 0},
		"busy, one jolt": {100 * time.Millisecond, 500 * time.Millisecond, 600 * time.Millisecond},
		"stopped once":   {0, time.Hour, time.Hour},
		"starved":        {part + 1, 0, parts * (part + 1)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, v := Keep(t.Context(), timeout)
				for i := range int(parts) {
					v.timer.Stop()
					late := tt.late
					if i == 3 {
						late += tt.once
					}
					time.Sleep(part + late)
					v.tick()
				}
				require.ErrorIs(t, context.Cause(ctx), context.DeadlineExceeded)
				require.Equal(t, tt.slept, v.Leave())
			})
		})
	}
}

// What was begun is over once, when we have been awake for its time, or never.
func TestBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, over := time.Now(), make(chan time.Duration, 2)
		v := Begin(time.Second, func() { over <- time.Since(began) })
		require.Equal(t, time.Second, <-over)
		require.Zero(t, v.Leave())

		v = Begin(time.Second, func() { over <- 0 })
		time.Sleep(time.Second - 1)
		require.Zero(t, v.Leave())
		time.Sleep(time.Hour)
		require.Empty(t, over)
	})
}
