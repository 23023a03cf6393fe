package service

import "fmt"

// Condition is how far another service has to be.
type Condition uint8

// The conditions, numbered from 1 as on the wire less one.
const (
	ConditionReady     Condition = iota // it serves; of a oneshot: its job is done
	ConditionStarted                    // its program runs
	ConditionHealthy                    // it serves, and its health checks say that it is well
	ConditionCompleted                  // of a oneshot: its job is done
	numConditions
)

var conditionNames = [numConditions]string{"ready", "started", "healthy", "completed"}

func (c Condition) String() string { return conditionNames[c] }

// words say in a sentence what is waited for.
func (c Condition) words() string {
	switch c {
	case ConditionStarted:
		return "to be started"
	case ConditionCompleted:
		return "to have done its job"
	}
	return "to be " + c.String()
}

// Need is another service, and how far that has to be.
type Need struct {
	Service   Name
	Condition Condition
}

func (n Need) String() string { return n.Service.String() + " " + n.Condition.words() }

// Relation is what one service has to do with another.
type Relation uint8

// The relations, numbered from 1 as on the wire less one.
const (
	Requires Relation = iota // it is not begun before the other fulfils a condition, and has that started
	After                    // if the other is on its way up, it comes after it
	Binds                    // it requires the other, and ends with it
	numRelations
)

var relationNames = [numRelations]string{"requires", "after", "binds"}

func (r Relation) String() string { return relationNames[r] }

// Edge is one thing that a service says of another.
type Edge struct {
	From     Name
	Relation Relation
	At       int // place in the list of that relation
	Need
}

// Field is where it says so in its definition.
func (e Edge) Field() string { return fmt.Sprintf("%s[%d]", e.Relation, e.At) }

// Edges are all that a service says of others.
func (s *Spec) Edges() []Edge {
	if len(s.Requires)+len(s.After)+len(s.Binds) == 0 {
		return nil
	}
	var edges []Edge
	for r, needs := range [numRelations][]Need{Requires: s.Requires, After: s.After, Binds: s.Binds} {
		for i, n := range needs {
			edges = append(edges, Edge{s.Name, Relation(r), i, n})
		}
	}
	return edges
}

// maxNeeds is how many others a service may name in one list.
const maxNeeds = 256

func (s *Spec) validateNeeds(faults *faultList) {
	needed := map[Name]Edge{}
	for _, e := range s.Edges() {
		if e.At == maxNeeds {
			faults.add(e.Relation.String(), "names more than %d services", maxNeeds)
		}
		switch {
		case e.Service == s.Name && !s.Name.IsZero():
			faults.add(e.Field(), "is %s itself", s.Name)
		case e.Relation == Binds && e.Condition == ConditionCompleted:
			faults.add(e.Field(), "what has done its job has ended, and so would %s; write it into requires", s.Name)
		}
	}
	for r := range numRelations {
		seen := map[Name]int{}
		for _, e := range s.Edges() {
			if e.Relation != r || e.Service.IsZero() {
				continue
			}
			if first, twice := seen[e.Service]; twice {
				faults.add(e.Field(), "%s is in %s[%d] already", e.Service, r, first)
			}
			seen[e.Service] = e.At
			if other, both := needed[e.Service]; both && r == Binds {
				faults.add(e.Field(), "%s is in %s as well, which binds includes", e.Service, other.Field())
			}
			if r == Requires {
				needed[e.Service] = e
			}
		}
	}
}

// Fulfils tells whether a service is as far as that.
func (s *Status) Fulfils(c Condition) bool {
	m := s.Machine
	serves := m.State == Running && !m.Frozen
	switch {
	case m.Done:
		return true
	case c == ConditionStarted:
		return m.State == Starting || m.State == Running
	case m.Once || c == ConditionCompleted:
		return false
	case c == ConditionHealthy && s.Health.Strategy != CheckProcess:
		return serves && !s.Well.IsZero()
	}
	return serves
}

// OnItsWay tells whether a service is about to serve, or to have done its job, so that
// others may wait for that.
func (s *Status) OnItsWay() bool {
	m := s.Machine
	switch m.State {
	case Adopting, Launching, Starting, Backoff:
		return true
	case Waiting:
		return m.Asked // else nobody knows how long
	case Running:
		return m.Once
	case Stopping, Clearing:
		return m.Again
	}
	return false
}

// Going tells whether what a service is bound to is ending or gone.
func (s *Status) Going() bool {
	switch s.Machine.State {
	case Running, Adopting, Starting, Launching:
		return false
	}
	return true
}

// Standing is how the others stand that a service names in its definition.
type Standing struct {
	Lacking bool   // one that it requires does not fulfil its condition
	Early   bool   // one that it comes after is on its way up
	Waits   string // then: for what it waits, as a sentence without its name
	Failed  error  // why that can not be had by waiting, for somebody who asked
	Unbound string // why it has to end, "" if it need not
}
