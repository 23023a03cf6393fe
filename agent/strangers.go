package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/procfs"
)

// stranger is what lives and looks like ours of one service, without a record. It
// is left alone, and no second copy is started beside it.
type stranger struct {
	refs []service.Ref
	why  error // it is not taken up
}

// errUndefined is why one is not whose service nobody has defined.
var errUndefined = errors.New("no service of that name is registered")

// findStrangers looks for incarnations that nobody recorded. Where it is beyond
// doubt whose one is, actual gets the record that was lost.
func (a *Agent) findStrangers(ctx context.Context, known []service.Name, found map[service.Name]*definition, actual map[service.Name]skirnir.Actual) {
	for name := range actual {
		a.looked[name] = true
	}
	there := map[service.Name]bool{}       // what the record tells of
	over := map[service.Name]service.Ref{} // has ended, of which nobody has recorded that
	strangers, failed := a.strange(ctx, known, func(b backends.Backend, ref service.Ref) bool {
		r, recorded := actual[ref.Name]
		if !recorded && found[ref.Name] != nil && ref.Incarnation > a.buried(ref.Name) && !a.lives(ref) && empty(ctx, b, ref) {
			if ref.Incarnation > over[ref.Name].Incarnation {
				over[ref.Name] = ref
			}
			return false
		}
		recorded = r.Machine.State.Alive() && place(r.Ref) == place(ref)
		there[ref.Name] = there[ref.Name] || recorded
		return !recorded
	})
	for backend, err := range failed {
		a.scar("cannot look for what an earlier agent left with the "+backend+" backend", err, "start services once the host serves again")
		a.blind[backend] = true
	}
	for name, refs := range strangers {
		r, err := a.attribute(found[name], refs)
		switch {
		case there[name]:
			err = errors.New("the service has another incarnation, which is recorded")
		case err == nil && r.Machine.Incarnation <= actual[name].Machine.Incarnation:
			err = fmt.Errorf("a later incarnation, %d, was recorded", actual[name].Machine.Incarnation)
		}
		if !there[name] {
			delete(actual, name) // or what is left of it would launch another one
		}
		if err == nil {
			actual[name] = r
			a.cfg.Log.Warn("an incarnation that nobody recorded is taken up", "service", name, "place", where(r.Ref), "pid", r.Ref.PID)
			continue
		}
		a.cfg.Log.Error("an incarnation that nobody recorded is alive; it is left alone", "service", name, "place", where(refs[0]), "reason", err)
		a.strangers[name] = stranger{refs, err}
	}
	for name, ref := range over {
		if _, alive := strangers[name]; alive {
			continue
		}
		if r, err := a.unseen(found[name], ref); err == nil {
			actual[name] = r
		} else {
			a.cfg.Log.Error("an incarnation has ended that nobody recorded; it can not be taken up", "service", name, "place", where(ref), "reason", err)
		}
	}
}

// buried is the latest incarnation of a service of which an end is on record.
func (a *Agent) buried(name service.Name) uint64 {
	if exits := a.exits[name]; len(exits) > 0 {
		return exits[len(exits)-1].Incarnation
	}
	return 0
}

// lookFor looks for strangers of those of these services that are not defined yet,
// and are about to be: some backends find only those whose name they are told, and
// what was found before may have ended.
func (a *Agent) lookFor(ctx context.Context, names []service.Name) {
	a.mu.Lock()
	names = slices.DeleteFunc(names, func(name service.Name) bool { return a.definitions[name] != nil })
	a.mu.Unlock()
	if len(names) == 0 {
		return
	}
	found, failed := a.strange(ctx, names, func(_ backends.Backend, ref service.Ref) bool { return slices.Contains(names, ref.Name) })
	a.mu.Lock()
	defer a.mu.Unlock()
	for backend, err := range failed { // whoever starts one of them looks again
		a.cfg.Log.Error("cannot look for what an earlier agent left", "backend", backend, "error", err)
		a.blind[backend] = true
	}
	for _, name := range names {
		delete(a.strangers, name)
		if refs := found[name]; len(refs) > 0 {
			a.strangers[name] = stranger{refs, errUndefined}
		}
	}
}

