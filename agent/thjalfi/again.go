package thjalfi

import (
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// delay is the wait before the next attempt.
func (a *actor) delay() time.Duration {
	return a.machine.Policy.Delay(a.machine.InARow()+a.denied, a.spread)
}

// recent is how many failures count for the policy now.
func (a *actor) recent() int {
	a.failed = a.failed.Within(a.machine.Policy, a.cfg.SinceBoot())
	return a.failed.Count()
}

// count keeps when a failure was that the machine has counted, and forgets those that it
// has forgotten.
func (a *actor) count(before service.Machine) {
	switch {
	case a.machine.Recent == 0:
		a.failed = nil
	case a.machine.Failures > before.Failures:
		a.failed = a.failed.And(a.machine.Policy, a.cfg.SinceBoot())
	case a.machine.State == service.Waiting && a.machine.Recent < before.Recent:
		a.failed = a.failed.Less()
	}
}

// armStable waits until a row of ends is over or, if it is, until the next failure
// does not count any more. Without any there is nothing to wait for.
func (a *actor) armStable() {
	switch {
	case a.machine.InARow() > 0:
		a.arm(a.machine.Policy.Reset(a.machine.InARow()), service.Stable)
	case len(a.failed) > 0:
		a.arm(max(0, a.failed[0].At+a.machine.Policy.Window-a.cfg.SinceBoot()), service.Stable)
	}
}

// ails tells whether a service that has run for long enough was not well for as long,
// and waits on then.
func (a *actor) ails() bool {
	if a.machine.InARow() == 0 || a.machine.State != service.Running || a.plan.Spec.Health.Type == service.CheckProcess {
		return false
	}
	left := a.machine.Policy.Reset(a.machine.InARow()) - a.cfg.Well(a.name)
	if left > 0 {
		a.arm(left, service.Stable)
	}
	return left > 0
}

// queue tells whether a restart whose time has come has to wait for its turn, which it
// does then, for all to see.
func (a *actor) queue() bool {
	if a.machine.State != service.Backoff {
		return false
	}
	wait := a.cfg.Turn(a.name)
	if wait <= 0 {
		return false
	}
	a.due = a.cfg.SinceBoot() + wait
	a.arm(wait, service.BackoffOver)
	if !a.queues { // else readers know
		a.queues = true
		a.publish(service.NoticeState, "turn", turnText)
	}
	return true
}

// turnText is why a restart is late.
const turnText = "it waits for its turn, because many services are restarted at once on this host"

// givenUp says why a service that is crashed is not tried again, and how to go on.
func (a *actor) givenUp() string {
	return fmt.Sprintf("given up, since %s; see gladsheim history %s --crashes and gladsheim logs %[2]s, mend it, then gladsheim start %[2]s",
		a.machine.WhyGivenUp(), a.name)
}

// outlook says what becomes of a service whose latest incarnation has failed, "" where it is
// neither waiting for the next attempt nor given up.
func (a *actor) outlook() string {
	switch m := a.machine; {
	case m.State == service.Backoff:
		text := fmt.Sprintf("it is tried again in %v", soon(a.due-a.cfg.SinceBoot()))
		if m.Recent > 0 { // else that is no attempt of the policy
			text += fmt.Sprintf(", attempt %d of %d", m.Recent, m.Policy.MaxAttempts)
		}
		return text
	case m.State == service.Crashed && m.GaveUp != service.GaveUpNot:
		return "given up, since " + m.WhyGivenUp()
	}
	return ""
}

// soon is a wait as people read it.
func soon(wait time.Duration) time.Duration {
	if wait < 10*time.Second {
		return max(0, wait.Round(100*time.Millisecond))
	}
	return wait.Round(time.Second)
}

// alert is what is told when a service is given up, once.
func (a *actor) alert() notice {
	text := a.givenUp()
	if a.failure != nil {
		text = a.failure.Error() + "; " + text
	}
	return notice{service.NoticeState, "alert", text}
}
