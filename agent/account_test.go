package agent

import (
	"fmt"
	"slices"
	"testing/synctest"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// known is the answer to a question that cannot always be answered from outside.
type known int

const (
	perhaps known = iota
	yes
	no
)

// account is the model of one service: what those who asked for something may rely
// on, by the answers they got, and what really happened to its processes.
type account struct {
	*told
	name    service.Name
	ofHost  bool // a file defines it
	calls   []*call
	answers map[string]error // that a retry gets again
	agentOf []int            // which agent was there when each life began
	seen    map[string]bool  // exit records
	belief

	from     int // lives from here on have a record of their end
	booted   int // lives by then
	numbered int // lives before numbers were lost, and begin anew
	endsByUs int // that somebody has asked for, at most
	launches int // before the power was cut
}

// belief is what answers change, and what one that begins nothing changes back.
type belief struct {
	latest  *call  // that was asked for last
	defined known  // it is registered
	up      known  // it runs after a reboot
	resting bool   // its stop was acknowledged, and nobody has asked for a start since
	rested  int    // launches by then
	began   uint64 // incarnation whose start was acknowledged and that nobody has asked to end since
	base    uint64 // incarnation that somebody has asked for last; 0: not known
}

// call is something that somebody asks for.
type call struct {
	kind   string
	id     string
	force  bool
	again  *call  // that it is a retry of
	before belief // when it was made
	agent  int
	done   chan struct{}
	err    error
	status *service.Status
	lost   bool // there is no answer
	taken  bool // the model knows of the answer
}

func (c *call) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (a *account) register(policy string) {
	document := doc(a.name, fmt.Sprintf(`"restart": {"policy": %q}`, policy))
	c := &call{kind: "register"}
	a.make(c, func(agent *Agent) error {
		_, err := agent.Register(a.t.Context(), a.name.String()+".json", []byte(document), true, "alice")
		return err
	})
}

// ask has somebody ask for something.
func (a *account) ask(c *call) {
	request := service.Request{ID: c.id, Body: c.kind}
	opts := service.StopOptions{Force: c.force, Actor: "alice", Request: request}
	a.make(c, func(agent *Agent) (err error) {
		switch c.kind {
		case "start":
			c.status, err = agent.Start(a.t.Context(), a.name, service.StartOptions{Actor: "alice", Request: request})
		case "restart":
			c.status, err = agent.Restart(a.t.Context(), a.name, opts)
		case "stop":
			c.status, err = agent.Stop(a.t.Context(), a.name, opts)
		case "unregister":
			err = agent.Unregister(a.t.Context(), a.name, "alice")
		}
		return err
	})
}

// still has somebody ask for a freeze or a thaw, whose answer only says what everybody
// can see.
func (a *account) still(freeze bool) {
	agent := a.Agent
	go func() {
		if freeze {
			_, _ = agent.Freeze(a.t.Context(), a.name, "alice")
		} else {
			_, _ = agent.Thaw(a.t.Context(), a.name, "alice")
		}
	}()
}

// retry asks again for what was asked for last with an id.
func (a *account) retry() {
	for _, c := range slices.Backward(a.calls) {
		if c.id == "" {
			continue
		}
		if c.over() {
			a.ask(&call{kind: c.kind, id: c.id, force: c.force, again: c})
		}
		return
	}
}

// make makes a call, and lets everything happen that can at this moment.
func (a *account) make(c *call, f func(*Agent) error) {
	a.asked++
	c.before, c.agent, c.done = a.belief, a.agents, make(chan struct{})
	a.calls = append(a.calls, c)
	_, answered := a.answers[c.id]
	if c.again == nil || !answered {
		a.issued(c)
	}
	agent := a.Agent
	go func() {
		defer close(c.done)
		c.err = f(agent)
		a.mu.Lock()
		defer a.mu.Unlock()
		c.lost = a.dead || service.KindOf(c.err) == service.HostUnavailable && c.err != nil
	}()
	synctest.Wait()
}

// issued is what is certain no more once something was asked for.
func (a *account) issued(c *call) {
	a.latest = c
	switch c.kind {
	case "start", "restart":
		a.resting = false
		if a.up == no {
			a.up = perhaps
		}
		a.base = 0
	case "stop":
		a.began = 0
		if a.up == yes {
			a.up = perhaps
		}
	case "register":
		a.defined = perhaps
	case "unregister":
		a.defined, a.up, a.began, a.base = perhaps, perhaps, 0, 0
	}
	if c.kind == "stop" || c.kind == "restart" {
		a.endsByUs++
	}
}

// begins tells of an error that something was begun before it came.
func begins(err error) bool {
	switch service.KindOf(err) {
	case service.NotFound, service.AlreadyRunning, service.NotRunning, service.Exists, service.Invalid:
		return false
	case service.Conflict:
		return service.ReasonOf(err) == "" && !slices.Contains([]string{"unregister", "register"}, err.(*service.Error).Op)
	}
	return true
}

// answered is what is certain once an answer has come.
func (a *account) answered(c *call) {
	if first, answered := a.answers[c.id]; answered && c.again != nil {
		if !c.lost && !sameAnswer(first, c.err) {
			a.failf("%s: the first %s was answered %v, and a retry %v", a.name, c.kind, first, c.err)
		}
		return
	}
	if c.id != "" && !c.lost && (c.err == nil || begins(c.err)) {
		a.answers[c.id] = c.err
	}
	switch {
	case a.latest != c || c.lost || c.again != nil: // another one counts, or nobody can tell
	case c.err != nil:
		if !begins(c.err) {
			a.belief = c.before
		}
	case c.kind == "start" || c.kind == "restart":
		a.up, a.began, a.base = yes, c.status.Machine.Incarnation, c.status.Machine.Incarnation
	case c.kind == "stop":
		a.up, a.resting, a.rested = no, true, a.host.Launches(a.name)
	case c.kind == "register":
		a.defined = yes
		if c.before.defined != yes {
			a.up = perhaps
			if c.before.defined == no && a.host.IncarnationsAlive(a.name) == 0 {
				a.up = no
			}
		}
	case c.kind == "unregister":
		a.forgotten()
		a.defined, a.up, a.resting, a.rested = no, no, true, a.host.Launches(a.name)
	}
}

func sameAnswer(x, y error) bool {
	if x == nil || y == nil {
		return x == y
	}
	return x.Error() == y.Error() && service.KindOf(x) == service.KindOf(y) && service.ReasonOf(x) == service.ReasonOf(y)
}

// forgotten is what is not expected of records that are no more.
func (a *account) forgotten() {
	a.from, a.base, a.began, a.answers = len(a.host.Lives(a.name)), 0, 0, map[string]error{}
	for _, c := range a.calls {
		c.id = ""
	}
}

// settle takes the answers that have come.
func (a *account) settle() {
	for _, c := range a.calls {
		if c.over() && !c.taken {
			c.taken = true
			a.answered(c)
		}
	}
}

// left is what is known when the agent has gone.
func (a *account) left() {
	a.note()
	a.settle()
}

// powerLost is what is known when the host went down with the agent.
func (a *account) powerLost() {
	a.forgotten()
	a.booted, a.launches = a.from, a.host.Launches(a.name)
	a.endsByUs += 1
}

// recordsLost is what is known when directories are gone.
func (a *account) recordsLost(run, state bool) {
	if run {
		a.forgotten()
	}
	if !state {
		return
	}
	a.forgotten()
	a.numbered = len(a.host.Lives(a.name))
	if !a.ofHost {
		a.defined, a.up, a.resting = perhaps, perhaps, false
		if run {
			a.defined = no
		}
	}
	if run && a.up == yes {
		a.up = perhaps
	}
}

// arrived is what is to be seen once the next agent is there.
func (a *account) arrived(cut bool) {
	a.note()
	if !cut {
		return
	}
	launched := a.host.Launches(a.name) > a.launches
	if a.up == yes && a.defined == yes && !launched {
		a.failf("I4: %s was to run, and does not after a power cut", a.name)
	}
	if a.up == no && launched {
		a.failf("I5: %s was not to run, and does after a power cut", a.name)
	}
}

// note writes down which agent was there when a life began.
func (a *account) note() {
	for len(a.agentOf) < len(a.host.Lives(a.name)) {
		a.agentOf = append(a.agentOf, a.agents)
	}
}

// check holds what is seen of the service against the account.
func (a *account) check() {
	a.note()
	a.settle()
	s, err := a.Status(a.name)
	alive := a.host.IncarnationsAlive(a.name)
	if n := a.host.PeakAlive(a.name); n > 1 {
		a.failf("I2: %d incarnations of %s at once", n, a.name)
	}
	if a.resting && (alive > 0 || a.host.Launches(a.name) != a.rested) {
		a.failf("I5: a stop of %s was acknowledged, and it runs", a.name)
	}
	if a.defined == yes && err != nil || a.defined == no && err == nil {
		a.failf("I4: %s: that it is registered was %v, and it is said: %v", a.name, a.defined, err)
	}
	ends := 0
	for _, l := range a.host.Lives(a.name) {
		if l.Ended && l.End.OOM == service.OOMNone && !slices.Contains(itsOwn, l.End.Exit) {
			ends++
		}
	}
	if ends > a.endsByUs {
		a.failf("I1: %d ends of %s, and at most %d were asked for", ends, a.name, a.endsByUs)
	}
	shown, told := a.shown[a.name]
	if err != nil {
		if told {
			a.failf("%s is not known, and whoever follows the events believes that it is %s", a.name, shown)
		}
		return
	}
	if s.Machine.State == service.Running && alive != 1 {
		a.failf("%s is shown as running and is not there", a.name)
	}
	if frozen := a.host.Frozen(a.name); frozen != s.Machine.Frozen && (s.Machine.State == service.Running || s.Machine.State == service.Starting) {
		a.failf("%s is %s, that it is frozen is %v, and it is said: %v", a.name, s.Machine.State, frozen, s.Machine.Frozen)
	}
	if told && shown != s.Machine.State && s.Machine.State != service.Adopting {
		a.failf("%s is %s, and whoever follows the events believes that it is %s", a.name, s.Machine.State, shown)
	}
	a.checkExits(s)
}

// checkExits holds the exit records against what really happened.
func (a *account) checkExits(s *service.Status) {
	exits, err := a.Exits(a.name, 0)
	if err != nil {
		a.failf("%s: %v", a.name, err)
		return
	}
	lives := a.host.Lives(a.name)
	recorded := map[uint64]bool{}
	cutOff := 0
	for _, x := range exits {
		if recorded[x.Incarnation] && a.booted == 0 {
			a.failf("two records of incarnation %d", x.Incarnation)
		}
		recorded[x.Incarnation] = true
		if x.Exit == service.NeverRan && x.Incarnation > a.base && x.Message == "the agent ended before it was launched" {
			cutOff++
		}
		key := fmt.Sprint(x.Incarnation, x.Ended.UnixNano())
		if !a.seen[key] && !a.true(x, lives) {
			a.failf("I6: %s: incarnation %d: %v, %v, of the lives %+v", a.name, x.Incarnation, x.Exit, x.Verdict, lives)
		}
		a.seen[key] = true
	}
	m := s.Machine
	if a.base > 0 && len(exits) < 16 && (m.State == service.Running) && uint64(m.Restarts)+uint64(cutOff) != m.Incarnation-a.base {
		a.failf("%s: %d restarts are counted, and incarnation %d follows %d, of which %d were cut off", a.name, m.Restarts, m.Incarnation, a.base, cutOff)
	}
	for i, l := range lives {
		over := l.Ended && (m.Incarnation > l.Incarnation || !m.State.Alive())
		if i >= a.from && over && !recorded[l.Incarnation] && len(exits) < 16 {
			a.failf("%s: no record of the end of incarnation %d", a.name, l.Incarnation)
		}
	}
	if a.began > 0 && a.began >= m.Incarnation && !m.State.Alive() && !recorded[a.began] {
		a.failf("I4: %s: a start was acknowledged, and incarnation %d neither runs nor has a record", a.name, a.began)
	}
}

// true tells whether a record says of an end what is so. What an agent did not see
// it need not know.
func (a *account) true(x service.ExitRecord, lives []fake.Life) bool {
	ran := false
	for i, l := range lives {
		if l.Incarnation != x.Incarnation {
			continue
		}
		ran = ran || i >= max(a.booted, a.numbered)
		known := x.Exit == l.End.Exit && (x.Verdict == service.VerdictOwnOOM) == (l.End.OOM == service.OOMOwn && !x.Remains.Lost)
		unknown := x.Exit == service.Exit{Unknown: "agent_was_down"} && a.agentOf[i] < a.agents
		if l.Ended && (known || unknown) {
			return true
		}
	}
	return !ran && x.Exit.Unknown != ""
}
