package byggvir

import (
	"fmt"

	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// climb does what the ladder of the service says about warnings that last, and about a
// livelock.
func (w *watch) climb(s *service.Status, now time.Time) {
	if s.Spec == nil {
		return
	}
	ladder := s.Spec.Ladder
	w.step(s, now, service.MemoryWarning, ladder.Memory)
	w.step(s, now, service.CPUWarning, ladder.CPU)
	if w.lasting[service.Livelock].Equal(now) {
		w.breakLivelock(s, ladder.Livelock)
	}
}

// yield forgets a throttle if somebody else has set the limit since.
func (w *watch) yield(s *service.Status) {
	for v, r := range reins {
		if asked := s.Applied[r].Requested; w.throttled[v].Set && asked != w.throttled[v] && asked != w.before[v] {
			w.throttled[v] = service.Quota{}
		}
	}
}

func (w *watch) step(s *service.Status, now time.Time, v service.Violation, most service.Step) {
	since := w.lasting[v]
	switch lasts := now.Sub(since); {
	case since.IsZero():
		w.loosen(s, v)
	case !w.there[v]: // it may soon be over
	case most == service.StepStop && lasts >= s.Spec.Ladder.StopAfter && !w.ended:
		w.ended = true
		w.act(Order{Violation: v, Stop: true, Why: fmt.Sprintf("it was above its %s level for %v", v, lasts.Round(time.Second))})
	case most >= service.StepThrottle && lasts >= s.Spec.Ladder.ThrottleAfter && !w.throttled[v].Set && !w.ended:
		w.tighten(s, v)
	}
}

// reins are the limits that hold back what a warning is of.
var reins = map[service.Violation]service.Resource{
	service.MemoryWarning: service.MemoryHigh,
	service.CPUWarning:    service.CPUMax,
}

// tighten gives a service no more than its warning level, unless it has less already.
func (w *watch) tighten(s *service.Status, v service.Violation) {
	r, level := reins[v], service.Quota{}
	switch v {
	case service.MemoryWarning:
		level = service.Of(uint64(float64(s.Applied[service.MemoryMax].Effective.Value) / 100 * s.Warnings.Memory))
	case service.CPUWarning:
		level = service.Of(uint64(float64(s.Applied[service.CPUMax].Effective.Value) / 100 * s.Warnings.CPU))
	}
	if now := s.Applied[r].Effective; bounded(now) && now.Value <= level.Value {
		return
	}
	low, _, _ := r.Range()
	level.Value = max(level.Value, low)
	if v == service.CPUWarning {
		w.base = s.Applied[r].Effective
	}
	w.throttled[v] = level
	w.before[v] = s.Applied[r].Requested
	w.act(Order{Violation: v, Limits: one(r, level), Why: fmt.Sprintf("%s: throttled to %s %s", v, r, r.Format(level))})
}

// loosen gives back what was taken.
func (w *watch) loosen(s *service.Status, v service.Violation) {
	if !w.throttled[v].Set {
		return
	}
	w.throttled[v] = service.Quota{}
	r, before := reins[v], w.before[v]
	if !before.Set {
		before = service.Of(service.Unlimited)
	}
	w.act(Order{Violation: v, Limits: one(r, before), Why: fmt.Sprintf("%s is over: %s is %s again", v, r, r.Format(before))})
}

func (w *watch) breakLivelock(s *service.Status, how service.OnLivelock) {
	switch {
	case w.ended || how == service.LivelockWarn:
	case how == service.LivelockRaise && bounded(s.Applied[service.MemoryMax].Effective):
		w.throttled[service.MemoryWarning] = service.Quota{} // it was no help
		w.act(Order{Violation: service.Livelock, Limits: one(service.MemoryHigh, service.Of(service.Unlimited)),
			Why: "livelock: memory_high is lifted, memory_max decides"})
	default:
		w.ended = true
		w.act(Order{Violation: service.Livelock, Stop: true, Why: "it got nothing done any more at its memory_high"})
	}
}

func one(r service.Resource, q service.Quota) (l service.Limits) {
	l[r] = q
	return l
}

func (w *watch) act(o Order) {
	o.Service, o.Incarnation = w.name, w.incarnation
	w.monitor.cfg.Act(o)
}
