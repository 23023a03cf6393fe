package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
)

// tangles are the faults of definitions in what they say of each other: names that there
// are none of, circles, and what can not come true. known tells of definitions that are
// there and can not be read now. Definitions are found by name; those that fresh tells of
// are at fault, and not those that were there before.
func tangles(all map[service.Name]*definition, known func(service.Name) bool, fresh func(service.Name) bool) map[service.Name]config.Faults {
	graph := service.Graph{}
	for _, d := range all {
		graph.Add(&d.spec)
	}
	faults := map[service.Name]config.Faults{}
	blame := func(e service.Edge, format string, args ...any) {
		if fresh(e.From) {
			d := all[e.From]
			faults[e.From] = append(faults[e.From], config.FaultAt(d.file(), d.Document, e.Field(), format, args...))
		}
	}
	// It may be the other one that has changed.
	mismatch := func(e service.Edge, format string, args ...any) {
		if other := all[e.Service]; !fresh(e.From) && fresh(e.Service) {
			faults[e.Service] = append(faults[e.Service], config.FaultAt(other.file(), other.Document, "type", "%s names it in %s (%s): %s",
				e.From, e.Field(), all[e.From].at(e.Field()), fmt.Sprintf(format, args...)))
		}
		blame(e, format, args...)
	}
	for _, e := range graph.Unknown(known) {
		blame(e, "no service %s is registered or defined", e.Service)
	}
	for _, edges := range graph {
		for _, e := range edges {
			other := all[e.Service]
			switch {
			case other == nil:
			case e.Condition == service.ConditionCompleted && other.spec.Type != service.TypeOneshot:
				mismatch(e, "%s is no oneshot, and is never done (%s)", e.Service, other.at("type"))
			case e.Relation == service.Binds && other.spec.Type == service.TypeOneshot:
				mismatch(e, "%s is a oneshot, and ends when its job is done (%s); write it into requires", e.Service, other.at("type"))
			}
		}
	}
	for _, way := range graph.Cycles() {
		var steps []string
		for _, e := range way[1:] {
			steps = append(steps, fmt.Sprintf("%s %s %s (%s)", e.From, verb(e.Relation), e.Service, all[e.From].at(e.Field())))
		}
		blame(way[0], "leads back to %s: %s", way[0].From, strings.Join(steps, ", "))
	}
	return faults
}

func verb(r service.Relation) string {
	switch r {
	case service.After:
		return "comes after"
	case service.Binds:
		return "is bound to"
	}
	return "requires"
}

// file names the document of a definition in messages.
func (d *definition) file() string {
	switch {
	case d.named != "":
		return d.named
	case d.Source == service.SourceAPI:
		return d.Name.String() + " (registered)"
	}
	return d.Source
}

// at is where a field of it stands.
func (d *definition) at(path string) string { return config.PlaceOf(d.file(), d.Document, path) }

// untangle tells which of definitions are at fault beside the others. In their stead there
// is what before gives, nil for nothing; it takes them out until all go together.
func untangle(found map[service.Name]*definition, before func(service.Name) *definition, known func(service.Name) bool) (refused map[service.Name]bool, faults config.Faults) {
	refused = map[service.Name]bool{}
	for {
		wrong := tangles(found,
			func(n service.Name) bool { return refused[n] || known(n) },
			func(n service.Name) bool { return !refused[n] && found[n] != before(n) })
		if len(wrong) == 0 {
			return refused, faults
		}
		for _, name := range slices.SortedFunc(maps.Keys(wrong), service.Name.Compare) {
			faults = append(faults, wrong[name]...)
			refused[name] = true
			if found[name] = before(name); found[name] == nil {
				delete(found, name)
			}
		}
	}
}

// fits refuses definitions that do not go with those that there are.
func (a *Agent) fits(op string, all ...*definition) error {
	a.mu.Lock()
	together := maps.Clone(a.definitions)
	a.mu.Unlock()
	fresh := map[service.Name]bool{}
	for _, d := range all {
		together[d.Name], fresh[d.Name] = d, true
	}
	registered := func(n service.Name) bool { return len(a.wantedOf(n).Document) > 0 } // even if it can not be read now
	wrong := tangles(together, registered, func(n service.Name) bool { return fresh[n] })
	var faults config.Faults
	for _, d := range all {
		faults = append(faults, wrong[d.Name]...)
	}
	return faults.Err(op)
}

// naming are the definitions that name a service.
func (a *Agent) naming(name service.Name) []service.Edge { return a.graph().Naming(name) }

// graph is what all definitions say of each other.
func (a *Agent) graph() service.Graph {
	a.mu.Lock()
	defer a.mu.Unlock()
	g := service.Graph{}
	for _, d := range a.definitions {
		g.Add(&d.spec)
	}
	return g
}

// inUse refuses to forget what others name.
func inUse(name service.Name, edges []service.Edge) error {
	var by []string
	for _, e := range edges {
		by = append(by, fmt.Sprintf("%s (%s)", e.From, e.Field()))
	}
	return &service.Error{Op: "unregister", Service: name, Kind: service.Conflict, Reason: service.ReasonInUse,
		Err: fmt.Errorf("it is named by %s; change or unregister those first", strings.Join(by, ", "))}
}
