package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/thjalfi"
)

// starter is who starts what is to run from the start.
const starter = "autostart"

// calls are the starts of services that others require, and who is being left.
type calls struct {
	mu      sync.Mutex
	of      map[service.Name]*calling // by who is started
	leaving map[service.Name]int      // ends under way of services that others are bound to: those go first
	due     map[service.Name]bool     // to be started with the agent, which has not begun
}

// calling is the start of a service for those that require it. A failure is theirs until
// it is started again.
type calling struct {
	underway int
	err      error
}

func newCalls() calls {
	return calls{of: map[service.Name]*calling{}, leaving: map[service.Name]int{}, due: map[service.Name]bool{}}
}

// begin notes that a service is about to be started for others.
func (c *calls) begin(name service.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of[name] == nil {
		c.of[name] = &calling{}
	}
	c.of[name].underway++
	c.of[name].err = nil
}

func (c *calls) end(name service.Name, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.of[name]
	call.underway--
	if call.err = err; err == nil && call.underway == 0 {
		delete(c.of, name)
	}
}

// came tells whether a service is being started for others, or why that failed.
func (c *calls) came(name service.Name) (underway bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call := c.of[name]; call != nil {
		return call.underway > 0, call.err
	}
	return false, nil
}

func (c *calls) leave(name service.Name, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving[name] += by; c.leaving[name] == 0 {
		delete(c.leaving, name)
	}
}

func (c *calls) left(name service.Name) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaving[name] > 0
}

// expect notes that services are to be started with the agent, and arrived that one of
// them has been, or is not for now.
func (c *calls) expect(names []service.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		c.due[name] = true
	}
}

func (c *calls) arrived(name service.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.due, name)
}

func (c *calls) expected(name service.Name) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.due[name]
}

// standing is how those stand now that a definition names. It does no IO.
func (a *Agent) standing(spec *service.Spec) (out service.Standing) {
	var waits []string
	for _, e := range spec.Edges() {
		s, known := a.registry.Get(e.Service)
		if e.Relation == service.After {
			if known && (s.OnItsWay() || !s.Machine.State.Alive() && a.calls.expected(e.Service)) {
				out.Early = true
				waits = append(waits, e.Need.String())
			}
			continue
		}
		going := !known || s.Going() || a.calls.left(e.Service)
		if e.Relation == service.Binds && going && out.Unbound == "" {
			out.Unbound = fmt.Sprintf("%s, which it is bound to, is %s", e.Service, stateOf(s))
		}
		if known && s.Fulfils(e.Condition) && !a.calls.left(e.Service) {
			continue
		}
		out.Lacking = true
		waits = append(waits, e.Need.String())
		if why := a.hopeless(e.Service, s); why != nil && out.Failed == nil {
			out.Failed = &service.Error{Op: "start", Service: spec.Name, Kind: service.Unlaunchable, Reason: service.ReasonDependencyFailed,
				Err: fmt.Errorf("it requires %s: %w", e.Need, why)}
		}
	}
	if len(waits) > 0 {
		out.Waits = "waits for " + strings.Join(waits, " and for ")
	}
	return out
}

func stateOf(s *service.Status) string {
	if s == nil {
		return "not registered"
	}
	if s.Machine.State.Alive() && !s.Going() {
		return "ending"
	}
	return s.Machine.State.String()
}

// hopeless says why nobody who has asked for a service that requires this one is to wait
// any more, or is nil.
func (a *Agent) hopeless(name service.Name, s *service.Status) error {
	if s == nil {
		return fmt.Errorf("%s is not registered", name)
	}
	underway, err := a.calls.came(name)
	m := s.Machine
	switch {
	case underway:
		return nil
	case m.State == service.Waiting && m.Asked:
		return nil
	case m.State.Alive():
		if (m.State == service.Stopping || m.State == service.Clearing) && m.Cause == service.CauseAsked && !m.Again {
			return fmt.Errorf("%s is being stopped by %s", name, cmp.Or(s.LastActor, "somebody"))
		}
		return nil // what comes of it is about to be seen
	case err != nil:
		return err
	case s.Error != "":
		return fmt.Errorf("%s is %s: %s", name, m.State, s.Error)
	}
	return fmt.Errorf("%s is %s", name, m.State)
}

// call has those started that a definition requires and that neither run nor are about
// to, in the name of actor. What the battery keeps from running only a person has run.
func (a *Agent) call(spec *service.Spec, actor string) {
	for _, name := range a.wanting(spec, actor) {
		a.calls.begin(name)
		a.background.Go(func() { a.summon(name, actor) })
	}
}

// wanting are those that a definition requires and that are to be started for it.
func (a *Agent) wanting(spec *service.Spec, actor string) (names []service.Name) {
	for _, e := range spec.Edges() {
		s, known := a.registry.Get(e.Service)
		if e.Relation == service.After || !known || s.Fulfils(e.Condition) || s.Machine.State == service.Held && patient(actor) {
			continue
		}
		if actor == scheduler || actor == resumer { // nobody has asked: what somebody stopped, or was given up, stays so
			if m := s.Machine; m.State == service.Crashed || m.State == service.Stopped && !m.Up && s.LastActor != "" {
				continue
			}
		}
		switch s.Machine.State {
		case service.Running, service.Starting, service.Launching, service.Adopting:
			continue
		}
		if !slices.Contains(names, e.Service) {
			names = append(names, e.Service)
		}
	}
	return names
}

