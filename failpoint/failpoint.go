// Package failpoint names the steps of a start and of a stop, so that a test can
// have the agent die, fail, hang or panic at each of them. In a build without the
// tag failpoints, which every release is, Hit is nothing: it is inlined and
// returns nil, and neither a name of a point nor the machinery is in the binary.
//
// With the tag, Serve takes orders from the environment and from a socket in the
// run directory:
//
//	S7.cloned=kill; T3.term-sent=2*off->1*error(no luck)->delay(5s)
//
// A point does what its terms say, one after the other: N*action for its next N
// hits, an action without a number for all that follow; then nothing. Actions are
// kill (SIGKILL of our own process), error(TEXT), delay(TIME), panic and off.
package failpoint

// Point is a step that a start or a stop has just done.
type Point string

// The points of a start: after each of its thirteen steps. Which come in which
// order depends on the backend; of one that has no such step, see Point.Of.
const (
	S0Received        Point = "S0.received"
	S1Authorised      Point = "S1.authorised"
	S2IntentFsynced   Point = "S2.intent-fsynced"
	S3Audited         Point = "S3.audited"
	S4LogOpen         Point = "S4.log-open"
	S5CgroupMade      Point = "S5.cgroup-made"
	S6LimitsSet       Point = "S6.limits-set"
	S7Cloned          Point = "S7.cloned"
	S8IdentityFsynced Point = "S8.identity-fsynced"
	S9ScopeRegistered Point = "S9.scope-registered"
	S10GateReleased   Point = "S10.gate-released"
	S11RunningFsynced Point = "S11.running-fsynced"
	S12Replied        Point = "S12.replied" // the answer is made, and about to be sent
)

// The points of a stop: after each of its ten steps.
const (
	T0Received      Point = "T0.received"
	T1Authorised    Point = "T1.authorised"
	T2IntentFsynced Point = "T2.intent-fsynced"
	T3TermSent      Point = "T3.term-sent"
	T4Waiting       Point = "T4.waiting"
	T5KillSent      Point = "T5.kill-sent"
	T6Empty         Point = "T6.empty"
	T7CgroupRemoved Point = "T7.cgroup-removed"
	T8StateFsynced  Point = "T8.state-fsynced"
	T9Replied       Point = "T9.replied" // the answer is made, and about to be sent
)

// Points is the registry: every point there is.
func Points() []Point {
	return []Point{
		S0Received, S1Authorised, S2IntentFsynced, S3Audited, S4LogOpen, S5CgroupMade, S6LimitsSet, S7Cloned,
		S8IdentityFsynced, S9ScopeRegistered, S10GateReleased, S11RunningFsynced, S12Replied,
		T0Received, T1Authorised, T2IntentFsynced, T3TermSent, T4Waiting, T5KillSent, T6Empty, T7CgroupRemoved,
		T8StateFsynced, T9Replied,
	}
}

// Of tells whether starts and stops by a backend pass the point.
func (p Point) Of(backend string) bool {
	switch p {
	case S5CgroupMade, S6LimitsSet, T7CgroupRemoved:
		return backend != "exec" // which has no cgroups
	case S9ScopeRegistered:
		return backend == "systemd"
	}
	return true
}

// After is Hit for a step that ended with err: one that failed was not done. A step
// that is no point is "".
func After(err error, p Point) error {
	if err != nil {
		return err
	}
	return Hit(p)
}
