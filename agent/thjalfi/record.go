package thjalfi

import (
	"slices"
	"strings"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/failpoint"
)

// record has the present state survive us. By the time it is written a launch may
// have been identified, or an incarnation finished; that must not be lost again.
func (a *actor) record() {
	r := a.recordNow()
	a.thenSurely(func() func() {
		if id := a.identified; r.Ref.PID == 0 && !r.Ref.IsZero() && id.Ref.Incarnation == r.Ref.Incarnation {
			r.Ref, r.Started, r.LogFrom, r.Stream = id.Ref, id.Started, id.LogFrom, id.Stream
		}
		if f := a.finished; r.Machine.State == service.Clearing && r.Remains == nil && f.Machine.Incarnation == r.Machine.Incarnation {
			r.Remains, r.Ended = f.Remains, f.Ended
		}
		err := failpoint.After(a.cfg.Keeper.Record(r), written(r.Machine))
		return func() {
			if a.unrecorded = err; err != nil {
				a.publish(service.NoticeState, "unrecorded", err.Error())
				return
			}
			a.kept = r.Machine
		}
	})
}

// written is the step that is done with the record of a machine, "" if none is.
func written(m service.Machine) failpoint.Point {
	if !failpoint.Enabled {
		return ""
	}
	switch m.State {
	case service.Running:
		return failpoint.S11RunningFsynced
	case service.Stopping:
		return failpoint.T2IntentFsynced
	case service.Stopped:
		return failpoint.T8StateFsynced
	}
	return ""
}

func (a *actor) recordNow() Record {
	r := Record{Name: a.name, Machine: a.machine, Ref: a.ref, Started: a.started, LogFrom: a.logFrom, Stream: a.stream, Exit: a.exit, Remains: a.remains, Ended: a.died, Due: a.due, Failed: a.failed, Actor: a.actor, Paused: a.pauser(), Asked: slices.Clone(a.asked)}
	if a.plan != nil {
		r.Spec, r.Limits, r.Options = a.plan.Spec, a.plan.Limits, a.plan.Options
	}
	if a.next != nil {
		r.Options = a.next.Options
	}
	return r
}

// heldText is why a service that shall run does not, which is no failure.
const heldText = "stopped to save the battery; it starts again on AC"

// sparedText is why a service that runs does nothing.
const sparedText = "frozen to save the battery; it is thawed on AC"

// publish shows the present state to readers.
func (a *actor) publish(kind service.NoticeKind, reason, detail string) {
	a.cfg.Keeper.Publish(a.name, kind, reason, detail, a.shown())
}

// shown makes a status show the present state.
func (a *actor) shown() func(*service.Status) {
	m, ref, started, actor, frozenBy := a.machine, a.ref, a.started, a.actor, a.frozenBy
	var why []string
	if a.failure != nil && m.State != service.Running && (m.State != service.Stopped || service.ReasonOf(a.failure) == service.ReasonDependencyFailed) {
		why = append(why, a.failure.Error())
	}
	switch {
	case m.State == service.Crashed && m.GaveUp != service.GaveUpNot:
		why = append(why, a.givenUp())
	case m.State == service.Backoff && a.queues:
		why = append(why, turnText)
	case m.State == service.Waiting:
		why = append(why, "it "+a.lacks)
	case m.State == service.Held:
		why = []string{heldText}
	case m.Frozen && m.Spared:
		why = []string{sparedText}
	}
	var next time.Time
	if m.State == service.Backoff {
		next = time.Now().Add(a.due - a.cfg.SinceBoot())
	}
	waits := ""
	if m.State == service.Waiting {
		waits = a.lacks
	}
	notified, hook := a.said.notified, a.hook
	return func(s *service.Status) {
		s.Notified, s.Hook = notified, hook
		s.WaitsFor = waits
		s.Machine, s.Ref, s.LastActor, s.Error, s.NextAttempt, s.FrozenBy = m, ref, actor, strings.Join(why, "; "), next, frozenBy
		if !started.IsZero() {
			s.Started = started
		}
		if m.State.Alive() {
			s.Ended = time.Time{}
		} else { // they were those of an incarnation that is no more
			s.Applied, s.Violations, s.Hung, s.Notified = service.Applied{}, service.Violations{}, service.Hang{}, service.Notified{}
		}
	}
}
