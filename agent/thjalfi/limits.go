package thjalfi

import (
	"context"
	"errors"

	"github.com/gladsheim/gladsheim/agent/service"
)

// setLimits waits for a launch or an adoption under way, so that there is
// something to limit.
func (a *actor) setLimits(l service.Limits, actor string, applied *service.Applied, reply chan<- error) {
	a.then(func(context.Context) func() { return func() { a.limit(l, actor, applied, reply) } })
}

func (a *actor) limit(l service.Limits, actor string, applied *service.Applied, reply chan<- error) {
	h := a.handle
	if h == nil {
		a.overlay(l)
		if a.machine.State == service.Backoff {
			a.record()
		}
		reply <- &service.Error{Op: "set limits of", Service: a.name, Kind: service.NotRunning, Reason: service.ReasonNotRunning,
			Err: errors.New("it does not run; change its definition instead")}
		return
	}
	a.then(func(ctx context.Context) func() {
		got, err := h.Limit(ctx, l)
		return func() {
			if err != nil {
				reply <- err
				return
			}
			*applied, a.actor = got, actor
			a.overlay(l)
			a.record()
			a.cfg.Keeper.Publish(a.name, service.NoticeLimits, "asked", "", func(s *service.Status) { s.Applied, s.LastActor = got, actor })
			a.then(func(context.Context) func() { return func() { reply <- nil } })
		}
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
