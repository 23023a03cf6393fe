package thjalfi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/failpoint"
)

// retryClear is the wait between two attempts to adopt, to kill or to clear
// what would not go. It only runs while something is wrong with the host.
const retryClear = 5 * time.Second

// actor owns one service. Its fields are touched by run's goroutine only,
// unless said otherwise; the rest of the program reaches it by ask.
type actor struct {
	name     service.Name
	cfg      Config
	ctx      context.Context // ends when the agent leaves or the service is forgotten
	leave    context.CancelFunc
	launches context.Context // of Thjalfi
	inbox    chan func()
	gone     chan struct{}                   // closed when run has returned
	present  atomic.Pointer[backends.Handle] // read by everybody

	machine service.Machine
	plan    *Plan // of the present or last incarnation
	next    *Plan // of the incarnation that somebody asked for, until it is launched
	waiters []request
	asked   []service.Asked // the latest last; see remember

	ref     service.Ref
	handle  backends.Handle
	exited  <-chan struct{} // of handle; nil once seen
	moved   <-chan struct{} // likewise, when somebody displaced it
	exit    *service.Exit   // of the main process, nil while nobody knows that it ended
	started time.Time
	logFrom int64                     // where its output begins in the log file
	actor   string                    // who asked for the last change
	cause   service.Cause             // why we began to end the present incarnation; unlike the machine's it stays
	ender   string                    // who asked for that
	grace   time.Duration             // between the stop signal and the kill
	sent    map[syscall.Signal]string // to the present incarnation, by whom
	forced  bool                      // the present incarnation outlived its grace
	failure error                     // of the last launch, readiness or end
	due     time.Duration             // in Backoff: when the next launch is, since boot
	leaveHC func()                    // ends the health checks, nil when there are none

	kept       service.Machine // as it is on disk
	unrecorded error           // why it is not there as it is

	timer *time.Timer
	fires service.EventKind
	left  time.Duration // to wait for when it fires
	armed bool
	abort context.CancelFunc // of the launch or the wait for readiness in flight
	waits sync.WaitGroup     // for readiness

	identified Record      // of the launch that was last identified; the worker's
	todo       []work      // for the worker, one piece at a time
	done       chan func() // from the worker: what to do next on run's goroutine
	busy       bool
}

// work is one piece of work. It runs off the actor's goroutine; the function it
// returns runs on it.
type work struct {
	piece   func(context.Context) func()
	lasting bool // it tells or writes down what has happened: the agent does not leave without
}

// request is what a caller asks for.
type request struct {
	service.Request
	ctx         context.Context // of the caller
	kind        service.EventKind
	plan        *Plan
	stop        service.StopOptions
	actor       string
	reply       chan<- error // buffered: never blocks
	incarnation uint64       // that must be ready (start, restart) or gone (stop, kill)
}

func newActor(t *Thjalfi, name service.Name) *actor {
	ctx, leave := context.WithCancel(t.ctx)
	return &actor{
		name: name, cfg: t.cfg, ctx: ctx, leave: leave, launches: t.launches,
		inbox: make(chan func()), gone: make(chan struct{}), done: make(chan func(), 1),
		abort: func() {},
	}
}

func (a *actor) run(r Restored) {
	defer close(a.gone)
	defer a.leave()
	a.timer = time.NewTimer(time.Hour)
	a.timer.Stop()
	a.restore(r)
	defer a.depart()
	for a.ctx.Err() == nil {
		if !a.busy && len(a.todo) > 0 {
			next := a.todo[0]
			a.todo, a.busy = a.todo[1:], true
			go func() { a.done <- next.piece(a.ctx) }()
		}
		select {
		case <-a.ctx.Done():
		case f := <-a.inbox:
			if a.ctx.Err() == nil { // nothing is begun any more
				f()
			}
		case then := <-a.done:
			a.busy = false
			then()
		case <-a.exited: // closed, so it can be seen again
			a.sawExit()
		case <-a.moved:
			a.moved = nil
			a.publish(service.NoticeState, "displaced", "somebody moved its main process out of "+a.ref.Cgroup+": no limit holds there, and it is not counted; restart it")
		case <-a.timer.C:
			a.timeout()
		}
	}
}

// sawExit takes the end of the main process, if it has come.
func (a *actor) sawExit() bool {
	select {
	case <-a.exited:
	default:
		return false
	}
	a.exited = nil
	a.ended(a.handle.Exit())
	return true
}

// ended takes how the main process ended. What an earlier agent saw of it
// counts more.
func (a *actor) ended(x service.Exit) {
	if a.exit == nil {
		a.exit = &x
	}
	a.failure = nil // it was of this end, which has come
	a.happen(service.Event{Kind: service.Exited, Incarnation: a.machine.Incarnation, Exit: *a.exit})
}

