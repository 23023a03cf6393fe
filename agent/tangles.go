package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
)

// tangles are the faults of definitions in what they say of each other, see config.Tangles.
func tangles(all map[service.Name]*definition, known, fresh func(service.Name) bool) map[service.Name]config.Faults {
	together := make(map[service.Name]*config.Definition, len(all))
	for name, d := range all {
		together[name] = &config.Definition{Spec: d.spec, Source: d.file(), Document: d.Document}
	}
	return config.Tangles(together, known, fresh, "no service %s is registered or defined")
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
