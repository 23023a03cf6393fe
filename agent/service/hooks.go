package service

import (
	"fmt"
	"strings"
	"time"
)

// Hooks are programs that are run before and after a service begins and ends, each list in
// its order. Each is run as the service is, in its cgroup.
type Hooks struct {
	PreStart  [][]string    // before its program begins; one that fails ends the start
	PostStart [][]string    // once it has become ready, which it counts as when they have ended well
	PreStop   [][]string    // before it is told to end, within the time that it has for that
	PostStop  [][]string    // when nothing of it lives any more, however it ended
	Timeout   time.Duration // of each
}

// IsZero tells whether there are none.
func (h Hooks) IsZero() bool {
	for _, list := range h.lists() {
		if len(list.programs) > 0 {
			return false
		}
	}
	return h.Timeout == 0
}

// HookKind says when a hook is run.
type HookKind uint8

// The kinds.
const (
	PreStart HookKind = iota
	PostStart
	PreStop
	PostStop
	numHookKinds
)

var hookKindNames = [numHookKinds]string{"pre_start", "post_start", "pre_stop", "post_stop"}

func (k HookKind) String() string { return hookKindNames[k] }

// Hook is one program among Hooks.
type Hook struct {
	Kind HookKind
	Argv []string
}

func (h Hook) String() string { return h.Kind.String() + ": " + strings.Join(h.Argv, " ") }

// Of are the hooks of a kind, in their order.
func (h Hooks) Of(k HookKind) (of []Hook) {
	for _, argv := range h.lists()[k].programs {
		of = append(of, Hook{k, argv})
	}
	return of
}

// longest is how long those of some kinds may take.
func (h Hooks) longest(kinds ...HookKind) (d time.Duration) {
	for _, kind := range kinds {
		d += time.Duration(len(h.lists()[kind].programs)) * h.Timeout
	}
	return d
}

// StartTime is how long a start may take until the service is ready, hooks included.
func (s *Spec) StartTime() time.Duration {
	return s.Ready.Timeout + s.Hooks.longest(PreStart, PostStart)
}

// StopTime is how long an end may take, hooks included. The time of the stop itself is the
// definition's where none is given.
func (s *Spec) StopTime(given *time.Duration) time.Duration {
	d := s.Stop.Timeout
	if given != nil {
		d = *given
	}
	return d + s.Hooks.longest(PostStop)
}

type hookList struct {
	kind     HookKind
	programs [][]string
}

func (h Hooks) lists() [numHookKinds]hookList {
	return [numHookKinds]hookList{{PreStart, h.PreStart}, {PostStart, h.PostStart}, {PreStop, h.PreStop}, {PostStop, h.PostStop}}
}

const (
	// DefaultHookTimeout is for how long a hook may run when nothing is said.
	DefaultHookTimeout = 30 * time.Second

	// MaxHooks is how many there may be of a kind.
	MaxHooks = 16
)

func (s *Spec) validateHooks(faults *faultList) {
	h := s.Hooks
	if h.IsZero() {
		return
	}
	some := false
	for _, list := range h.lists() {
		field := "hooks." + list.kind.String()
		if len(list.programs) > MaxHooks {
			faults.add(field, "has %d entries; at most %d are allowed", len(list.programs), MaxHooks)
		}
		for i, argv := range list.programs {
			faults.program(fmt.Sprintf("%s[%d]", field, i), argv)
			some = true
		}
	}
	if !some {
		faults.add("hooks.timeout", "is of no hook: name one")
		return
	}
	if s.Type == TypeOneshot && len(h.PostStart) > 0 {
		faults.add("hooks.post_start", "a %s is ready when its job is done: what is to follow that belongs into post_stop", s.Type)
	}
	faults.duration("hooks.timeout", h.Timeout, 10*time.Millisecond, 24*time.Hour)
}
