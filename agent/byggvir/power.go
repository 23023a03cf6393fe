package byggvir

import (
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

const (
	// margin is how many percent the charge has to rise above a threshold to be above.
	margin = 5
	// settled is how long the host has to be on AC before services come back: a plug
	// that is loose shall not start and stop them.
	settled = 10 * time.Second
)

// SlowerChecks is by how much health checks, and looks of the Monitor, are fewer while the battery is reduced or
// low: so many times their interval lies between two.
const SlowerChecks = 4

// PowerPolicy says below which charge, in percent, what is saved. A threshold of 0 is
// never reached.
type PowerPolicy struct {
	StopBelow   int // service.PowerLow
	ReduceBelow int // service.PowerReduced
}

// Battery is how far the battery is saved, and what that was decided by. The zero value
// is that of a host of which nothing is known yet.
type Battery struct {
	Level   service.PowerLevel
	onAC    bool      // and was so at the latest look
	acSince time.Time // then: since when, with its monotonic part
}

// Next decides by how the host is powered now. Less is saved as soon as the charge is
// above a threshold by the margin, or the host was on AC for a while; wait is how long
// to look again if nothing happens, 0 for not at all. Of a host without a battery, or
// whose charge nobody knows, nothing is saved.
func (p PowerPolicy) Next(b Battery, power service.Power, now time.Time) (next Battery, wait time.Duration) {
	if power.Battery && power.Draining {
		return Battery{Level: p.level(b.Level, power.Percent)}, 0
	}
	next = Battery{Level: b.Level, onAC: true, acSince: now}
	if b.onAC {
		next.acSince = b.acSince
	}
	if b.Level == service.PowerFull {
		return next, 0
	}
	if wait = settled - now.Sub(next.acSince); wait > 0 {
		return next, wait
	}
	next.Level = service.PowerFull
	return next, 0
}

// level is the one of a charge that drains, with the level before.
func (p PowerPolicy) level(before service.PowerLevel, percent float64) service.PowerLevel {
	below := func(level service.PowerLevel, threshold int) bool {
		if before >= level && threshold > 0 {
			return percent <= float64(threshold+margin)
		}
		return percent < float64(threshold)
	}
	switch {
	case below(service.PowerLow, p.StopBelow):
		return service.PowerLow
	case below(service.PowerReduced, p.ReduceBelow):
		return service.PowerReduced
	}
	return service.PowerFull
}

// Saves tells whether a service of such a class is stopped at a level.
func Saves(level service.PowerLevel, class service.PowerClass) bool {
	return level == service.PowerLow && class != service.PowerClassEssential
}

// Sacrifice orders services as they are stopped when the battery is low, and leaves out
// those that are not: deferrable before normal, and of a class the lowest priority
// first. They come back in reverse.
func Sacrifice(specs []*service.Spec) []*service.Spec {
	out := slices.DeleteFunc(slices.Clone(specs), func(s *service.Spec) bool { return !Saves(service.PowerLow, s.Power) })
	slices.SortStableFunc(out, func(a, b *service.Spec) int {
		if a.Power != b.Power {
			return int(b.Power) - int(a.Power)
		}
		return a.StartPriority - b.StartPriority
	})
	return out
}
