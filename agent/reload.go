package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
)

// Reload reads the definitions of the host and takes settings, both without
// touching a service that runs. A file that became faulty leaves its service
// as it was; one that went away leaves a running service known until it ends.
// With refused, which says why there are no new settings, the old ones stay.
func (a *Agent) Reload(ctx context.Context, settings config.Agent, refused error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	a.mu.Lock()
	a.refused = ""
	if refused != nil {
		a.refused, settings = refused.Error(), a.settings
	}
	a.settings = settings
	a.lookSoon()
	registered := slices.SortedFunc(maps.Values(a.wanted), func(x, y skirnir.Wanted) int { return byName(x.Name, y.Name) })
	a.mu.Unlock()
	found, faults := config.ReadDefinitions(a.cfg.ServicesDir, settings.Base(), config.OwnFile)
	a.lookFor(ctx, defined(found, registered))
	apart, tangled := a.untangleAnew(found, registered, settings.Base(), faults)
	taken := map[service.Name]bool{}
	for _, f := range found {
		if taken[f.Spec.Name] = true; !apart[f.Spec.Name] {
			a.takeFile(f)
		}
	}
	for _, w := range registered {
		if len(w.Document) == 0 || taken[w.Name] {
			continue
		}
		taken[w.Name] = true // even when it is faulty: it is not gone
		if apart[w.Name] {
			continue
		}
		if !a.isOfHost(w.Name) || !faults.Hide(a.cfg.ServicesDir, w.Name) {
			faults = append(faults, a.takeRegistered(w, settings.Base())...)
		}
	}
	faults = append(faults, tangled...)
	a.complain(faults)
	for _, d := range a.Definitions() {
		if !taken[d.Name] && !faults.Hide(a.cfg.ServicesDir, d.Name) {
			a.lose(ctx, d)
		}
	}
}

// untangleAnew tells which definitions do not go with the others, as they are to be now.
func (a *Agent) untangleAnew(files []config.Definition, registered []skirnir.Wanted, base service.Spec, faults config.Faults) (refused map[service.Name]bool, tangled config.Faults) {
	a.mu.Lock()
	present := maps.Clone(a.definitions)
	a.mu.Unlock()
	before := func(name service.Name) *definition { return present[name] }
	hidden := func(name service.Name) bool { return faults.Hide(a.cfg.ServicesDir, name) }
	together, documents := map[service.Name]*definition{}, map[service.Name]bool{}
	for _, w := range registered {
		if len(w.Document) == 0 {
			continue
		}
		documents[w.Name] = true
		if d, wrong := ofCaller(w, base); len(wrong) == 0 {
			together[w.Name] = d
		} else if present[w.Name] != nil {
			together[w.Name] = present[w.Name]
		}
	}
	for _, f := range files {
		together[f.Spec.Name] = ofFile(f)
	}
	for name, d := range present {
		if hidden(name) {
			together[name] = d
		}
	}
	return untangle(together, before, func(name service.Name) bool { return documents[name] || hidden(name) })
}

// defined names what files define or callers registered.
func defined(files []config.Definition, registered []skirnir.Wanted) (names []service.Name) {
	for _, f := range files {
		names = append(names, f.Spec.Name)
	}
	for _, w := range registered {
		if len(w.Document) > 0 {
			names = append(names, w.Name)
		}
	}
	return names
}

func (a *Agent) isOfHost(name service.Name) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.definitions[name]
	return d != nil && d.ofHost()
}

// takeFile takes a definition from a file of the host, if it is new or differs.
func (a *Agent) takeFile(f config.Definition) {
	a.mu.Lock()
	known := a.definitions[f.Spec.Name]
	a.mu.Unlock()
	d := ofFile(f)
	reason := service.ActionAdded
	if known != nil {
		if known.Source == f.Source && len(config.Changes(known.spec, f.Spec)) == 0 {
			same := *known
			same.Document = f.Document // it says the same in other words
			a.mu.Lock()
			a.definitions[d.Name] = &same
			a.mu.Unlock()
			return
		}
		reason, d.Generation, d.Changed = service.ActionChanged, known.Generation, known.Changed
		if !bytes.Equal(known.Document, f.Document) { // else the settings differ
			d.Generation, d.Changed = known.Generation+1, time.Now()
			a.dropLimits(d.Name)
		}
	}
	a.know(d, reason.String(), "")
}

