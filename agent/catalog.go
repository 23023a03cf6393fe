package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/agent/thjalfi"
)

// definition is one entry of the catalogue. It is replaced, never changed.
type definition struct {
	service.Definition
	spec service.Spec
}

// ofHost tells whether a file of the host defines it, so that callers may not.
func (d *definition) ofHost() bool { return d.Source != service.SourceAPI }

// Register adds or, with replace, changes a definition. What runs goes on as
// it was started; a changed definition drops limits that were set over it.
func (a *Agent) Register(_ context.Context, file string, document []byte, replace bool, actor string) (service.Change, error) {
	spec, err := a.parse("register", file, document)
	if err != nil {
		return service.Change{}, err
	}
	change, err := a.plan(spec)
	if err != nil {
		return service.Change{}, err
	}
	if change.Action == service.ActionChanged && !replace {
		return service.Change{}, &service.Error{Op: "register", Service: spec.Name, Kind: service.Exists,
			Err: fmt.Errorf("it is registered already, and differs in %s; ask for it to be replaced", strings.Join(change.Fields, ", "))}
	}
	return change, a.adoptDefinition(spec, document, change, actor)
}

// Apply registers all documents or, if one of them is faulty, none. With
// dryRun it only tells what would change.
func (a *Agent) Apply(_ context.Context, files []service.File, dryRun bool, actor string) ([]service.Change, error) {
	var faults []service.Fault
	specs := make([]service.Spec, len(files))
	changes := make([]service.Change, len(files))
	from := map[service.Name]string{}
	for i, f := range files {
		spec, err := a.parse("apply", f.Name, f.Content)
		if err != nil {
			faults = append(faults, faultsOf(f.Name, err)...)
			continue
		}
		if first, twice := from[spec.Name]; twice {
			faults = append(faults, service.Fault{File: f.Name, Field: "name", Message: fmt.Sprintf("%s is defined in %s, too", spec.Name, first)})
			continue
		}
		from[spec.Name], specs[i] = f.Name, spec
		if changes[i], err = a.plan(spec); err != nil {
			faults = append(faults, faultsOf(f.Name, err)...)
		}
	}
	if len(faults) > 0 {
		return nil, &service.Error{Op: "apply", Kind: service.Invalid, Reason: service.ReasonBadDefinition, Faults: faults}
	}
	if dryRun {
		return changes, nil
	}
	for i, f := range files {
		if err := a.adoptDefinition(specs[i], f.Content, changes[i], actor); err != nil {
			return changes[:i], err
		}
	}
	return changes, nil
}

func faultsOf(file string, err error) []service.Fault {
	if e, ok := errors.AsType[*service.Error](err); ok && len(e.Faults) > 0 {
		return e.Faults
	}
	return []service.Fault{{File: file, Message: err.Error()}}
}

func (a *Agent) parse(op, file string, document []byte) (service.Spec, error) {
	a.mu.Lock()
	base := a.settings.Base()
	a.mu.Unlock()
	spec, faults := config.ParseDefinition(file, document, base)
	return spec, faults.Err(op)
}

// plan tells what registering a definition would change.
func (a *Agent) plan(spec service.Spec) (service.Change, error) {
	a.mu.Lock()
	known, defaults := a.definitions[spec.Name], a.settings.DefaultLimits()
	a.mu.Unlock()
	if _, err := a.planFor(spec, defaults, ""); err != nil {
		return service.Change{}, err // better told now than at the first start
	}
	switch {
	case known == nil:
		return service.Change{Service: spec.Name, Action: service.ActionAdded, Effect: service.ReachNextStart}, nil
	case known.ofHost():
		return service.Change{}, &service.Error{Op: "register", Service: spec.Name, Kind: service.Exists,
			Err: fmt.Errorf("%s defines it; change that file instead", known.Source)}
	}
	fields := config.Changes(known.spec, spec)
	if len(fields) == 0 {
		return service.Change{Service: spec.Name, Action: service.ActionUnchanged, Effect: service.ReachNone}, nil
	}
	return service.Change{Service: spec.Name, Action: service.ActionChanged, Fields: fields, Effect: service.ReachNextStart}, nil
}

// adoptDefinition carries out a change that plan told.
func (a *Agent) adoptDefinition(spec service.Spec, document []byte, change service.Change, actor string) error {
	if change.Action == service.ActionUnchanged {
		return nil
	}
	now := time.Now()
	generation := uint64(0)
	err := a.want(spec.Name, func(w *skirnir.Wanted) {
		w.Document, w.Changed, w.Limits, w.Warnings = document, now, service.Limits{}, service.Warnings{}
		w.Generation++
		generation = w.Generation
	})
	if err != nil {
		return &service.Error{Op: "register", Service: spec.Name, Kind: service.HostUnavailable, Err: err}
	}
	a.know(&definition{
		Definition: service.Definition{Name: spec.Name, Document: document, Source: service.SourceAPI, Generation: generation, Changed: now},
		spec:       spec,
	}, change.Action.String(), actor)
	return nil
}

