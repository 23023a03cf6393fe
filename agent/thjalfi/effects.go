package thjalfi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/failpoint"
)

// do sets one effect going. Nothing here waits.
func (a *actor) do(e service.Effect) {
	switch e {
	case service.DoLaunch:
		a.launch()
	case service.DoAdopt:
		a.adopt()
	case service.DoAbort:
		a.abort()
	case service.DoAwait:
		a.await()
	case service.DoTerminate:
		a.terminate()
	case service.DoKill:
		a.kill()
	case service.DoClear:
		a.clear()
	case service.DoProbe:
		a.probe()
	case service.DoUnprobe:
		a.unprobe()
	case service.DoNeed:
		a.call()
	case service.ArmStable:
		a.armStable()
	case service.ArmBackoff:
		a.arm(a.due-a.cfg.SinceBoot(), service.BackoffOver)
	case service.ArmRetry:
		a.arm(retryClear, service.RetryOver)
	case service.Disarm:
		a.timer.Stop()
		a.armed = false
	case service.ArmJob:
		if a.plan.Spec.Bounded {
			a.arm(max(0, a.due-a.cfg.SinceBoot()), service.StartupOver)
		}
	}
}

func (a *actor) event(kind service.EventKind) service.Event {
	return service.Event{Kind: kind, Incarnation: a.machine.Incarnation}
}

// launch begins an incarnation. The time it has to become ready counts from
// when its gate is opened: until then it may have queued, and that is the
// host's business, and its hooks have a time of their own.
func (a *actor) launch() {
	plan := a.plan
	a.grace = plan.Spec.Stop.Timeout
	ctx, abort := context.WithCancel(a.launches)
	a.abort = abort
	l := plan.launch(a.name, a.machine.Incarnation)
	a.ref = plan.Backend.Plan(l)
	intent, hooks := a.recordNow(), a.hooks()
	a.then(func(context.Context) func() {
		defer abort()
		a.unfollowed = nil
		var err error
		if intent.LogFrom, err = a.cfg.Outlet(&l, intent.Ref); err != nil {
			return func() {
				if errors.Is(err, ErrNoRoom) {
					a.unbegun(l.Incarnation, err)
					return
				}
				a.launched(nil, service.Applied{}, l.Incarnation, err)
			}
		}
		intent.Stream = l.Stream
		if err := failpoint.After(a.cfg.Keeper.Record(intent), failpoint.S2IntentFsynced); err != nil {
			return func() {
				a.kept, a.unrecorded = intent.Machine, err // as much of it may have been written
				a.unbegun(l.Incarnation, fmt.Errorf("the intent can not be recorded: %w", err))
			}
		}
		recorded := intent.Machine
		intent.Started = time.Now()
		var unidentified error
		h, err := plan.Backend.Launch(ctx, l, hooks.birth(func(ref service.Ref) error {
			intent.Ref = ref
			a.identified = intent
			unidentified = failpoint.After(a.cfg.Keeper.Record(intent), failpoint.S8IdentityFsynced)
			return unidentified
		}, func() { a.tell(ctx, func() { a.atGate(l.Incarnation) }) }))
		var applied service.Applied
		if err != nil {
			a.identified = Record{}
			a.unheard(&l.Spec)
		} else if applied, err = h.Limits(ctx); err != nil {
			applied, err = service.Applied{}, nil // it ended at once, or the launch was given up: its end tells
		}
		return func() {
			a.kept, a.unrecorded = recorded, unidentified
			if err != nil && unidentified != nil {
				a.unbegun(l.Incarnation, fmt.Errorf("its identity can not be recorded: %w", unidentified))
				return
			}
			a.denied, a.logFrom, a.stream = 0, intent.LogFrom, intent.Stream
			if h != nil {
				a.started = intent.Started
			}
			a.launched(h, applied, l.Incarnation, err)
		}
	})
}

// unbegun takes that a launch could not be recorded. It is tried again, less and less
// often; one that is not wanted any more came to nothing.
func (a *actor) unbegun(incarnation uint64, err error) {
	err = &service.Error{Op: "start", Service: a.name, Kind: service.HostUnavailable,
		Err: fmt.Errorf("nothing was begun: %w", err)}
	if a.machine.State != service.Launching || a.launches.Err() != nil {
		a.launched(nil, service.Applied{}, incarnation, err)
		return
	}
	a.drop()
	a.failure = err
	a.denied++
	a.spread = a.cfg.Spread()
	a.happen(a.event(service.Unrecorded))
}

// tell has the actor run f, unless ctx ends before it can.
func (a *actor) tell(ctx context.Context, f func()) {
	select {
	case a.inbox <- f:
	case <-ctx.Done():
	}
}

// atGate begins the time that an incarnation has to become ready.
func (a *actor) atGate(incarnation uint64) {
	if a.machine.State == service.Launching && a.machine.Incarnation == incarnation {
		a.arm(a.plan.Spec.Ready.Timeout, service.StartupOver)
	}
}