// dropLimits drops what was set over a former definition.
func (a *Agent) dropLimits(name service.Name) {
	if w := a.wantedOf(name); w.Limits != (service.Limits{}) || w.Warnings != (service.Warnings{}) {
		a.cfg.Log.Warn("the limits and warning levels that were set over a former definition are dropped", "service", name)
	}
	err := a.want(name, func(w *skirnir.Wanted) { w.Limits, w.Warnings, w.Over = service.Limits{}, service.Warnings{}, "" })
	if err != nil {
		a.cfg.Log.Error("cannot drop the limits that were set over a former definition", "service", name, "error", err)
	}
}

// isOver tells whether over, which is of a record, says the same as the definition
// in a file. Were it compared as bytes, limits would not outlive a new layout.
func isOver(over string, f config.Definition, base service.Spec) bool {
	if over == digest(f.Document) { // an earlier version wrote it
		return true
	}
	spec, faults := config.ParseDefinition(f.Source, []byte(over), base)
	return len(faults) == 0 && len(config.Changes(spec, f.Spec)) == 0
}

// digest names what a document holds.
func digest(document []byte) string { return fmt.Sprintf("%x", sha256.Sum256(document)) }

func ofFile(f config.Definition) *definition {
	return &definition{
		Definition: service.Definition{Name: f.Spec.Name, Document: f.Document, Source: f.Source, Generation: 1, Changed: time.Now()},
		spec:       f.Spec,
	}
}

// takeRegistered takes the definition that a caller registered, if it is new or
// differs: the file that was there in its stead may have gone, or the settings
// have changed.
func (a *Agent) takeRegistered(w skirnir.Wanted, base service.Spec) config.Faults {
	d, faults := ofCaller(w, base)
	if len(faults) > 0 {
		return faults
	}
	a.mu.Lock()
	known := a.definitions[w.Name]
	a.mu.Unlock()
	if known == nil || known.Source != d.Source || len(config.Changes(known.spec, d.spec)) > 0 {
		a.know(d, service.ActionChanged.String(), "")
	}
	return nil
}

// ofCaller is the definition that a caller registered, read anew.
func ofCaller(w skirnir.Wanted, base service.Spec) (*definition, config.Faults) {
	spec, faults := config.ParseDefinition(w.Name.String()+" (registered)", w.Document, base)
	return &definition{
		Definition: service.Definition{Name: w.Name, Document: w.Document, Source: service.SourceAPI, Generation: w.Generation, Changed: w.Changed},
		spec:       spec,
	}, faults
}

// lose forgets a service whose definition is gone, unless it runs.
func (a *Agent) lose(ctx context.Context, d service.Definition) {
	err := a.forget(ctx, d.Name, "reload")
	switch {
	case err == nil || d.Source == sourceGone:
	case service.KindOf(err) != service.Conflict:
		a.cfg.Log.Error("cannot forget a service whose definition is gone", "service", d.Name, "error", err)
	default:
		a.cfg.Log.Warn("a running service has lost its definition; it runs on", "service", d.Name, "file", d.Source)
		a.mu.Lock()
		orphan := *a.definitions[d.Name]
		a.mu.Unlock()
		orphan.Source = sourceGone
		a.know(&orphan, "orphaned", "")
	}
}

// complain keeps faults for the doctor, and logs them.
func (a *Agent) complain(faults config.Faults) {
	var complaints []service.Finding
	for _, f := range faults {
		a.cfg.Log.Error("definition refused", "fault", f.String())
		complaints = append(complaints, service.Finding{
			Level: service.SeverityProblem, Title: "a definition was refused", Detail: f.String(),
			Fix: "mend the file, or register it anew, then reload the agent",
		})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.complaints = complaints
}
