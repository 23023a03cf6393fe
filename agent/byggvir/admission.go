package byggvir

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Budget is how much the services that run may have together. 0 is for no bound.
type Budget struct {
	Services int    // that run at once
	Memory   uint64 // bytes, the sum of what each may use at most
	Percent  int    // that Memory is of the host's
}

// Share is the place of a service that runs or is to run: one that has memory_max "max"
// takes nothing of the budget's memory.
type Share struct {
	Name   service.Name
	Memory uint64 // bytes that it may use at most
}

// named is how many of the largest shares a refusal names.
const named = 3

// Admit refuses a launch that does not fit beside others, with service.Exhausted. One
// that has its place already keeps it, had is its share then; it must fit only with
// what it asks for beyond.
func (b Budget) Admit(op string, want Share, had *Share, others []Share) error {
	if had == nil && b.Services > 0 && len(others) >= b.Services {
		return &service.Error{Op: op, Service: want.Name, Kind: service.Exhausted,
			Err: fmt.Errorf("%d services run, and the configuration allows %d (resource_limits.max_services)", len(others), b.Services)}
	}
	taken := Taken(others)
	if b.Memory == 0 || want.Memory == 0 || had != nil && want.Memory <= had.Memory || taken <= b.Memory && want.Memory <= b.Memory-taken {
		return nil
	}
	return &service.Error{Op: op, Service: want.Name, Kind: service.Exhausted,
		Err: fmt.Errorf("its memory_max, %s, does not fit: services that run may use %s%s, and the configuration allows %s together, %d%% of this host's memory (resource_limits.memory_overcommit_percent)",
			service.FormatSize(want.Memory), service.FormatSize(taken), largest(others), service.FormatSize(b.Memory), b.Percent)}
}

// Taken is the memory of all shares together.
func Taken(shares []Share) uint64 {
	sum := uint64(0)
	for _, s := range shares {
		if sum += s.Memory; sum < s.Memory {
			return ^uint64(0)
		}
	}
	return sum
}

// largest names those of whom most could be had.
func largest(shares []Share) string {
	shares = slices.DeleteFunc(slices.Clone(shares), func(s Share) bool { return s.Memory == 0 })
	slices.SortStableFunc(shares, func(a, b Share) int {
		switch {
		case a.Memory > b.Memory:
			return -1
		case a.Memory < b.Memory:
			return 1
		}
		return strings.Compare(a.Name.String(), b.Name.String())
	})
	var words []string
	for _, s := range shares[:min(named, len(shares))] {
		words = append(words, s.Name.String()+" "+service.FormatSize(s.Memory))
	}
	switch {
	case len(words) == 0:
		return ""
	case len(shares) > named:
		return " (most of it " + strings.Join(words, ", ") + ")"
	}
	return " (" + strings.Join(words, ", ") + ")"
}
