package config

import (
	"fmt"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Tangles are the faults of definitions in what they say of each other: names that there
// are none of, circles, and what can not come true. known tells of definitions that are
// there beside all, and unknown is what to say of a name that is not. Definitions are found
// by name; those that fresh tells of are at fault, and not those that were there before.
func Tangles(all map[service.Name]*Definition, known, fresh func(service.Name) bool, unknown string) map[service.Name]Faults {
	graph := service.Graph{}
	for _, d := range all {
		graph.Add(&d.Spec)
	}
	faults := map[service.Name]Faults{}
	blame := func(e service.Edge, format string, args ...any) {
		if fresh(e.From) {
			faults[e.From] = append(faults[e.From], all[e.From].fault(e.Field(), format, args...))
		}
	}
	// It may be the other one that has changed.
	mismatch := func(e service.Edge, format string, args ...any) {
		if other := all[e.Service]; !fresh(e.From) && fresh(e.Service) {
			faults[e.Service] = append(faults[e.Service], other.fault("type", "%s names it in %s (%s): %s",
				e.From, e.Field(), all[e.From].at(e.Field()), fmt.Sprintf(format, args...)))
		}
		blame(e, format, args...)
	}
	for _, e := range graph.Unknown(known) {
		blame(e, unknown, e.Service)
	}
	for _, edges := range graph {
		for _, e := range edges {
			other := all[e.Service]
			switch {
			case other == nil:
			case e.Condition == service.ConditionCompleted && other.Spec.Type != service.TypeOneshot:
				mismatch(e, "%s is no oneshot, and is never done (%s)", e.Service, other.at("type"))
			case e.Relation == service.Binds && other.Spec.Type == service.TypeOneshot:
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

// fault is what is wrong with the field at a path of a definition that is faulty only
// beside others.
func (d *Definition) fault(path, format string, args ...any) Fault {
	doc := d.placed()
	return doc.remark(doc.place(path), path, format, args...)
}

// at is where the field at a path stands, as FILE:LINE:COLUMN.
func (d *Definition) at(path string) string {
	doc := d.placed()
	line, column := doc.position(doc.place(path))
	return fmt.Sprintf("%s:%d:%d", doc.file, line, column)
}

func (d *Definition) placed() *document {
	doc := newDocument(d.Source, d.Document)
	readDefinition(doc, service.Defaults())
	return doc
}
