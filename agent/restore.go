package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/agent/thjalfi"
	"github.com/gladsheim/gladsheim/backends"
)

// restore makes known what the host defines, what callers registered and what
// an earlier agent left in this boot. What is to run waits for Autostart.
func (a *Agent) restore(ctx context.Context, left skirnir.Loaded) {
	for name, exits := range left.Exits {
		a.exits[name] = brief(exits)
	}
	for _, w := range left.Wanted {
		a.wanted[w.Name] = w
	}
	a.outputs.of = left.Outputs
	if len(a.unknownStreams()) > 0 {
		a.learn()
	}
	actual := map[service.Name]skirnir.Actual{}
	for _, r := range left.Actual {
		if r.BootID == a.bootID {
			actual[r.Name] = r
		}
	}
	for _, fault := range left.Faults {
		a.scar("a record could not be read", fault, "see what it held, and remove it; if it is in services/ of the state directory, the service may have to be registered again; other records are made anew, and exit records are lost")
	}
	for _, name := range left.LostExits {
		a.tellLostEnd(name, actual[name])
	}
	a.missEnds(left.LostExits)
	found, faults := a.gather(left)
	for name, r := range actual {
		waits := (r.Machine.State == service.Backoff || r.Machine.State == service.Held || r.Machine.State == service.Waiting) && a.hidden(name, faults)
		if found[name] == nil && (r.Machine.State.Alive() || waits) {
			found[name] = &definition{Definition: service.Definition{Name: name, Source: sourceGone}, spec: r.Spec}
		}
	}
	a.forgetTheVanished(left, found, actual, faults)
	// Before anything is adopted or launched, so that nothing changes meanwhile.
	a.findStrangers(ctx, names(left, found), found, actual)
	for name, d := range found {
		if _, recorded := actual[name]; recorded {
			continue
		}
		if r, known := a.recall(d); known {
			actual[name] = r
		} else if d.spec.Autostart || a.wanted[name].Up && !cutOff(d, a.wanted[name]) {
			a.pending = append(a.pending, name)
		}
	}
	var statuses []service.Status
	var restored []thjalfi.Restored
	for name, d := range found {
		r, recorded := actual[name]
		// The state directory was lost; what lives is recorded when it is adopted.
		if recorded && r.Machine.Up && !r.Machine.State.Alive() && a.wantedOf(name).Name.IsZero() {
			if err := a.want(name, func(w *skirnir.Wanted) { w.Up, w.Begun, w.Latest = true, a.bootID, r.Machine.Incarnation }); err != nil {
				a.cfg.Log.Error("cannot record that a service is to run", "service", name, "error", err)
			}
		}
		status, rest := a.left(d, r, recorded)
		a.definitions[name] = d
		statuses, restored = append(statuses, status), append(restored, rest)
	}
	a.sweepHistories(faults)
	a.registry.Add(statuses...)
	a.callAgain(restored)
	a.ears.Sweep(a.mayNotify)
	a.catchUp()
	a.watchLogs()
	for _, r := range restored {
		a.thjalfi.Add(r.Name, r)
	}
}

// Autostart launches what is to run from the start, and does not wait for it. It
// is to be called once, when all else is in order.
func (a *Agent) Autostart() {
	priorities := a.turnsToStart(a.pending)
	for _, names := range priorities {
		a.calls.expect(names)
	}
	a.pending = nil
	for _, c := range a.recalled {
		a.background.Go(func() { a.summon(c.name, c.actor) })
	}
	a.recalled = nil
	a.background.Go(a.attendSchedules)
	a.background.Go(func() {
		// Places are for those first that are started now.
		a.autostartAll(a.autostartAll(priorities, a.saved), func(service.Name) bool { return false })
	})
}

// autostartAll launches services, those of the highest priority first, all of one at once,
// and gives back those that are to wait when it is their turn.
func (a *Agent) autostartAll(priorities map[int][]service.Name, waits func(service.Name) bool) (waiting map[int][]service.Name) {
	waiting = map[int][]service.Name{}
	for _, p := range slices.Backward(slices.Sorted(maps.Keys(priorities))) {
		var starts sync.WaitGroup
		for _, name := range priorities[p] {
			if waits(name) {
				waiting[p] = append(waiting[p], name)
				a.arrive(name)
				continue
			}
			launch := starts.Go
			if a.isOneshot(name) {
				launch = a.background.Go // who is to wait for its job says so
			}
			launch(func() {
				_ = a.autostart(name, false) // it has told
				a.arrive(name)
			})
		}
		done := make(chan struct{})
		a.background.Go(func() { starts.Wait(); close(done) })
		select {
		case <-done: // all are ready, or have failed
		case <-time.After(a.levelPatience(priorities[p])):
		}
	}
	return waiting
}

