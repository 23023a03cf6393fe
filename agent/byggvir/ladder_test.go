package byggvir

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// ladder sets the ladder.
func (p *play) ladder(l service.Ladder) { p.change(func() { p.status.Spec.Ladder = l }) }

// ordered lists what was ordered since it was last asked.
func (p *play) ordered() []Order {
	p.mu.Lock()
	defer p.mu.Unlock()
	orders := p.orders
	p.orders = nil
	return orders
}

// orderedLimits wants just one order, to set limits.
func (p *play) orderedLimits(want service.Limits) {
	p.t.Helper()
	orders := p.ordered()
	require.Len(p.t, orders, 1)
	require.Equal(p.t, want, orders[0].Limits, orders[0].Why)
	require.False(p.t, orders[0].Stop)
}

// The ladder: throttled when it is above its level for a while, ended when that is no
// help, and given back what was taken when it is.
func TestLadder(t *testing.T) {
	looked(t, func(p *play) {
		p.ladder(service.Ladder{Memory: service.StepStop, CPU: service.StepThrottle, ThrottleAfter: 10 * time.Second, StopAfter: time.Minute})
		p.use(1, 50)
		pass(5 * time.Second)
		p.says("cpu-warning")
		require.Empty(t, p.ordered())
		pass(10 * time.Second)
		p.orderedLimits(one(service.CPUMax, service.Of(40*service.UsecPerPercent)))
		p.use(1, 39.9) // as much as it gets
		pass(time.Minute)
		p.says()
		p.use(1, 20)
		pass(30 * time.Second)
		p.says("cpu-warning over")
		p.orderedLimits(one(service.CPUMax, service.Of(50*service.UsecPerPercent)))

		p.use(90, 1)
		pass(30 * time.Second)
		p.says("memory-warning")
		p.orderedLimits(one(service.MemoryHigh, service.Of(80<<20)))
		p.use(80, 1)
		pass(time.Hour)
		orders := p.ordered()
		require.Len(t, orders, 1)
		require.True(t, orders[0].Stop)
		require.Equal(t, service.MemoryWarning, orders[0].Violation)
	})
}

// A quota is not below the burst.
func TestAThrottleTakesTheBurst(t *testing.T) {
	looked(t, func(p *play) {
		p.ladder(service.Ladder{CPU: service.StepThrottle, ThrottleAfter: 10 * time.Second, StopAfter: time.Minute})
		p.limit(service.CPUBurst, service.Of(45*service.UsecPerPercent))
		p.use(1, 50)
		pass(20 * time.Second)
		both := one(service.CPUMax, service.Of(40*service.UsecPerPercent))
		both[service.CPUBurst] = both[service.CPUMax]
		p.orderedLimits(both)
		p.use(1, 10)
		pass(30 * time.Second)
		both[service.CPUMax], both[service.CPUBurst] = service.Of(50*service.UsecPerPercent), service.Of(45*service.UsecPerPercent)
		p.orderedLimits(both)
	})
}

// Who is above the level now and then is not above it all the time.
func TestTheLadderCountsWhatIsAbove(t *testing.T) {
	looked(t, func(p *play) {
		p.ladder(service.Ladder{Memory: service.StepStop, ThrottleAfter: 10 * time.Second, StopAfter: time.Minute})
		for range 20 {
			p.use(81, 1)
			pass(5 * time.Second)
			p.use(76, 1)
			pass(10 * time.Second)
		}
		p.says("memory-warning")
		require.Empty(t, p.ordered())
	})
}

// A limit that somebody sets while it is throttled is not undone, whatever it is.
func TestAThrottleYieldsToTheUser(t *testing.T) {
	for _, percent := range []uint64{45, 50, 200} {
		looked(t, func(p *play) {
			p.ladder(service.Ladder{CPU: service.StepThrottle, ThrottleAfter: 10 * time.Second, StopAfter: time.Minute})
			p.use(1, 50)
			pass(15 * time.Second)
			require.Len(t, p.ordered(), 1)
			pass(2 * time.Second)
			p.limit(service.CPUMax, service.Of(percent*service.UsecPerPercent))
			p.Revise(web)
			pass(5 * time.Minute)
			require.Empty(t, p.ordered())
		})
	}
}

// What could not be done is ordered again; what somebody was faster with is not.
func TestOrdersThatComeToNothing(t *testing.T) {
	looked(t, func(p *play) {
		p.ladder(service.Ladder{Memory: service.StepThrottle, ThrottleAfter: 10 * time.Second, StopAfter: time.Minute})
		p.change(func() { p.outcome = Failed })
		p.use(90, 1)
		pass(65 * time.Second)
		require.InDelta(t, 5, len(p.ordered()), 1)
		p.change(func() { p.outcome = Overtaken })
		pass(time.Hour)
		require.Len(t, p.ordered(), 1)
	})
}

