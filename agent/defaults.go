package agent

import "github.com/gladsheim/gladsheim/agent/service"

// olderDefaults are the limits of services that run which are of defaults that have
// changed since: a reload leaves alone what runs.
func (a *Agent) olderDefaults() (older []service.OlderDefault) {
	statuses := a.registry.List()
	a.mu.Lock()
	defer a.mu.Unlock()
	defaults := a.settings.DefaultLimits()
	for _, s := range statuses {
		if !s.Machine.State.Alive() {
			continue
		}
		w := a.wanted[s.Name]
		said := w.Options.Limits.Over(w.Limits.Over(s.Spec.Limits))
		for i, now := range defaults {
			has := s.Applied[i].Requested
			if now.Set && has.Set && has != now && !said[i].Set {
				older = append(older, service.OlderDefault{Service: s.Name, Limit: service.Resource(i), Has: has, Now: now})
			}
		}
	}
	return older
}

// withRestart adds what a restart would ask for, where that differs from what a running
// service has: its definition or the defaults may have changed.
func (a *Agent) withRestart(name service.Name, applied service.Applied) service.Applied {
	plan, err := a.launchPlan("read limits of", name, a.wantedOf(name).Options)
	if err != nil { // whoever restarts it hears of that
		return applied
	}
	for r, q := range plan.Limits {
		if q.Set && q != applied[r].Requested {
			applied[r].AtRestart = q
		}
	}
	return applied
}
