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
	if unit := r.Unit(); unit == service.Devices || unit == service.Weights {
		b.holds[r] = cgroup.Numbered(r, is)
	}
	if !asked.Set || !is.Set || cgroup.File(r) == "" {
		return
	}
	if kept := cgroup.Kept(r, asked); kept.Set {
		b.holds[r] = kept
	}
}

// Drifts are the limits that are not what they are to be, and back is what to set of
// them by the answers.
func (b *Baseline) Drifts(now service.Applied, answer func(service.Drift) service.OnDrift) (drifts []service.Drift, back service.Limits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, was := range b.holds {
		r, is := service.Resource(i), now[i].Applied
		if !b.begun || !was.Set || !is.Set || is == was || cgroup.File(r) == "" {
			continue
		}
		d := service.Drift{Resource: r, File: cgroup.File(r), Was: was, Is: is}
		drifts = append(drifts, d)
		switch answer(d) {
		case service.DriftBack:
			back[r] = was
		case service.DriftStays:
			b.holds[r] = is
		}
	}
	return drifts, back
}

// Repair sets back what has drifted by set, carefully; explain says why that could not be
// done. A memory_max that does not fit keeps none of the others from it.
func (b *Baseline) Repair(ctx context.Context, g cgroup.Group, answer func(service.Drift) service.OnDrift,
	set func(context.Context, service.Limits) error, explain func(error) error) ([]service.Drift, error) {
	now, err := g.Limits(service.Limits{})
	if err != nil {
		return nil, explain(err)
	}
	drifts, back := b.Drifts(now, answer)
	top := service.Limits{service.MemoryMax: back[service.MemoryMax]}
	for _, part := range []service.Limits{back.Without(top), top} {
		if part == (service.Limits{}) {
			continue
		}
		err := g.Lower(ctx, part, func(ctx context.Context) error { return set(ctx, part) })
		if err == nil {
			continue
		}
		for i := range drifts {
			if part[drifts[i].Resource].Set {
				drifts[i].Fault = explain(err)
			}
		}
	}
	return drifts, nil
}
