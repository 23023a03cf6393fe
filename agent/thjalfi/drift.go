package thjalfi

import (
	"context"
	"fmt"
	"slices"
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

// What can not be set back, say since more is in use by now, is no fight: it is tried
// again after firstRepair, then less and less often, up to once in lastRepair.
const (
	firstRepair = 10 * time.Second
	lastRepair  = 5 * time.Minute
)

// guard is what is known of the limits of an incarnation that others change.
type guard struct {
	leave   func()
	looking bool // a look is to be taken
	again   bool // and another one after it
	repairs [service.NumResources][]time.Time
	lost    [service.NumResources]bool // somebody fights over it
	owed    [service.NumResources]debt
	timer   *time.Timer // of the next look at what is owed
}

// debt is a repair that failed: how long it waits, and until when. The zero value is none.
type debt struct {
	wait time.Duration
	due  time.Time
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
	answer, ending := a.onDrift(), a.ending
	a.then(func(ctx context.Context) func() {
		drifts, unseen := h.Drift(ending, answer)
		var now service.Applied
		var err error
		if len(drifts) > 0 {
			now, err = h.Limits(ctx)
		}
		return func() {
			if a.handle != h {
				return
			}
			a.guard.looking = false
			switch {
			case ending.Err() != nil: // it gave up, which is no news
			case unseen != nil:
				if service.KindOf(unseen) != service.NotRunning { // else its end tells
					a.lookAt(time.Now().Add(firstRepair))
				}
			default:
				for _, d := range drifts {
					a.drifted(d, answer(d), when, now, err)
				}
				a.lookAgain(drifts)
			}
			if a.guard.again {
				a.lookForDrift("")
			}
		}
	})
}

// onDrift is what is done about drifts that a look finds which begins now.
func (a *actor) onDrift() func(service.Drift) service.OnDrift {
	var answers [service.NumResources]service.OnDrift
	now := time.Now()
	for r := range answers {
		seen := 0
		for _, at := range a.guard.repairs[r] {
			if now.Sub(at) < fight {
				seen++
			}
		}
		switch {
		case a.plan.Spec.Drift != service.DriftRepair || seen >= mostRepairs:
			answers[r] = service.DriftStays
		case now.Before(a.guard.owed[r].due):
			answers[r] = service.DriftLater
		default:
			answers[r] = service.DriftBack
		}
	}
	return func(d service.Drift) service.OnDrift { return answers[d.Resource] }
}

// drifted tells of a limit that somebody changed, and what holds now; of one that is
// fought over, or can not be repaired, once.
func (a *actor) drifted(d service.Drift, answer service.OnDrift, when string, now service.Applied, err error) {
	detail := d.String() + when
	fought := answer == service.DriftStays && a.plan.Spec.Drift == service.DriftRepair
	owed, known := &a.guard.owed[d.Resource], false
	switch {
	case answer == service.DriftLater:
		return
	case fought:
		known, a.guard.lost[d.Resource] = a.guard.lost[d.Resource], true
		detail += "; somebody fights over it, so it stays as it is until limits are set or the service is started anew"
	case answer == service.DriftStays:
		detail += "; it stays as it is, as the definition wants"
	case d.Fault != nil:
		known = owed.wait > 0
		owed.wait = min(max(2*owed.wait, firstRepair), lastRepair)
		owed.due = time.Now().Add(owed.wait)
		detail += fmt.Sprintf("; it could not be repaired, and is tried again in %v: %v", owed.wait, d.Fault)
	default:
		*owed = debt{}
		detail += "; it is what it was again"
		a.guard.repairs[d.Resource] = append(a.guard.repairs[d.Resource], time.Now())
		if n := len(a.guard.repairs[d.Resource]); n > mostRepairs {
			a.guard.repairs[d.Resource] = a.guard.repairs[d.Resource][n-mostRepairs:]
		}
	}
	show := func(s *service.Status) {
		s.Fought[d.Resource] = fought
		for r, report := range now {
			if err == nil && report.Enforced {
				s.Applied[r] = report
			}
		}
	}
	if known {
		a.cfg.Keeper.Show(a.name, show)
		return
	}
	a.cfg.Keeper.Publish(a.name, service.NoticeDrift, d.Resource.String(), detail, show)
}

// lookAgain looks again when the next repair is due that failed. What has not drifted any
// more is owed no more.
func (a *actor) lookAgain(drifts []service.Drift) {
	a.guard.stop()
	var next time.Time
	for r := range a.guard.owed {
		owed := &a.guard.owed[r]
		if !slices.ContainsFunc(drifts, func(d service.Drift) bool { return int(d.Resource) == r }) {
			*owed = debt{}
		}
		if !owed.due.IsZero() && (next.IsZero() || owed.due.Before(next)) {
			next = owed.due
		}
	}
	if !next.IsZero() {
		a.lookAt(next)
	}
}

// lookAt looks again at that time.
func (a *actor) lookAt(next time.Time) {
	a.guard.stop()
	written := a.written
	a.guard.timer = time.AfterFunc(time.Until(next), func() {
		select {
		case written <- struct{}{}:
		default:
		}
	})
}

func (g *guard) stop() {
	if g.timer != nil {
		g.timer.Stop()
	}
}

// settleLimits begins anew for limits that we have set.
func (a *actor) settleLimits(l service.Limits) {
	for r, q := range l {
		if q.Set {
			a.guard.repairs[r], a.guard.lost[r], a.guard.owed[r] = nil, false, debt{}
		}
	}
}