// launched takes the outcome of a launch. One that came to nothing because the
// agent leaves is as good as not begun.
func (a *actor) launched(h backends.Handle, applied service.Applied, incarnation uint64, err error) {
	switch {
	case err == nil:
		a.hold(h)
		levels := a.plan.Spec.Warnings
		a.cfg.Keeper.Publish(a.name, service.NoticeLimits, "launched", "", func(s *service.Status) {
			s.Applied, s.Warnings, s.Violations, s.Hung = applied, levels, service.Violations{}, service.Hang{}
			s.Fought = [service.NumResources]bool{}
		})
		a.attend(true)
		a.happen(service.Event{Kind: service.Launched, Incarnation: incarnation})
		return
	case a.launches.Err() != nil:
		a.record() // that no process was identified after all
		a.giveUp()
		return
	}
	a.drop()
	var e *service.Error
	a.unlaunched(err, service.Event{
		Kind: service.LaunchFailed, Incarnation: incarnation, Permanent: errors.As(err, &e) && e.Permanent,
	})
}

// unlaunched writes the record of an incarnation that never ran, and takes up why.
func (a *actor) unlaunched(err error, failed service.Event) {
	x := service.ExitRecord{
		Incarnation: failed.Incarnation, Exit: service.NeverRan, Verdict: service.VerdictLaunchFailed,
		Started: time.Now(), Ended: time.Now(),
	}
	a.failure = err
	switch a.cause {
	case service.CauseStartup:
		a.failure = a.startupTimeout()
		x.Verdict, x.Message = service.VerdictStartupTime, a.failure.Error()
	case service.CauseAsked, service.CauseHeld, service.CauseUnbound:
		a.failure = nil
		x.Verdict, x.RequestedBy, x.Message = service.VerdictStopped, a.ender, "given up before it ran, stopped by "+a.ender
	default:
		x.Message = err.Error()
		if e, ok := errors.AsType[*service.Error](err); ok && e.Reason == service.ReasonHookFailed {
			x.Verdict, x.LastLines = service.VerdictHookFailed, e.LastLines
		}
	}
	x.Fingerprint = service.Fingerprint(x.Verdict, x.Exit, []string{x.Message})
	for _, failed := range a.unfollowed {
		x.Message += "; " + failed
	}
	a.bury(x, failed)
}

// giveUp tells those who wait for a launch that the agent leaves without it. That
// it is not ready in time is no fault of its own then.
func (a *actor) giveUp() {
	a.do(service.Disarm)
	for _, r := range a.waiters {
		r.reply <- leaving(r.kind.String(), a.name)
	}
	a.waiters = nil
}

// errCutOff is why an incarnation never ran that was adopted.
var errCutOff = errors.New("the agent ended before it was launched")

func (a *actor) adopt() {
	ref, plan, incarnation := a.ref, a.plan, a.machine.Incarnation
	a.then(func(ctx context.Context) func() {
		h, err := plan.Backend.Adopt(ctx, ref, plan.launch(a.name, incarnation))
		var deaf error
		if err == nil && plan.Spec.Notifies() {
			deaf = a.cfg.Listener.Provide(&plan.Spec)
		}
		var applied service.Applied
		var frozenBy string
		if err == nil {
			frozenBy, _ = h.FrozenBy()
			applied, _ = h.Limits(ctx) // an end in between is told by Exited
			if back := reined(plan.Spec.Ladder, plan.Limits, applied); back != (service.Limits{}) {
				if given, err := h.Throttle(ctx, back); err == nil { // else the look for drift tells
					applied = given
				}
			}
		}
		return func() {
			switch {
			case errors.Is(err, backends.ErrGone) && ref.PID == 0 && a.exit == nil:
				a.drop()
				a.unlaunched(errCutOff, a.event(service.LaunchFailed))
			case errors.Is(err, backends.ErrGone):
				a.ended(service.Exit{Unknown: "agent_was_down"})
			case err != nil:
				a.fail(err)
				a.happen(a.event(service.AdoptFailed))
			default:
				if a.said.unheard = true; deaf != nil {
					a.publish(service.NoticeState, "notify", "its socket can not be made anew: "+deaf.Error())
				}
				a.hold(h)
				if a.machine.Frozen { // then that was told; else, or if it is no more, it is news
					a.frozenBy = cmp.Or(frozenBy, a.ref.Cgroup)
				}
				a.cfg.Keeper.Publish(a.name, service.NoticeLimits, "adopted", "", func(s *service.Status) { s.Applied = applied })
				a.attend(false)
				if !a.sawExit() {
					a.exit, a.failure = nil, nil
					a.happen(a.event(service.Adopted))
					a.nudge() // what was said of those it names meanwhile was not heeded
					a.lookForDrift(" since before this agent came")
				}
			}
		}
	})
}