// levelPatience is how long services of a lower priority wait for some: as long as the
// slowest may take to become ready, and a bit. Those may wait for others themselves.
func (a *Agent) levelPatience(names []service.Name) time.Duration {
	const bit = 10 * time.Second
	a.mu.Lock()
	defer a.mu.Unlock()
	longest := time.Duration(0)
	for _, name := range names {
		if d := a.definitions[name]; d != nil {
			longest = max(longest, d.spec.StartTime())
		}
	}
	return longest + bit
}

// hidden tells of a service without a definition that it has one, which can not
// be read now.
func (a *Agent) hidden(name service.Name, faults config.Faults) bool {
	return len(a.wanted[name].Document) > 0 || faults.Hide(a.cfg.ServicesDir, name)
}

// forgetTheVanished forgets what was wanted, and what was, of services whose
// definition went away while no agent was there: the next of that name is another
// one. What can not be read now has not gone.
func (a *Agent) forgetTheVanished(left skirnir.Loaded, found map[service.Name]*definition, actual map[service.Name]skirnir.Actual, faults config.Faults) {
	for _, r := range left.Actual {
		if found[r.Name] != nil || a.hidden(r.Name, faults) {
			continue
		}
		delete(actual, r.Name)
		if err := a.store.ForgetActual(r.Name); err != nil {
			a.cfg.Log.Error("cannot forget what was of a service whose definition is gone", "service", r.Name, "error", err)
		}
	}
	for _, w := range left.Wanted {
		if found[w.Name] != nil || a.hidden(w.Name, faults) {
			continue
		}
		err := a.want(w.Name, func(w *skirnir.Wanted) { *w = skirnir.Wanted{Name: w.Name} })
		if err != nil {
			a.cfg.Log.Error("cannot forget what was wanted of a service whose definition is gone", "service", w.Name, "error", err)
		}
	}
}

// scar keeps for the doctor, and logs, what the start found.
func (a *Agent) scar(title string, err error, fix string) {
	a.cfg.Log.Error(title, "error", err)
	a.scars = append(a.scars, service.Finding{Level: service.SeverityProblem, Title: title, Detail: err.Error(), Fix: fix})
}

// names are those of all services that are defined or of which anything is
// recorded.
func names(left skirnir.Loaded, found map[service.Name]*definition) []service.Name {
	all := map[service.Name]bool{}
	for name := range found {
		all[name] = true
	}
	for _, w := range left.Wanted {
		all[w.Name] = true
	}
	for _, r := range left.Actual {
		all[r.Name] = true
	}
	for name := range left.Exits {
		all[name] = true
	}
	return slices.Collect(maps.Keys(all))
}

// gather collects the definitions of the host and those of callers; where both
// define a name the host's file counts.
func (a *Agent) gather(left skirnir.Loaded) (map[service.Name]*definition, config.Faults) {
	found := map[service.Name]*definition{}
	base := a.settings.Base()
	files, faults := config.ReadDefinitions(a.cfg.ServicesDir, base, config.OwnFile)
	for _, f := range files {
		found[f.Spec.Name] = ofFile(f)
		if over := a.wanted[f.Spec.Name].Over; over != "" && !isOver(over, f, base) { // it changed meanwhile
			a.dropLimits(f.Spec.Name)
		}
	}
	for _, w := range left.Wanted {
		if len(w.Document) == 0 || found[w.Name] != nil {
			continue
		}
		d, wrong := ofCaller(w, base)
		if len(wrong) > 0 { // it was valid once
			faults = append(faults, wrong...)
			continue
		}
		found[w.Name] = d
	}
	_, tangled := untangle(found, func(service.Name) *definition { return nil }, func(n service.Name) bool { return a.hidden(n, faults) })
	faults = append(faults, tangled...)
	a.complain(faults)
	return found, faults
}

