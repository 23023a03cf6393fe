package thjalfi

import (
	"cmp"
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/vigil"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/failpoint"
)

func (a *actor) terminate() {
	a.arm(a.grace, service.GraceOver)
	a.end()
	h, sig := a.handle, a.plan.Spec.Stop.Signal
	warn := a.warning(h)
	a.then(func(ctx context.Context) func() {
		if !warn(ctx) {
			return func() {}
		}
		return a.tellToEnd(ctx, h, sig)
	})
}

// tellToEnd sends the stop signal to the main process, which is to heed it. It is the worker's.
func (a *actor) tellToEnd(ctx context.Context, h backends.Handle, sig syscall.Signal) func() {
	err := failpoint.After(h.Signal(ctx, sig), failpoint.T3TermSent)
	if err == nil {
		err = h.Signal(ctx, syscall.SIGCONT) // one that is stopped could not heed it
	}
	if err == nil {
		err = thaw(ctx, h) // nor one that is frozen
	}
	return func() {
		err = cmp.Or(err, failpoint.Hit(failpoint.T4Waiting)) // passed even by what has ended already
		if err != nil && service.KindOf(err) != service.NotRunning {
			a.fail(err)
		}
	}
}

// warning runs the hooks of what is about to be told to end, if it has ever been ready,
// once. They have three quarters of the time, so that what is told to end has some, too. A
// kill ends them, and then there is nothing more to be told (false).
func (a *actor) warning(h backends.Handle) func(context.Context) bool {
	if a.warned || a.machine.Unready || len(a.plan.Spec.Hooks.PreStop) == 0 {
		return func(context.Context) bool { return true }
	}
	a.warned = true
	k, most := a.hooks(), a.grace-a.grace/4
	ending, abort := context.WithCancel(a.ctx)
	a.abort = abort
	return func(ctx context.Context) bool {
		defer abort()
		inTime, watch := vigil.Keep(ending, most)
		defer watch.Leave()
		_ = thaw(ctx, h)                                          // no program runs in what is frozen
		k.ofMain(h.Ref().PID).all(inTime, service.PreStop, h.Run) // what fails has been told
		return ending.Err() == nil
	}
}

func (a *actor) kill() {
	a.abort()
	a.hurry()
	h := a.handle
	if h == nil {
		return // the launch was given up before it brought a process
	}
	a.end()
	a.then(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, a.cfg.ClearTimeout)
		defer cancel()
		err := h.Kill(ctx)
		return func() {
			if err == nil {
				return
			}
			a.fail(unkillable(a.name, err))
			if a.machine.State == service.Stopping {
				a.arm(retryClear, service.RetryOver)
			}
		}
	})
}

func unkillable(name service.Name, err error) error {
	return &service.Error{Op: "stop", Service: name, Kind: service.Timeout, Reason: service.ReasonUnkillable, Err: err}
}

// clear ends what is left, and removes it once what it leaves behind is on record:
// nobody can tell that afterwards. Then it writes the exit record.
func (a *actor) clear() {
	a.end()
	h, exit, incarnation, plan := a.handle, *a.exit, a.machine.Incarnation, a.plan
	follow, r := a.following(h, exit), a.recordNow()
	a.then(func(ctx context.Context) func() {
		a.waits.Wait() // why it was not ready may be part of why it ended
		var err error
		var unfollowed []string
		if h != nil && r.Remains == nil {
			if r.Remains, err = a.finish(ctx, h); err == nil {
				if r.Ended = h.ExitedAt(); r.Ended.IsZero() {
					r.Ended = time.Now()
				}
				a.finished = r
				_ = a.cfg.Keeper.Record(r) // an end is not held up by a disk that is full
			}
		}
		if h != nil && err == nil {
			if unfollowed = follow(*r.Remains); ctx.Err() != nil {
				return func() {} // the next agent finds the place, and goes on with that
			}
			err = a.release(ctx, h)
		}
		if err == nil {
			a.unheard(&plan.Spec)
		}
		if err != nil {
			if _, told := errors.AsType[*service.Error](err); !told { // else the backend knows whether something would not die
				err = unkillable(a.name, err)
			}
			return func() {
				a.remains, a.died = r.Remains, r.Ended
				a.fail(err)
				a.happen(a.event(service.ClearFailed))
			}
		}
		if r.Remains == nil {
			r.Remains, r.Ended = &service.Remains{Lost: true}, time.Now()
		}
		lines := a.cfg.LastLines(&plan.Spec, incarnation, r.LogFrom)
		return func() { a.cleared(incarnation, exit, *r.Remains, r.Ended, lines, unfollowed) }
	})
}