// awake is the most of a timer that one sleep of ours can use up: a service's time
// to become ready is waited for in parts, each of which counts for itself alone,
// however late we find it over.
const awake = time.Second

// timeout takes the event that the timer was armed for, unless the end of the
// main process has come as well: that counts more.
func (a *actor) timeout() {
	a.armed = false
	if a.sawExit() {
		return
	}
	if a.left > 0 {
		a.wait()
		return
	}
	if a.fires == service.GraceOver && a.machine.State == service.Stopping {
		a.forced = a.machine.ForceKill
		if !a.machine.ForceKill {
			a.fail(&service.Error{Op: "stop", Service: a.name, Kind: service.Timeout, Reason: service.ReasonStopTimeout,
				Err: fmt.Errorf("it did not end within %v, and its definition forbids to kill it (stop.force_kill)", a.grace)})
		}
	}
	a.happen(service.Event{Kind: a.fires, Incarnation: a.machine.Incarnation})
}

// restore takes up what an earlier agent left.
func (a *actor) restore(r Restored) {
	a.machine, a.plan, a.ref, a.started, a.exit, a.actor = r.Machine, r.Plan, r.Ref, r.Started, r.Exit, r.Actor
	a.logFrom, a.asked = r.LogFrom, r.Asked
	a.kept, a.cause, a.ender = r.Machine, r.Machine.Cause, r.Actor
	if r.Plan == nil {
		return
	}
	a.grace = r.Plan.Spec.Stop.Timeout
	switch {
	case a.machine.State == service.Backoff:
		wait := min(max(0, r.Due-a.cfg.SinceBoot()), a.machine.Policy.Delay(a.machine.Failures))
		a.due = a.cfg.SinceBoot() + wait
		a.arm(wait, service.BackoffOver)
		a.publish(service.NoticeState, "restored", "")
	case a.machine.State.Alive():
		a.machine.State = service.Stopped
		a.happen(service.Event{Kind: service.Adopt})
	}
}

// depart waits for the piece of work in flight, writes down what has happened,
// and lets go of the service.
func (a *actor) depart() {
	if a.busy {
		(<-a.done)() // a handle that it brings back must be let go of, too
	}
	for len(a.todo) > 0 {
		next := a.todo[0]
		a.todo = a.todo[1:]
		if next.lasting {
			next.piece(a.ctx)()
		}
	}
	a.abort()
	a.waits.Wait()
	a.unprobe()
	a.timer.Stop()
	if a.handle != nil {
		a.present.Store(nil)
		_ = a.handle.Close()
	}
}