// left is what readers and the actor are told of a service that becomes known, with
// what an earlier agent recorded of it in this boot.
func (a *Agent) left(d *definition, r skirnir.Actual, recorded bool) (service.Status, thjalfi.Restored) {
	status := a.remembered(d)
	restored := thjalfi.Restored{Record: thjalfi.Record{Name: d.Name, Machine: status.Machine}}
	if recorded {
		a.recordEnd(d.Name, &r)
		restored.Record = thjalfi.Record{
			Name: d.Name, Machine: r.Machine, Ref: r.Ref, Spec: r.Spec, Limits: r.Limits, Started: r.Started, LogFrom: r.LogFrom, Stream: r.Stream,
			Exit: r.Exit, Remains: r.Remains, Ended: r.Ended, Due: r.Due, Failed: r.Failed, Actor: r.Actor, Paused: r.Paused, Asked: r.Asked,
		}
		restored.Plan = &thjalfi.Plan{Spec: r.Spec, Limits: r.Limits, Backend: a.backendOf(r), Actor: r.Actor, Options: a.wantedOf(d.Name).Options, Patient: patient(r.Actor)}
		status.LastActor = r.Actor
		if status.Machine = r.Machine; r.Machine.State.Alive() {
			status.Log = a.takeUpOutput(&r.Spec, r.Machine.Incarnation, r.LogFrom, r.Stream)
			status.Machine.State = service.Adopting
		}
		status.Warnings = r.Spec.Warnings
	}
	return status, restored
}

// recordEnd adds to what is on record of an incarnation how it ended, if that is in the
// state directory already: its record in the run directory could not be written then,
// and nothing else knows any more.
func (a *Agent) recordEnd(name service.Name, r *skirnir.Actual) {
	exits := a.exits[name]
	if len(exits) == 0 || r.Exit != nil || !r.Machine.State.Alive() {
		return
	}
	if x := exits[len(exits)-1]; x.Incarnation == r.Machine.Incarnation && x.BootID == a.bootID {
		r.Exit, r.Remains, r.Ended = &x.Exit, &x.Remains, x.Ended
	}
}

// backendOf is the backend that launched an incarnation or, when there is
// none, the one that would launch the next.
func (a *Agent) backendOf(r skirnir.Actual) backends.Backend {
	if r.Ref.IsZero() {
		b, err := backends.Choose(a.cfg.Backends, r.Spec.Launch)
		if err != nil {
			return absent{"none", err}
		}
		return b
	}
	for _, b := range a.cfg.Backends {
		if b.Name() == r.Ref.Backend {
			return b
		}
	}
	return absent{r.Ref.Backend, fmt.Errorf("it was launched by the %s backend, which this agent does not offer", r.Ref.Backend)}
}

// absent stands for a backend that is not offered. What it launched can not be
// adopted, and since it may be alive nothing is launched in its stead.
type absent struct {
	name string
	why  error
}

func (b absent) Name() string                    { return b.name }
func (b absent) Enforces() service.Enforcement   { return service.Enforcement{} }
func (b absent) Plan(service.Launch) service.Ref { return service.Ref{} }
func (b absent) Close() error                    { return nil }

func (b absent) Launch(_ context.Context, l service.Launch, _ backends.Birth) (backends.Handle, error) {
	return nil, &service.Error{Op: "launch", Service: l.Name, Kind: service.HostUnavailable, Permanent: true, Err: b.why}
}

func (b absent) Adopt(_ context.Context, ref service.Ref, _ service.Launch) (backends.Handle, error) {
	return nil, &service.Error{Op: "adopt", Service: ref.Name, Kind: service.HostUnavailable, Err: b.why}
}

func (b absent) Leftovers(context.Context, []service.Name) ([]service.Ref, error) { return nil, nil }

// autostart launches a service that nobody asked for just now. One that ran
// when the host went down comes back as it was started. called is as of start.
func (a *Agent) autostart(name service.Name, called bool) error {
	var options service.StartOptions
	if wanted := a.wantedOf(name); wanted.Up {
		options = wanted.Options
	}
	options.Actor = starter
	postponed, err := a.postpone(name, options)
	if err == nil && !postponed {
		_, err = a.start(a.ctx, name, options, called)
		a.holdLate(name, options.Actor)
	}
	// One that is required is started by whoever comes first.
	if err == nil || a.ctx.Err() != nil || service.KindOf(err) == service.AlreadyRunning {
		return err
	}
	a.cfg.Log.Error("autostart failed", "service", name, "error", err)
	a.registry.Update(name, skirnir.News{Kind: service.NoticeState, Reason: "autostart failed", Detail: err.Error()}, func(s *service.Status) {
		if s.Machine.State == service.Stopped { // else its own failure tells
			s.Error = err.Error()
		}
	})
	return err
}

func (a *Agent) isOneshot(name service.Name) bool {
	s, known := a.registry.Get(name)
	return known && s.Spec.Type == service.TypeOneshot
}

func (a *Agent) wantedOf(name service.Name) skirnir.Wanted {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wanted[name]
}