// provide starts what a service requires that runs, before that is ended for a fresh
// incarnation: if it can not be had, nothing is.
func (a *Agent) provide(ctx context.Context, spec *service.Spec, actor string) error {
	if s, known := a.registry.Get(spec.Name); !known || !s.Machine.State.Alive() {
		return nil // it is called for as for any start
	}
	for _, name := range a.wanting(spec, actor) {
		_, err := a.start(ctx, name, service.StartOptions{Actor: actor}, true)
		if err != nil && service.KindOf(err) != service.AlreadyRunning {
			return &service.Error{Op: "restart", Service: spec.Name, Kind: service.Unlaunchable, Reason: service.ReasonDependencyFailed,
				Err: fmt.Errorf("it requires %s, and runs on: %w", name, err)}
		}
	}
	return nil
}

// summon starts a service for others. The call has been begun.
func (a *Agent) summon(name service.Name, actor string) {
	var err error
	if actor == starter {
		err = a.autostart(name, true)
	} else {
		_, err = a.start(a.ctx, name, service.StartOptions{Actor: actor}, true)
	}
	if service.KindOf(err) == service.AlreadyRunning { // somebody else was faster
		err = nil
	}
	a.calls.end(name, err)
	a.thjalfi.Changed(name)
}

// patient tells whether it is the agent that wants a service to run, and not somebody
// who waits to hear of it.
func patient(actor string) bool { return actor == starter || actor == resumer }

// partMargin is what those who are bound to a service may take to end beyond their stop
// timeouts; then it ends all the same.
const partMargin = clearTimeout + 5*time.Second

// part has those end first that are bound to a service which is about to end, and those
// that are bound to them before. They stay ended until it is done.
func (a *Agent) part(ctx context.Context, name service.Name) (done func()) {
	var order, left []service.Name
	seen := map[service.Name]bool{}
	var visit func(service.Name)
	visit = func(n service.Name) {
		if seen[n] {
			return
		}
		seen[n] = true
		for _, b := range a.boundTo(n) {
			visit(b)
		}
		order = append(order, n)
	}
	visit(name)
	for _, n := range order {
		if len(a.boundTo(n)) == 0 {
			continue
		}
		left = append(left, n)
		a.calls.leave(n, +1)
		a.thjalfi.Changed(n)
		a.awaitParted(ctx, n)
	}
	return func() {
		for _, n := range left {
			a.calls.leave(n, -1)
			a.thjalfi.Changed(n)
		}
	}
}

// boundTo are the services that run, or are about to, and are bound to one.
func (a *Agent) boundTo(name service.Name) []service.Name {
	return slices.DeleteFunc(a.thjalfi.Bound(name), func(b service.Name) bool {
		s, known := a.registry.Get(b)
		return !known || !s.Machine.State.Alive()
	})
}

func (a *Agent) awaitParted(ctx context.Context, name service.Name) {
	var patience time.Duration
	for _, b := range a.boundTo(name) {
		if s, known := a.registry.Get(b); known && s.Spec != nil {
			patience = max(patience, s.Spec.StopTime(nil))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience+partMargin)
	defer cancel()
	_, notices, err := a.Watch(ctx)
	if err != nil {
		return
	}
	for len(a.boundTo(name)) > 0 {
		if _, open := <-notices; !open {
			return
		}
	}
}

// recalled is a call of an earlier agent that is to be made again.
type recalled struct {
	name  service.Name
	actor string
}

// callAgain prepares the starts of those that are required by who waits for them since
// an earlier agent: nobody knows whether that one has begun them.
func (a *Agent) callAgain(left []thjalfi.Restored) {
	for _, r := range left {
		if r.Machine.State != service.Waiting || !r.Machine.Asked || r.Plan == nil {
			continue
		}
		for _, name := range a.wanting(&r.Plan.Spec, r.Actor) {
			a.calls.begin(name)
			a.recalled = append(a.recalled, recalled{name, r.Actor})
		}
	}
}

// arrive notes that a service is not to be started with the agent any more.
func (a *Agent) arrive(name service.Name) {
	a.calls.arrived(name)
	a.thjalfi.Changed(name)
}

// turnsToStart are services by their priority, which is no less than that of any that
// names them: no one waits for what is to begin after it has.
func (a *Agent) turnsToStart(pending []service.Name) map[int][]service.Name {
	graph := a.graph()
	ranks := graph.Ranks()
	priority := map[service.Name]int{}
	a.mu.Lock()
	for _, name := range pending {
		if d := a.definitions[name]; d != nil { // else it was forgotten meanwhile
			priority[name] = d.spec.StartPriority
		}
	}
	a.mu.Unlock()
	turns := map[int][]service.Name{}
	raised := map[service.Name]int{}
	for _, name := range slices.SortedFunc(maps.Keys(ranks), func(x, y service.Name) int { return cmp.Or(ranks[y]-ranks[x], x.Compare(y)) }) {
		raised[name] = max(raised[name], priority[name])
		for _, e := range graph[name] {
			raised[e.Service] = max(raised[e.Service], raised[name])
		}
		if _, is := priority[name]; is {
			turns[raised[name]] = append(turns[raised[name]], name)
		}
	}
	return turns
}
