// Package thjalfi starts, stops and restarts services. Each service has one
// actor: a goroutine that takes events, lets the machine of package service
// decide, and hands the slow work, one piece at a time, to a worker. Nobody
// else changes a service's state. When its context ends the actors leave, and
// the services stay.
package thjalfi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// Plan is everything a launch is made of. A Plan is not changed once made.
type Plan struct {
	Spec    service.Spec // the options of the start included
	Limits  service.Limits
	Backend backends.Backend
	Actor   string               // who asked
	Options service.StartOptions // as they were asked for; see Thjalfi.Options
	Patient bool                 // nobody waits for it: if what it needs can not be had now, it waits on
	Called  bool                 // others require it: who asks for the same meanwhile waits with them
}

// launch is what an incarnation by this plan is made of.
func (p *Plan) launch(name service.Name, incarnation uint64) service.Launch {
	return service.Launch{Name: name, Incarnation: incarnation, Spec: p.Spec, Limits: p.Limits}
}

// Record is what must outlive the agent about one service.
type Record struct {
	Name    service.Name
	Machine service.Machine
	Ref     service.Ref
	Spec    service.Spec
	Limits  service.Limits
	Started time.Time
	LogFrom int64            // where its output begins in the log file, see Config.Outlet
	Stream  service.Stream   // that its output goes into instead, zero for none
	Exit    *service.Exit    // how the main process ended, nil while nobody knows that it did
	Remains *service.Remains // what it left behind, nil while something of it may live
	Ended   time.Time        // with Remains: when the main process ended, as far as is known
	Due     time.Duration    // in Backoff: when the next launch is, in Starting when it has settled, of a job when its time is over, as SinceBoot tells time
	Failed  service.Failures // within the window of its policy, likewise
	Actor   string
	Paused  string          // who has stopped the incarnation with a signal, "" for nobody
	Asked   []service.Asked // requests with an id, the latest last
	Options service.StartOptions

	// Rehearsal: before what runs is stopped it is to be known that all can be written,
	// also what does not change.
	Rehearsal bool
}

// Keeper remembers and tells.
type Keeper interface {
	// Publish changes what readers see. It does no IO.
	Publish(name service.Name, kind service.NoticeKind, reason, detail string, change func(*service.Status))
	// Show is Publish without a word.
	Show(name service.Name, change func(*service.Status))
	// Record returns when r will survive the agent. Calls for one service do
	// not overlap.
	Record(r Record) error
	// Bury adds x to the service's exit records, as lastingly as Record, and
	// returns the record that counts. An incarnation is buried once: what is
	// there of it already stays.
	Bury(name service.Name, x service.ExitRecord) (service.ExitRecord, error)
}

// Prober asks services how they are.
type Prober interface {
	// Await returns nil as soon as the service is ready, or an error when ctx ends. An
	// exec check asks by exec.
	Await(ctx context.Context, check service.Check, exec Exec) error
	// Attend checks the health of one incarnation until the returned function
	// is called with the reason, and reports it when it is unhealthy. When a check fails
	// and excuse says why, that does not count.
	Attend(name service.Name, check service.Check, exec Exec, excuse func() error, unhealthy func()) (leave func(why string))
	// Beat is told that the incarnation which is attended has said that it is well, and
	// Trigger that it is not; they count with a watchdog.
	Beat(name service.Name)
	Trigger(name service.Name)
}

// Exec runs the program of a check beside an incarnation, until ctx ends; nil says that
// it ended well.
type Exec = func(ctx context.Context, argv []string) error

// Monitor looks at what services use.
type Monitor interface {
	// Attend looks at one incarnation until the returned function is called, with what it
	// left behind, nil when that is not known. fresh says that it was launched just now.
	Attend(name service.Name, incarnation uint64, h backends.Handle, fresh bool) (leave func(remains *service.Remains))
}

// ErrNoRoom is of an Outlet that fails because our directories do not serve: then the
// launch is not begun, and tried again, and that is no failure of the service.
var ErrNoRoom = errors.New("its output can not be provided for")

