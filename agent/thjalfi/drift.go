package thjalfi

import (
	"context"
	"strings"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// A limit that somebody changes as often as mostRepairs within a fight is not
// repaired any more: an endless fight over a file helps nobody.
const (
	mostRepairs = 3
	fight       = time.Minute
)

// guard is what is known of the limits of an incarnation that others change.
type guard struct {
	leave   func()
	looking bool // a look is to be taken
	again   bool // and another one after it
	repairs [service.NumResources][]time.Time
	lost    [service.NumResources]bool // somebody fights over it
}

// watchLimits has the kernel tell of writes to the files of limits, our own as well.
func (a *actor) watchLimits(h backends.Handle) {
	a.guard = guard{leave: func() {}}
	leave, err := h.Hear(func(file string) {
		if mayLimit(file) {
			select {
			case a.written <- struct{}{}:
			default: // it is to look already
			}
		}
	})
	if err == nil {
		a.guard.leave = leave
	}
}

// mayLimit tells whether a file of a cgroup may be one of a limit: what the kernel has
// news in by itself is none, nor is what reclaims.
func mayLimit(file string) bool {
	for _, ending := range []string{".events", ".events.local", ".pressure", ".reclaim"} {
		if strings.HasSuffix(file, ending) {
			return false
		}
	}
	return !strings.HasPrefix(file, "cgroup.")
}

// lookForDrift looks behind all work there is whether limits are what we left them.
func (a *actor) lookForDrift(when string) {
	h := a.handle
	if h == nil || a.plan == nil {
		return
	}
	if a.guard.looking { // what was written since it looked is to be seen, too
		a.guard.again = true
		return
	}
	a.guard.looking, a.guard.again = true, false
	policy, ending := a.plan.Spec.Drift, a.ending
	var seen [service.NumResources]int
	now := time.Now()
	for r, times := range a.guard.repairs {
		for _, at := range times {
			if now.Sub(at) < fight {
				seen[r]++
			}
		}
	}
	repaired := func(d service.Drift) bool {
		return policy == service.DriftRepair && seen[d.Resource] < mostRepairs
	}
	a.then(func(context.Context) func() {
		drifts, err := h.Drift(ending, repaired)
		return func() {
			if a.handle != h {
				return
			}
			a.guard.looking = false
			for _, d := range drifts {
				a.drifted(d, repaired(d), when, err)
			}
			if a.guard.again {
				a.lookForDrift("")
			}
		}
	})
}

// drifted tells of a limit that somebody changed; of one that is fought over, once.
func (a *actor) drifted(d service.Drift, repaired bool, when string, err error) {
	detail := d.String() + when
	fought := !repaired && a.plan.Spec.Drift == service.DriftRepair
	switch {
	case fought && a.guard.lost[d.Resource]:
		return
	case fought:
		a.guard.lost[d.Resource] = true
		detail += "; somebody fights over it, so it stays as it is until limits are set or the service is started anew"
	case !repaired:
		detail += "; it stays as it is, as the definition wants"
	case err != nil:
		detail += "; it could not be repaired: " + err.Error()
	default:
		detail += "; it is what it was again"
	}
	if repaired {
		a.guard.repairs[d.Resource] = append(a.guard.repairs[d.Resource], time.Now())
		if n := len(a.guard.repairs[d.Resource]); n > mostRepairs {
			a.guard.repairs[d.Resource] = a.guard.repairs[d.Resource][n-mostRepairs:]
		}
	}
	a.cfg.Keeper.Publish(a.name, service.NoticeDrift, d.Resource.String(), detail, func(s *service.Status) {
		s.Fought[d.Resource] = fought
		if !repaired {
			s.Applied[d.Resource].Applied = d.Is
		}
	})
}

// settleLimits begins anew for limits that we have set.
func (a *actor) settleLimits(l service.Limits) {
	for r, q := range l {
		if q.Set {
			a.guard.repairs[r], a.guard.lost[r] = nil, false
		}
	}
}
