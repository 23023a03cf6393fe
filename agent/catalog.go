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
	spec  service.Spec
	named string // what faults call its document while it is to be registered, "" for its source
}

// sourceGone is the Source of a definition that is gone while its service runs
// on. The next definition of that name takes its place.
const sourceGone = "(its definition is gone)"

// ofHost tells whether a file of the host defines it, so that callers may not.
func (d *definition) ofHost() bool { return d.Source != service.SourceAPI && d.Source != sourceGone }

// Register adds or, with replace, changes a definition. What runs goes on as
// it was started; a changed definition drops limits that were set over it.
func (a *Agent) Register(ctx context.Context, file string, document []byte, replace bool, actor string) (service.Change, error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	spec, err := a.parse("register", file, document)
	if err != nil {
		return service.Change{}, err
	}
	change, err := a.plan("register", spec)
	if err != nil {
		return service.Change{}, err
	}
	if change.Action == service.ActionChanged && !replace {
		return service.Change{}, taken(change)
	}
	if err := a.fits("register", proposed(file, document, spec)); err != nil {
		return service.Change{}, err
	}
	if err := a.room("register", change); err != nil {
		return service.Change{}, err
	}
	if err := a.carryOut(ctx, "register", []registration{{spec, document, change}}, actor); err != nil {
		return service.Change{}, err
	}
	return change, nil
}

// taken refuses to register another definition under a name.
func taken(change service.Change) error {
	return &service.Error{Op: "register", Service: change.Service, Kind: service.Exists,
		Err: fmt.Errorf("it is registered already, and differs in %s; ask for it to be replaced", strings.Join(change.Fields, ", "))}
}

// Apply registers all documents or, if one of them is faulty, none.
func (a *Agent) Apply(ctx context.Context, files []service.File, opts service.ApplyOptions, actor string) ([]service.Change, error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	op, keep := "apply", false
	if opts.Replace != nil {
		op, keep = "register", !*opts.Replace
	}
	var faults []service.Fault
	var refusal error // the first of a definition that can not be planned
	all := make([]registration, len(files))
	changes := make([]service.Change, len(files))
	from := map[service.Name]string{}
	for i, f := range files {
		spec, err := a.parse(op, f.Name, f.Content)
		if err != nil {
			faults = append(faults, faultsOf(f.Name, err)...)
			continue
		}
		if first, twice := from[spec.Name]; twice {
			faults = append(faults, service.Fault{File: f.Name, Field: "name", Message: fmt.Sprintf("%s is defined in %s, too", spec.Name, first)})
			continue
		}
		from[spec.Name] = f.Name
		if changes[i], err = a.plan(op, spec); err == nil && keep && changes[i].Action == service.ActionChanged {
			err = taken(changes[i])
		}
		if err != nil {
			if refusal == nil {
				refusal = err
			}
			faults = append(faults, faultsOf(f.Name, err)...)
		}
		all[i] = registration{spec, f.Content, changes[i]}
	}
	if len(faults) > 0 {
		return nil, &service.Error{Op: op, Kind: service.Invalid, Reason: service.ReasonBadDefinition, Faults: faults}
	}
	if refusal != nil {
		return nil, refusal
	}
	together := make([]*definition, len(all))
	for i, r := range all {
		together[i] = proposed(files[i].Name, r.document, r.spec)
	}
	if err := a.fits(op, together...); err != nil {
		return nil, err
	}
	if err := a.room(op, changes...); err != nil {
		return nil, err
	}
	if opts.DryRun {
		return changes, nil
	}
	if err := a.carryOut(ctx, op, all, actor); err != nil {
		return nil, err
	}
	return changes, nil
}

// proposed is a definition that is to be registered.
func proposed(file string, document []byte, spec service.Spec) *definition {
	return &definition{Definition: service.Definition{Name: spec.Name, Document: document, Source: service.SourceAPI}, spec: spec, named: file}
}

// faultsOf are those of the definition in a file.
func faultsOf(file string, err error) []service.Fault {
	e, ok := errors.AsType[*service.Error](err)
	if !ok {
		return nil
	}
	faults := slices.Clone(e.Faults)
	for i := range faults {
		faults[i].File = file
	}
	return faults
}

func (a *Agent) parse(op, file string, document []byte) (service.Spec, error) {
	a.mu.Lock()
	base := a.settings.Base()
	a.mu.Unlock()
	spec, faults := config.ParseDefinition(file, document, base)
	return spec, faults.Err(op)
}