// Config is what the actors need of the rest of the agent.
type Config struct {
	Keeper   Keeper
	Prober   Prober
	Monitor  Monitor
	Listener Listener
	// SinceBoot is the clock of what outlives the agent: nobody sets it.
	SinceBoot func() time.Duration
	// Spread is drawn for each wait before a restart by the policy, from 0 to 1, so that
	// those who failed together do not all come back together.
	Spread func() float64
	// Needs tells how the others stand that a definition names. Call has those started
	// that it requires and that do not run, in the name of actor, and does not wait for
	// them. Both are called for definitions that name others alone, and do no IO.
	Needs func(*service.Spec) service.Standing
	Call  func(spec *service.Spec, actor string)
	// Turn is asked when such a wait is over: 0, go on; else wait so long, and ask again.
	Turn func(service.Name) time.Duration
	// Well is for how long a service has been healthy by now, as far as its checks tell.
	Well func(service.Name) time.Duration
	// Outlet says in l where the output of a launch goes that will be at ref, and
	// where in the log file it begins; LastLines are the last lines of such an
	// output. They do IO.
	Outlet    func(l *service.Launch, ref service.Ref) (logFrom int64, err error)
	LastLines func(spec *service.Spec, incarnation uint64, logFrom int64) []string
	// AwaitLine returns nil once a line of such an output matches what its definition
	// waits for (ready.pattern), or why not when ctx ends.
	AwaitLine func(ctx context.Context, spec *service.Spec, incarnation uint64, logFrom int64) error
	// ClearTimeout bounds one attempt to kill and clear; an attempt that fails
	// is told to whoever waits, and repeated.
	ClearTimeout time.Duration
}

// Thjalfi owns the actors. Its methods may be called by many goroutines at
// once, and return when what they ask for has happened or ctx has ended; in
// the latter case the work goes on without the caller.
type Thjalfi struct {
	cfg      Config
	ctx      context.Context
	stop     context.CancelFunc
	launches context.Context // ends before ctx does; see Leave
	leave    context.CancelFunc
	wg       sync.WaitGroup

	followers followers

	mu     sync.Mutex
	actors map[service.Name]*actor
}

// New returns a Thjalfi without services. Close ends it.
func New(cfg Config) *Thjalfi {
	ctx, stop := context.WithCancel(context.Background())
	launches, leave := context.WithCancel(ctx)
	return &Thjalfi{cfg: cfg, ctx: ctx, stop: stop, launches: launches, leave: leave, actors: map[service.Name]*actor{}, followers: followers{of: map[service.Name]map[*actor]bool{}}}
}

// Leave gives up the launches under way, and begins none any more: those who
// wait for them are told that the agent is leaving, and the next agent begins
// again. All else goes on until Close.
func (t *Thjalfi) Leave() { t.leave() }

// Close lets the actors leave and waits for them. Services run on; a launch
// under way is given up.
func (t *Thjalfi) Close() {
	t.mu.Lock() // against Add
	t.stop()
	t.mu.Unlock()
	t.wg.Wait()
}

// Restored is what an earlier agent left of a service.
type Restored struct {
	Record
	Plan *Plan // nil when there is nothing to adopt or to try again
}

// Add makes a service known. With r it takes up what an earlier agent left.
func (t *Thjalfi) Add(name service.Name, r Restored) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.actors[name] != nil || t.ctx.Err() != nil {
		return
	}
	a := newActor(t, name)
	t.actors[name] = a
	t.wg.Go(func() { a.run(r) })
}

// Remove forgets a service that does not run. After it nothing is recorded of
// the service any more.
func (t *Thjalfi) Remove(ctx context.Context, name service.Name) error {
	a, err := t.find("unregister", name)
	if err != nil {
		return err
	}
	return ask(ctx, a, "unregister", func(reply chan<- error) { t.retire(a, reply) })
}

// retire has an actor leave once nothing of it is under way any more, unless
// its service runs or is to run. It runs on the actor's goroutine.
func (t *Thjalfi) retire(a *actor, reply chan<- error) {
	switch {
	case a.machine.State.Alive() || a.machine.State == service.Backoff || a.machine.State == service.Held || a.machine.State == service.Waiting || len(a.waiters) > 0:
		reply <- &service.Error{Op: "unregister", Service: a.name, Kind: service.Conflict,
			Err: fmt.Errorf("it is %s; stop it first", a.machine.State)}
	case a.busy || len(a.todo) > 0:
		a.then(func(context.Context) func() { return func() { t.retire(a, reply) } })
	default:
		t.mu.Lock()
		delete(t.actors, a.name)
		t.mu.Unlock()
		a.leave()
		reply <- nil
	}
}

// Start launches a service and returns when it is ready. The request of the plan's
// options is that of this start alone.
func (t *Thjalfi) Start(ctx context.Context, name service.Name, plan Plan) error {
	r := request{kind: service.Start, plan: &plan, actor: plan.Actor, called: plan.Called, Request: plan.Options.Request}
	plan.Options.Request = service.Request{}
	return t.request(ctx, name, r)
}

