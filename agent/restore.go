package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/agent/thjalfi"
	"github.com/gladsheim/gladsheim/backends"
)

// restore makes known what the host defines, what callers registered and what
// an earlier agent left, and launches what is to run.
func (a *Agent) restore(ctx context.Context, left skirnir.Loaded) {
	a.exits = left.Exits
	for _, w := range left.Wanted {
		a.wanted[w.Name] = w
	}
	actual := map[service.Name]skirnir.Actual{}
	for _, r := range left.Actual {
		actual[r.Name] = r
	}
	found := a.gather(left)
	var launch []service.Name
	for name, d := range found {
		r, recorded := actual[name]
		thisBoot := recorded && (r.Ref.IsZero() || r.Ref.BootID == "" || r.Ref.BootID == a.bootID)
		if a.revive(d, r, thisBoot) {
			launch = append(launch, name)
		}
		delete(actual, name)
	}
	for name, r := range actual { // it runs, and its definition is gone
		spec := r.Spec
		a.revive(&definition{Definition: service.Definition{Name: name, Source: "(its definition is gone)"}, spec: spec}, r, r.Ref.BootID == a.bootID)
	}
	a.findStrangers(ctx)
	for _, name := range launch {
		go a.autostart(name)
	}
}

// gather collects the definitions of the host and those of callers; where both
// define a name the host's file counts.
func (a *Agent) gather(left skirnir.Loaded) map[service.Name]*definition {
	found := map[service.Name]*definition{}
	base := a.settings.Base()
	for _, w := range left.Wanted {
		if len(w.Document) == 0 {
			continue
		}
		spec, faults := config.ParseDefinition(w.Name.String(), w.Document, base)
		if len(faults) > 0 {
			a.cfg.Log.Error("a registered definition is not valid any more", "service", w.Name, "faults", faults.Error())
			continue
		}
		found[w.Name] = &definition{
			Definition: service.Definition{Name: w.Name, Document: w.Document, Source: service.SourceAPI, Generation: w.Generation, Changed: w.Changed},
			spec:       spec,
		}
	}
	files, faults := config.ReadDefinitions(a.cfg.ServicesDir, base, config.OwnFile)
	a.complain(faults)
	for _, f := range files {
		found[f.Spec.Name] = &definition{
			Definition: service.Definition{Name: f.Spec.Name, Document: f.Document, Source: f.Source, Generation: 1, Changed: time.Now()},
			spec:       f.Spec,
		}
	}
	for _, fault := range left.Faults {
		a.cfg.Log.Error("a record was set aside", "fault", fault)
		a.complaints = append(a.complaints, service.Finding{
			Level: service.SeverityProblem, Title: "a record could not be read", Detail: fault.Error(),
			Fix: "see what it held; the service it names may have to be registered again",
		})
	}
	return found
}

// revive makes one service known, with what an earlier agent left of it in
// this boot, and tells whether it is to be launched.
func (a *Agent) revive(d *definition, r skirnir.Actual, thisBoot bool) (launch bool) {
	status := service.Status{
		Name: d.Name, Spec: &d.spec, Source: d.Source, Generation: d.Generation, Health: service.Health{Strategy: d.spec.Health.Type},
	}
	if exits := a.exits[d.Name]; len(exits) > 0 {
		last := exits[len(exits)-1]
		status.LastExit, status.Started, status.Ended = &last, last.Started, last.Ended
		status.Machine.Incarnation = last.Incarnation
	}
	restored := thjalfi.Restored{Record: thjalfi.Record{Name: d.Name, Machine: status.Machine}}
	if thisBoot {
		restored.Record = thjalfi.Record{Name: d.Name, Machine: r.Machine, Ref: r.Ref, Spec: r.Spec, Limits: r.Limits, Started: r.Started, Actor: r.Actor}
		status.LastActor = r.Actor
		if !r.Machine.State.Alive() {
			status.Machine = r.Machine
		}
		if plan, err := a.restoredPlan(r); err == nil {
			restored.Plan = &plan
		} else {
			a.cfg.Log.Error("a running service can not be taken up", "service", d.Name, "error", err)
		}
	}
	a.mu.Lock()
	a.definitions[d.Name] = d
	a.mu.Unlock()
	status.Warnings = a.wanted[d.Name].Warnings.Over(d.spec.Warnings)
	a.registry.Add(status)
	a.thjalfi.Add(d.Name, restored)
	if thisBoot {
		return false
	}
	return d.spec.Autostart || a.wanted[d.Name].Up
}

// restoredPlan is the plan an incarnation was launched by.
func (a *Agent) restoredPlan(r skirnir.Actual) (thjalfi.Plan, error) {
	plan := thjalfi.Plan{Spec: r.Spec, Limits: r.Limits, LogFile: a.logFile(&r.Spec), Actor: r.Actor}
	if r.Ref.IsZero() { // nothing to adopt, perhaps a restart to make
		var err error
		plan.Backend, err = backends.Choose(a.cfg.Backends, r.Spec.Launch)
		return plan, err
	}
	for _, b := range a.cfg.Backends {
		if b.Name() == r.Ref.Backend {
			plan.Backend = b
			return plan, nil
		}
	}
	return plan, fmt.Errorf("it was launched by the %s backend, which this agent does not offer", r.Ref.Backend)
}

// findStrangers looks for incarnations that look like ours and that nobody
// recorded. They are reported and left alone, and no second copy is started
// beside them.
func (a *Agent) findStrangers(ctx context.Context) {
	var known []service.Name
	refs := map[string]bool{}
	for _, s := range a.registry.List() {
		known = append(known, s.Name)
		if !s.Ref.IsZero() {
			refs[place(s.Ref)] = true
		}
	}
	for _, b := range a.cfg.Backends {
		left, err := b.Leftovers(ctx, known)
		if err != nil {
			a.cfg.Log.Error("cannot look for what an earlier agent left", "backend", b.Name(), "error", err)
			continue
		}
		for _, ref := range left {
			if refs[place(ref)] || a.recorded(ref) {
				continue
			}
			a.cfg.Log.Error("processes of an incarnation that nobody recorded are alive; they are left alone", "service", ref.Name, "place", place(ref))
			a.mu.Lock()
			a.strangers[ref.Name] = ref
			a.mu.Unlock()
		}
	}
}

func (a *Agent) recorded(ref service.Ref) bool {
	s, known := a.registry.Get(ref.Name)
	return known && s.Machine.Incarnation == ref.Incarnation && s.Machine.State.Alive()
}

func place(r service.Ref) string { return fmt.Sprintf("%s/%s/%d", r.Backend, r.Name, r.Incarnation) }

// autostart launches a service that nobody asked for just now.
func (a *Agent) autostart(name service.Name) {
	if _, err := a.Start(context.Background(), name, service.StartOptions{Actor: "autostart"}); err != nil {
		a.cfg.Log.Error("autostart failed", "service", name, "error", err)
	}
}
