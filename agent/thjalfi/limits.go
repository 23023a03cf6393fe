package thjalfi

import (
	"context"
	"fmt"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

// change is a change of limits that somebody asks for.
type change struct {
	ctx     context.Context // of the caller
	limits  service.Limits
	force   bool
	actor   string
	applied *service.Applied // what came of it
	reply   chan<- error
}

// setLimits waits for a launch or an adoption under way, so that there is
// something to limit.
func (a *actor) setLimits(c change) {
	a.then(func(context.Context) func() { return func() { a.limit(c) } })
}

func (a *actor) limit(c change) {
	h := a.handle
	switch {
	case h != nil:
	case a.machine.State == service.Launching: // one with the old limits was begun in between
		a.setLimits(c)
		return
	case a.machine.State == service.Adopting:
		c.reply <- &service.Error{Op: "set limits of", Service: a.name, Kind: service.HostUnavailable,
			Err: fmt.Errorf("it is not known yet whether it runs: %w", a.failure)}
		return
	default:
		a.keepLimits(c.limits, c.reply, notRunning("set limits of", a.name))
		return
	}
	apply, ending := h.Limit, a.ending
	if c.force {
		apply = h.Force
	}
	a.then(func(context.Context) func() {
		ctx, giveUp := context.WithCancel(c.ctx)
		defer giveUp()
		defer context.AfterFunc(ending, giveUp)()
		got, err := apply(ctx, c.limits)
		return func() {
			if service.KindOf(err) == service.Cancelled && c.ctx.Err() == nil && ending.Err() != nil {
				err = notRunning("set limits of", a.name) // an end does not wait for it
			}
			switch {
			case service.KindOf(err) == service.NotRunning && a.handle != h && a.machine.State.Alive(): // as above
				a.setLimits(c)
			case service.KindOf(err) == service.NotRunning: // it is ending, and may be launched again
				a.keepLimits(c.limits, c.reply, err)
			case err != nil:
				c.reply <- err
			default:
				a.settleLimits(c.limits)
				*c.applied, a.actor = got, c.actor
				a.cfg.Keeper.Publish(a.name, service.NoticeLimits, "asked", words(c.limits)+" by "+c.actor, func(s *service.Status) {
					s.Applied, s.LastActor = got, c.actor
					for r, q := range c.limits {
						s.Fought[r] = s.Fought[r] && !q.Set
					}
				})
				a.keepLimits(c.limits, c.reply, nil)
			}
		}
	})
}

// words tells which limits are set, and to what.
func words(l service.Limits) string {
	var list []string
	for i, q := range l {
		if r := service.Resource(i); q.Set {
			list = append(list, r.String()+" "+r.Format(q))
		}
	}
	return strings.Join(list, ", ")
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

// reined are the limits that an earlier agent has set for the sake of the ladder, and
// that are to be what was asked for: nobody else knows when to give them back.
func reined(ladder service.Ladder, asked service.Limits, holds service.Applied) (back service.Limits) {
	want := func(r service.Resource, none uint64) service.Quota {
		if asked[r].Set {
			return asked[r]
		}
		return service.Of(none)
	}
	high, is := want(service.MemoryHigh, service.Unlimited), holds[service.MemoryHigh].Applied
	throttled := ladder.Memory >= service.StepThrottle && is.Value < high.Value && high.Value-is.Value >= page
	raised := ladder.Livelock == service.LivelockRaise && is.Value == service.Unlimited && high.Value != service.Unlimited
	if is.Set && (throttled || raised) {
		back[service.MemoryHigh] = high
	}
	cpu, is := want(service.CPUMax, service.Unlimited), holds[service.CPUMax].Applied
	if is.Set && ladder.CPU >= service.StepThrottle && is.Value < cpu.Value {
		back[service.CPUMax] = cpu
		if burst := holds[service.CPUBurst].Applied; burst.Set && burst.Value < want(service.CPUBurst, 0).Value {
			back[service.CPUBurst] = want(service.CPUBurst, 0)
		}
	}
	return back
}

// page is the most that the kernel rounds memory by.
const page = 64 << 10
