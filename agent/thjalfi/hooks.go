package thjalfi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/vigil"
	"github.com/gladsheim/gladsheim/backends"
)

// hooks runs hooks of one incarnation. It is made on the actor's goroutine, and run off it.
type hooks struct {
	actor       *actor
	plan        *Plan
	incarnation uint64
	number      int               // of a.hooking
	variables   map[string]string // beside those that all have
}

func (a *actor) hooks() hooks {
	a.hooking++
	return hooks{actor: a, plan: a.plan, incarnation: a.machine.Incarnation, number: a.hooking, variables: map[string]string{}}
}

// ofMain has them know the main process.
func (k hooks) ofMain(pid int) hooks {
	k.variables = map[string]string{"GLADSHEIM_MAIN_PID": strconv.Itoa(pid)}
	return k
}

// ofEnd has them know how it ended.
func (k hooks) ofEnd(v service.Verdict, x service.Exit) hooks {
	k.variables = map[string]string{"GLADSHEIM_VERDICT": strings.NewReplacer(" ", "_", "-", "_").Replace(strings.ToLower(v.String()))}
	switch {
	case x.Unknown != "":
	case x.Signal != 0:
		k.variables["GLADSHEIM_EXIT_SIGNAL"] = service.SignalName(x.Signal)
	default:
		k.variables["GLADSHEIM_EXIT_CODE"] = strconv.Itoa(x.Code)
	}
	return k
}

// untilOneFails runs the hooks of a kind in their order, up to the first that fails.
func (k hooks) untilOneFails(ctx context.Context, kind service.HookKind, run backends.Runner) error {
	for _, hook := range k.plan.Spec.Hooks.Of(kind) {
		if err := k.run(ctx, hook, run); err != nil {
			return err
		}
	}
	return nil
}

// all runs the hooks of a kind in their order, whatever comes of each, until ctx ends or,
// where they need it, the main process does. It tells which failed and why.
func (k hooks) all(ctx context.Context, kind service.HookKind, run backends.Runner) (failed []string) {
	for _, hook := range k.plan.Spec.Hooks.Of(kind) {
		if ctx.Err() != nil {
			break
		}
		err := k.run(ctx, hook, run)
		if service.KindOf(err) == service.NotRunning && kind == service.PreStop {
			break // which may be what it was to bring about
		}
		if err != nil {
			failed = append(failed, errors.Unwrap(err).Error())
		}
	}
	return failed
}

// run runs one, and tells when it begins and what came of it.
func (k hooks) run(ctx context.Context, hook service.Hook, run backends.Runner) error {
	timeout := k.plan.Spec.Hooks.Timeout
	k.tell(hook.String(), hook.String())
	limited, watch := vigil.Keep(ctx, timeout)
	began := time.Now()
	ran, err := run(limited, k.program(hook))
	watch.Leave()
	err = k.failure(ctx, hook, ran, err)
	outcome := fmt.Sprintf("%s: ended well after %v", hook, time.Since(began).Round(time.Millisecond))
	if err != nil {
		outcome = errors.Unwrap(err).Error()
	}
	k.tell("", outcome)
	return err
}

func (k hooks) program(hook service.Hook) backends.Program {
	variables := maps.Clone(k.variables)
	variables["GLADSHEIM_SERVICE"] = k.plan.Spec.Name.String()
	variables["GLADSHEIM_INCARNATION"] = strconv.FormatUint(k.incarnation, 10)
	variables["GLADSHEIM_HOOK"] = hook.Kind.String()
	return backends.Program{Argv: hook.Argv, Environment: variables, After: hook.Kind == service.PostStop}
}

