package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/agent/thjalfi"
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
	if _, known := a.registry.Get(name); !known { // forgotten meanwhile
		a.meter.Forget(name)
	}
	return u, now, nil
}

// Limits reads back what holds for a running service; of another it tells what
// its next start would ask for.
func (a *Agent) Limits(ctx context.Context, name service.Name) (service.Applied, error) {
	h, err := a.thjalfi.Handle("read limits of", name)
	if service.KindOf(err) == service.NotRunning {
		return a.planned("read limits of", name, service.Limits{})
	}
	if err != nil {
		return service.Applied{}, err
	}
	applied, err := h.Limits(ctx)
	if err != nil {
		return service.Applied{}, err
	}
	return a.withRestart(name, a.withUnenforced(name, applied)), nil
}

// withUnenforced adds the limits that were set over the definition and that no
// backend was asked for, since the host can not enforce them.
func (a *Agent) withUnenforced(name service.Name, applied service.Applied) service.Applied {
	a.mu.Lock()
	defer a.mu.Unlock()
	for r, q := range a.wanted[name].Limits {
		if q.Set && !applied[r].Enforced {
			applied[r] = service.LimitReport{Requested: q}
		}
	}
	return applied
}

// planned tells what the next start would ask for, with limits over it: what runs, or
// comes back by itself, does so as it was started.
func (a *Agent) planned(op string, name service.Name, limits service.Limits) (service.Applied, error) {
	var options service.StartOptions
	if w := a.wantedOf(name); w.Up {
		options = w.Options
	}
	options.Limits = limits.Over(options.Limits)
	plan, err := a.launchPlan(op, name, options)
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

// SetLimits changes limits and warning levels of a service now, and for its coming starts until
// its definition changes. Without force nobody is killed by that. Of a service that does not run it changes the latter.
func (a *Agent) SetLimits(ctx context.Context, name service.Name, limits service.Limits, warnings service.Warnings, force bool, actor string) (service.Applied, error) {
	for r, q := range limits {
		if err := service.Resource(r).Check(q); err != nil {
			return service.Applied{}, &service.Error{Op: "set limits of", Service: name, Kind: service.Invalid,
				Faults: []service.Fault{{Field: service.Resource(r).String(), Message: err.Error()}}}
		}
	}
	done, err := a.takeTurn(ctx, name)
	if err != nil {
		return service.Applied{}, err
	}
	defer done()
	applied, err := a.planned("set limits of", name, limits) // refuses what can not be planned
	if err != nil {
		return service.Applied{}, err
	}
	// What is left here of what the host can not enforce was asked for as best
	// effort: it is kept and told, and not asked of the backend.
	can := limits
	for r := range applied {
		if limits[r].Value != service.Unlimited && !applied[r].Enforced {
			can[r] = service.Quota{}
		}
	}
	now, runErr := a.thjalfi.SetLimits(ctx, name, can, force, actor)
	if runErr != nil && service.KindOf(runErr) != service.NotRunning {
		return service.Applied{}, runErr
	}
	err = a.wantOf("keep limits of", name, func(d *definition, w *skirnir.Wanted) {
		w.Limits, w.Warnings = limits.Over(w.Limits), warnings.Over(w.Warnings)
		// As below, for a service that was not launched in this boot.
		w.Options.Limits, w.Options.Warnings = w.Options.Limits.Without(limits), w.Options.Warnings.Without(warnings)
		if d.ofHost() {
			w.Over = string(d.Document)
		}
	})
	if err != nil {
		return applied, err
	}
	err = a.thjalfi.Amend(ctx, name, func(p *thjalfi.Plan) { // what is set later counts more
		p.Options.Limits, p.Options.Warnings = p.Options.Limits.Without(limits), p.Options.Warnings.Without(warnings)
		p.Spec.Warnings = warnings.Over(p.Spec.Warnings)
	})
	if err != nil {
		return applied, err
	}
	if runErr == nil {
		applied = a.withUnenforced(name, now)
		a.keepApplied(name, now, applied)
	}
	a.registry.Update(name, skirnir.News{Silent: true}, func(s *service.Status) { s.Warnings = warnings.Over(s.Warnings) })
	a.monitor.Revise(name)
	return applied, nil
}

// takeTurn waits until nobody else changes limits of a service: what holds, what is
// kept and what is told shall be of one and the same change.
func (a *Agent) takeTurn(ctx context.Context, name service.Name) (done func(), err error) {
	a.mu.Lock()
	if _, err := a.find("set limits of", name); err != nil {
		a.mu.Unlock()
		return nil, err
	}
	turn := a.limiting[name]
	if turn == nil {
		turn = make(chan struct{}, 1)
		a.limiting[name] = turn
	}
	a.mu.Unlock()
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		kind := service.Cancelled
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			kind = service.Timeout
		}
		return nil, &service.Error{Op: "set limits of", Service: name, Kind: kind,
			Err: fmt.Errorf("another change of them is under way: %w", ctx.Err())}
	}
}

