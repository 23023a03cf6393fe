// Package auditor holds a host against the invariants of docs/architecture.md,
// from outside: it reads /proc, the tree of cgroups, the agent's records and its
// log, asks the agent, and compares. It shares no code with the agent but the
// generated messages of the API, so that a fault of the one is none of the other,
// and it changes nothing.
//
// A test tells it what only the test can know (Expectation); `gladsheim fsck` runs
// what a living host can be asked without that. Not looked at: who was allowed to
// do what (I9), of which a host keeps no trace.
package auditor

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"
)

// Host is where to look. Every directory is absolute.
type Host struct {
	State, Run string // the agent's directories
	Socket     string // the agent's; "" or one that nobody answers on: the agent is not asked
	Cgroups    string // the root of the cgroup v2 file system; "" for a host without
	AgentLog   string // the file that the agent's log goes to; "": it is not read
	Proc       string // "/proc"
}

// Finding is one way in which the host is not as it must be.
type Finding struct {
	Invariant string `json:"invariant"`         // "I1" to "I12"
	Service   string `json:"service,omitempty"` // whose it is, if it is one's
	Text      string `json:"text"`
}

func (f Finding) String() string {
	if f.Service == "" {
		return f.Invariant + " " + f.Text
	}
	return f.Invariant + " " + f.Service + ": " + f.Text
}

// Hint is what a person can do about it, "" where nothing helps but to find out.
func (f Finding) Hint() string {
	switch {
	case f.Invariant == "I4" && strings.Contains(f.Text, wasSetAside):
		return "look at what it held, then remove it; if it is in services/ of the state directory, the service may have to be registered again"
	case f.Invariant == "I4" && strings.Contains(f.Text, unreadable):
		return "restart the agent (services run on): it sets aside what it can not read, and gladsheim doctor tells so"
	case f.Invariant == "I3":
		return "if gladsheim doctor tells nothing of it, restart the agent (services run on), which looks for all that lives"
	case f.Invariant == "I6":
		return "gladsheim history shows what is kept; what is not there any more does not come back"
	}
	return ""
}

// Report is the outcome of an audit.
type Report struct {
	Findings  []Finding `json:"findings"`
	Unchecked []string  `json:"unchecked"` // what could not be looked at, and why
	Notes     []string  `json:"notes"`     // what may be as it must be, which nobody can tell
}

// Audit looks until nothing is found, or for as long as grace after its first look:
// a host that is at work is between two states all the time, and a finding is what
// stays. An error says that the host can not be looked at.
func Audit(ctx context.Context, h Host, e Expectation, grace time.Duration) (Report, error) {
	var began time.Time
	var kept Report
	for looks := 0; ; looks++ {
		v, err := look(ctx, h)
		if err != nil {
			return Report{}, err
		}
		now := v.check(e)
		if looks > 0 {
			now.Findings = slices.DeleteFunc(now.Findings, func(f Finding) bool { return !slices.Contains(kept.Findings, f) })
		}
		kept = now
		if looks == 0 {
			began = time.Now()
		}
		if len(kept.Findings) == 0 || time.Since(began) >= grace {
			return kept, nil
		}
		select {
		case <-time.After(min(grace, pause)):
		case <-ctx.Done():
			return Report{}, ctx.Err()
		}
	}
}

// pause is the time between two looks.
const pause = 200 * time.Millisecond

// check runs every check.
func (v *view) check(e Expectation) Report {
	var r Report
	for _, check := range []func(*view, Expectation) []Finding{
		aliveStill, oneInstance, everyProcessKnown, acknowledgedKept, stopsKept, exitsWhole, changesLogged,
		nothingOutside, agentBounded, restartsFounded, nothingHandedDown,
	} {
		r.Findings = append(r.Findings, check(v, e)...)
	}
	r.Findings, r.Unchecked = append(r.Findings, v.faults...), v.unchecked
	r.Notes = v.unclaimed()
	slices.SortFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(len(a.Invariant), len(b.Invariant)), cmp.Compare(a.Invariant, b.Invariant),
			cmp.Compare(a.Service, b.Service), cmp.Compare(a.Text, b.Text))
	})
	r.Findings = slices.Compact(r.Findings)
	return r
}