// take begins what a caller asks for, or refuses it.
func (a *actor) take(r request) {
	a.waiters = slices.DeleteFunc(a.waiters, func(w request) bool { return w.ctx.Err() != nil })
	if a.recall(r) {
		return
	}
	if refusal := a.refuses(r.kind); refusal != nil {
		if a.unrecorded != nil && r.ends() { // it has ended, and now that may be written down
			a.record()
			a.reply(r, nil)
			return
		}
		refusal.Service = a.name
		r.reply <- refusal
		return
	}
	r.incarnation = a.machine.Incarnation
	if !r.ends() {
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
	} else if a.plan != nil && r.kind != service.Start {
		a.grace = a.plan.Spec.Stop.Timeout
	}
	ending := a.machine.State == service.Stopping && a.handle != nil && a.fires == service.GraceOver && !a.machine.Killing
	a.waiters = append(a.waiters, r)
	before := a.machine
	if r.kind == service.Restart && r.stop.Force {
		a.happen(service.Event{Kind: service.Kill}, service.Event{Kind: r.kind})
	} else {
		a.happen(service.Event{Kind: r.kind})
	}
	if r.ID != "" && a.machine == before { // else it is recorded with what it began
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

// ends tells whether an end is asked for, and not a fresh incarnation.
func (r request) ends() bool { return ends(r.kind) }

func ends(kind service.EventKind) bool { return kind == service.Stop || kind == service.Kill }

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

// happen lets the machine decide on events that come as one, tells and records the
// outcome, and sets the effects going. What is recorded is recorded before any
// effect.
func (a *actor) happen(events ...service.Event) {
	before := a.machine
	var effects []service.Effect
	for _, ev := range events {
		var more []service.Effect
		a.machine, more = service.Next(a.machine, ev)
		effects = append(effects, more...)
	}
	if a.machine.State == service.Launching && a.next != nil {
		a.plan, a.next = a.next, nil
		a.machine.Policy, a.machine.ForceKill = a.plan.Spec.Restart, a.plan.Spec.Stop.ForceKill
	}
	switch {
	case a.machine.State == service.Stopping && a.cause == service.CauseNone:
		a.cause, a.ender = a.machine.Cause, a.actor
	case a.machine.State == service.Backoff && before.State != service.Backoff:
		a.due = a.cfg.SinceBoot() + a.machine.Policy.Delay(a.machine.Failures)
	}
	news := a.conclude()
	switch {
	case a.machine.State == service.Launching && before.State != service.Launching:
		a.ref, a.started, a.exit, a.cause, a.ender = service.Ref{}, time.Time{}, nil, service.CauseNone, ""
		a.sent, a.forced, a.failure = nil, false, nil // a launch records its intent itself, and fails if it can not
	case a.machine != before || news:
		a.record()
	}
	if a.machine != before {
		a.publish(service.NoticeState, events[len(events)-1].Kind.String(), "")
	}
	a.answer()
	for _, e := range effects {
		a.do(e)
	}
}

// then appends a piece of work. Pieces are done one at a time, in order; when
// the agent leaves, those that were not begun are not done.
func (a *actor) then(piece func(context.Context) func()) {
	a.todo = append(a.todo, work{piece: piece})
}

// thenSurely appends a piece that is done even when the agent leaves.
func (a *actor) thenSurely(piece func() func()) {
	a.todo = append(a.todo, work{piece: func(context.Context) func() { return piece() }, lasting: true})
}

// afterwards runs f on the actor's goroutine, behind all work there is.
func (a *actor) afterwards(f func()) { a.thenSurely(func() func() { return f }) }

// record has the present state survive us. By the time it is written a launch
// may have been identified; that must not be lost again.
func (a *actor) record() {
	r := a.recordNow()
	a.thenSurely(func() func() {
		if id := a.identified; r.Ref.PID == 0 && !r.Ref.IsZero() && id.Ref.Incarnation == r.Ref.Incarnation {
			r.Ref, r.Started, r.LogFrom = id.Ref, id.Started, id.LogFrom
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
	r := Record{Name: a.name, Machine: a.machine, Ref: a.ref, Started: a.started, LogFrom: a.logFrom, Exit: a.exit, Due: a.due, Actor: a.actor, Asked: slices.Clone(a.asked)}
	if a.plan != nil {
		r.Spec, r.Limits, r.Options = a.plan.Spec, a.plan.Limits, a.plan.Options
	}
	return r
}

// publish shows the present state to readers.
func (a *actor) publish(kind service.NoticeKind, reason, detail string) {
	m, ref, started, actor := a.machine, a.ref, a.started, a.actor
	failure := ""
	if a.failure != nil && m.State != service.Stopped && m.State != service.Running {
		failure = a.failure.Error()
	}
	var next time.Time
	if m.State == service.Backoff {
		next = time.Now().Add(a.due - a.cfg.SinceBoot())
	}
	a.cfg.Keeper.Publish(a.name, kind, reason, detail, func(s *service.Status) {
		s.Machine, s.Ref, s.LastActor, s.Error, s.NextAttempt = m, ref, actor, failure, next
		if !started.IsZero() {
			s.Started = started
		}
		if m.State.Alive() {
			s.Ended = time.Time{}
		} else { // they were those of an incarnation that is no more
			s.Applied, s.Warned = service.Applied{}, service.Warned{}
		}
	})
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
		r.reply <- err
	})
}

// undone tells whoever asked for an end that came that the next agent may undo
// it, since the disk still says that the service shall run; else it is nil.
func (a *actor) undone(r request) error {
	if a.unrecorded == nil || !a.kept.Up || !r.ends() {
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
	switch {
	case m.State.Alive() && m.State != service.Running, m.State == service.Running && m.Incarnation < incarnation:
		return false, nil
	case m.State == service.Running:
		return true, nil
	case m.Incarnation < incarnation || a.failure == nil:
		return true, &service.Error{Op: kind.String(), Service: a.name, Kind: service.Conflict,
			Err: fmt.Errorf("%s asked for it to stop", cmp.Or(a.actor, "somebody"))}
	}
	return true, a.failure
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

func (a *actor) arm(d time.Duration, fires service.EventKind) {
	a.fires, a.left = fires, d
	a.wait()
}

// wait begins the next part of what is left to wait for.
func (a *actor) wait() {
	part := a.left
	if a.fires == service.StartupOver {
		part = min(part, awake)
	}
	a.left -= part
	a.timer.Reset(part)
	a.armed = true
}

func (a *actor) unprobe() {
	if a.leaveHC != nil {
		a.leaveHC()
		a.leaveHC = nil
	}
}

// hold takes up a handle that a launch or an adoption brought.
func (a *actor) hold(h backends.Handle) {
	a.handle, a.exited, a.moved, a.ref = h, h.Exited(), h.Displaced(), h.Ref()
	a.present.Store(&h)
}

// drop lets go of an incarnation of which nothing is left.
func (a *actor) drop() {
	if a.handle != nil {
		a.present.Store(nil)
		_ = a.handle.Close()
	}
	a.handle, a.exited, a.moved, a.exit, a.ref = nil, nil, nil, nil, service.Ref{}
}
