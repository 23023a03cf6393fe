package place

import (
	"context"
	"sync"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/cgroup"
)

// Baseline is what the limits of an incarnation are to be, as far as they are files of
// its cgroup. Its methods may be called by many goroutines at once.
type Baseline struct {
	mu    sync.Mutex
	begun bool
	holds service.Limits
}

// Begin takes the first reading. What was asked for counts more: in the absence of an
// agent somebody may have changed it. Later calls do nothing.
func (b *Baseline) Begin(requested service.Limits, now service.Applied) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.begun {
		return
	}
	b.begun = true
	for i := range now {
		b.hold(service.Resource(i), requested[i], now[i].Applied)
	}
}

// Set takes what we have changed ourselves. What the kernel holds now besides may be
// somebody else's.
func (b *Baseline) Set(changed service.Limits, now service.Applied) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, q := range changed {
		if q.Set {
			b.hold(service.Resource(i), q, now[i].Applied)
		}
	}
	// They go by each other: what is idle has no weight, and a burst is told by the period
	// of the quota.
	for _, pair := range [][2]service.Resource{{service.CPUIdle, service.CPUWeight}, {service.CPUMax, service.CPUBurst}} {
		if changed[pair[0]].Set && !changed[pair[1]].Set {
			b.holds[pair[1]] = now[pair[1]].Applied
		}
	}
}

// hold has r be what was asked for, as the kernel keeps that, or what is where nobody
// asked or that can not be foretold.
func (b *Baseline) hold(r service.Resource, asked, is service.Quota) {
	b.holds[r] = is
	if r.Unit() == service.Devices {
		b.holds[r] = cgroup.Numbered(is)
	}
	if !asked.Set || !is.Set || cgroup.File(r) == "" {
		return
	}
	if kept := cgroup.Kept(r, asked); kept.Set {
		b.holds[r] = kept
	}
}

// Drifts are the limits that are not what they are to be. Those that repair does not
// want back are to be as they are from now on. back is what to set.
func (b *Baseline) Drifts(now service.Applied, repair func(service.Drift) bool) (drifts []service.Drift, back service.Limits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, was := range b.holds {
		r := service.Resource(i)
		is := now[r].Applied
		if b.begun && was.Set && is.Set && is != was && cgroup.File(r) != "" {
			d := service.Drift{Resource: r, File: cgroup.File(r), Was: was, Is: is}
			drifts = append(drifts, d)
			if repair(d) {
				back[r] = was
			} else {
				b.holds[r] = is
			}
		}
	}
	return drifts, back
}

// Repair sets back what has drifted by set, carefully.
func (b *Baseline) Repair(ctx context.Context, g cgroup.Group, repair func(service.Drift) bool, set func(context.Context, service.Limits) error) ([]service.Drift, error) {
	now, err := g.Limits(service.Limits{})
	if err != nil {
		return nil, err
	}
	drifts, back := b.Drifts(now, repair)
	if back == (service.Limits{}) {
		return drifts, nil
	}
	return drifts, g.Lower(ctx, back, func(ctx context.Context) error { return set(ctx, back) })
}
