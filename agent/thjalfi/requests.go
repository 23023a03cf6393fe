package thjalfi

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"

	"github.com/gladsheim/gladsheim/agent/service"
)

// request is what a caller asks for.
type request struct {
	service.Request
	ctx         context.Context // of the caller
	kind        service.EventKind
	plan        *Plan
	stop        service.StopOptions
	actor       string
	scheduled   bool         // the schedule asks
	called      bool         // others require it
	reply       chan<- error // buffered: never blocks
	incarnation uint64       // that must be ready (start, restart) or gone (stop, kill)
}

// take begins what a caller asks for, or refuses it.
func (a *actor) take(r request) {
	a.waiters = slices.DeleteFunc(a.waiters, func(w request) bool { return w.ctx.Err() != nil })
	if a.recall(r) {
		return
	}
	if r.kind == service.Hold && a.need(r) {
		return
	}
	if r.scheduled && a.machine.Paused { // whoever stopped it came first
		r.reply <- a.outvoted(r.kind)
		return
	}
	if a.join(r) {
		return
	}
	if refusal := a.refuses(r.kind); refusal != nil && !r.stop.Pause {
		if a.unrecorded != nil && r.ends() { // it has ended, and now that may be written down
			a.record()
			a.reply(r, nil)
			return
		}
		refusal.Service = a.name
		r.reply <- refusal
		return
	}
	if r.kind == service.Restart && (a.machine.State == service.Running || a.machine.State == service.Starting) {
		a.rehearse(r)
		return
	}
	a.accept(r)
}

// join has a start wait for the one that is under way because others require the
// service, and that would come to the same. It tells whether it does.
func (a *actor) join(r request) bool {
	called := slices.ContainsFunc(a.waiters, func(w request) bool { return w.called && w.incarnation == a.machine.Incarnation })
	if r.kind != service.Start || r.scheduled || !called || a.machine.Refuses(service.Start) == nil {
		return false
	}
	if settled, _ := a.settled(service.Start, a.machine.Incarnation); settled || r.plan.Limits != a.plan.Limits || !reflect.DeepEqual(r.plan.Spec, a.plan.Spec) {
		return false
	}
	r.incarnation = a.machine.Incarnation
	if err := a.remember(r); err != nil {
		r.reply <- err
		return true
	}
	a.waiters = append(a.waiters, r)
	if r.ID != "" {
		a.record()
	}
	return true
}

// need answers a Hold that there is no need for now, or has it wait for an end that
// nothing is to follow.
func (a *actor) need(r request) bool {
	switch s := a.machine.State; {
	case s == service.Stopped && r.plan != nil:
		return false
	case s == service.Stopped, s == service.Crashed, s == service.Held, r.plan != nil:
		r.reply <- nil
	case s == service.Stopping, s == service.Clearing:
		if after, _ := service.Next(a.machine, a.event(service.Hold)); after != a.machine {
			return false
		}
		r.incarnation = a.machine.Incarnation
		a.waiters = append(a.waiters, r)
	default:
		return false
	}
	return true
}

// rehearse begins a restart once its intent is on record: what runs is not stopped
// for a launch that can not be recorded.
func (a *actor) rehearse(r request) {
	incarnation := a.machine.Incarnation
	r.incarnation = incarnation + 1
	intent := a.recordNow()
	for _, ev := range r.events() {
		intent.Machine, _ = service.Next(intent.Machine, ev)
	}
	intent.Options, intent.Rehearsal = r.plan.Options, true
	if r.ID != "" {
		intent.Asked = append(intent.Asked, r.asked())
	}
	a.then(func(context.Context) func() {
		err := a.cfg.Keeper.Record(intent)
		return func() {
			var refusal error
			why := a.refuses(r.kind)
			switch {
			case err != nil:
				refusal = &service.Error{Op: r.kind.String(), Service: a.name, Kind: service.HostUnavailable,
					Err: fmt.Errorf("it runs on, since the intent can not be recorded: %w", err)}
			case !a.machine.Up && !a.machine.Done && a.machine.Incarnation == incarnation:
				refusal = a.outvoted(r.kind)
			case r.scheduled && a.machine.Paused:
				refusal = a.outvoted(r.kind)
			case why != nil:
				why.Service = a.name
				refusal = why
			}
			before := a.machine
			if refusal == nil && !a.recall(r) { // it may have been asked for twice
				a.accept(r)
			}
			if a.machine == before { // and not as it was recorded, or in part
				a.record()
			}
			if refusal != nil {
				a.afterwards(func() { r.reply <- refusal })
			}
		}
	})
}

// accept begins what a caller asks for.
func (a *actor) accept(r request) {
	r.incarnation = a.machine.Incarnation
	if !r.ends() && !a.machine.Unbegun {
		r.incarnation++
	}
	if err := a.remember(r); err != nil {
		r.reply <- err
		return
	}
	a.actor = r.actor
	if r.plan != nil {
		a.next = r.plan
	}
	if r.stop.Timeout != nil {
		a.grace = *r.stop.Timeout
	} else if a.plan != nil && r.kind != service.Start && (r.kind != service.Hold || a.machine.State != service.Stopping) {
		a.grace = a.plan.Spec.Stop.Timeout
	}
	ending := a.machine.State == service.Stopping && a.handle != nil && a.fires == service.GraceOver && !a.machine.Killing
	a.waiters = append(a.waiters, r)
	before := a.machine
	told := notice{}
	if r.stop.Pause && !before.Paused {
		told = notice{service.NoticeState, r.kind.String(), "its schedule rests until somebody starts it"}
	}
	events := r.events()
	for i := range events {
		events[i] = a.weighed(events[i])
	}
	a.happenAs(told, events...)
	if (r.ID != "" || a.unrecorded != nil) && a.machine == before { // else it is recorded with what it began
		a.record()
	}
	switch {
	case r.kind != service.Stop || !ending:
	case !a.armed: // its grace is over, and it may not be killed
		a.terminate()
	case r.stop.Timeout != nil:
		a.arm(a.grace, service.GraceOver)
	}
}

