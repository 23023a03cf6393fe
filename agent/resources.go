package agent

import (
	"context"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
)

// Usage reads what a running service uses.
func (a *Agent) Usage(ctx context.Context, name service.Name) (service.Usage, time.Time, error) {
	h, err := a.thjalfi.Handle("measure", name)
	if err != nil {
		return service.Usage{}, time.Time{}, err
	}
	u, err := h.Usage(ctx)
	now := time.Now()
	if err != nil {
		return service.Usage{}, time.Time{}, err
	}
	started := now
	if s, known := a.registry.Get(name); known {
		started = s.Started
	}
	u.CPUPercent = a.meter.Percent(name, h.Ref().Incarnation, started, now, u.CPUTime)
	return u, now, nil
}

// Limits reads back what holds for a running service; of another it tells what
// its next start would ask for.
func (a *Agent) Limits(ctx context.Context, name service.Name) (service.Applied, error) {
	h, err := a.thjalfi.Handle("read limits of", name)
	if err == nil {
		return h.Limits(ctx)
	}
	if service.KindOf(err) == service.NotRunning {
		return a.planned(name, service.Limits{})
	}
	return service.Applied{}, err
}

// planned tells what the next start would ask for, with limits over it.
func (a *Agent) planned(name service.Name, limits service.Limits) (service.Applied, error) {
	plan, err := a.launchPlan("set limits of", name, service.StartOptions{Limits: limits})
	if err != nil {
		return service.Applied{}, err
	}
	var out service.Applied
	enforces := plan.Backend.Enforces()
	for r, q := range plan.Limits {
		out[r] = service.LimitReport{Requested: q, Enforced: enforces.Limits[r]}
	}
	return out, nil
}

// SetLimits changes limits of a service now, and for its coming starts until
// its definition changes. Of a service that does not run it changes the latter.
func (a *Agent) SetLimits(ctx context.Context, name service.Name, limits service.Limits, actor string) (service.Applied, error) {
	for r, q := range limits {
		if err := service.Resource(r).Check(q); err != nil {
			return service.Applied{}, &service.Error{Op: "set limits of", Service: name, Kind: service.Invalid,
				Faults: []service.Fault{{Field: service.Resource(r).String(), Message: err.Error()}}}
		}
	}
	applied, err := a.planned(name, limits) // refuses what can not be planned
	if err != nil {
		return service.Applied{}, err
	}
	// What is left here of what the host can not enforce was asked for as best
	// effort: it is kept and told, and not asked of the backend.
	can, cannot := limits, service.Limits{}
	for r := range applied {
		if limits[r].Set && limits[r].Value != service.Unlimited && !applied[r].Enforced {
			can[r], cannot[r] = service.Quota{}, limits[r]
		}
	}
	now, err := a.thjalfi.SetLimits(ctx, name, can, actor)
	switch {
	case err == nil:
		applied = now
		for r, q := range cannot {
			if q.Set {
				applied[r] = service.LimitReport{Requested: q}
			}
		}
		a.registry.Update(name, skirnir.News{Silent: true}, func(s *service.Status) { s.Applied = applied })
	case service.KindOf(err) != service.NotRunning:
		return service.Applied{}, err
	}
	err = a.want(name, func(w *skirnir.Wanted) { w.Limits = limits.Over(w.Limits) })
	if err != nil {
		return applied, &service.Error{Op: "keep limits of", Service: name, Kind: service.HostUnavailable, Err: err}
	}
	return applied, nil
}

// Processes lists the processes of a service; none when it does not run.
func (a *Agent) Processes(ctx context.Context, name service.Name) ([]service.Process, error) {
	h, err := a.thjalfi.Handle("list processes of", name)
	if service.KindOf(err) == service.NotRunning {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return h.Processes(ctx)
}