// know puts a definition into the catalogue and shows it to readers.
func (a *Agent) know(d *definition, reason, actor string) {
	a.mu.Lock()
	a.definitions[d.Name] = d
	a.mu.Unlock()
	a.registry.Add(service.Status{Name: d.Name, Health: service.Health{Strategy: d.spec.Health.Type}})
	a.registry.Update(d.Name, skirnir.News{Kind: service.NoticeRegistered, Reason: reason, Detail: d.Source}, func(s *service.Status) {
		s.Spec, s.Source, s.Generation, s.Warnings = &d.spec, d.Source, d.Generation, d.spec.Warnings
		if actor != "" {
			s.LastActor = actor
		}
	})
	a.thjalfi.Add(d.Name, thjalfi.Restored{})
}

// Unregister forgets a service that does not run, and everything kept of it
// but its log.
func (a *Agent) Unregister(ctx context.Context, name service.Name, actor string) error {
	a.mu.Lock()
	d := a.definitions[name]
	a.mu.Unlock()
	if d != nil && d.ofHost() {
		return &service.Error{Op: "unregister", Service: name, Kind: service.Conflict,
			Err: fmt.Errorf("%s defines it; remove that file and reload instead", d.Source)}
	}
	return a.forget(ctx, name, actor)
}

func (a *Agent) forget(ctx context.Context, name service.Name, actor string) error {
	if err := a.thjalfi.Remove(ctx, name); err != nil {
		return err
	}
	a.mu.Lock()
	delete(a.definitions, name)
	delete(a.wanted, name)
	delete(a.exits, name)
	a.mu.Unlock()
	a.meter.Forget(name)
	a.registry.Remove(name, skirnir.News{Kind: service.NoticeUnregistered, Reason: "asked", Detail: "by " + actor})
	if err := a.store.Forget(name); err != nil {
		return &service.Error{Op: "unregister", Service: name, Kind: service.HostUnavailable, Err: err}
	}
	return nil
}

// Definition is what was registered under name.
func (a *Agent) Definition(name service.Name) (service.Definition, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, err := a.find("show", name)
	if err != nil {
		return service.Definition{}, err
	}
	return d.Definition, nil
}

// Definitions lists what is registered, ordered by name.
func (a *Agent) Definitions() []service.Definition {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]service.Definition, 0, len(a.definitions))
	for _, d := range a.definitions {
		out = append(out, d.Definition)
	}
	slices.SortFunc(out, func(x, y service.Definition) int { return strings.Compare(x.Name.String(), y.Name.String()) })
	return out
}

// find looks a definition up; the caller holds mu.
func (a *Agent) find(op string, name service.Name) (*definition, error) {
	if d := a.definitions[name]; d != nil {
		return d, nil
	}
	return nil, &service.Error{Op: op, Service: name, Kind: service.NotFound, Reason: service.ReasonServiceNotFound,
		Err: errors.New("no such service is registered")}
}

// Reload reads the definitions of the host and takes settings, both without
// touching a service that runs. A file that became faulty leaves its service
// as it was; one that went away leaves a running service defined until it ends.
func (a *Agent) Reload(ctx context.Context, settings config.Agent) {
	a.mu.Lock()
	a.settings = settings
	a.mu.Unlock()
	found, faults := config.ReadDefinitions(a.cfg.ServicesDir, settings.Base(), config.OwnFile)
	a.complain(faults)
	there := map[service.Name]bool{}
	for _, f := range found {
		there[f.Spec.Name] = true
		a.takeFile(f)
	}
	for _, d := range a.Definitions() {
		if d.Source == service.SourceAPI || there[d.Name] || faults.Hide(a.cfg.ServicesDir, d.Name) {
			continue
		}
		if err := a.forget(ctx, d.Name, "reload"); err != nil {
			a.cfg.Log.Warn("a running service has lost its definition; it runs on", "service", d.Name, "file", d.Source)
			a.registry.Update(d.Name, skirnir.News{Kind: service.NoticeUnregistered, Reason: "orphaned", Detail: d.Source + " is gone"}, func(*service.Status) {})
		}
	}
}

// takeFile takes a definition from a file of the host, if it is new or differs.
func (a *Agent) takeFile(f config.Definition) {
	a.mu.Lock()
	known := a.definitions[f.Spec.Name]
	a.mu.Unlock()
	reason := service.ActionAdded
	generation := uint64(1)
	if known != nil {
		if known.Source == f.Source && len(config.Changes(known.spec, f.Spec)) == 0 {
			return
		}
		reason, generation = service.ActionChanged, known.Generation+1
	}
	a.know(&definition{
		Definition: service.Definition{Name: f.Spec.Name, Document: f.Document, Source: f.Source, Generation: generation, Changed: time.Now()},
		spec:       f.Spec,
	}, reason.String(), "")
}

// complain keeps faults for the doctor, and logs them.
func (a *Agent) complain(faults config.Faults) {
	var complaints []service.Finding
	for _, f := range faults {
		a.cfg.Log.Error("definition refused", "fault", f.String())
		complaints = append(complaints, service.Finding{
			Level: service.SeverityProblem, Title: "a definition was refused", Detail: f.String(), Fix: "mend the file, then reload the agent",
		})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.complaints = complaints
}
