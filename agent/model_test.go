package agent

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// tale is a life of a host with two services, drawn beforehand, since rapid's
// generators can not leave a bubble.
type tale struct {
	scripts [2][]fake.Script
	deeds   []deed
}

// deed is one thing that somebody does, or that happens.
type deed struct {
	what   string
	of     int // which service
	wait   time.Duration
	exit   service.Exit
	lost   []string // directories, when the agent dies or the power is cut
	calls  int      // of the agent to the host until it dies
	policy string
	id     bool // the request has one
	force  bool
}

func (d deed) String() string {
	return fmt.Sprintf("%s of %d (%v, %v, lost %v, at call %d, %s, id %v, force %v)", d.what, d.of, d.wait, d.exit, d.lost, d.calls, d.policy, d.id, d.force)
}

// The ends that nobody has asked for, by which they are told from those that
// somebody has.
var itsOwn = []service.Exit{{}, {Code: 1}, {Signal: syscall.SIGSEGV, Core: true}}

// whenTold is how a program ends that takes its time to end.
var whenTold = service.Exit{Code: 7}

func drawDeed(t *rapid.T) deed {
	return deed{
		what: rapid.SampledFrom([]string{
			"start", "start", "start", "stop", "stop", "restart", "crash", "crash", "oom", "pass", "pass", "register", "unregister",
			"retry", "retry", "die", "die", "cut", "leave", "stall", "set the clock", "freeze", "thaw", "freeze outside", "thaw outside",
		}).Draw(t, "what"),
		of:     rapid.IntRange(0, 1).Draw(t, "of"),
		wait:   rapid.SampledFrom([]time.Duration{0, time.Second, 10 * time.Second, time.Minute, time.Hour}).Draw(t, "wait"),
		exit:   rapid.SampledFrom(itsOwn).Draw(t, "exit"),
		lost:   rapid.SampledFrom([][]string{nil, nil, {"run"}, {"state"}, {"run", "state"}}).Draw(t, "lost"),
		calls:  rapid.IntRange(0, 20).Draw(t, "calls"),
		policy: rapid.SampledFrom([]string{"on-failure", "always", "never"}).Draw(t, "policy"),
		id:     rapid.Bool().Draw(t, "id"),
		force:  rapid.IntRange(0, 3).Draw(t, "force") == 0,
	}
}

func drawTempers(t *rapid.T) fake.Script {
	script := fake.Script{
		LaunchTime: rapid.SampledFrom([]time.Duration{0, 0, time.Second}).Draw(t, "launch time"),
		Children:   rapid.IntRange(0, 1).Draw(t, "children"),
		Stubborn:   rapid.IntRange(0, 3).Draw(t, "stubborn") == 0,
	}
	if rapid.IntRange(0, 3).Draw(t, "takes its time") == 0 {
		script.Term = &fake.End{After: 2 * time.Second, Exit: whenTold}
	}
	if rapid.IntRange(0, 5).Draw(t, "ends by itself") == 0 {
		script.End = &fake.End{After: 3 * time.Second, Exit: rapid.SampledFrom(itsOwn).Draw(t, "end")}
	}
	return script
}

// drawTale draws a tale of so many deeds at least.
func drawTale(t *rapid.T, least int) tale {
	scripts := rapid.SliceOfN(rapid.Custom(drawTempers), 1, 3)
	return tale{
		scripts: [2][]fake.Script{scripts.Draw(t, "web"), scripts.Draw(t, "db")},
		deeds:   rapid.SliceOfN(rapid.Custom(drawDeed), least, 40).Draw(t, "deeds"),
	}
}

// told is a tale under way: the host, and what the model knows of it.
type told struct {
	*mortal
	accounts []*account
	asked    int    // calls, altogether
	last     uint64 // event that a subscriber has seen
	gap      bool   // it has to expect one
	notices  <-chan service.Notice
	follows  int // the agent that gives them
	shown    map[service.Name]service.State
	faults   []string
	planted  planted
}

