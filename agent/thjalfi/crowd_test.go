package thjalfi

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// mayBeTold are the kinds of error that a caller may get in a crowd.
var mayBeTold = []service.Kind{
	service.AlreadyRunning, service.NotRunning, service.Conflict, service.Timeout, service.Cancelled, service.Unlaunchable,
	service.HostUnavailable,
}

// TestCrowd has a hundred callers do what they like to one service at once
// (S3): each gets a definite answer, and never are there two incarnations.
func TestCrowd(t *testing.T) {
	for round := range uint64(5) {
		play(t, func(t *testing.T, s *stage) {
			second := time.Second
			s.script(fake.Script{LaunchTime: 300 * time.Millisecond, Children: 1, Term: &fake.End{After: second}},
				fake.Script{Stubborn: true}, fake.Script{End: &fake.End{After: second, Exit: service.Exit{Code: 1}}},
				fake.Script{}, fake.Script{LaunchTime: time.Minute}, fake.Script{Children: 4})
			var limits service.Limits
			limits[service.PidsMax] = service.Of(20)
			var callers sync.WaitGroup
			for n := range uint64(100) {
				plan := s.plan()
				callers.Go(func() {
					dice := rand.New(rand.NewPCG(round, n))
					for range 5 {
						time.Sleep(time.Duration(dice.IntN(2000)) * time.Millisecond)
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+dice.IntN(120))*time.Second)
						var err error
						switch dice.IntN(6) {
						case 0, 1:
							err = s.Start(ctx, web, plan)
						case 2:
							err = s.Stop(ctx, web, service.StopOptions{Timeout: &second})
						case 3:
							err = s.Stop(ctx, web, service.StopOptions{Force: true})
						case 4:
							err = s.Restart(ctx, web, plan, service.StopOptions{Force: n%2 == 0})
						case 5:
							_, err = s.SetLimits(ctx, web, limits, false, "a caller")
						}
						if took := ctx.Err(); took != nil && err == nil {
							t.Errorf("an answer that came after the deadline: %v", took)
						}
						cancel()
						if err != nil {
							require.Contains(t, mayBeTold, service.KindOf(err), "%v", err)
						}
					}
				})
			}
			callers.Wait()
			s.kill()
			pass(time.Hour)
			s.is(service.Stopped)
			s.alive(0)
			require.Empty(t, s.host.Processes())
			s.oneRecordEach()
			require.Greater(t, s.host.Runs(web), 3)
		})
	}
}

// step is something that happens on the stage.
type step struct {
	what  string
	wait  time.Duration
	exit  service.Exit
	force bool
}

func (s step) String() string {
	switch s.what {
	case "pass", "stop", "restart":
		return fmt.Sprintf("%s (%v, force %v)", s.what, s.wait, s.force)
	case "crash":
		return fmt.Sprintf("%s (%v)", s.what, s.exit)
	}
	return s.what
}

var someExits = []service.Exit{{}, {Code: 1}, {Signal: 11}, {Signal: 9}}

func drawStep(t *rapid.T) step {
	return step{
		what: rapid.SampledFrom([]string{
			"start", "start", "stop", "stop", "kill", "restart", "crash", "crash", "oom", "sicken", "get ready", "pass", "pass", "pass",
			"set limits", "free", "agent leaves", "agent dies",
		}).Draw(t, "what"),
		wait:  rapid.SampledFrom([]time.Duration{0, time.Millisecond, time.Second, 4 * time.Second, 10 * time.Second, time.Minute}).Draw(t, "wait"),
		exit:  rapid.SampledFrom(someExits).Draw(t, "exit"),
		force: rapid.Bool().Draw(t, "force"),
	}
}

func drawScript(t *rapid.T) fake.Script {
	var script fake.Script
	script.LaunchTime = rapid.SampledFrom([]time.Duration{0, 0, time.Second, time.Hour}).Draw(t, "launch time")
	switch rapid.IntRange(0, 9).Draw(t, "launch") {
	case 0:
		script.LaunchError = &service.Error{Op: "launch", Kind: service.Unlaunchable, Err: context.DeadlineExceeded}
	case 1:
		script.LaunchError = &service.Error{Op: "launch", Kind: service.Unlaunchable, Permanent: true, Err: context.DeadlineExceeded}
	}
	if rapid.IntRange(0, 4).Draw(t, "ends by itself") == 0 {
		script.End = &fake.End{After: time.Second, Exit: rapid.SampledFrom(someExits).Draw(t, "end")}
	}
	script.Stubborn = rapid.Bool().Draw(t, "stubborn")
	if !script.Stubborn && rapid.Bool().Draw(t, "takes its time") {
		script.Term = &fake.End{After: 2 * time.Second}
	}
	script.Children = rapid.IntRange(0, 2).Draw(t, "children")
	script.Unkillable = rapid.IntRange(0, 9).Draw(t, "unkillable") == 0
	return script
}

// story is a life of a service, drawn beforehand, since rapid's generators can
// not leave a bubble.
type story struct {
	scripts []fake.Script
	policy  service.RestartWhen
	force   bool // force_kill
	waits   bool // for readiness
	steps   []step
}