// strange asks the backends what lives, and keeps what is of interest. failed are
// those that would not tell.
func (a *Agent) strange(ctx context.Context, known []service.Name, interest func(backends.Backend, service.Ref) bool) (found map[service.Name][]service.Ref, failed map[string]error) {
	found, failed = map[service.Name][]service.Ref{}, map[string]error{}
	for _, b := range a.cfg.Backends {
		left, err := b.Leftovers(ctx, known)
		if err != nil {
			failed[b.Name()] = err
			continue
		}
		for _, ref := range left {
			if interest(b, ref) && (a.lives(ref) || !sweep(ctx, b, ref)) {
				found[ref.Name] = append(found[ref.Name], ref)
			}
		}
	}
	return found, failed
}

// lives tells whether the main process that ref names is there; then there is no
// need to look into its place.
func (a *Agent) lives(ref service.Ref) bool {
	p, err := a.cfg.Procfs.Process(ref.PID)
	return err == nil && p.Start == ref.StartTicks && p.Alive()
}

// attribute makes the record that was lost of an incarnation: of one that lives
// alone, whose main process the host tells, and whose service is defined. It is
// taken to have been started as a restart would start it now.
func (a *Agent) attribute(d *definition, refs []service.Ref) (skirnir.Actual, error) {
	ref := refs[0]
	switch {
	case d == nil:
		return skirnir.Actual{}, errUndefined
	case len(refs) > 1:
		return skirnir.Actual{}, fmt.Errorf("%d incarnations live at once", len(refs))
	case ref.PID == 0:
		return skirnir.Actual{}, errors.New("nothing tells surely which of its processes is the main one")
	}
	r, err := a.retake(d, ref)
	r.Started = time.Now().Add(procfs.Ticks(ref.StartTicks) - a.cfg.SinceBoot())
	return r, err
}

// attributed is attribute for the strangers of a service that is about to be known.
func (a *Agent) attributed(d *definition) (skirnir.Actual, error) {
	a.mu.Lock()
	s, strange := a.strangers[d.Name]
	known := a.definitions[d.Name] != nil
	a.mu.Unlock()
	switch {
	case !strange:
		return skirnir.Actual{}, errNoStranger
	case known: // and its actor with it
		return skirnir.Actual{}, s.why
	}
	return a.attribute(d, s.refs)
}

var errNoStranger = errors.New("nothing lives of it without a record")

// takeUp is attributed, for good: it is a stranger no more, or it is one for
// another reason.
func (a *Agent) takeUp(d *definition) (r skirnir.Actual, taken bool) {
	r, err := a.attributed(d)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case errors.Is(err, errNoStranger):
		return r, false
	case err != nil:
		a.strangers[d.Name] = stranger{a.strangers[d.Name].refs, err}
		return r, false
	}
	delete(a.strangers, d.Name)
	a.cfg.Log.Warn("an incarnation that nobody recorded is taken up", "service", d.Name, "place", where(r.Ref), "pid", r.Ref.PID)
	return r, true
}

// finding tells the doctor of it.
func (s stranger) finding() service.Finding {
	fix := "End its processes, then restart the agent."
	if errors.Is(s.why, errUndefined) {
		fix = "Register the service again, and it is taken up; or end its processes, then restart the agent."
	}
	return service.Finding{
		Level: service.SeverityProblem, Title: fmt.Sprintf("processes of %s are alive that nobody recorded, in %s", s.refs[0].Name, where(s.refs[0])),
		Detail: fmt.Sprintf("They are left alone, and the service is not started beside them: %v.", s.why), Fix: fix,
	}
}

