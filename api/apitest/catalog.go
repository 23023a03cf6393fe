package apitest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"

	"github.com/gladsheim/gladsheim/agent/service"
)

// read is the little of a definition that the scripted agent understands.
func read(file string, document []byte) (service.Spec, error) {
	var d struct {
		Name        string   `json:"name"`
		Description string   `json:"description"`
		Exec        []string `json:"exec"`
	}
	faulty := func(f service.Fault) error {
		f.File = file
		return &service.Error{Op: "read definition", Kind: service.Invalid, Reason: service.ReasonBadDefinition, Faults: []service.Fault{f}}
	}
	if err := json.Unmarshal(document, &d); err != nil {
		line, column := 1, 1
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			before := document[:max(0, syntax.Offset-1)]
			line += bytes.Count(before, []byte("\n"))
			column = len(before) - bytes.LastIndexByte(before, '\n')
		}
		return service.Spec{}, faulty(service.Fault{Line: line, Column: column, Message: err.Error()})
	}
	name, err := service.ParseName(d.Name)
	if err != nil {
		return service.Spec{}, faulty(service.Fault{Line: 1, Column: 1, Field: "name", Message: err.Error()})
	}
	if len(d.Exec) == 0 {
		return service.Spec{}, faulty(service.Fault{Field: "exec", Message: "is required: the program's absolute path, then its arguments"})
	}
	spec := service.Defaults()
	spec.Name, spec.Description, spec.Exec = name, d.Description, d.Exec
	return spec, nil
}

// Register keeps a definition.
func (a *Agent) Register(ctx context.Context, file string, document []byte, replace bool, actor string) (service.Change, error) {
	if err := a.enter(ctx, "Register"); err != nil {
		return service.Change{}, err
	}
	defer a.mu.Unlock()
	spec, err := read(file, document)
	if err != nil {
		return service.Change{}, err
	}
	change := a.compare(spec, document)
	if change.Action == service.ActionChanged && !replace {
		return service.Change{}, taken(change)
	}
	a.keep(change, spec, document, actor)
	return change, nil
}

func taken(change service.Change) error {
	return &service.Error{Op: "register", Service: change.Service, Kind: service.Exists, Err: errors.New("it is registered with another definition")}
}

func (a *Agent) compare(spec service.Spec, document []byte) service.Change {
	old, known := a.services[spec.Name]
	switch {
	case !known:
		return service.Change{Service: spec.Name, Action: service.ActionAdded, Effect: service.ReachNone}
	case bytes.Equal(old.Document, document):
		return service.Change{Service: spec.Name, Action: service.ActionUnchanged, Effect: service.ReachNone}
	}
	return service.Change{Service: spec.Name, Action: service.ActionChanged, Fields: []string{"exec"}, Effect: service.ReachNextStart}
}

func (a *Agent) keep(change service.Change, spec service.Spec, document []byte, actor string) {
	if change.Action == service.ActionUnchanged {
		return
	}
	s, known := a.services[spec.Name]
	if !known {
		s = &Service{Status: service.Status{Name: spec.Name}}
		if a.services == nil {
			a.services = map[service.Name]*Service{}
		}
		a.services[spec.Name] = s
	}
	s.Document = document
	a.change(s, service.NoticeRegistered, "asked", "", func(st *service.Status) {
		st.Spec, st.Source, st.Warnings, st.LastActor = &spec, service.SourceAPI, spec.Warnings, actor
		st.Generation++
	})
}

// Unregister forgets a definition.
func (a *Agent) Unregister(ctx context.Context, name service.Name, actor string) error {
	s, err := a.of(ctx, "Unregister", name)
	if err != nil {
		return err
	}
	defer a.mu.Unlock()
	if s.Status.Machine.State.Alive() {
		return &service.Error{Op: "unregister", Service: name, Kind: service.Conflict, Err: errors.New("it is running; stop it first")}
	}
	delete(a.services, name)
	st := s.Status
	st.LastActor = actor
	a.tell(st, service.NoticeUnregistered, "asked", "")
	return nil
}

// Definition gives one definition.
func (a *Agent) Definition(name service.Name) (service.Definition, error) {
	s, err := a.of(context.Background(), "Definition", name)
	if err != nil {
		return service.Definition{}, err
	}
	defer a.mu.Unlock()
	return a.definition(s), nil
}

func (a *Agent) definition(s *Service) service.Definition {
	st := s.Status
	return service.Definition{Name: st.Name, Document: s.Document, Source: st.Source, Generation: st.Generation, Changed: a.Now}
}

// Definitions gives all definitions, ordered by name.
func (a *Agent) Definitions() []service.Definition {
	if err := a.enter(context.Background(), "Definitions"); err != nil {
		return nil
	}
	defer a.mu.Unlock()
	var out []service.Definition
	for _, name := range a.names() {
		out = append(out, a.definition(a.services[name]))
	}
	return out
}

// Apply keeps all definitions, or tells what keeping them would change.
func (a *Agent) Apply(ctx context.Context, files []service.File, opts service.ApplyOptions, actor string) ([]service.Change, error) {
	if err := a.enter(ctx, "Apply"); err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	var changes []service.Change
	var specs []service.Spec
	var faults []service.Fault
	for _, f := range files {
		spec, err := read(f.Name, f.Content)
		if bad, ok := errors.AsType[*service.Error](err); ok {
			faults = append(faults, bad.Faults...)
			continue
		}
		specs, changes = append(specs, spec), append(changes, a.compare(spec, f.Content))
	}
	op, keep := "apply", false
	if opts.Replace != nil {
		op, keep = "register", !*opts.Replace
	}
	if len(faults) > 0 {
		return nil, &service.Error{Op: op, Kind: service.Invalid, Reason: service.ReasonBadDefinition, Faults: faults}
	}
	for _, change := range changes {
		if keep && change.Action == service.ActionChanged {
			return nil, taken(change)
		}
	}
	for i, change := range changes {
		if !opts.DryRun {
			a.keep(change, specs[i], files[i].Content, actor)
		}
	}
	return changes, nil
}