// failure is why a hook failed, with what it wrote, or nil.
func (k hooks) failure(ctx context.Context, hook service.Hook, ran backends.Ran, err error) error {
	failed := &service.Error{Op: "start", Service: k.plan.Spec.Name, Kind: service.Unlaunchable, Reason: service.ReasonHookFailed, LastLines: lastOf(linesOf(ran.Output))}
	switch {
	case err == nil && ran.Exit.Clean():
		return nil
	case err == nil:
		err = errors.New(ran.Exit.String())
	case hook.Kind == service.PreStop && errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		failed.Kind, err = service.Timeout, errors.New("it was ended, since pre_stop has used up three quarters of stop.timeout")
	case hook.Kind == service.PreStop && (ctx.Err() != nil && k.actor.ctx.Err() == nil || service.KindOf(err) == service.NotRunning):
		failed.Kind, err = service.NotRunning, errors.New("the service ended meanwhile")
		failed.LastLines = nil
	case ctx.Err() != nil:
		failed.Kind, failed.Reason, err = service.Cancelled, "", errors.New("it was given up")
	case service.KindOf(err) == service.Timeout:
		failed.Kind, err = service.Timeout, fmt.Errorf("it did not end within %v (hooks.timeout)", k.plan.Spec.Hooks.Timeout)
	default:
		failed.Kind = service.KindOf(err)
	}
	if n := len(failed.LastLines); n > 0 {
		err = fmt.Errorf("%w: %s", err, failed.LastLines[n-1])
	}
	failed.Err = fmt.Errorf("%s: %w", hook, err)
	return failed
}

// hookLines is as many lines of what a hook wrote as are told and kept.
const hookLines = 20

func lastOf(lines []string) []string { return lines[max(0, len(lines)-hookLines):] }

// tell tells readers which hook is run now, "" for none, and of an event.
func (k hooks) tell(now, event string) {
	a := k.actor
	a.tell(a.ctx, func() {
		if a.machine.Incarnation != k.incarnation {
			return
		}
		if a.hooking == k.number {
			a.hook = now
		}
		a.publish(service.NoticeState, "hook", event)
	})
}

// birth is what a launch does beside making a process. It tells when nothing is between
// that and its program any more.
func (k hooks) birth(identify func(service.Ref) error, atGate func()) backends.Birth {
	if len(k.plan.Spec.Hooks.PreStart) == 0 {
		return backends.Birth{Undo: k.undo, Identify: func(ref service.Ref) error {
			err := identify(ref)
			if err == nil {
				atGate()
			}
			return err
		}}
	}
	return backends.Birth{Undo: k.undo, Identify: identify, Prepare: func(ctx context.Context, run backends.Runner) error {
		err := k.untilOneFails(ctx, service.PreStart, run)
		if err == nil {
			atGate()
		}
		return err
	}}
}

// undo is what follows a launch that came to nothing.
func (k hooks) undo(run backends.Runner, why error) {
	if len(k.plan.Spec.Hooks.PostStop) == 0 {
		return
	}
	a := k.actor
	ctx, abort := context.WithCancel(a.ctx)
	defer abort()
	told := make(chan service.Cause, 1)
	a.tell(ctx, func() {
		a.hurry = abort
		a.do(service.Disarm) // that it is not ready in time is not what it failed of
		told <- a.machine.Cause
	})
	select {
	case cause := <-told:
		verdict := service.Judge(service.NeverRan, service.Remains{}, cause, service.Ends{})
		if service.ReasonOf(why) == service.ReasonHookFailed && cause == service.CauseNone {
			verdict = service.VerdictHookFailed
		}
		a.unfollowed = k.ofEnd(verdict, service.NeverRan).all(ctx, service.PostStop, run)
	case <-ctx.Done():
	}
}

// serve takes that the present incarnation has become ready, but for what is to be run
// then.
func (a *actor) serve() {
	if a.sawExit() || a.machine.State != service.Starting || a.machine.Frozen || a.served {
		return
	}
	if len(a.plan.Spec.Hooks.PostStart) == 0 {
		a.happen(a.event(service.Ready))
		return
	}
	a.served = true
	a.do(service.Disarm) // it was ready in time
	ctx, abort := context.WithCancel(a.ctx)
	a.abort = abort
	k, h := a.hooks().ofMain(a.ref.PID), a.handle
	before, over := a.greeted, make(chan struct{})
	a.greeted = over
	a.waits.Go(func() {
		defer close(over)
		if before != nil { // a run that was given up for a freeze may take a while to end
			<-before
		}
		err := k.untilOneFails(ctx, service.PostStart, h.Run)
		a.tell(ctx, func() {
			a.hearFreeze()
			givenUp := ctx.Err() != nil
			abort()
			switch {
			case givenUp || a.sawExit(): // which counts more
			case err != nil:
				a.unready, a.why = err, errors.Unwrap(err).Error()
				a.happen(a.event(service.HookFailed))
			default:
				a.happen(a.event(service.Ready))
			}
		})
	})
}
