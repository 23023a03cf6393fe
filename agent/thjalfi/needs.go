package thjalfi

import (
	"cmp"
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// followers are the actors whose plans name a service, and whether they are bound to it.
type followers struct {
	mu sync.Mutex
	of map[service.Name]map[*actor]bool
}

// follow makes a plan that of the present incarnation, or of the one to come, and has
// the actor hear of those that it names; without a plan, of nobody.
func (a *actor) follow(p *Plan) {
	f := a.followers
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range edges(a.plan) {
		if delete(f.of[e.Service], a); len(f.of[e.Service]) == 0 {
			delete(f.of, e.Service)
		}
	}
	a.plan = p
	for _, e := range edges(p) {
		if f.of[e.Service] == nil {
			f.of[e.Service] = map[*actor]bool{}
		}
		f.of[e.Service][a] = f.of[e.Service][a] || e.Relation == service.Binds
	}
}

func edges(p *Plan) []service.Edge {
	if p == nil {
		return nil
	}
	return p.Spec.Edges()
}

// Changed has those look whose plans name a service that stands otherwise now. It does
// not wait for them.
func (t *Thjalfi) Changed(name service.Name) {
	t.followers.mu.Lock()
	defer t.followers.mu.Unlock()
	for a := range t.followers.of[name] {
		a.nudge()
	}
}

// Bound are the services that are bound to one by their plans.
func (t *Thjalfi) Bound(name service.Name) (bound []service.Name) {
	t.followers.mu.Lock()
	defer t.followers.mu.Unlock()
	for a, binds := range t.followers.of[name] {
		if binds {
			bound = append(bound, a.name)
		}
	}
	return bound
}

// nudge has the actor heed those that its plan names. It may be called by anybody.
func (a *actor) nudge() {
	select {
	case a.nudged <- struct{}{}:
	default: // it is about to
	}
}

// standing is how those stand that are named by the plan of the present incarnation or
// of the one that somebody has asked for.
func (a *actor) standing() service.Standing {
	p := cmp.Or(a.next, a.plan)
	if len(edges(p)) == 0 {
		return service.Standing{}
	}
	return a.cfg.Needs(&p.Spec)
}

// weighed is an event with what it means that others stand as they do.
func (a *actor) weighed(ev service.Event) service.Event {
	s := a.standing()
	ev.Lacking, ev.Early = s.Lacking, s.Early
	return ev
}

// awaits notes what the service waits for, from now on, and how to tell.
func (a *actor) awaits(told notice) notice {
	if a.lacks = a.standing().Waits; a.machine.Asked {
		a.failure = nil // it was of an earlier incarnation
	}
	return cmp.Or(told, notice{service.NoticeState, "waiting", a.lacks})
}

// call has what it requires started, if somebody asked for it, and looks.
func (a *actor) call() {
	if a.machine.Asked {
		a.cfg.Call(&a.plan.Spec, a.actor)
	}
	a.nudge()
}

// heed looks at those that the plan names: what waits for them may begin, or hear that it
// can not, and what is bound to them may have to end.
func (a *actor) heed() {
	switch a.machine.State {
	case service.Waiting:
		a.heedWaiting(a.standing())
	case service.Launching, service.Starting, service.Running:
		why := a.standing().Unbound
		if why == "" || a.sawExit() {
			return
		}
		a.happenAs(notice{service.NoticeState, service.Unbound.String(), why}, a.event(service.Unbound))
		a.ender = "its binding: " + why
	}
}

func (a *actor) heedWaiting(s service.Standing) {
	switch {
	case a.machine.Asked && s.Failed != nil:
		a.failure = s.Failed
		unmet := a.event(service.Unmet)
		unmet.Lacking = a.plan.Patient
		a.happenAs(notice{service.NoticeState, "dependency failed", s.Failed.Error()}, unmet)
	case !s.Lacking && !s.Early:
		a.happen(a.event(service.Met))
	case s.Waits != a.lacks:
		a.lacks = s.Waits
		a.cfg.Keeper.Show(a.name, a.shown())
	}
}

// comebackTime is the time over which those come back that have waited for the same.
const comebackTime = time.Second

// comeback is how long this one waits then.
func (a *actor) comeback() time.Duration {
	a.spread = a.cfg.Spread()
	return time.Duration(a.spread * float64(comebackTime))
}