// What a frozen service has is not its doing, and its time does not pass.
func TestTheFrozenAreLeftAlone(t *testing.T) {
	looked(t, func(p *play) {
		p.ladder(service.Ladder{Memory: service.StepStop, ThrottleAfter: 10 * time.Second, StopAfter: time.Minute})
		p.use(90, 1)
		pass(5 * time.Second)
		p.says("memory-warning")
		p.change(func() { p.status.Machine.Frozen = true })
		pass(time.Hour)
		require.Empty(t, p.ordered())
		p.change(func() { p.status.Machine.Frozen = false })
		pass(2 * time.Minute)
		orders := p.ordered()
		require.Len(t, orders, 2, "throttled, then ended")
		require.True(t, orders[1].Stop)
	})
}

// Held up in each window, at its memory_high: it is livelocked, whatever its own health
// check may say.
func TestLivelock(t *testing.T) {
	for _, c := range []struct {
		how  service.OnLivelock
		top  service.Quota
		want Order
	}{
		{service.LivelockRaise, service.Of(100 << 20), Order{Limits: one(service.MemoryHigh, service.Of(service.Unlimited))}},
		{service.LivelockRaise, service.Of(service.Unlimited), Order{Stop: true}},
		{service.LivelockStop, service.Of(100 << 20), Order{Stop: true}},
	} {
		t.Run(fmt.Sprint(c.how, c.top.Value), func(t *testing.T) {
			looked(t, func(p *play) {
				p.change(func() { p.status.Spec.Ladder.Livelock = c.how })
				p.limit(service.MemoryMax, c.top)
				p.limit(service.MemoryHigh, service.Of(60<<20))
				p.use(60, 1)
				pass(2 * time.Second)
				p.stall(15, 4010*time.Millisecond, 2010*time.Millisecond)
				orders := p.ordered()
				require.Len(t, orders, 1)
				require.Equal(t, c.want.Limits, orders[0].Limits)
				require.Equal(t, c.want.Stop, orders[0].Stop)
				require.Equal(t, service.Livelock, orders[0].Violation)
				require.Equal(t, service.MeasureLivelock, orders[0].Measure)
				pass(time.Minute)
				p.says("livelock", "livelock over")
			})
		})
	}
}

// stall has it be held up so many times, at its memory_high, with these gaps by turns,
// as long as there is one.
func (p *play) stall(times int, gaps ...time.Duration) {
	for i := range times {
		if stall := p.pressed[pressing{service.MemoryPressure, true}]; stall != nil {
			stall()
			p.count(service.Tally{MemoryHigh: service.Of(uint64(i))})
		}
		pass(gaps[i%len(gaps)])
	}
}

// A throttle of ours that brings a livelock about is lifted, and not set again.
func TestAThrottleThatIsNoHelp(t *testing.T) {
	looked(t, func(p *play) {
		p.ladder(service.Ladder{Memory: service.StepThrottle, ThrottleAfter: 10 * time.Second, StopAfter: time.Hour})
		p.use(90, 1)
		pass(15 * time.Second)
		p.orderedLimits(one(service.MemoryHigh, service.Of(80<<20)))
		pass(2 * time.Second)
		p.use(80, 1)
		p.stall(15, 2*time.Second)
		p.orderedLimits(one(service.MemoryHigh, service.Of(service.Unlimited)))
		p.use(95, 1)
		pass(time.Hour)
		require.Empty(t, p.ordered())
	})
}

// One that is livelocked on, though memory_high was lifted, is ended.
func TestALivelockThatIsNotBroken(t *testing.T) {
	looked(t, func(p *play) {
		p.change(func() { p.outcome = Failed })
		p.limit(service.MemoryHigh, service.Of(60<<20))
		p.use(60, 1)
		pass(2 * time.Second)
		p.stall(30, 2*time.Second)
		orders := p.ordered()
		require.GreaterOrEqual(t, len(orders), 2)
		require.False(t, orders[0].Stop)
		require.True(t, orders[1].Stop)
	})
}

// An end that fails, as of one that was frozen meanwhile, is ordered again while there is
// reason to; what is not ended is not forgotten.
func TestAnEndThatFailsIsOrderedAgain(t *testing.T) {
	looked(t, func(p *play) {
		p.ladder(service.Ladder{Memory: service.StepStop, ThrottleAfter: 10 * time.Second, StopAfter: 20 * time.Second})
		p.limit(service.MemoryHigh, service.Of(70<<20)) // nothing is left to throttle
		p.change(func() { p.outcome = Failed })
		p.use(90, 1)
		pass(65 * time.Second)
		require.InDelta(t, 4, len(p.ordered()), 1)
		p.change(func() { p.outcome = Done })
		pass(time.Hour)
		orders := p.ordered()
		require.Len(t, orders, 1)
		require.True(t, orders[0].Stop)
	})
}

// Of a service that runs and that nobody defines any more there is no ladder.
func TestNoDefinition(t *testing.T) {
	looked(t, func(p *play) {
		p.change(func() { p.status.Spec = nil })
		p.use(99, 1)
		pass(time.Hour)
		p.says("memory-warning")
		require.Empty(t, p.ordered())
	})
}