// following runs, once, the hooks that follow the end of an incarnation. A kill ends them.
func (a *actor) following(h backends.Handle, exit service.Exit) func(service.Remains) (failed []string) {
	if len(a.plan.Spec.Hooks.PostStop) == 0 {
		return func(service.Remains) []string { return nil }
	}
	hooks, cause, success := a.hooks(), a.cause, a.machine.Policy.Success
	ctx, abort := context.WithCancel(a.ctx)
	a.abort = abort
	return func(remains service.Remains) []string {
		defer abort()
		if a.followed != hooks.incarnation {
			a.followed = hooks.incarnation
			a.unfollowed = hooks.ofEnd(service.Judge(exit, remains, cause, success), exit).all(ctx, service.PostStop, h.Run)
		}
		return a.unfollowed
	}
}

func (a *actor) finish(ctx context.Context, h backends.Handle) (*service.Remains, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.ClearTimeout)
	defer cancel()
	remains, err := h.Finish(ctx)
	if err != nil {
		return nil, err
	}
	return &remains, nil
}

func (a *actor) release(ctx context.Context, h backends.Handle) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.ClearTimeout)
	defer cancel()
	_, err := h.Release(ctx)
	return err
}

func (a *actor) cleared(incarnation uint64, exit service.Exit, remains service.Remains, ended time.Time, lines, unfollowed []string) {
	a.hearNews() // its last words
	a.remains = &remains
	a.drop()
	x := service.ExitRecord{
		Incarnation: incarnation, Exit: exit, Remains: remains, Started: a.started, Ended: ended,
		Verdict: service.Judge(exit, remains, a.cause, a.machine.Policy.Success), ForceKilled: a.forced, LastLines: lines,
	}
	if x.Verdict != service.VerdictStopped {
		x.Fingerprint = service.Fingerprint(x.Verdict, exit, lines)
	}
	switch {
	case a.cause == service.CauseAsked, a.cause == service.CauseHeld, a.cause == service.CauseUnbound:
		x.RequestedBy = a.ender
	case x.Verdict == service.VerdictKilled:
		x.RequestedBy = cmp.Or(remains.Stopper, a.sent[exit.Signal])
	}
	x.Message = explain(x, a.why, a.hung)
	if excuse := a.said.excuse(); excuse != "" && x.Verdict != service.VerdictClean && x.Verdict != service.VerdictStopped {
		x.Message += "; " + excuse
	}
	for _, failed := range unfollowed {
		x.Message += "; " + failed
	}
	a.failure = a.endError(x)
	cleared := a.event(service.Cleared)
	cleared.Exit, cleared.OOM = exit, x.Verdict.OOM()
	a.bury(x, cleared)
}

// bury keeps the exit record of an end off the actor's goroutine, and shows it; and the
// end happens.
func (a *actor) bury(x service.ExitRecord, end service.Event) {
	end = a.weighed(end)
	if end.Recent = a.recent(); x.Verdict.OfItself() {
		end.Fingerprint = x.Fingerprint
	}
	a.cfg.Keeper.Show(a.name, func(s *service.Status) { x.Violations = s.Violations.Names() })
	after, _ := service.Next(a.machine, end)
	x.After = &after
	if after.State == service.Waiting && after.Cause == service.CauseNone && x.Verdict != service.VerdictStopped {
		x.Message += "; that is no failure of its own: it " + cmp.Or(a.standing().Waits, "requires what was not there")
	}
	if a.spread = a.cfg.Spread(); after.State == service.Backoff {
		x.Wait = after.Policy.Delay(after.InARow(), a.spread)
	}
	a.thenSurely(func() func() {
		x, err := a.cfg.Keeper.Bury(a.name, x)
		return func() {
			if err != nil {
				x.Message += "; this record could not be written: " + err.Error()
			}
			a.words = lastWords{x.Incarnation, x.LastLines}
			a.cfg.Keeper.Publish(a.name, service.NoticeExit, x.Verdict.String(), x.Message, func(s *service.Status) {
				s.LastExit, s.Violations, s.Hung = &x, service.Violations{}, service.Hang{}
				if !s.Machine.State.Alive() {
					s.Ended = x.Ended
				}
			})
		}
	})
	a.happen(end)
}
