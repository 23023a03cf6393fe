package thjalfi

import (
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/gladsheim/gladsheim/agent/service"
)

// reference says once more, in the plainest words there are, what a restart policy does.
type reference struct {
	policy service.RestartPolicy
	failed []time.Duration // when, since somebody started it
	inARow int             // ends, clean ones as well
	alike  int             // failures
	last   service.Exit    // of those alike
}

func (r *reference) start() { *r = reference{policy: r.policy} }

func (r *reference) ranWell(long time.Duration) {
	needed := r.policy.ResetAfter
	if needed == 0 {
		if needed = 4 * r.wait(); needed < 10*time.Second {
			needed = 10 * time.Second
		}
	}
	if long >= needed && r.inARow > 0 {
		r.inARow, r.alike = 0, 0
	}
}

func (r *reference) wait() time.Duration {
	d := r.policy.Backoff
	for i := 1; i < r.inARow; i++ {
		d = min(2*d, r.policy.MaxBackoff)
	}
	return min(d, r.policy.MaxBackoff)
}

func (r *reference) end(now time.Duration, x service.Exit) (state service.State, why service.GiveUp) {
	never := r.policy.Never.Has(x)
	if clean := x.Code == 0 && x.Signal == 0 || r.policy.Success.Has(x); clean && !never {
		r.alike = 0
		if r.policy.When == service.RestartAlways {
			r.inARow++
			return service.Backoff, service.GaveUpNot
		}
		return service.Stopped, service.GaveUpNot
	}
	r.failed = append(r.failed, now)
	r.inARow++
	if itsOwn := x.Signal != syscall.SIGKILL; itsOwn && r.alike > 0 && r.last == x {
		r.alike++
	} else if itsOwn {
		r.alike = 1
	} else {
		r.alike = 0
	}
	r.last = x
	recent := 0
	for _, at := range r.failed {
		if now-at < r.policy.Window {
			recent++
		}
	}
	switch {
	case never:
		return service.Crashed, service.GaveUpExit
	case r.policy.When == service.RestartNever:
		return service.Crashed, service.GaveUpPolicy
	case r.policy.Deterministic > 0 && r.alike >= r.policy.Deterministic:
		return service.Crashed, service.GaveUpDeterministic
	case recent > r.policy.MaxAttempts:
		return service.Crashed, service.GaveUpAttempts
	}
	return service.Backoff, service.GaveUpNot
}

// life is how one incarnation goes: it runs, perhaps the agent dies and it runs on, it
// ends, and perhaps the agent dies while it waits for the next.
type life struct {
	runs, runsOn time.Duration
	dies, waits  bool // the agent, while it runs, and while it waits
	exit         service.Exit
}

func (l life) String() string {
	return fmt.Sprintf("%v %v (dies %v, waits %v) %v", l.runs, l.runsOn, l.dies, l.waits, l.exit)
}

func drawLife(t *rapid.T) life {
	long := rapid.SampledFrom([]time.Duration{0, time.Second, 9 * time.Second, 10 * time.Second, 40 * time.Second, 3 * time.Minute, 11 * time.Minute})
	return life{
		runs: long.Draw(t, "runs"), runsOn: long.Draw(t, "runs on"),
		dies: rapid.IntRange(0, 9).Draw(t, "dies") == 0, waits: rapid.IntRange(0, 4).Draw(t, "waits") == 0,
		exit: rapid.SampledFrom([]service.Exit{{}, {Code: 1}, {Code: 1}, {Code: 1}, {Code: 2}, {Code: 3}, {Code: 78}, {Signal: syscall.SIGSEGV}, {Signal: syscall.SIGKILL}}).Draw(t, "exit"),
	}
}

func drawPolicy(t *rapid.T) service.RestartPolicy {
	p := service.RestartPolicy{
		When:          rapid.SampledFrom([]service.RestartWhen{service.RestartOnFailure, service.RestartOnFailure, service.RestartAlways, service.RestartNever}).Draw(t, "when"),
		MaxAttempts:   rapid.IntRange(0, 6).Draw(t, "attempts"),
		Window:        rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 10 * time.Minute, time.Hour}).Draw(t, "window"),
		Backoff:       rapid.SampledFrom([]time.Duration{0, time.Second, 5 * time.Second}).Draw(t, "backoff"),
		MaxBackoff:    rapid.SampledFrom([]time.Duration{5 * time.Second, time.Minute}).Draw(t, "max backoff"),
		ResetAfter:    rapid.SampledFrom([]time.Duration{0, 0, time.Second, time.Minute}).Draw(t, "reset"),
		Deterministic: rapid.IntRange(0, 4).Draw(t, "deterministic"),
	}
	if rapid.Bool().Draw(t, "codes") {
		p.Success, p.Never = p.Success.And(service.Exit{Code: 3}), p.Never.And(service.Exit{Code: 78})
	}
	return p
}

// TestPolicyAsTheReferenceHasIt tells lives of a service under any policy, and holds what
// the machine and the actor make of them against the reference.
func TestPolicyAsTheReferenceHasIt(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		policy, lives := drawPolicy(r), rapid.SliceOfN(rapid.Custom(drawLife), 1, 25).Draw(r, "lives")
		var fault string
		synctest.Test(t, func(t *testing.T) {
			s := newStage(t)
			defer func() { s.Close() }() // of the agent that is there by then
			fault = s.live(policy, lives)
		})
		if fault != "" {
			r.Fatal(fault)
		}
	})
}

// live tells lives, and in what they were other than the reference has it.
func (s *stage) live(policy service.RestartPolicy, lives []life) (fault string) {
	want := &reference{policy: policy}
	for i, l := range lives {
		if s.status().Machine.State != service.Running {
			want.start()
			s.running(func(d *service.Spec) { d.Restart = policy })
		}
		pass(l.runs)
		want.ranWell(l.runs)
		if l.dies {
			s.succeed(forEver)
			pass(l.runsOn)
			want.ranWell(l.runsOn)
			l.exit = service.Exit{} // nobody will know how it ends
		}
		s.crash(l.exit)
		if l.dies { // which is a failure that says nothing about the next
			l.exit = service.Exit{Signal: syscall.SIGKILL}
		}
		state, why := want.end(s.sinceBoot(), l.exit)
		if state == service.Backoff && want.wait() == 0 {
			state = service.Running // by now
		}
		got := s.status()
		if got.Machine.State != state || got.Machine.GaveUp != why {
			return fmt.Sprintf("life %d (%v): it is %v %v, and should be %v %v\n%+v\n%+v", i, l, got.Machine.State, got.Machine.GaveUp, state, why, got.Machine, *want)
		}
		if state != service.Backoff {
			continue
		}
		if wait := time.Until(got.NextAttempt); wait != want.wait() {
			return fmt.Sprintf("life %d (%v): it waits %v, and should %v\n%+v\n%+v", i, l, wait, want.wait(), got.Machine, *want)
		}
		if l.waits {
			pass(want.wait() / 2)
			s.succeed(forEver)
		}
		if pass(time.Until(s.status().NextAttempt)); s.status().Machine.State != service.Running {
			return fmt.Sprintf("life %d (%v): its wait is over, and it is %v", i, l, s.status().Machine.State)
		}
	}
	return ""
}