// plan tells what registering a definition would change.
func (a *Agent) plan(op string, spec service.Spec) (service.Change, error) {
	a.mu.Lock()
	known, defaults := a.definitions[spec.Name], a.settings.DefaultLimits()
	a.mu.Unlock()
	if _, err := a.planFor(op, spec, defaults, ""); err != nil {
		if e, ok := errors.AsType[*service.Error](err); ok && e.Kind == service.Invalid {
			e.Reason = service.ReasonBadDefinition
		}
		return service.Change{}, err // better told now than at the first start
	}
	switch {
	case known == nil || known.Source == sourceGone:
		return service.Change{Service: spec.Name, Action: service.ActionAdded, Effect: service.ReachNextStart}, nil
	case known.ofHost():
		return service.Change{}, &service.Error{Op: op, Service: spec.Name, Kind: service.Conflict,
			Err: fmt.Errorf("%s defines it; change that file instead", known.Source)}
	}
	fields := config.Changes(known.spec, spec)
	if len(fields) == 0 {
		return service.Change{Service: spec.Name, Action: service.ActionUnchanged, Effect: service.ReachNone}, nil
	}
	effect := service.ReachNextStart
	if !slices.ContainsFunc(fields, func(field string) bool { return !slices.Contains(live, field) }) {
		effect = service.ReachLive
	}
	return service.Change{Service: spec.Name, Action: service.ActionChanged, Fields: fields, Effect: effect}, nil
}

// live are the fields of a definition that what runs follows at once.
var live = []string{"usage_history", "reload", "reload.signal", "reload.exec", "reload.timeout"}

// room refuses changes that would register more than the configuration allows.
func (a *Agent) room(op string, changes ...service.Change) error {
	added := 0
	for _, c := range changes {
		if c.Action == service.ActionAdded {
			added++
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	registered := 0
	for _, d := range a.definitions {
		if d.Source == service.SourceAPI {
			registered++
		}
	}
	if added == 0 || registered+added <= a.settings.MaxDefinitions {
		return nil
	}
	return &service.Error{Op: op, Kind: service.Exhausted,
		Err: fmt.Errorf("%d definitions are registered, %d would come, and the configuration allows %d (resource_limits.max_definitions)",
			registered, added, a.settings.MaxDefinitions)}
}

// registration is a change that plan told.
type registration struct {
	spec     service.Spec
	document []byte
	change   service.Change
}

// carryOut makes all changes or, when the disk fails, none.
func (a *Agent) carryOut(ctx context.Context, op string, all []registration, actor string) error {
	before := make([]skirnir.Wanted, len(all))
	written := make([]*definition, len(all))
	var names []service.Name
	for _, r := range all {
		names = append(names, r.spec.Name)
	}
	a.lookFor(ctx, names)
	for i, r := range all {
		if r.change.Action == service.ActionUnchanged {
			continue
		}
		d := &definition{
			Definition: service.Definition{Name: r.spec.Name, Document: r.document, Source: service.SourceAPI, Changed: time.Now()},
			spec:       r.spec,
		}
		_, err := a.attributed(d)
		lives := err == nil
		written[i] = d
		err = a.want(d.Name, func(w *skirnir.Wanted) {
			before[i] = *w
			w.Document, w.Changed, w.Limits, w.Warnings = d.Document, d.Changed, service.Limits{}, service.Warnings{}
			w.Generation++
			d.Generation, w.Up = w.Generation, w.Up || lives
		})
		if err != nil {
			for j, done := range written[:i+1] { // of the last one as much as it may have been written
				if done != nil {
					err = errors.Join(err, a.want(done.Name, func(w *skirnir.Wanted) { undo(w, before[j]) }))
				}
			}
			return &service.Error{Op: op, Service: d.Name, Kind: service.HostUnavailable, Err: err}
		}
	}
	for i, d := range written {
		if d != nil {
			a.know(d, all[i].change.Action.String(), actor)
		}
	}
	return nil
}

// undo takes a registration back, and nothing that has happened to the service
// since.
func undo(w *skirnir.Wanted, before skirnir.Wanted) {
	w.Document, w.Changed, w.Generation = before.Document, before.Changed, before.Generation
	w.Limits, w.Warnings = w.Limits.Over(before.Limits), w.Warnings.Over(before.Warnings)
}

// know puts a definition into the catalogue and shows it to readers. What lives of
// the service and was left alone for want of it is taken up.
func (a *Agent) know(d *definition, reason, actor string) {
	r, taken := a.takeUp(d)
	status, restored := a.left(d, r, taken)
	a.mu.Lock()
	a.definitions[d.Name] = d
	a.mu.Unlock()
	a.registry.Add(status)
	a.registry.Update(d.Name, skirnir.News{Kind: service.NoticeRegistered, Reason: reason, Detail: d.Source}, func(s *service.Status) {
		s.Spec, s.Source, s.Generation, s.Warnings = &d.spec, d.Source, d.Generation, status.Warnings
		if actor != "" {
			s.LastActor = actor
		}
	})
	a.thjalfi.Add(d.Name, restored)
	a.reviseHistory(d.Name)
	a.scheduleSoon()
}

// remembered is the status of a service that does not run, as its exit records
// tell it. Incarnations are numbered on.
func (a *Agent) remembered(d *definition) service.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := service.Status{
		Name: d.Name, Spec: &d.spec, Source: d.Source, Generation: d.Generation, Health: service.Health{Strategy: d.spec.Health.Type},
		Warnings: a.wanted[d.Name].Warnings.Over(d.spec.Warnings),
	}
	s.Machine.Incarnation, s.Machine.Paused = a.wanted[d.Name].Latest, a.wanted[d.Name].Paused
	if exits := a.exits[d.Name]; len(exits) > 0 {
		last := exits[len(exits)-1]
		s.LastExit, s.Started, s.Ended = &last, last.Started, last.Ended
		s.Machine.Incarnation = max(last.Incarnation, s.Machine.Incarnation)
	}
	return s
}

// Unregister forgets a service that does not run, and everything kept of it
// but its log.
func (a *Agent) Unregister(ctx context.Context, name service.Name, actor string) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	a.mu.Lock()
	d := a.definitions[name]
	a.mu.Unlock()
	if d != nil && d.ofHost() {
		return &service.Error{Op: "unregister", Service: name, Kind: service.Conflict,
			Err: fmt.Errorf("%s defines it; remove that file, then reload the agent (systemctl reload gladsheimd, or SIGHUP)", d.Source)}
	}
	if edges := a.naming(name); d != nil && len(edges) > 0 {
		return inUse(name, edges)
	}
	return a.forget(ctx, name, actor)
}

