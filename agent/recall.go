package agent

import (
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
)

// recall makes the record of a service that was begun in this boot and of which what
// is was lost, while nothing lives of it: what has ended stays as it was, and what was
// to be tried again is. An end of which nothing at all is known is one more for the
// restart policy. What comes back to run is for a reboot only.
func (a *Agent) recall(d *definition) (r skirnir.Actual, known bool) {
	wanted := a.wantedOf(d.Name)
	last := service.ExitRecord{}
	if exits := a.exits[d.Name]; len(exits) > 0 {
		last = exits[len(exits)-1]
	}
	here := last.BootID == a.bootID && last.After != nil
	if _, alive := a.strangers[d.Name]; alive || wanted.Begun != a.bootID && !(here && wanted.Name.IsZero()) {
		return r, false
	}
	state := service.Running // until that is found to be over
	switch {
	case !wanted.Name.IsZero() && wanted.Latest > last.Incarnation: // of which no end is on record
	case !wanted.Name.IsZero() && !wanted.Up:
		state = service.Stopped
	case here:
		state = last.After.State
	}
	if state == service.Launching && !wanted.Name.IsZero() {
		return r, false // the next incarnation was not begun yet
	}
	if len(a.blind) > 0 && state != service.Stopped && state != service.Crashed {
		return r, false // it may be alive, which a start looks for
	}
	var err error
	switch state {
	case service.Stopped, service.Crashed:
		r = skirnir.Actual{Name: d.Name, Spec: d.spec, BootID: a.bootID}
		r.Machine = service.Machine{State: state, Incarnation: last.Incarnation, ForceKill: d.spec.Stop.ForceKill, Policy: d.spec.Restart}
		r.Machine.Once = d.spec.Type == service.TypeOneshot
		r.Machine.Done = state == service.Stopped && here && last.After.Done
	case service.Backoff, service.Held, service.Waiting:
		r, err = a.retake(d, service.Ref{})
		r.Ref, r.Machine.State, r.Machine.Incarnation = service.Ref{}, state, last.Incarnation
		r.Due = a.cfg.SinceBoot() + r.Machine.Policy.Delay(last.After.InARow(), 0.5)
	default:
		r, err = a.unseen(d, service.Ref{})
	}
	if err != nil { // whoever starts it hears the same
		return r, false
	}
	r.Machine.Paused = wanted.Paused
	r.Machine.Up = wanted.Up || wanted.Name.IsZero() && last.After.Up
	if here {
		was := last.After
		r.Machine.Failures, r.Machine.CleanEnds, r.Machine.Restarts, r.Machine.GaveUp = was.Failures, was.CleanEnds, was.Restarts, was.GaveUp
		if r.Machine.Recent, r.Machine.Alike, r.Machine.Fingerprint = was.Recent, was.Alike, was.Fingerprint; was.Recent > 0 {
			r.Failed = service.Failures{{At: a.cfg.SinceBoot(), N: was.Recent}} // it is not known any more when
		}
	}
	taken := state.String()
	if state == service.Running {
		taken = "ended unseen"
	}
	a.cfg.Log.Warn("what was of a service is not on record, and nothing lives of it", "service", d.Name, "taken for", taken)
	return r, true
}

// unseen makes the record of an incarnation that ended unseen. How, the backend may
// tell of a main process that ref identifies.
func (a *Agent) unseen(d *definition, ref service.Ref) (skirnir.Actual, error) {
	r, err := a.retake(d, ref)
	if ref.PID == 0 {
		r.Exit = &service.Exit{Unknown: "agent_was_down"}
	}
	return r, err
}

// retake makes the record of an incarnation as a restart would start it now.
func (a *Agent) retake(d *definition, ref service.Ref) (skirnir.Actual, error) {
	wanted := a.wantedOf(d.Name)
	plan, err := a.compose("adopt", d.spec, wanted, wanted.Options)
	if err != nil {
		return skirnir.Actual{}, err
	}
	m := service.Machine{
		State: service.Running, Incarnation: ref.Incarnation, Up: true,
		ForceKill: plan.Spec.Stop.ForceKill, Policy: plan.Spec.Restart,
		Once: plan.Spec.Type == service.TypeOneshot, Paused: wanted.Paused,
	}
	if !wanted.Name.IsZero() && !wanted.Up { // its stop was under way
		m.Up, m.Cause = false, service.CauseAsked
	}
	if ref.IsZero() {
		ref = plan.Backend.Plan(service.Launch{Name: d.Name, Incarnation: max(wanted.Latest, a.buried(d.Name)+1)})
		m.Incarnation = ref.Incarnation
	}
	return skirnir.Actual{Name: d.Name, Machine: m, Ref: ref, Spec: plan.Spec, Limits: plan.Limits, BootID: a.bootID, Actor: "adoption"}, nil
}

// hostWentDown is why nobody knows how an incarnation ended that ran, or was about to,
// when the host went down.
const hostWentDown = "host_went_down"

// missEnds records of incarnations that were begun in an earlier boot, and are not
// known to have ended, that they have, and that nobody knows how. Of those lost the exit
// records were damaged.
func (a *Agent) missEnds(lost []service.Name) {
	for name, w := range a.wanted {
		if w.Begun == a.bootID || w.Latest <= a.buried(name) {
			continue
		}
		x := service.ExitRecord{
			Incarnation: w.Latest, Exit: service.Exit{Unknown: hostWentDown}, Verdict: service.VerdictUnknown,
			Ended: time.Now(), BootID: w.Begun, // the time is when that was noticed
			Message: "the host went down while it ran or was about to, or before its end could be recorded",
		}
		if slices.Contains(lost, name) {
			x.Exit.Unknown, x.Message = recordDamaged, "it ended, and the record of how was damaged, or the host went down while it ran"
		}
		if _, err := (keeper{a}).Bury(name, x); err != nil {
			a.cfg.Log.Error("cannot record that an incarnation ended with its host", "service", name, "error", err)
		}
	}
}