// events are what it is to the machine.
func (r request) events() []service.Event {
	if r.kind == service.Restart && r.stop.Force {
		return []service.Event{{Kind: service.Kill}, {Kind: r.kind}}
	}
	if r.stop.Pause {
		return []service.Event{{Kind: service.Pause}, {Kind: r.kind}}
	}
	return []service.Event{{Kind: r.kind}}
}

// ends tells whether an end is asked for, and not a fresh incarnation.
func (r request) ends() bool { return ends(r.kind) }

func ends(kind service.EventKind) bool {
	return kind == service.Stop || kind == service.Kill || kind == service.Hold
}

// refuses tells why a caller's wish can not be taken, or nil. Beside what would
// not die or be cleared nothing is launched, and nobody is kept waiting for that.
func (a *actor) refuses(kind service.EventKind) *service.Error {
	stuck := service.ReasonOf(a.failure) == service.ReasonUnkillable || a.machine.State == service.Clearing && a.failure != nil
	if (kind == service.Start || kind == service.Restart) && stuck {
		return &service.Error{Op: kind.String(), Kind: service.Conflict, Reason: service.ReasonPreviousAlive,
			Err: fmt.Errorf("incarnation %d is %s: %w", a.machine.Incarnation, a.machine.State, a.failure)}
	}
	return a.machine.Refuses(kind)
}

// answer replies to those whose wish has come true or can not any more. The
// reply waits behind the recording of the state it tells of.
func (a *actor) answer() {
	waiting := a.waiters[:0]
	for _, r := range a.waiters {
		settled, err := a.settled(r.kind, r.incarnation)
		if !settled {
			waiting = append(waiting, r)
			continue
		}
		a.reply(r, err)
	}
	a.waiters = waiting
}

// reply tells a caller of a state behind the recording of it.
func (a *actor) reply(r request, err error) {
	a.afterwards(func() {
		if err == nil {
			err = a.undone(r)
		}
		r.reply <- a.told(r, err)
	})
}

// lastWords are the last lines of an incarnation.
type lastWords struct {
	incarnation uint64
	lines       []string
}

// withLines are the failures whose cause the last lines may tell.
var withLines = map[service.Reason]bool{service.ReasonStartupTimeout: true, service.ReasonExitedEarly: true, service.ReasonJobFailed: true}

// told is err as whoever asked for a fresh incarnation hears it: with the last lines of one
// that did not become ready, or whose job failed, and with what becomes of it now.
func (a *actor) told(r request, err error) error {
	e, ok := err.(*service.Error)
	if !ok || r.ends() {
		return err
	}
	told := *e
	if a.words.incarnation == r.incarnation && withLines[e.Reason] {
		told.LastLines = a.words.lines
	}
	if a.machine.Incarnation == r.incarnation {
		told.Outlook = a.outlook()
	}
	return &told
}

// undone tells whoever asked for an end that came that the next agent may undo
// it, since the disk still says that the service shall run; else it is nil.
func (a *actor) undone(r request) error {
	if a.unrecorded == nil || !a.kept.Up && a.kept.Paused == a.machine.Paused || !r.ends() || r.kind == service.Hold {
		return nil
	}
	return &service.Error{Op: r.kind.String(), Service: a.name, Kind: service.HostUnavailable,
		Err: fmt.Errorf("it ended, but that could not be recorded, so that it may run again after a restart of the agent: %w", a.unrecorded)}
}

// settled tells whether a wish has come true or, with an error, can not any more.
func (a *actor) settled(kind service.EventKind, incarnation uint64) (bool, error) {
	m := a.machine
	if ends(kind) {
		return !m.State.Alive() || m.Incarnation > incarnation, nil
	}
	if m.State == service.Waiting && m.Asked {
		return false, nil
	}
	serves := m.State == service.Running && !m.Once
	switch {
	case m.State.Alive() && !serves, serves && m.Incarnation < incarnation:
		return false, nil
	case serves, m.Done && m.Incarnation >= incarnation:
		return true, nil
	case service.ReasonOf(a.failure) == service.ReasonDependencyFailed: // of a start that was never begun
		return true, a.failure
	case m.Incarnation < incarnation || a.failure == nil:
		return true, a.outvoted(kind)
	}
	return true, a.failure
}

func (a *actor) outvoted(kind service.EventKind) error {
	return &service.Error{Op: kind.String(), Service: a.name, Kind: service.Conflict,
		Err: fmt.Errorf("%s asked for it to stop", cmp.Or(a.actor, "somebody"))}
}

// fail tells those who wait for an end, or for what is to follow it, that it
// can not be had now. When the agent leaves they hear of that instead.
func (a *actor) fail(err error) {
	if a.ctx.Err() != nil {
		return
	}
	again := a.failure != nil && a.failure.Error() == err.Error()
	a.failure = err
	hopeless := func(kind service.EventKind, incarnation uint64) (bool, error) {
		return ends(kind) || incarnation > a.machine.Incarnation, err
	}
	if a.settle(hopeless) {
		a.record()
	}
	waiting := a.waiters[:0]
	for _, r := range a.waiters {
		if over, _ := hopeless(r.kind, r.incarnation); !over {
			waiting = append(waiting, r)
		} else if r.ID != "" {
			a.reply(r, err) // behind the recording
		} else {
			r.reply <- err
		}
	}
	a.waiters = waiting
	if !again { // readers see it already
		a.publish(service.NoticeState, "stuck", err.Error())
	}
}