// Restart ends the incarnation that runs, if one does, and returns when a
// fresh one is ready.
func (t *Thjalfi) Restart(ctx context.Context, name service.Name, plan Plan, opts service.StopOptions) error {
	return t.request(ctx, name, request{kind: service.Restart, plan: &plan, stop: opts, actor: plan.Actor, Request: opts.Request})
}

// Run is Start for a schedule: what somebody has stopped, and nobody started since, it
// leaves alone (service.Conflict). With replace it is Restart.
func (t *Thjalfi) Run(ctx context.Context, name service.Name, plan Plan, replace bool) error {
	r := request{kind: service.Start, plan: &plan, actor: plan.Actor, scheduled: true}
	if replace {
		r.kind = service.Restart
	}
	return t.request(ctx, name, r)
}

// Recall answers a request that was begun before, as that one is or was answered,
// and does nothing else. A stop need not be recalled: Stop does.
func (t *Thjalfi) Recall(ctx context.Context, name service.Name, kind service.EventKind, actor string, retry service.Request) (known bool, err error) {
	if retry.ID == "" {
		return false, nil
	}
	a, err := t.find(kind.String(), name)
	if err != nil {
		return false, err
	}
	recalled := false
	err = ask(ctx, a, kind.String(), func(reply chan<- error) {
		recalled = a.recall(request{ctx: ctx, kind: kind, actor: actor, reply: reply, Request: retry})
		if !recalled {
			reply <- nil
		}
	})
	return err == nil && recalled, err
}

// Options are those of the last start or restart that somebody asked for, which
// a restart is to repeat. None are known of a service that was not launched in
// this boot.
func (t *Thjalfi) Options(ctx context.Context, name service.Name) (options service.StartOptions, known bool, err error) {
	a, err := t.find("restart", name)
	if err != nil {
		return service.StartOptions{}, false, err
	}
	var last *Plan
	err = ask(ctx, a, "restart", func(reply chan<- error) {
		last = cmp.Or(a.next, a.plan)
		reply <- nil
	})
	if err != nil || last == nil {
		return service.StartOptions{}, false, err
	}
	return last.Options, true, nil
}

// Amend changes the plan of the launches to come by the policy, and what Options
// tells, and has that survive the agent.
func (t *Thjalfi) Amend(ctx context.Context, name service.Name, change func(*Plan)) error {
	a, err := t.find("set limits of", name)
	if err != nil {
		return err
	}
	return ask(ctx, a, "set limits of", func(reply chan<- error) {
		a.amend(change)
		if a.plan == nil {
			reply <- nil
			return
		}
		a.keep(reply, nil)
	})
}

// Record writes down once more what a service is, after that could not be.
func (t *Thjalfi) Record(ctx context.Context, name service.Name) error {
	a, err := t.find("record", name)
	if err != nil {
		return err
	}
	return ask(ctx, a, "record", func(reply chan<- error) {
		a.record()
		a.afterwards(func() { reply <- a.unrecorded })
	})
}

// Stop ends a service and returns when nothing of it is left.
func (t *Thjalfi) Stop(ctx context.Context, name service.Name, opts service.StopOptions) error {
	kind := service.Stop
	if opts.Force {
		kind = service.Kill
	}
	return t.request(ctx, name, request{kind: kind, stop: opts, actor: opts.Actor, Request: opts.Request})
}

// Hold ends a service that runs, or is about to, because the battery is low, and
// returns when nothing of it is left, or at once where nothing is to be done. It shall
// run all the same, and a start brings it back. With plan it does so for one that does
// not run, instead of a start. What ends for another reason already ends for that, and is
// held where it would be begun again.
func (t *Thjalfi) Hold(ctx context.Context, name service.Name, plan *Plan, actor string) error {
	return t.request(ctx, name, request{kind: service.Hold, plan: plan, actor: actor})
}

// SetLimits changes limits of the incarnation that runs, and of those that
// follow it by the policy; they hold until the next start that somebody asks
// for. A launch under way is waited for. When none runs it says so with
// service.NotRunning, and those that follow by the policy have them still.
// Memory in use that is to be brought below a limit is, until ctx ends or somebody
// ends the service; with force the kernel kills what does not fit.
func (t *Thjalfi) SetLimits(ctx context.Context, name service.Name, limits service.Limits, force bool, actor string) (service.Applied, error) {
	a, err := t.find("set limits of", name)
	if err != nil {
		return service.Applied{}, err
	}
	var applied service.Applied
	c := change{ctx: ctx, limits: limits, force: force, actor: actor, applied: &applied}
	err = ask(ctx, a, opLimits, func(reply chan<- error) {
		c.reply = reply
		a.setLimits(c)
	})
	if err != nil {
		return service.Applied{}, err
	}
	return applied, nil
}

