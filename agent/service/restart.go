package service

import (
	"fmt"
	"slices"
	"time"
)

// RestartWhen says after which ends a service is started again.
type RestartWhen uint8

// The policies.
const (
	RestartOnFailure RestartWhen = iota
	RestartAlways
	RestartNever
	numRestartWhens
)

var restartNames = [numRestartWhens]string{"on-failure", "always", "never"}

func (w RestartWhen) String() string { return restartNames[w] }

// RestartPolicy bounds the restarts that nobody asked for.
type RestartPolicy struct {
	When          RestartWhen
	MaxAttempts   int           // restarts after failures within Window; one failure more, and it is given up
	Window        time.Duration // failures longer ago do not count for that
	Backoff       time.Duration // before the first retry; doubled for each further failure in a row
	MaxBackoff    time.Duration // the longest wait
	ResetAfter    time.Duration `json:",omitzero"` // running well this long ends a row of failures; 0: see Reset
	Success       Ends          `json:",omitzero"` // are no failures
	Never         Ends          `json:",omitzero"` // are the last: after one of them it is given up
	Deterministic int           `json:",omitzero"` // failures in a row with the same fingerprint until it is given up; 0: that does not matter
}

// Delay is the wait before the attempt that follows the given number of
// ends in a row (1 or more; see Machine.InARow): what the policy says, give or take a fifth, and never
// more than MaxBackoff. Where it is in between, spread tells, from 0 to 1.
func (p RestartPolicy) Delay(ends int, spread float64) time.Duration {
	d := p.nominal(ends)
	return min(d+time.Duration((0.4*spread-0.2)*float64(d)), p.MaxBackoff)
}

func (p RestartPolicy) nominal(ends int) time.Duration {
	d := p.Backoff
	for i := 1; i < ends && 0 < d && d < p.MaxBackoff; i++ {
		d *= 2
	}
	return min(d, p.MaxBackoff)
}

// leastReset is the shortest time that Reset comes to by itself.
const leastReset = 10 * time.Second

// Reset is for how long a service has to run well for a row of so many ends to be
// over: four times as long as it waited last, unless the policy says.
func (p RestartPolicy) Reset(ends int) time.Duration {
	if p.ResetAfter > 0 {
		return p.ResetAfter
	}
	return max(4*p.nominal(ends), leastReset)
}

// Clean tells whether an end is no failure.
func (p RestartPolicy) Clean(x Exit) bool { return x.Clean() || p.Success.Has(x) }

// GiveUp says why a service that failed is not tried again by itself.
type GiveUp uint8

// The reasons.
const (
	GaveUpNot           GiveUp = iota
	GaveUpPolicy               // it is never restarted
	GaveUpExit                 // it ended in a way after which it is not to be
	GaveUpAttempts             // it failed too often
	GaveUpDeterministic        // it failed in the same way again and again
	GaveUpPermanent            // it can not be launched, and trying again can not help
	numGiveUps
)

var giveUpNames = [numGiveUps]string{"", "policy", "exit-code", "attempts", "deterministic", "permanent"}

func (g GiveUp) String() string { return giveUpNames[g] }

// InARow is how many ends make it wait longer and longer: failures, and clean ends after
// which it is begun again all the same. When it has run well for long enough they are over.
func (m Machine) InARow() int { return m.Failures + m.CleanEnds }

// blemish counts a failure.
func blemish(m Machine, ev Event) Machine {
	m.Failures++
	m.Recent = ev.Recent + 1
	if ev.Fingerprint == "" || ev.Fingerprint != m.Fingerprint {
		m.Alike = 0
	}
	m.Alike++
	m.Fingerprint = ev.Fingerprint
	return m
}

// excused takes back the failure before this wait: what the service requires went at about
// the same time, and who noticed first is for chance to decide.
func excused(m Machine) Machine {
	m.Failures, m.Recent, m.Alike = max(0, m.Failures-1), max(0, m.Recent-1), max(0, m.Alike-1)
	return m
}

// givesUp tells why a service that failed just now is not tried again. last says that
// it ended in a way after which it is not to be.
func (m Machine) givesUp(last bool) GiveUp {
	p := m.Policy
	switch {
	case last:
		return GaveUpExit
	case p.When == RestartNever:
		return GaveUpPolicy
	case p.Deterministic > 0 && m.Fingerprint != "" && m.Alike >= p.Deterministic:
		return GaveUpDeterministic
	case m.Recent > p.MaxAttempts:
		return GaveUpAttempts
	}
	return GaveUpNot
}

// forgive ends a row of failures, since the service has run well for long enough. Those
// within the window still count for the number of attempts, until they are not.
func forgive(m Machine, ev Event) (Machine, []Effect) {
	m.Failures, m.CleanEnds, m.Alike, m.Fingerprint, m.Recent = 0, 0, 0, "", ev.Recent
	if m.Recent == 0 {
		return m, nil
	}
	return m, []Effect{ArmStable}
}

// unblemished forgets all failures, because somebody has taken charge.
func unblemished(m Machine) Machine {
	m.Failures, m.CleanEnds, m.Recent, m.Alike, m.Fingerprint, m.GaveUp = 0, 0, 0, 0, "", GaveUpNot
	return m
}

// WhyGivenUp says in words why it is not tried again by itself.
func (m Machine) WhyGivenUp() string {
	switch m.GaveUp {
	case GaveUpExit:
		return "it is not to be restarted after such an end (restart.exit_codes.never)"
	case GaveUpPolicy:
		return "it is not to be restarted (restart.policy)"
	case GaveUpDeterministic:
		return fmt.Sprintf("it is deterministic: it failed %d times in a row in the same way, with the fingerprint %s (restart.deterministic)", m.Alike, m.Fingerprint)
	case GaveUpAttempts:
		return fmt.Sprintf("it failed %d times within %v (restart.max_attempts is %d)", m.Recent, m.Policy.Window, m.Policy.MaxAttempts)
	case GaveUpPermanent:
		return "to try again can not help"
	}
	return ""
}

// Failures are when a service failed, oldest first, by the time since boot.
type Failures []FailuresAt

// FailuresAt are failures at one moment.
type FailuresAt struct {
	At time.Duration
	N  int
}

// Less takes back the latest.
func (f Failures) Less() Failures {
	last := len(f) - 1
	if last < 0 {
		return nil
	}
	f = slices.Clone(f)
	if f[last].N--; f[last].N == 0 {
		f = f[:last]
	}
	return f
}

// keptMoments is how many moments are told apart for a policy that allows more
// attempts than that; else there are no more than attempts, and one.
const keptMoments = 1000

// Within are those that count for p now.
func (f Failures) Within(p RestartPolicy, now time.Duration) Failures {
	return slices.DeleteFunc(slices.Clone(f), func(m FailuresAt) bool { return now-m.At >= p.Window })
}

// Count is how many they are.
func (f Failures) Count() (n int) {
	for _, m := range f {
		n += m.N
	}
	return n
}

// And adds one that happened now.
func (f Failures) And(p RestartPolicy, now time.Duration) Failures {
	grain := time.Duration(0)
	if p.MaxAttempts > keptMoments {
		grain = p.Window / keptMoments
	}
	f = slices.Clone(f)
	if last := len(f) - 1; last >= 0 && now-f[last].At < grain {
		f[last].N++
		return f
	}
	return append(f, FailuresAt{now, 1})
}