// unclaimed tells the doctor of processes that some agent has marked, where the mark
// tells no name and none of ours fits.
func (a *Agent) unclaimed(ctx context.Context, known []service.Name) (findings []service.Finding) {
	for _, s := range a.registry.List() { // one that has lost its definition is known too
		known = append(known, s.Name)
	}
	for _, b := range a.cfg.Backends {
		hasher, ok := b.(backends.Hasher)
		if !ok {
			continue
		}
		pids, err := hasher.Unclaimed(ctx, known)
		switch {
		case err != nil:
			findings = append(findings, service.Finding{Level: service.SeverityWarning, Title: "cannot look for processes of services that are not registered", Detail: err.Error()})
		case len(pids) > 0:
			findings = append(findings, service.Finding{
				Level: service.SeverityWarning, Title: fmt.Sprintf("%d processes carry the mark of an agent, of a service that is not registered here: %s", len(pids), abridged(pids)),
				Detail: "They are another agent's, or of a service whose registration was lost; the mark does not tell. They are left alone.",
				Fix:    "If they are no other agent's, register their service again, and it is taken up; or end them.",
			})
		}
	}
	return findings
}

// abridged writes some of many numbers.
func abridged(pids []int) string {
	const most = 10
	if len(pids) <= most {
		return fmt.Sprint(pids)
	}
	return fmt.Sprintf("%v and %d more", pids[:most], len(pids)-most)
}

// look makes sure that nothing of a service is alive of which an earlier agent
// may have left something, where that could not be found out at the start.
func (a *Agent) look(ctx context.Context, op string, name service.Name, b backends.Backend) error {
	a.mu.Lock()
	known := !a.blind[b.Name()] || a.looked[name]
	a.mu.Unlock()
	if known {
		return nil
	}
	left, err := b.Leftovers(ctx, []service.Name{name})
	if err != nil {
		return &service.Error{Op: op, Service: name, Kind: service.HostUnavailable,
			Err: fmt.Errorf("it is not known whether an earlier incarnation is alive: %w", err)}
	}
	for _, ref := range left {
		if ref.Name == name && !sweep(ctx, b, ref) {
			return previousAlive(op, ref, errors.New("this was not known when the agent started"))
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.looked[name] = true
	return nil
}

func previousAlive(op string, ref service.Ref, why error) error {
	return &service.Error{Op: op, Service: ref.Name, Kind: service.Conflict, Reason: service.ReasonPreviousAlive,
		Err: fmt.Errorf("processes that nobody recorded are alive in %s, and are not taken up: %w; end them, then restart the agent", where(ref), why)}
}

// sweep removes what is left of an incarnation, such as its cgroup, if nothing
// in it is alive. It tells whether nothing is left.
func sweep(ctx context.Context, b backends.Backend, ref service.Ref) bool {
	ctx, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	h, err := b.Adopt(ctx, ref, service.Launch{})
	if err != nil {
		return errors.Is(err, backends.ErrGone)
	}
	defer h.Close()
	if alive, err := h.Processes(ctx); err != nil || len(alive) > 0 {
		return false
	}
	_, err = h.Release(ctx)
	return err == nil
}

// empty tells whether something is left of an incarnation in which nothing is alive.
func empty(ctx context.Context, b backends.Backend, ref service.Ref) bool {
	ctx, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	h, err := b.Adopt(ctx, ref, service.Launch{})
	if err != nil {
		return false
	}
	defer h.Close()
	alive, err := h.Processes(ctx)
	return err == nil && len(alive) == 0
}

func place(r service.Ref) string { return fmt.Sprintf("%s/%s/%d", r.Backend, r.Name, r.Incarnation) }

// where tells people where an incarnation lives.
func where(r service.Ref) string {
	switch {
	case r.Unit != "":
		return r.Unit
	case r.Cgroup != "":
		return r.Cgroup
	}
	return fmt.Sprintf("incarnation %d of the %s backend", r.Incarnation, r.Backend)
}