// Signal sends sig to the main process. A launch under way is waited for.
func (t *Thjalfi) Signal(ctx context.Context, name service.Name, sig syscall.Signal, actor string) error {
	a, err := t.find("signal", name)
	if err != nil {
		return err
	}
	return ask(ctx, a, "signal", func(reply chan<- error) {
		a.then(func(context.Context) func() { return func() { a.signal(sig, actor, reply) } })
	})
}

// Freeze stops a running service where it is, with all that it has started, until Thaw
// or its end. A launch under way is waited for; what is not ready then, or is ending, is
// not frozen (service.Conflict).
func (t *Thjalfi) Freeze(ctx context.Context, name service.Name, actor string) error {
	return t.still(ctx, true, name, actor)
}

// Spare freezes a running service to save the battery; one that is frozen already is
// left to who did that. It is known for what it was frozen (service.Machine, Spared)
// until it is thawed or ends. What is not ready is not frozen (service.Conflict).
func (t *Thjalfi) Spare(ctx context.Context, name service.Name, actor string) error {
	const op = "freeze"
	a, err := t.find(op, name)
	if err != nil {
		return err
	}
	return ask(ctx, a, op, func(reply chan<- error) {
		a.then(func(context.Context) func() { return func() { a.spare(actor, reply) } })
	})
}

// Thaw lets it run on, whoever froze it.
func (t *Thjalfi) Thaw(ctx context.Context, name service.Name, actor string) error {
	return t.still(ctx, false, name, actor)
}

func (t *Thjalfi) still(ctx context.Context, freeze bool, name service.Name, actor string) error {
	op := stillOp(freeze)
	a, err := t.find(op, name)
	if err != nil {
		return err
	}
	return ask(ctx, a, op, func(reply chan<- error) {
		a.then(func(context.Context) func() {
			return func() {
				if freeze {
					a.claim(actor)
				}
				a.still(freeze, actor, reply)
			}
		})
	})
}

// Handle is the incarnation that runs.
func (t *Thjalfi) Handle(op string, name service.Name) (backends.Handle, error) {
	a, err := t.find(op, name)
	if err != nil {
		return nil, err
	}
	h := a.present.Load()
	if h == nil {
		return nil, notRunning(op, name)
	}
	return *h, nil
}

// opLimits ends with the caller; all else goes on.
const opLimits = "set limits of"

func notRunning(op string, name service.Name) error {
	return &service.Error{Op: op, Service: name, Kind: service.NotRunning, Reason: service.ReasonNotRunning, Err: errors.New("it does not run")}
}

func (t *Thjalfi) find(op string, name service.Name) (*actor, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.actors[name]; a != nil {
		return a, nil
	}
	return nil, &service.Error{Op: op, Service: name, Kind: service.NotFound, Reason: service.ReasonServiceNotFound,
		Err: errors.New("no such service is registered")}
}

func (t *Thjalfi) request(ctx context.Context, name service.Name, r request) error {
	a, err := t.find(r.kind.String(), name)
	if err != nil {
		return err
	}
	return ask(ctx, a, r.kind.String(), func(reply chan<- error) {
		r.ctx, r.reply = ctx, reply
		a.take(r)
	})
}

// ask has the actor run f on its goroutine and waits for the reply, which may
// come much later.
func ask(ctx context.Context, a *actor, op string, f func(reply chan<- error)) error {
	reply := make(chan error, 1)
	gone := leaving(op, a.name)
	select {
	case a.inbox <- func() { f(reply) }:
	case <-a.gone:
		return gone
	case <-ctx.Done():
		return waitError(ctx, op, a.name, "nothing was begun")
	}
	select {
	case err := <-reply:
		return err
	case <-a.gone:
		select {
		case err := <-reply: // the reply came first
			return err
		default:
			return gone
		}
	case <-ctx.Done():
		if op == opLimits {
			return waitError(ctx, op, a.name, "it is given up, unless it was done")
		}
		return waitError(ctx, op, a.name, "it goes on without you")
	}
}

func leaving(op string, name service.Name) error {
	return &service.Error{Op: op, Service: name, Kind: service.HostUnavailable, Err: errors.New("the agent is leaving, or the service was unregistered")}
}

func waitError(ctx context.Context, op string, name service.Name, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &service.Error{Op: op, Service: name, Kind: service.Timeout, Err: fmt.Errorf("the caller's deadline passed; %s", what)}
	}
	return &service.Error{Op: op, Service: name, Kind: service.Cancelled, Err: fmt.Errorf("the caller went away; %s", what)}
}
