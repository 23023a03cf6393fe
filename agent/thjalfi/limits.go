package thjalfi

import (
	"context"
	"fmt"

	"github.com/gladsheim/gladsheim/agent/service"
)

// setLimits waits for a launch or an adoption under way, so that there is
// something to limit.
func (a *actor) setLimits(l service.Limits, actor string, applied *service.Applied, reply chan<- error) {
	a.then(func(context.Context) func() { return func() { a.limit(l, actor, applied, reply) } })
}

func (a *actor) limit(l service.Limits, actor string, applied *service.Applied, reply chan<- error) {
	h := a.handle
	switch {
	case h != nil:
	case a.machine.State == service.Launching: // one with the old limits was begun in between
		a.setLimits(l, actor, applied, reply)
		return
	case a.machine.State == service.Adopting:
		reply <- &service.Error{Op: "set limits of", Service: a.name, Kind: service.HostUnavailable,
			Err: fmt.Errorf("it is not known yet whether it runs: %w", a.failure)}
		return
	default:
		a.keepLimits(l, reply, notRunning("set limits of", a.name))
		return
	}
	a.then(func(ctx context.Context) func() {
		got, err := h.Limit(ctx, l)
		return func() {
			switch {
			case service.KindOf(err) == service.NotRunning && a.handle != h && a.machine.State.Alive(): // as above
				a.setLimits(l, actor, applied, reply)
			case service.KindOf(err) == service.NotRunning: // it is ending, and may be launched again
				a.keepLimits(l, reply, err)
			case err != nil:
				reply <- err
			default:
				*applied, a.actor = got, actor
				a.cfg.Keeper.Publish(a.name, service.NoticeLimits, "asked", "", func(s *service.Status) { s.Applied, s.LastActor = got, actor })
				a.keepLimits(l, reply, nil)
			}
		}
	})
}

// keepLimits has the launches to come by the policy use the limits, and replies
// when that survives the agent.
func (a *actor) keepLimits(l service.Limits, reply chan<- error, outcome error) {
	a.overlay(l)
	if a.plan == nil || a.machine.State == service.Stopped {
		reply <- outcome // the next launch is one that somebody asks for
		return
	}
	a.keep(reply, outcome)
}

// keep records, and replies when that survives the agent.
func (a *actor) keep(reply chan<- error, outcome error) {
	a.record()
	a.afterwards(func() {
		if a.unrecorded != nil {
			outcome = &service.Error{Op: "keep limits of", Service: a.name, Kind: service.HostUnavailable, Err: a.unrecorded}
		}
		reply <- outcome
	})
}

// overlay puts limits over those of the launches to come.
func (a *actor) overlay(l service.Limits) { a.amend(func(p *Plan) { p.Limits = l.Over(p.Limits) }) }

// amend changes the plans of the launches to come.
func (a *actor) amend(change func(*Plan)) {
	for _, p := range []**Plan{&a.plan, &a.next} {
		if *p != nil {
			changed := **p
			change(&changed)
			*p = &changed
		}
	}
}
