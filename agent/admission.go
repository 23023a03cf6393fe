package agent

import (
	"github.com/gladsheim/gladsheim/agent/byggvir"
	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/thjalfi"
)

// reservation is what starts and restarts of a service that are under way hold of the
// budget.
type reservation struct {
	starts int
	memory uint64 // the most that one of them asks for
}

// admit refuses a launch that somebody asks for and that does not fit into the budget.
// One that is admitted has its place until admitted is called, and as long as it runs.
// Restarts by the policy and what is adopted are not asked: they have theirs.
func (a *Agent) admit(op string, plan thjalfi.Plan) (admitted func(), err error) {
	of := a.memory()
	a.mu.Lock()
	defer a.mu.Unlock()
	name := plan.Spec.Name
	want := byggvir.Share{Name: name, Memory: bounded(plan.Spec.Limits.Over(a.settings.DefaultLimits()))}
	had, others := a.shares(name)
	if err := budget(a.settings, of).Admit(op, want, had, others); err != nil {
		return nil, err
	}
	r := a.starting[name]
	r.starts, r.memory = r.starts+1, max(r.memory, want.Memory)
	a.starting[name] = r
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if r := a.starting[name]; r.starts > 1 {
			r.starts--
			a.starting[name] = r
		} else {
			delete(a.starting, name)
		}
	}, nil
}

// budget is in whole MiB of memory, so that a refusal can name it.
func budget(s config.Agent, memory uint64) byggvir.Budget {
	percent := uint64(s.MemoryOvercommit)
	of := memory/100*percent + memory%100*percent/100
	return byggvir.Budget{Services: s.MaxServices, Memory: of &^ (1<<20 - 1), Percent: s.MemoryOvercommit}
}

// budgeted is the budget of memory, 0 if there is none, and what is taken of it.
func (a *Agent) budgeted() (budgeted, promised uint64) {
	of := a.memory()
	a.mu.Lock()
	defer a.mu.Unlock()
	_, all := a.shares(service.Name{})
	return budget(a.settings, of).Memory, byggvir.Taken(all)
}

// memory is what this host, or the container that it is, has; 0 if nobody knows.
func (a *Agent) memory() uint64 {
	capacity, err := a.capacity()
	if err != nil {
		a.cfg.Log.Warn("there is no budget of memory now", "error", err)
		return 0
	}
	return capacity.MemoryTotal
}

// shares are those of all services that have a place, had that of the one named, nil if
// it has none. The caller holds mu.
func (a *Agent) shares(name service.Name) (had *byggvir.Share, others []byggvir.Share) {
	for _, s := range a.registry.List() {
		share := byggvir.Share{Name: s.Name, Memory: max(a.starting[s.Name].memory, a.promised(s))}
		runs := s.Machine.State != service.Stopped && s.Machine.State != service.Crashed
		switch {
		case s.Name == name && runs:
			had = &share
		case s.Name != name && (runs || a.starting[s.Name].starts > 0):
			others = append(others, share)
		}
	}
	return had, others
}

// promised is how much memory a service may use that runs, or the next time that it
// does. The caller holds mu.
func (a *Agent) promised(s *service.Status) uint64 {
	if s.Machine.State == service.Stopped || s.Machine.State == service.Crashed {
		return 0
	}
	if q := s.Applied[service.MemoryMax].Requested; q.Set {
		return bounded(service.Limits{service.MemoryMax: q})
	}
	w := a.wanted[s.Name]
	return bounded(w.Options.Limits.Over(w.Limits.Over(s.Spec.Limits)).Over(a.settings.DefaultLimits()))
}

// bounded is the memory_max of limits, 0 if there is none.
func bounded(l service.Limits) uint64 {
	if q := l[service.MemoryMax]; q.Set && q.Value != service.Unlimited {
		return q.Value
	}
	return 0
}
