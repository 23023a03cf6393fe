// Package backendtest holds the laws that every backend passes. Run is called
// from the test of each backend, on the hosts where it can work:
//
//	func TestConformance(t *testing.T) {
//		backendtest.Run(t, backendtest.Subject{New: …, Workload: backendtest.Workload(t), …})
//	}
//
// The suite trusts no answer of a backend that it can check from outside: in
// /proc, in /sys/fs/cgroup, by a random token in the command line of every
// process that it has launched. Where a backend says that it lacks an ability,
// the laws demand an honest refusal.
package backendtest

import (
	"os"
	"sync"
	"testing"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// Subject is a backend on trial, and what is known of its host.
type Subject struct {
	// New gives a Backend as a freshly started agent would make it. All that
	// it gives see the same host: a second one finds what a first one has
	// launched. It must work in a process of its own as well, because the
	// suite executes the test binary again to play an agent that is killed.
	// The suite closes what it gets.
	New func(t *testing.T) backends.Backend

	// Workload is the path of the program test/workload, see Workload. It is
	// "" for a backend without real processes; then the suite launches
	// "/workload", and only laws that need no real process are tried.
	Workload string

	// Offers is what the host's kernel is known to enforce. The backend may
	// not claim less, or a host with every ability could be used by one that
	// looks for none.
	Offers service.Enforcement

	// CgroupRoot is where the cgroup v2 tree is mounted that Ref.Cgroup is
	// below of, "" when the backend uses none.
	CgroupRoot string

	// KeepsExits says that how a main process ended is known also when no agent
	// was there to see it, or when one adopted it.
	KeepsExits bool

	// Alive counts the living processes whose command line holds token; nil
	// for a look into /proc.
	Alive func(token string) int

	// Residue lists what the host still knows of a service besides processes
	// and cgroups, e.g. units; nil when there can be nothing.
	Residue func(name service.Name) ([]string, error)

	// User is a user without privileges that the host knows, and its group;
	// "" for nobody and nogroup.
	User, Group string
}

// law is one thing that every backend does.
type law struct {
	says  string
	only  only
	alone bool // it measures the host or this process, so nothing else may run
	check func(b *bench)
}

// only restricts where a law is tried.
type only uint8

const (
	anywhere only = iota
	real          // needs real processes
	caged         // needs real processes in cgroups
)

// tried tells whether a law is tried with s.
func (o only) tried(s Subject) bool {
	switch o {
	case real:
		return s.Workload != ""
	case caged:
		return s.Workload != "" && s.CgroupRoot != ""
	}
	return true
}

// laws lists all laws.
func laws() []law {
	var all []law
	for _, chapter := range [][]law{
		launchLaws(), birthLaws(), refusalLaws(), exitLaws(), signalLaws(), killLaws(), releaseLaws(), besideLaws(), hookLaws(), succeedLaws(),
		limitLaws(), lowerLaws(), driftLaws(), enforcementLaws(), cpusetLaws(), diskLaws(), rlimitLaws(), hugetlbLaws(), weightLaws(), swapLaws(), freezeLaws(), hearLaws(), usageLaws(), adoptLaws(), agentLaws(), leftoverLaws(), crowdLaws(),
		tortureLaws(),
	} {
		all = append(all, chapter...)
	}
	return all
}

// Run tries every law that applies to s, each in a subtest named after it.
// Laws that can share the host run in parallel, the others after them, alone.
func Run(t *testing.T, s Subject) {
	if actAsAgent(t, s) {
		return
	}
	if s.User == "" {
		s.User, s.Group = "nobody", "nogroup"
	}
	if s.Workload != "" {
		s.Workload = publish(t, s.Workload)
	}
	trial := &trial{subject: s, name: t.Name(), agent: s.New(t)}
	t.Cleanup(func() { _ = trial.agent.Close() })
	try := func(t *testing.T, alone bool) {
		for _, l := range laws() {
			if l.alone != alone || !l.only.tried(s) {
				continue
			}
			t.Run(l.says, func(t *testing.T) {
				if !alone {
					t.Parallel()
				}
				l.check(trial.bench(t))
			})
		}
	}
	// A host has one agent at a time; of many that come at once, each would begin
	// a shim of its own.
	t.Run("first", func(t *testing.T) { trial.bench(t).start("sleep").release() })
	t.Run("together", func(t *testing.T) { try(t, false) })
	t.Run("alone", func(t *testing.T) { try(t, true) })
}

// trial is one run of the suite.
type trial struct {
	subject Subject
	name    string           // of the test that called Run
	agent   backends.Backend // shared by all laws that do not close it

	mu     sync.Mutex
	number int
}

// next counts what needs a name of its own.
func (t *trial) next() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.number++
	return t.number
}

// emulated tells whether this is a test host: a machine emulated in software,
// ten times slower than it looks.
func emulated() bool { return os.Getenv("GLADSHEIM_TEST_OFFERS") != "" }