func (w *told) failf(format string, args ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// tell tells a tale to its end, and gives what was wrong.
func tell(t *testing.T, story tale, p planted) (faults []string) {
	inside(t, func(t *testing.T, h *house) {
		w := &told{mortal: h.mortal(), planted: p, gap: true, shown: map[service.Name]service.State{}}
		for i, name := range []service.Name{web, db} {
			w.accounts = append(w.accounts, &account{name: name, told: w, answers: map[string]error{}, seen: map[string]bool{}, ofHost: name == db, belief: belief{defined: no, up: no}})
			h.host.Script(name, story.scripts[i]...)
		}
		w.accounts[1].defined = yes
		w.deaf = p.deaf
		if p.launched != nil {
			w.launched = func(l service.Launch, handle backends.Handle) backends.Handle { return p.launched(w, l, handle) }
		}
		h.define(db)
		w.arrive()
		w.accounts[0].register("on-failure")
		for _, d := range story.deeds {
			w.do(d)
			if w.check(); len(w.faults) > 0 {
				faults = append(w.faults, "after "+d.String())
				return
			}
		}
		w.end()
		faults = w.faults
	})
	return faults
}

// do has one thing happen, and then the next agent come if this one has died of it.
func (w *told) do(d deed) {
	a := w.accounts[d.of]
	switch d.what {
	case "register":
		if !a.ofHost {
			a.register(d.policy)
		}
	case "unregister":
		if !a.ofHost {
			a.ask(&call{kind: "unregister"})
		}
	case "start", "restart", "stop":
		c := &call{kind: d.what, force: d.force}
		if d.id {
			c.id = fmt.Sprintf("request-%d", w.asked)
		}
		a.ask(c)
	case "retry":
		a.retry()
	case "crash":
		w.ifAlive(a, func() { w.host.Crash(a.name, d.exit) })
	case "oom":
		w.ifAlive(a, func() { w.host.OOMKill(a.name, service.OOMOwn, "") })
	case "freeze", "thaw":
		a.still(d.what == "freeze")
	case "freeze outside":
		above := map[bool]string{true: "/gladsheim.slice"}[d.force]
		w.ifAlive(a, func() { w.host.Freeze(a.name, above) })
	case "thaw outside":
		w.ifAlive(a, func() { w.host.Thaw(a.name) })
	case "pass":
		time.Sleep(d.wait)
	case "set the clock":
		w.setClock(d.wait)
	case "stall":
		w.mu.Lock()
		w.stall = min(d.wait, 10*time.Second) // less than a service has to become ready
		w.mu.Unlock()
	case "leave":
		w.close()
	case "die", "cut":
		w.doom(d.what == "cut", d.calls, d.force, d.lost)
	}
	synctest.Wait()
	w.succeed()
}

// ifAlive does to a service what can only be done to one that lives.
func (w *told) ifAlive(a *account, f func()) {
	defer func() { _ = recover() }()
	f()
}

// doom has the agent die at one of its next calls to the host, or now.
func (w *told) doom(cut bool, calls int, survives bool, lost []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut, w.survives, w.calls, w.lost = cut, survives, calls, lost
	if calls == 0 {
		w.die()
	}
}

// succeed brings the next agent, as long as there is none or the one there is has
// died.
func (w *told) succeed() {
	for w.Agent == nil || w.died() {
		w.follow()
		died, cut, lost := w.died(), w.died() && w.cut, w.lost
		for _, a := range w.accounts {
			a.left()
			if cut {
				a.powerLost()
			}
		}
		w.bury()
		time.Sleep(time.Second) // nothing takes no time
		w.gap = w.gap || cut
		if died && !cut {
			w.lose(lost...)
			w.gap = w.gap || slices.Contains(lost, "run")
			for _, a := range w.accounts {
				a.recordsLost(slices.Contains(lost, "run"), slices.Contains(lost, "state"))
			}
		}
		if w.planted.between != nil {
			w.planted.between(w)
		}
		w.arrive()
		w.follow()
		if cut {
			pass(time.Minute)
		}
		for _, a := range w.accounts {
			a.arrived(cut && !w.died())
		}
	}
}

// follow hears what the agent has told since, and holds it against what is kept. Of
// a dead agent nobody heard more than it told before its death.
func (w *told) follow() {
	if w.Agent == nil || w.died() && w.heard == 0 {
		return
	}
	to := w.Sequence()
	if w.died() {
		to = w.heard
	}
	var heard []service.Notice
	for len(w.notices) > 0 {
		if n := <-w.notices; n.Sequence <= to {
			heard = append(heard, n)
		}
	}
	if w.gap { // whoever follows looks at how things are
		clear(w.shown)
	}
	kept := slices.DeleteFunc(w.Kept(w.last), func(n service.Notice) bool { return n.Sequence > to })
	for i, n := range kept {
		if n.Sequence != w.last+1 && !(i == 0 && w.gap && n.Sequence > w.last) {
			w.failf("event %d is followed by %d", w.last, n.Sequence)
		}
		w.last = n.Sequence
		if w.shown[n.Service] = n.State; n.Kind == service.NoticeUnregistered {
			delete(w.shown, n.Service)
		}
	}
	if w.last != to && (len(kept) > 0 || !w.gap || to < w.last) {
		w.failf("the latest event is %d, and %d is the last that is kept", to, w.last)
	}
	w.last, w.gap = to, false
	if w.follows == w.agents && len(heard) < 256 && !slices.EqualFunc(heard, kept, func(x, y service.Notice) bool {
		return x.Sequence == y.Sequence && x.Kind == y.Kind && x.State == y.State && x.Incarnation == y.Incarnation && x.Time.Equal(y.Time)
	}) {
		w.failf("told were %d events, and %d are kept", len(heard), len(kept))
	}
	if w.follows != w.agents && !w.died() {
		w.follows = w.agents
		_, w.notices, _ = w.Watch(context.Background())
	}
}

// check holds what is there against the model.
func (w *told) check() {
	w.look(true)
	defer w.look(false)
	w.follow()
	for _, a := range w.accounts {
		a.check()
	}
	for _, ref := range w.host.Places() {
		s, err := w.Status(ref.Name)
		w.house.Agent.mu.Lock()
		_, strange := w.strangers[ref.Name]
		w.house.Agent.mu.Unlock()
		if !strange && (err != nil || !s.Machine.State.Alive() || s.Machine.Incarnation != ref.Incarnation) {
			w.failf("I3: nobody knows of %s", ref.Cgroup)
		}
	}
}

func (w *told) look(looked bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looked = looked
}

// end stops everything; then nothing is left, and nobody waits.
func (w *told) end() {
	w.mu.Lock()
	w.calls, w.stall = 0, 0
	w.mu.Unlock()
	w.accounts[0].register("never") // what lives and belongs to nobody can be stopped again
	for _, a := range w.accounts {
		a.ask(&call{kind: "stop", force: true})
	}
	for range 2 {
		pass(time.Hour)
		w.check()
		if left := w.host.Places(); len(left) > 0 {
			w.failf("still there: %v", left)
		}
		for _, a := range w.accounts {
			for _, c := range a.calls {
				if !c.over() {
					w.failf("who asked for a %s of %s still waits", c.kind, a.name)
				}
			}
		}
		w.close()
		w.succeed()
	}
}

// TestModel tells random tales of a host, its agents and its services, and holds
// what is seen from outside against a model of what was promised.
func TestModel(t *testing.T) {
	few(t, 25)
	rapid.Check(t, func(r *rapid.T) {
		if faults := tell(t, drawTale(r, 1), planted{}); len(faults) > 0 {
			r.Fatalf("%s", strings.Join(faults, "\n"))
		}
	})
}

// few has rapid tell so many tales, unless somebody asks for another number
// (-rapid.checks).
func few(t *testing.T, checks int) {
	const name = "rapid.checks"
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == name })
	if !asked {
		usual := flag.Lookup(name).Value.String()
		require.NoError(t, flag.Set(name, strconv.Itoa(checks)))
		t.Cleanup(func() { require.NoError(t, flag.Set(name, usual)) })
	}
}
