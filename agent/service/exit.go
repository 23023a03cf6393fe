package service

import (
	"fmt"
	"syscall"
	"time"
)

// Exit is how a main process ended: a code, a signal, or unknown with the
// reason (invariant I6). Nothing is invented.
type Exit struct {
	Code    int            // valid when Signal is 0 and Unknown is empty
	Signal  syscall.Signal // 0 when it exited by itself
	Core    bool           // the kernel wrote a core dump
	Unknown string         // why nobody knows, e.g. "agent_was_down"
}

// NeverRan is the Exit of an incarnation whose program did not begin to run.
var NeverRan = Exit{Unknown: "never_ran"}

// Clean tells whether the process ended by itself with code 0.
func (e Exit) Clean() bool { return e == Exit{} }

func (e Exit) String() string {
	switch {
	case e == NeverRan:
		return "never ran"
	case e.Unknown != "":
		return "unknown (" + e.Unknown + ")"
	case e.Signal != 0 && e.Core:
		return fmt.Sprintf("signal %d (%s), core dumped", int(e.Signal), SignalName(e.Signal))
	case e.Signal != 0:
		return fmt.Sprintf("signal %d (%s)", int(e.Signal), SignalName(e.Signal))
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// Verdict says why a service ended.
type Verdict uint8

// The verdicts, most of them from counters and from what we did ourselves,
// never from the number 137.
const (
	VerdictNone         Verdict = iota
	VerdictClean                // exit code 0, by itself
	VerdictStopped              // we ended it because somebody asked
	VerdictCrash                // a non-zero code or a signal of its own doing
	VerdictOwnOOM               // killed at its own memory limit
	VerdictAncestorOOM          // killed at the limit of a cgroup above it
	VerdictHostOOM              // killed because the host ran out of memory
	VerdictUnhealthy            // we ended it because its checks failed
	VerdictKilled               // SIGKILL or SIGTERM from outside, or its unit was stopped there
	VerdictStartupTime          // we ended it because it was not ready in time
	VerdictLaunchFailed         // it never ran
	VerdictUnknown              // it ended, or its counters went, while nobody was watching
	VerdictExceeded             // we ended it because it used too much for too long
	VerdictWatchdog             // we ended it because it stopped sending signs of life
	VerdictHookFailed           // what is run before it begins, or when it is ready, failed
	numVerdicts
)

var verdictNames = [numVerdicts]string{
	"none", "clean", "stopped", "crash", "own-limit OOM", "ancestor OOM", "host OOM", "unhealthy",
	"killed from outside", "startup timeout", "launch failed", "unknown", "used too much", "watchdog",
	"hook failed",
}

func (v Verdict) String() string { return verdictNames[v] }

// OOM is the level at which the memory ran out.
type OOM uint8

// The levels.
const (
	OOMNone     OOM = iota
	OOMOwn          // the service's own limit
	OOMAncestor     // a limit above it
	OOMHost         // no limit: the whole host
)

// Remains is what a backend tells of a service that is gone: the counters as
// they stood after the last process ended, and what it took to end them.
type Remains struct {
	Lost      bool // the counters were gone with it, before anybody read them
	Usage     Usage
	OOM       OOM
	OOMLevel  string // the cgroup whose limit was reached, relative to the root
	Leftovers int    // processes still alive after the main one ended, killed by us
	Stopper   string `json:",omitempty"` // who else ended it on purpose, such as "systemd"; "" when nobody is known to have
}

// ExitRecord is the death certificate of one incarnation.
type ExitRecord struct {
	Incarnation uint64
	Exit        Exit
	Verdict     Verdict
	Remains     Remains
	RequestedBy string // who asked for the end, "" when nobody did
	ForceKilled bool   // it outlived its stop timeout
	Started     time.Time
	Ended       time.Time // of its main process; when that was noticed if nobody saw it
	LastLines   []string
	Message     string        // one sentence for people
	Fingerprint string        `json:",omitzero"`  // see Fingerprint; "" of a stop, and of an earlier version
	Seen        int           `json:",omitzero"`  // ends with this fingerprint, this one included, as far as is known
	FirstSeen   time.Time     `json:",omitzero"`  // when the first of them was
	Wait        time.Duration `json:",omitzero"`  // until the next attempt, where After tells of one
	Violations  []string      `json:",omitzero"`  // what it used too much of when it ended
	BootID      string        `json:",omitempty"` // that it ended in; "" of an earlier version
	After       *Machine      `json:",omitempty"` // what the machine made of the end
}

// Decision says what was to follow, "" where that is not on record.
func (x ExitRecord) Decision() string {
	if x.After == nil {
		return ""
	}
	m := *x.After
	switch m.State {
	case Backoff:
		if x.Verdict == VerdictClean {
			return fmt.Sprintf("restarted after %v, as after any end; end %d in a row", x.Wait.Round(time.Millisecond), m.InARow())
		}
		return fmt.Sprintf("restarted after %v; failure %d in a row, attempt %d of %d within %v", x.Wait.Round(time.Millisecond), m.Failures, m.Recent, m.Policy.MaxAttempts, m.Policy.Window)
	case Crashed:
		return "given up, since " + m.WhyGivenUp()
	case Launching:
		return "restarted at once, since somebody asked or the agent had kept it from running"
	case Waiting:
		if x.Verdict == VerdictStopped {
			return "begun again when what it is bound to is back"
		}
		return "begun again when what it requires is there, and no failure of its own"
	case Held:
		return "not restarted until the battery is not low any more"
	case Stopped:
		if x.Verdict == VerdictStopped {
			return "not restarted, since somebody asked for the end"
		}
		return "not restarted, since it was a clean end"
	}
	return ""
}

// Judge derives the verdict from what is known. cause is why we were ending
// the service, CauseNone if we were not; success are ends that count as clean.
func Judge(x Exit, r Remains, cause Cause, success Ends) Verdict {
	// Of an end that nobody saw, the kernel's counters still tell.
	mayBeOOM := x.Signal == syscall.SIGKILL || x.Unknown != ""
	switch {
	case mayBeOOM && r.OOM == OOMOwn:
		return VerdictOwnOOM
	case mayBeOOM && r.OOM == OOMAncestor:
		return VerdictAncestorOOM
	case mayBeOOM && r.OOM == OOMHost:
		return VerdictHostOOM
	case cause == CauseAsked, cause == CauseHeld, cause == CauseUnbound:
		return VerdictStopped
	case cause == CauseUnhealthy:
		return VerdictUnhealthy
	case cause == CauseWatchdog:
		return VerdictWatchdog
	case cause == CauseStartup:
		return VerdictStartupTime
	case cause == CauseExceeded:
		return VerdictExceeded
	case cause == CauseHook:
		return VerdictHookFailed
	case x == NeverRan:
		return VerdictLaunchFailed
	case r.Stopper != "":
		return VerdictKilled
	case x.Unknown != "":
		return VerdictUnknown
	case x.Clean() || success.Has(x):
		return VerdictClean
	case x.Signal == syscall.SIGKILL && r.Lost: // it may have been for want of memory
		return VerdictUnknown
	case x.Signal == syscall.SIGKILL || x.Signal == syscall.SIGTERM:
		return VerdictKilled
	}
	return VerdictCrash
}