func drawStory(t *rapid.T) story {
	return story{
		scripts: rapid.SliceOfN(rapid.Custom(drawScript), 1, 5).Draw(t, "scripts"),
		policy:  rapid.SampledFrom([]service.RestartWhen{service.RestartOnFailure, service.RestartAlways, service.RestartNever}).Draw(t, "policy"),
		force:   rapid.Bool().Draw(t, "force"),
		waits:   rapid.Bool().Draw(t, "waits"),
		steps:   rapid.SliceOfN(rapid.Custom(drawStep), 1, 30).Draw(t, "steps"),
	}
}

// teller tells a story and watches the invariants.
type teller struct {
	*stage
	story
	calls   []*call
	stops   map[*call]int // calls so far when a stop was asked for, starts only
	starts  int
	faults  []string
	resting bool // a stop was acknowledged, and nobody has asked for a start since the stop
	rested  int  // launches by then
}

func (d *teller) failf(format string, args ...any) {
	d.faults = append(d.faults, fmt.Sprintf(format, args...))
}

func (d *teller) spec(s *service.Spec) {
	s.Restart.When, s.Stop.ForceKill = d.policy, d.force
	if d.waits {
		readyByTCP(s)
	}
}

func (d *teller) do(s step) {
	switch s.what {
	case "start":
		d.begun(d.start(d.spec))
	case "stop":
		c := begin(func() error {
			return d.Stop(context.Background(), web, service.StopOptions{Timeout: &s.wait, Force: s.force, Actor: "bob"})
		})
		d.calls, d.stops[c] = append(d.calls, c), d.starts
	case "kill":
		c := d.kill()
		d.calls, d.stops[c] = append(d.calls, c), d.starts
	case "restart":
		plan := d.plan(d.spec)
		d.begun(begin(func() error { return d.Restart(context.Background(), web, plan, service.StopOptions{Force: s.force}) }))
	case "crash":
		d.end(func() { d.host.Crash(web, s.exit) })
	case "oom":
		d.end(func() { d.host.OOMKill(web, service.OOMOwn, "") })
	case "sicken":
		d.prober.sicken()
	case "get ready":
		d.prober.become()
	case "pass":
		time.Sleep(s.wait)
	case "set limits":
		var limits service.Limits
		limits[service.PidsMax] = service.Of(7)
		d.calls = append(d.calls, begin(func() error { _, err := d.SetLimits(context.Background(), web, limits, false, "dora"); return err }))
	case "free":
		d.host.Free(web)
	case "agent leaves":
		d.succeed(forEver)
	case "agent dies":
		d.life.Store(1 + int64(s.wait/time.Second)) // at some deed to come
	}
	synctest.Wait()
	if d.life.Load() == 0 {
		for c := range d.stops {
			if c.over() && !d.resting {
				delete(d.stops, c) // perhaps it was answered by the dead
			}
		}
		d.succeed(forEver)
	}
}

func (d *teller) begun(c *call) {
	d.calls = append(d.calls, c)
	d.starts++
	d.resting = false
}

// end ends the main process, if there is one.
func (d *teller) end(f func()) {
	defer func() { _ = recover() }() // there is none
	f()
}

// watch holds what is against the invariants.
func (d *teller) watch() {
	if n := d.host.PeakAlive(web); n > 1 {
		d.failf("I2: %d incarnations at once", n)
	}
	for c, starts := range d.stops {
		if c.over() && c.err == nil && starts == d.starts && !d.resting {
			d.resting, d.rested = true, d.host.Launches(web)
		}
	}
	if d.resting && (d.host.IncarnationsAlive(web) > 0 || d.host.Launches(web) != d.rested) {
		d.failf("I5: a stop was acknowledged, and it runs")
	}
	for _, x := range d.disk.exitsOf(web) {
		unknown := x.Exit.Unknown != "" || x.Remains.Lost // of which an agent that died knew no more
		if x.Verdict == service.VerdictNone || x.Verdict == service.VerdictUnknown && !unknown {
			d.failf("I6: %+v", x)
		}
	}
	if d.status().Machine.State == service.Running && d.host.IncarnationsAlive(web) == 0 {
		d.failf("it is shown as running and is not there")
	}
}

// tell is the whole story; in the end nothing is alive, and nobody waits.
func (d *teller) tell() []string {
	d.stage.script(d.scripts...)
	for _, s := range d.steps {
		d.do(s)
		if d.watch(); len(d.faults) > 0 {
			return append(d.faults, "after "+s.String())
		}
	}
	d.life.Store(forEver)
	d.script(fake.Script{}) // for what is launched from now on
	d.host.Free(web)
	d.kill()
	pass(time.Hour)
	d.watch()
	if left := d.host.Processes(); len(left) > 0 {
		d.failf("still alive: %v", left)
	}
	if state := d.status().Machine.State; state.Alive() || state == service.Backoff {
		d.failf("in the end it is %s", state)
	}
	for i, c := range d.calls {
		if !c.over() {
			d.failf("caller %d still waits", i)
		}
	}
	return d.faults
}

// TestStories tells random stories of a service and its agents.
func TestStories(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var faults []string
		told := drawStory(r)
		play(t, func(_ *testing.T, s *stage) {
			s.complain = func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
			faults = append((&teller{stage: s, story: told, stops: map[*call]int{}}).tell(), faults...)
		})
		if len(faults) > 0 {
			r.Fatalf("%v", faults)
		}
	})
}