// forget goes on when the caller goes away: half of it must not be left.
func (a *Agent) forget(ctx context.Context, name service.Name, actor string) error {
	if err := a.thjalfi.Remove(context.WithoutCancel(ctx), name); err != nil {
		return err
	}
	a.turns.forget(name)
	a.writing.Lock()
	defer a.writing.Unlock()
	if err := a.store.Forget(name); err != nil {
		a.torn[name] = true
		if s, known := a.registry.Get(name); known { // so that it can be tried again
			a.thjalfi.Add(name, thjalfi.Restored{Record: thjalfi.Record{Name: name, Machine: s.Machine}})
		}
		return &service.Error{Op: "unregister", Service: name, Kind: service.HostUnavailable, Err: err}
	}
	a.mu.Lock()
	delete(a.definitions, name)
	delete(a.torn, name)
	delete(a.wanted, name)
	delete(a.exits, name)
	delete(a.limiting, name)
	delete(a.unwritten, name)
	delete(a.unburied, name)
	a.mu.Unlock()
	a.registry.Remove(name, skirnir.News{Kind: service.NoticeUnregistered, Reason: "asked", Detail: "by " + actor})
	a.forgetOutputs(name)
	a.forgetHistory(name)
	a.meter.Forget(name)
	a.cfg.Logs.Forget(a.logPath(name))
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
	slices.SortFunc(out, func(x, y service.Definition) int { return byName(x.Name, y.Name) })
	return out
}

func byName(x, y service.Name) int { return strings.Compare(x.String(), y.String()) }

// find looks a definition up; the caller holds mu.
func (a *Agent) find(op string, name service.Name) (*definition, error) {
	if d := a.definitions[name]; d != nil {
		return d, nil
	}
	return nil, &service.Error{Op: op, Service: name, Kind: service.NotFound, Reason: service.ReasonServiceNotFound,
		Err: errors.New("no such service is registered")}
}