// await waits for readiness beside the worker, so that a stop need not wait.
func (a *actor) await() {
	check, incarnation := a.plan.Spec.Ready, a.machine.Incarnation
	a.served = false
	if !a.armed {
		a.arm(check.Timeout, service.StartupOver)
	}
	switch {
	case check.Type == service.CheckProcess && check.Settle == 0:
		a.serve() // it runs: that is all that was asked
		return
	case a.said.ready:
		a.readyBySaying()
		return
	}
	ctx, abort := context.WithCancel(a.ctx)
	a.abort = abort
	ready := a.readiness()
	a.waits.Go(func() {
		defer abort()
		if err := ready(ctx); err != nil {
			a.tell(a.ctx, func() {
				if a.machine.Incarnation == incarnation {
					a.unready = err
				}
			})
			return
		}
		a.tell(ctx, func() {
			if a.machine.Incarnation == incarnation {
				a.serve()
			}
		})
	})
}

// readiness returns nil when the present incarnation is ready, or why it is not when its
// context ends.
func (a *actor) readiness() func(context.Context) error {
	spec, incarnation, logFrom := &a.plan.Spec, a.machine.Incarnation, a.logFrom
	switch spec.Ready.Type {
	case service.CheckProcess:
		left := min(max(0, a.due-a.cfg.SinceBoot()), spec.Ready.Settle)
		return func(ctx context.Context) error { return settled(ctx, left) }
	case service.CheckLog:
		return func(ctx context.Context) error { return a.cfg.AwaitLine(ctx, spec, incarnation, logFrom) }
	case service.CheckNotify:
		if a.said.unheard { // it may have said so when nobody heard: that is no failure of its own
			return func(ctx context.Context) error { return settled(ctx, spec.Ready.Timeout/2) }
		}
		return func(ctx context.Context) error {
			<-ctx.Done()
			return errors.New("it has not said READY=1 (sd_notify(3))")
		}
	}
	exec := beside(a.handle)
	return func(ctx context.Context) error { return a.cfg.Prober.Await(ctx, spec.Ready, exec) }
}

func settled(ctx context.Context, left time.Duration) error {
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errors.New("it has not run for long enough (ready.settle)")
	}
}

// settlesAnew tells whether the time that an incarnation has to run counts from now on:
// it was launched or thawed, or the end of the agent before this kept that from being
// recorded.
func (a *actor) settlesAnew(before service.Machine) bool {
	switch before.State {
	case service.Launching:
		return true
	case service.Adopting:
		return a.due == 0
	}
	return a.thawed(before)
}

func (a *actor) thawed(before service.Machine) bool {
	return before.Frozen && !a.machine.Frozen && a.machine.State == before.State
}

// time is how long an incarnation has to run to be ready or, if it does a job, how long
// that may take.
func (a *actor) time() time.Duration {
	if a.machine.Once {
		return a.plan.Spec.Ready.Timeout
	}
	return a.plan.Spec.Ready.Settle
}

func (a *actor) startupTimeout() error {
	ready := a.plan.Spec.Ready
	err := fmt.Errorf("it was not ready within %v (ready: %s)", ready.Timeout, strings.TrimSpace(ready.Type.String()+" "+ready.Target()))
	if a.plan.Spec.Bounded {
		err = fmt.Errorf("its job was not done within %v (ready.timeout)", ready.Timeout)
	}
	if a.unready != nil {
		err = fmt.Errorf("%w: %w", err, a.unready)
	}
	return &service.Error{Op: "start", Service: a.name, Kind: service.Timeout, Reason: service.ReasonStartupTimeout, Err: err}
}

// signal sends what somebody asks for, and remembers who that was: it may be
// what ends the service.
func (a *actor) signal(sig syscall.Signal, actor string, reply chan<- error) {
	h := a.handle
	if h == nil {
		reply <- notRunning("signal", a.name)
		return
	}
	a.then(func(ctx context.Context) func() {
		err := h.Signal(ctx, sig)
		return func() {
			if err == nil {
				if a.sent == nil {
					a.sent = map[syscall.Signal]string{}
				}
				a.sent[sig], a.actor = actor, actor
				a.pause(sig, actor)
				detail := service.SignalName(sig) + " by " + actor
				if a.frozenBy != "" && sig != syscall.SIGKILL {
					detail += "; it is frozen, and gets it when it is thawed"
				}
				a.publish(service.NoticeState, "signal", detail)
			}
			reply <- err
		}
	})
}

func (a *actor) probe() {
	a.probes++
	name, incarnation, probe := a.name, a.machine.Incarnation, a.probes
	silent := a.plan.Spec.Health.Type == service.CheckWatchdog
	if silent && a.said.news == nil { // nobody hears it, which is no fault of its own, and was told
		a.cfg.Keeper.Show(name, func(s *service.Status) {
			s.Health = service.Health{Strategy: service.CheckWatchdog, Message: "what it says of itself is not heard, so it is not judged by that"}
		})
		return
	}
	a.leaveHC = a.cfg.Prober.Attend(name, a.plan.Spec.Health, beside(a.handle), a.excuse(), func() {
		a.tell(a.ctx, func() {
			if a.hearFreeze(); a.probes == probe { // else it was frozen meanwhile
				if a.machine.State == service.Running {
					a.cfg.Keeper.Show(name, func(s *service.Status) { a.why, a.hung = s.Health.Message, false })
				}
				a.happen(service.Event{Kind: service.Unhealthy, Incarnation: incarnation, Silent: silent})
			}
		})
	})
}
