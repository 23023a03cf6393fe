package byggvir

import (
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// retryAfter is the wait after something that was ordered could not be done.
const retryAfter = 10 * time.Second

// rein is what is done about one warning. What was ordered counts as done when that is
// told, and until then nothing else is ordered.
type rein struct {
	above   time.Duration  // that the use was above the level at each look
	held    service.Limits // what was set for it, while it is throttled
	base    service.Quota  // what held of the CPU before
	ordered bool           // with the monitor's lock, as what follows
	outcome func()         // what to take up from an order that is done
	wait    time.Time      // before which nothing is ordered again
	spared  bool           // it is not throttled until the warning is over: somebody else wants it so, or it was no help
}

// reined are the limits that hold back what a warning is of; the first is the one.
var reined = [service.NumViolations][]service.Resource{
	service.MemoryWarning: {service.MemoryHigh},
	service.CPUWarning:    {service.CPUMax, service.CPUBurst},
}

// throttled tells whether a warning holds the service back.
func (r *rein) throttled() bool { return r.held != service.Limits{} }

// climb does what the ladder of the service says about warnings that last, and about a
// livelock.
func (w *watch) climb(s *service.Status, now time.Time, passed time.Duration) {
	if s.Spec == nil { // nobody has defined it
		return
	}
	ladder := s.Spec.Ladder
	w.step(s, now, passed, service.MemoryWarning, ladder.Memory)
	w.step(s, now, passed, service.CPUWarning, ladder.CPU)
	if w.lasting[service.Livelock].IsZero() {
		w.broken = time.Time{}
	}
	if w.there[service.Livelock] && now.Sub(w.broken) >= livelockAfter {
		w.breakLivelock(s, now, ladder.Livelock)
	}
}

// takeUp takes up what became of orders.
func (w *watch) takeUp() {
	w.monitor.mu.Lock()
	var done []func()
	for v := range w.reins {
		if r := &w.reins[v]; r.outcome != nil {
			done = append(done, r.outcome)
			r.outcome = nil
		}
	}
	w.monitor.mu.Unlock()
	for _, f := range done {
		f()
	}
}

// yield forgets a throttle if somebody else has set the limit since.
func (w *watch) yield(s *service.Status) {
	for v := range w.reins {
		r := &w.reins[v]
		for _, resource := range reined[v] {
			if r.held[resource].Set && s.Applied[resource].Instead != r.held[resource] {
				r.held, r.spared = service.Limits{}, true
				break
			}
		}
	}
}

func (w *watch) step(s *service.Status, now time.Time, passed time.Duration, v service.Violation, most service.Step) {
	r := &w.reins[v]
	switch {
	case w.lasting[v].IsZero():
		r.above, r.spared = 0, false
	case w.there[v]:
		r.above += min(passed, 2*soonest) // a stall of ours is no use of theirs
	default:
		r.above = 0
	}
	w.monitor.mu.Lock()
	busy := r.ordered || now.Before(r.wait)
	w.monitor.mu.Unlock()
	switch {
	case busy || w.ended:
	case w.lasting[v].IsZero():
		w.loosen(s, v)
	case most == service.StepStop && r.above >= s.Spec.Ladder.StopAfter:
		w.stop(v, fmt.Sprintf("it was above its %s level for %v", v, r.above.Round(time.Second)))
	case most >= service.StepThrottle && r.above >= s.Spec.Ladder.ThrottleAfter && !r.throttled() && !r.spared:
		w.tighten(s, v)
	}
}

// tighten gives a service no more than its warning level, unless it has less already.
func (w *watch) tighten(s *service.Status, v service.Violation) {
	of, percent := service.MemoryMax, s.Warnings.Memory
	if v == service.CPUWarning {
		of, percent = service.CPUMax, s.Warnings.CPU
	}
	limit := reined[v][0]
	low, _, _ := limit.Range()
	level := service.Of(max(low, uint64(float64(s.Applied[of].Effective.Value)/100*percent)))
	if now := s.Applied[limit].Effective; bounded(now) && now.Value <= level.Value {
		return
	}
	var set service.Limits
	for _, r := range reined[v] {
		// What is saved up is no more than the quota.
		if r == limit || s.Applied[r].Applied.Value > level.Value {
			set[r] = level
		}
	}
	base := s.Applied[of].Effective
	r := &w.reins[v]
	w.order(v, Order{
		Limits: set, Seen: s.Applied, Measure: service.MeasureThrottle, Why: fmt.Sprintf("%s: throttled to %s %s", v, limit, limit.Format(level)),
	}, func() { r.held, r.base = set, base })
}

// loosen gives back what was taken.
func (w *watch) loosen(s *service.Status, v service.Violation) {
	r := &w.reins[v]
	if !r.throttled() {
		return
	}
	var back service.Limits
	for i, q := range r.held {
		if !q.Set {
			continue
		}
		if back[i] = s.Applied[i].Requested; !back[i].Set {
			back[i] = service.Resource(i).Free()
		}
	}
	limit := reined[v][0]
	w.order(v, Order{
		Limits: back, Seen: s.Applied, Why: fmt.Sprintf("%s is over: %s is %s again", v, limit, limit.Format(back[limit])),
	}, func() { r.held = service.Limits{} })
}

// breakLivelock lifts memory_high, or ends the service if that was no help, or would let
// it take what others share.
func (w *watch) breakLivelock(s *service.Status, now time.Time, how service.OnLivelock) {
	r := &w.reins[service.MemoryWarning]
	top := s.Applied[service.MemoryMax]
	switch {
	case w.ended || how == service.LivelockWarn:
	case how == service.LivelockRaise && bounded(top.Effective) && top.SetBy == "" && w.broken.IsZero():
		w.broken = now
		lift := service.Limits{service.MemoryHigh: service.Of(service.Unlimited)}
		w.order(service.Livelock, Order{Limits: lift, Seen: s.Applied, Measure: service.MeasureLivelock, Why: "livelock: memory_high is lifted, memory_max decides"},
			func() { r.held, r.spared = service.Limits{}, true })
	default:
		w.broken = now
		w.stop(service.Livelock, "it got nothing done any more at its memory_high")
	}
}

// stop has the service ended. If that fails, say because it was frozen meanwhile, it may
// be ordered again.
func (w *watch) stop(v service.Violation, why string) {
	w.ended = true
	measure := service.MeasureStop
	if v == service.Livelock {
		measure = service.MeasureLivelock
	}
	w.order(v, Order{Stop: true, Measure: measure, Why: why}, func() {})
}

// order has limits set, or the service ended, and done run on the monitor's goroutine when
// that is so.
func (w *watch) order(v service.Violation, o Order, done func()) {
	r := &w.reins[v]
	m := w.monitor
	m.mu.Lock()
	r.ordered = true
	m.mu.Unlock()
	o.Service, o.Incarnation, o.Violation = w.name, w.incarnation, v
	o.Done = func(outcome Outcome) {
		m.mu.Lock()
		defer m.mu.Unlock()
		r.ordered = false
		switch outcome {
		case Done:
			r.outcome = done
		case Overtaken:
			r.outcome = func() { r.held, r.spared = service.Limits{}, true }
		case Failed:
			r.wait = time.Now().Add(retryAfter)
			if o.Stop {
				r.outcome = func() { w.ended = false }
			}
		}
	}
	m.cfg.Act(o)
}
