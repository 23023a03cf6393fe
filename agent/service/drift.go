package service

import "fmt"

// DriftPolicy says what becomes of a limit that somebody else has changed behind the
// agent's back.
type DriftPolicy uint8

// The policies. Either way it is told.
const (
	DriftRepair DriftPolicy = iota // it is set to what it was
	DriftTell                      // it stays as it is
	numDriftPolicies
)

var driftNames = [numDriftPolicies]string{"repair", "tell"}

func (p DriftPolicy) String() string { return driftNames[p] }

// Drift is a limit that somebody else has changed. Who that was nobody can tell.
type Drift struct {
	Resource Resource
	File     string // in the cgroup of the service
	Was, Is  Quota
	Fault    error // why it could not be set back, if it was to be
}

// OnDrift is what is done about one.
type OnDrift uint8

// The answers.
const (
	DriftStays OnDrift = iota // it is what is wanted from now on
	DriftBack                 // it is set back
	DriftLater                // nothing, for now: it is not what is wanted
)

func (d Drift) String() string {
	return fmt.Sprintf("%s (%s) was %s and is %s", d.Resource, d.File, d.Resource.Format(d.Was), d.Resource.Format(d.Is))
}
