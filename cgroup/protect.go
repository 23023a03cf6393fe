package cgroup

import (
	"errors"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Protections are the limits that keep memory for a group. The kernel keeps no more
// for it than its parent asks for (Documentation/admin-guide/cgroup-v2.rst,
// memory.min), so a parent has to ask for what those in it do.
var Protections = []service.Resource{service.MemoryMin, service.MemoryLow}

// Protects tells whether l asks for memory to be kept, or no longer.
func Protects(l service.Limits) bool {
	return slices.ContainsFunc(Protections, func(r service.Resource) bool { return l[r].Set })
}

// Unprotected finds out how far what g asks to be kept for it is not what those in it
// do together: it is to ask for these instead.
func (g Group) Unprotected() (service.Limits, error) {
	sum, err := g.inside()
	if err != nil {
		return service.Limits{}, err
	}
	own, err := g.Protection()
	for _, r := range Protections {
		if !own[r].Set || own[r] == sum[r] {
			sum[r] = service.Quota{}
		}
	}
	return sum, err
}

// inside adds up what the groups in g ask for.
func (g Group) inside() (sum service.Limits, err error) {
	for _, r := range Protections {
		sum[r] = service.Of(0)
	}
	children, err := g.Children()
	if err != nil {
		return sum, err
	}
	for _, name := range children {
		own, err := g.Child(name).Protection()
		if gone(err) {
			continue
		}
		if err != nil {
			return sum, err
		}
		for _, r := range Protections {
			total, carry := bits.Add64(sum[r].Value, own[r].Value, 0)
			if carry != 0 { // Unlimited is the highest there is
				total = service.Unlimited
			}
			sum[r] = service.Of(total)
		}
	}
	return sum, nil
}

// Protection is what g itself asks to be kept for it; unset where the kernel has no
// such limits.
func (g Group) Protection() (service.Limits, error) {
	var own service.Limits
	d, err := g.open()
	if err != nil {
		return own, err
	}
	defer d.Close()
	for _, r := range Protections {
		q, err := readLimit(d, r)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return own, err
		}
		own[r] = q
	}
	return own, nil
}
