package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/gladsheim/gladsheim/agent/byggvir"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/backends"
)

// monitor is what thjalfi sees of byggvir.
type monitor struct{ *byggvir.Monitor }

func (m monitor) Attend(name service.Name, incarnation uint64, h backends.Handle, fresh bool) (leave func(*service.Remains)) {
	return m.Monitor.Attend(name, incarnation, h, fresh)
}

// tellViolation tells that a violation has begun or is over. The incarnation may be no
// more.
func (a *Agent) tellViolation(n byggvir.News) {
	kind := service.NoticeViolation
	if n.Began.IsZero() {
		kind = service.NoticeOver
	}
	told := false
	a.registry.Revise(n.Service, func(s *service.Status) skirnir.News {
		if !s.Machine.State.Alive() || s.Machine.Incarnation != n.Incarnation {
			return skirnir.News{Silent: true}
		}
		s.Violations[n.Violation], told = n.Began, true
		if kind == service.NoticeViolation && (n.Violation == service.MemoryWarning || n.Violation == service.CPUWarning) {
			s.Measures.Count(service.MeasureWarn)
		}
		return skirnir.News{Kind: kind, Reason: n.Violation.String(), Detail: n.Detail}
	})
	if told {
		a.logViolation(kind, n.Service, n.Violation, n.Detail)
	}
}

func (a *Agent) logViolation(kind service.NoticeKind, name service.Name, v service.Violation, detail string) {
	level := slog.LevelWarn
	if kind == service.NoticeOver {
		level = slog.LevelInfo
	}
	a.cfg.Log.Log(a.ctx, level, kind.String(), "service", name, "violation", v.String(), "detail", detail)
}

// endViolations tells of those that are over since the incarnation is.
func (a *Agent) endViolations(name service.Name, open service.Violations) {
	for i, since := range open {
		if since.IsZero() {
			continue
		}
		v := service.Violation(i)
		detail := fmt.Sprintf("ended with the service, after %v", time.Since(since).Round(time.Second))
		a.registry.Update(name, skirnir.News{Kind: service.NoticeOver, Reason: v.String(), Detail: detail}, func(*service.Status) {})
		a.logViolation(service.NoticeOver, name, v, detail)
	}
}

// tellDeaf tells that limits of a service can be run into without a word.
func (a *Agent) tellDeaf(name service.Name, err error) {
	a.cfg.Log.Error("the kernel can not be heard about a service; it is tried again", "service", name, "error", err)
}

// enforce does what the monitor orders. That may take a while, so nobody waits for it.
func (a *Agent) enforce(o byggvir.Order) {
	a.background.Go(func() {
		var overtaken bool
		var err error
		if o.Stop {
			err = a.thjalfi.Exceed(a.ctx, o.Service, o.Incarnation, o.Why)
		} else {
			overtaken, err = a.rein(a.ctx, o)
		}
		switch {
		case overtaken:
			o.Done(byggvir.Overtaken)
		case err != nil:
			o.Done(byggvir.Failed)
		default:
			o.Done(byggvir.Done)
		}
		if !overtaken && service.KindOf(err) != service.NotRunning {
			a.tellEnforced(o, err)
		}
	})
}

// rein sets limits of one incarnation, which are nobody's wish and are not kept, unless
// somebody has set them since that was ordered.
func (a *Agent) rein(ctx context.Context, o byggvir.Order) (overtaken bool, err error) {
	done, err := a.takeTurn(ctx, o.Service)
	if err != nil {
		return false, err
	}
	defer done()
	h, err := a.thjalfi.Handle("set limits of", o.Service)
	if err != nil {
		return false, err
	}
	if h.Ref().Incarnation != o.Incarnation {
		return false, &service.Error{Op: "set limits of", Service: o.Service, Kind: service.NotRunning, Err: errors.New("it is another by now")}
	}
	now, err := h.Limits(ctx)
	if err != nil {
		return false, err
	}
	for r, q := range o.Limits {
		if q.Set && (now[r].Requested != o.Seen[r].Requested || now[r].Instead != o.Seen[r].Instead) {
			return true, nil
		}
	}
	applied, err := h.Throttle(ctx, o.Limits)
	if err != nil {
		return false, err
	}
	applied = a.withUnenforced(o.Service, applied)
	a.registry.Update(o.Service, skirnir.News{Silent: true}, func(s *service.Status) {
		if s.Machine.State.Alive() && s.Machine.Incarnation == o.Incarnation {
			s.Applied = applied
		}
	})
	return false, nil
}

func (a *Agent) tellEnforced(o byggvir.Order, err error) {
	detail := o.Why
	if err != nil {
		detail += "; that failed: " + err.Error()
	}
	a.cfg.Log.Warn("enforced", "service", o.Service, "violation", o.Violation.String(), "detail", detail)
	a.registry.Update(o.Service, skirnir.News{Kind: service.NoticeEnforced, Reason: o.Violation.String(), Detail: detail}, func(s *service.Status) {
		if err == nil {
			s.Measures.Count(o.Measure)
		}
	})
}
