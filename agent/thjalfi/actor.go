package thjalfi

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// retryClear is the wait between two attempts to adopt, to kill or to clear
// what would not go. It only runs while something is wrong with the host.
const retryClear = 5 * time.Second

// actor owns one service. Its fields are touched by run's goroutine only,
// unless said otherwise; the rest of the program reaches it by ask.
type actor struct {
	name      service.Name
	cfg       Config
	ctx       context.Context // ends when the agent leaves or the service is forgotten
	leave     context.CancelFunc
	launches  context.Context // of Thjalfi
	followers *followers      // likewise
	nudged    chan struct{}   // one that its plan names may stand otherwise now
	inbox     chan func()
	gone      chan struct{}                   // closed when run has returned
	present   atomic.Pointer[backends.Handle] // read by everybody

	machine service.Machine
	plan    *Plan // of the present or last incarnation
	next    *Plan // of the incarnation that somebody asked for, until it is launched
	waiters []request
	asked   []service.Asked // the latest last; see remember

	ref     service.Ref
	handle  backends.Handle
	exited  <-chan struct{} // of handle; nil once seen
	moved   <-chan struct{} // likewise, when somebody displaced it
	froze   <-chan struct{} // of handle: it may have been frozen or thawed
	ending  context.Context // of handle; ends when it is being ended: that waits for no change of limits
	end     context.CancelFunc
	written chan struct{} // something of handle's may be a limit
	guard   guard         // of handle's limits
	exit    *service.Exit // of the main process, nil while nobody knows that it ended
	started time.Time
	remains *service.Remains          // what it left behind, nil until all of it is dead
	died    time.Time                 // then: when the main process ended
	logFrom int64                     // where its output begins in the log file
	stream  service.Stream            // that it goes into instead
	actor   string                    // who asked for the last change
	cause   service.Cause             // why we began to end the present incarnation; unlike the machine's it stays
	ender   string                    // who asked for that
	grace   time.Duration             // between the stop signal and the kill
	sent    map[syscall.Signal]string // to the present incarnation, by whom
	forced  bool                      // the present incarnation outlived its grace
	failure error                     // of the last launch, readiness or end
	unready error                     // why it was not ready when that was last asked
	loading bool                      // a program makes it read its configuration anew
	served  bool                      // it has become ready, and its post_start hooks are run
	warned  bool                      // its pre_stop hooks were run
	hook    string                    // that is run now
	hooking int                       // counts the runs of hooks: another has nothing to say of what is run now
	greeted <-chan struct{}           // closed when the latest run of its post_start hooks is over, nil before the first
	words   lastWords                 // of the incarnation that was buried last
	due     time.Duration             // in Backoff: when the next launch is, since boot; in Starting: when it has settled; of a job: when its time is over
	spread  float64                   // drawn for that wait
	failed  service.Failures          // within the window of its policy
	queues  bool                      // in Backoff: the wait is over, and its turn has not come
	lacks   string                    // in Waiting: for what
	why     string                    // what it used too much of, what its checks said last, or how it hung, if that is why we end it
	hung    bool                      // it is that
	paused  atomic.Pointer[string]    // who has stopped the present incarnation with a signal, and not let it go on since; nil for nobody; read by everybody
	leaveHC func(why string)          // ends the health checks, nil when there are none
	unwatch func(*service.Remains)    // ends the looks at what it uses
	probes  int                       // counts their beginnings: news of others is stale

	said speech // of itself

	frozenBy string // the cgroup that keeps it frozen, as told to readers
	stilling int    // freezes and thaws that somebody has asked for and that are under way

	kept       service.Machine // as it is on disk
	unrecorded error           // why it is not there as it is
	denied     int             // launches in a row that could not be recorded

	timer *time.Timer
	fires service.EventKind
	left  time.Duration // to wait for when it fires
	armed bool

	partOver time.Time          // when it fires
	abort    context.CancelFunc // of the launch, the wait for readiness or the hooks in flight
	hurry    context.CancelFunc // of the hooks that follow a launch which came to nothing
	waits    sync.WaitGroup     // for readiness and what follows it

	identified Record      // of the launch that was last identified; the worker's
	finished   Record      // of the incarnation that was last finished; the worker's
	followed   uint64      // the incarnation whose post_stop hooks were last run; the worker's
	unfollowed []string    // what of those failed; likewise
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

func newActor(t *Thjalfi, name service.Name) *actor {
	ctx, leave := context.WithCancel(t.ctx)
	return &actor{
		name: name, cfg: t.cfg, ctx: ctx, leave: leave, launches: t.launches, followers: &t.followers, nudged: make(chan struct{}, 1),
		inbox: make(chan func()), gone: make(chan struct{}), done: make(chan func(), 1),
		abort: func() {}, hurry: func() {}, end: func() {}, written: make(chan struct{}, 1), said: silent(), guard: guard{leave: func() {}},
	}
}

func (a *actor) run(r Restored) {
	defer close(a.gone)
	defer a.leave()
	defer func() { a.follow(nil) }()
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
		case <-a.froze:
			a.sawFreeze()
		case <-a.nudged:
			a.heed()
		case h := <-a.said.news:
			a.heard(h)
		case <-a.written:
			a.lookForDrift("")
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
	if a.inherited() {
		return false // succeeded sees what has become of that
	}
	a.ended(a.handle.Exit())
	return true
}

// ended takes how the main process ended. What an earlier agent saw of it
// counts more.
func (a *actor) ended(x service.Exit) {
	if a.exit == nil {
		a.exit = &x
	}
	a.failure, a.frozenBy = nil, "" // it was of this end, which has come
	a.happen(a.weighed(service.Event{Kind: service.Exited, Incarnation: a.machine.Incarnation, Exit: *a.exit}))
}

// awake is the most of a timer that one sleep of ours can use up: a service's time
// to become ready is waited for in parts, each of which counts for itself alone,
// however late we find it over.
const awake = time.Second

// timeout takes the event that the timer was armed for, unless the end of the
// main process has come as well, or a freeze: that counts more.
func (a *actor) timeout() {
	a.armed = false
	state, served := a.machine.State, a.served
	if a.sawExit() || a.machine.State != state || a.served != served || a.hearFreeze() || a.hearNews() {
		return
	}
	if a.left > 0 {
		a.wait()
		return
	}
	switch {
	case a.fires == service.BackoffOver && a.queue():
		return
	case a.fires == service.Stable && a.ails():
		return
	}
	if a.fires == service.GraceOver && a.machine.State == service.Stopping {
		a.forced = a.machine.ForceKill
		if !a.machine.ForceKill {
			a.fail(&service.Error{Op: "stop", Service: a.name, Kind: service.Timeout, Reason: service.ReasonStopTimeout,
				Err: fmt.Errorf("it did not end within %v, and its definition forbids to kill it (stop.force_kill)", a.grace)})
		}
	}
	a.happen(a.weighed(service.Event{Kind: a.fires, Incarnation: a.machine.Incarnation, Recent: a.recent()}))
}

// restore takes up what an earlier agent left.
func (a *actor) restore(r Restored) {
	a.follow(r.Plan)
	a.machine, a.ref, a.started, a.exit, a.actor = r.Machine, r.Ref, r.Started, r.Exit, r.Actor
	a.logFrom, a.stream, a.asked = r.LogFrom, r.Stream, r.Asked
	a.setPauser(r.Paused)
	a.remains, a.died, a.due, a.failed = r.Remains, r.Ended, r.Due, r.Failed
	a.kept, a.cause, a.ender = r.Machine, r.Machine.Cause, r.Actor
	if r.Plan == nil {
		return
	}
	a.grace = r.Plan.Spec.Stop.Timeout
	switch {
	case a.machine.State == service.Backoff:
		wait := min(max(0, r.Due-a.cfg.SinceBoot()), a.machine.Policy.Delay(a.machine.InARow(), 1))
		a.due = a.cfg.SinceBoot() + wait
		a.arm(wait, service.BackoffOver)
		a.publish(service.NoticeState, "restored", "")
	case a.machine.State == service.Held:
		a.publish(service.NoticeState, "restored", "")
	case a.machine.State == service.Waiting:
		a.lacks = a.standing().Waits
		a.publish(service.NoticeState, "restored", a.lacks)
		a.nudge()
	case a.machine.State == service.Crashed:
		a.cfg.Keeper.Show(a.name, a.shown())
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
	a.letGo()
}

// happen lets the machine decide on events that come as one, tells and records the
// outcome, and sets the effects going. What is recorded is recorded before any
// effect.
func (a *actor) happen(events ...service.Event) {
	a.happenAs(notice{}, events...)
}

// notice is what is told of events; its zero value is that they have changed the state.
type notice struct {
	kind           service.NoticeKind
	reason, detail string
}

// happenAs is happen for what is told in words of its own, also when the state stays.
func (a *actor) happenAs(told notice, events ...service.Event) {
	before := a.machine
	var effects []service.Effect
	for _, ev := range events {
		var more []service.Effect
		a.machine, more = service.Next(a.machine, ev)
		effects = append(effects, more...)
	}
	if (a.machine.State == service.Launching || a.machine.State == service.Held || a.machine.State == service.Waiting) && a.next != nil {
		a.follow(a.next)
		a.next = nil
		a.machine.Policy, a.machine.ForceKill = a.plan.Spec.Restart, a.plan.Spec.Stop.ForceKill
		a.machine.Once = a.plan.Spec.Type == service.TypeOneshot
	}
	a.count(before)
	switch {
	case a.machine.State == service.Stopping && a.cause == service.CauseNone:
		a.cause, a.ender = a.machine.Cause, a.actor
	case a.machine.State == service.Waiting && a.machine != before:
		told = a.awaits(told)
	case a.machine.State == service.Backoff && before.State == service.Waiting:
		a.due, a.queues = a.cfg.SinceBoot()+a.comeback(), false
	case a.machine.State == service.Backoff && before.State != service.Backoff:
		a.due, a.queues = a.cfg.SinceBoot()+a.delay(), false
	case a.machine.State == service.Crashed && before.State != service.Crashed:
		told = a.alert()
	case a.machine.State == service.Starting && a.settlesAnew(before), a.machine.Once && (a.thawed(before) || before.State == service.Adopting && a.due == 0):
		a.due = a.cfg.SinceBoot() + a.time()
	}
	news := a.conclude()
	switch {
	case a.machine.State == service.Launching && before.State != service.Launching:
		a.ref, a.started, a.exit, a.cause, a.ender, a.due = service.Ref{}, time.Time{}, nil, service.CauseNone, "", 0
		a.sent, a.forced, a.failure, a.why, a.hung, a.unready, a.said, a.served, a.warned = nil, false, nil, "", false, nil, silent(), false, false
		a.setPauser("") // a launch records its intent itself, and fails if it can not
	case a.machine != before || news:
		a.record()
	}
	switch {
	case told != notice{}:
		a.publish(told.kind, told.reason, told.detail)
	case a.machine != before:
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
	a.partOver = time.Now().Add(part)
	a.timer.Reset(part)
	a.armed = true
}

func (a *actor) unprobe() {
	if a.leaveHC != nil {
		why := "it does not run"
		if a.machine.Frozen {
			why = "it is frozen"
		}
		a.leaveHC(why)
		a.leaveHC = nil
	}
}

// hold takes up a handle that a launch or an adoption brought.
func (a *actor) hold(h backends.Handle) {
	a.handle, a.exited, a.moved, a.froze, a.ref = h, h.Exited(), h.Displaced(), h.Froze(), h.Ref()
	a.ending, a.end = context.WithCancel(a.ctx)
	a.watchLimits(h)
	a.unwatch = func(*service.Remains) {}
	a.present.Store(&h)
	a.listen()
}

// attend has it looked at what it uses, once its limits are told. fresh says that it was
// launched just now.
func (a *actor) attend(fresh bool) {
	a.unwatch = a.cfg.Monitor.Attend(a.name, a.ref.Incarnation, a.handle, fresh)
}

func (a *actor) letGo() {
	a.guard.leave()
	a.guard.stop()
	a.said.leave()
	a.said.leave, a.said.news = func() {}, nil
	if a.handle != nil {
		a.end()
		a.unwatch(a.remains)
		a.present.Store(nil)
		_ = a.handle.Close()
	}
}

// drop lets go of an incarnation of which nothing is left.
func (a *actor) drop() {
	a.letGo()
	a.handle, a.exited, a.moved, a.froze, a.exit, a.ref, a.frozenBy = nil, nil, nil, nil, nil, service.Ref{}, ""
	a.remains, a.died, a.hook = nil, time.Time{}, ""
}