// keepApplied keeps applied instead of now, which the actor has kept, unless what
// that was said of has ended or was limited otherwise meanwhile.
func (a *Agent) keepApplied(name service.Name, now, applied service.Applied) {
	a.registry.Update(name, skirnir.News{Silent: true}, func(s *service.Status) {
		if s.Machine.State.Alive() && s.Applied == now {
			s.Applied = applied
		}
	})
}

// CheckHealth tells how a service is. One whose check is its process is looked
// at now: it may have become a zombie, or be stopped, a moment ago.
func (a *Agent) CheckHealth(_ context.Context, name service.Name) (service.Health, error) {
	s, err := a.Status(name)
	if err != nil {
		return service.Health{}, err
	}
	health, pid := s.Health, s.PID()
	if why := unasked(s.Machine); why != "" && health.Status != service.HealthUnknown {
		// That it is not checked any more is on the way.
		return service.Health{Strategy: health.Strategy, Message: why}, nil
	}
	if health.Strategy != service.CheckProcess || pid == 0 || s.Machine.State != service.Running || s.Machine.Frozen {
		return health, nil
	}
	health.LastCheck = time.Now()
	health.Status, health.Message = service.Ill, "the main process is gone"
	switch p, err := a.cfg.Procfs.Process(pid); {
	case err != nil: // its end is on the way to us
	case !p.Alive():
		health.Message = "the main process is a zombie"
	case p.State == 'T' || p.State == 't':
		health.Message = "the main process is stopped"
	default:
		health.Status, health.Message = service.Healthy, "the main process runs"
	}
	a.keepLook(name, s.Machine.Incarnation, health) // so that others see it, too
	return health, nil
}

// CheckNow has a running service checked at once, and returns what that says; a check
// that is under way does. One whose check is its process is looked at.
func (a *Agent) CheckNow(ctx context.Context, name service.Name) (service.Health, error) {
	s, err := a.Status(name)
	if err != nil {
		return service.Health{}, err
	}
	if s.Spec.Health.Type == service.CheckProcess {
		return a.CheckHealth(ctx, name)
	}
	health, known, err := a.roskva.Now(ctx, name)
	switch {
	case err != nil:
		return service.Health{}, &service.Error{Op: "check", Service: name, Kind: service.Timeout, Err: err}
	case !known:
		return service.Health{}, &service.Error{Op: "check", Service: name, Kind: service.NotRunning, Reason: service.ReasonNotRunning,
			Err: errors.New("its health is checked while it runs, and not while it is frozen")}
	}
	return health, nil
}

// Checks are the latest checks of the incarnation that runs, the latest last; none of
// one that is not checked.
func (a *Agent) Checks(name service.Name) ([]service.Probe, error) {
	if _, err := a.Status(name); err != nil {
		return nil, err
	}
	return a.roskva.Checks(name), nil
}

// unasked tells why a service in such a state is not checked, "" if it is.
func unasked(m service.Machine) string {
	switch {
	case m.State != service.Running:
		return "it does not run"
	case m.Frozen:
		return "it is frozen"
	}
	return ""
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
