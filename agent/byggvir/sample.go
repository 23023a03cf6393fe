package byggvir

import (
	"context"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// longest is the most time between two looks for what was used in between to be put
// down to the step of the later one.
const longest = time.Minute

// rest is how many times as long as a round of readings takes passes before the next
// at least: where there are no cgroups each is a look at all processes of the host.
const rest = 10

// used is the latest reading of an incarnation for its history.
type used struct {
	at time.Time
	service.Usage
}

// unused is the usage of an incarnation that has just begun.
func unused() (u service.Usage) {
	zero := service.Of(0)
	u.MemoryPeak, u.PidsPeak, u.OOMKills, u.Periods, u.ThrottledPeriods = zero, zero, zero, zero, zero
	u.IO.ReadBytes, u.IO.WriteBytes = zero, zero
	u.MemoryPressure.Some.Set, u.CPUPressure.Some.Set, u.IOPressure.Some.Set = true, true, true
	return u
}

// sample has those read that are due for their histories, on a goroutine of its own:
// there are many files, and the kernel's news do not wait for them. Who are not read by
// the next time are read once for both.
func (m *Monitor) sample(ctx context.Context, due []*watch) {
	if len(due) == 0 || !m.sampling.CompareAndSwap(false, true) {
		return
	}
	m.samplers.Go(func() {
		defer m.sampling.Store(false)
		began := time.Now()
		defer func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.rested = began.Add(rest * time.Since(began))
		}()
		for _, w := range due {
			if ctx.Err() != nil {
				return
			}
			w.sample(ctx)
		}
	})
}

// sampleEnd has the history know what an incarnation used at its very end: of one that
// was killed for want of memory nothing else tells it.
func (m *Monitor) sampleEnd(w *watch) {
	m.mu.Lock()
	remains := w.remains
	m.mu.Unlock()
	if m.cfg.History == nil || remains == nil || remains.Lost {
		return
	}
	if s, known := m.cfg.Status(w.name); known && m.cfg.History.wants(s) {
		m.samplers.Go(func() { w.sampleEnd(remains.Usage) })
	}
}

func (w *watch) sampleEnd(u service.Usage) {
	w.reading.Lock()
	defer w.reading.Unlock()
	w.over = true
	passed := time.Since(w.used.at)
	if w.used.at.IsZero() || passed > longest { // nobody knows what was before, or when
		return
	}
	// What there is, is what there was before it ended.
	u.Memory, u.Inactive.Value = w.used.Memory, max(u.Inactive.Value, w.used.Inactive.Value)
	if w.used.Pids.Set {
		u.Pids = w.used.Pids
	}
	c := there(w.used.Usage, u)
	c.since(w.used.Usage, u, passed)
	if passed < shortest {
		c.CPUPeak = 0 // of so little it says nothing
	}
	w.monitor.cfg.History.add(w.name, c)
}

func (w *watch) sample(ctx context.Context) {
	w.reading.Lock()
	defer w.reading.Unlock()
	u, err := w.subject.Usage(ctx)
	if err != nil || w.over {
		return // it is ending
	}
	now := time.Now()
	passed := now.Sub(w.used.at)
	if passed < shortest {
		return
	}
	if passed > longest { // nobody knows when in between it was
		w.used = used{}
	}
	c := there(w.used.Usage, u)
	if !w.used.at.IsZero() {
		c.since(w.used.Usage, u, passed)
	}
	w.used = used{now, u}
	w.monitor.cfg.History.add(w.name, c)
}

// there is a cell of what there is now. What the kernel has counted as the most counts
// if it was more before than ever, as it was between the two readings then.
func there(before, now service.Usage) (c cell) {
	if now.Memory > 0 || now.MemoryPeak.Set {
		c.Counted |= countsMemory
		c.Memory, c.MemoryPeak = now.Memory, rise(now.Memory, before.MemoryPeak, now.MemoryPeak)
		c.Held = max(without(now.Memory, now.Inactive.Value), without(c.MemoryPeak, max(before.Inactive.Value, now.Inactive.Value)))
	}
	if now.Pids.Set {
		c.Counted |= countsPids
		c.Pids, c.PidsPeak = uint32(now.Pids.Value), uint32(rise(now.Pids.Value, before.PidsPeak, now.PidsPeak))
	}
	return c
}

// without is what of some memory is no cache that the kernel would take back at no cost.
func without(memory, cache uint64) uint64 { return memory - min(memory, cache) }

// rise is the most there was since a peak was read before.
func rise(now uint64, before, peak service.Quota) uint64 {
	if before.Set && peak.Value > before.Value {
		return max(now, peak.Value)
	}
	return now
}

// since adds to c what was used between two readings of an incarnation.
func (c *cell) since(before, now service.Usage, passed time.Duration) {
	more := func(bit figures, before, now service.Quota) uint64 {
		if !before.Set || !now.Set || now.Value < before.Value {
			return 0
		}
		c.Counted |= bit
		return now.Value - before.Value
	}
	of := func(d time.Duration, set bool) service.Quota {
		return service.Quota{Value: uint64(d.Microseconds()), Set: set}
	}
	c.Covered = uint64(passed.Microseconds())
	c.CPU = more(countsCPU, of(before.CPUTime, true), of(now.CPUTime, true))
	c.CPUPeak = float32(percentOf(float64(c.CPU), float64(c.Covered)))
	c.ReadBytes = more(countsIO, before.IO.ReadBytes, now.IO.ReadBytes)
	c.WriteBytes = more(countsIO, before.IO.WriteBytes, now.IO.WriteBytes)
	c.Periods = uint32(more(countsPeriods, before.Periods, now.Periods))
	c.Throttled = uint32(more(countsPeriods, before.ThrottledPeriods, now.ThrottledPeriods))
	c.OOMKills = uint32(more(countsOOM, before.OOMKills, now.OOMKills))
	was := [...]service.Pressure{before.MemoryPressure, before.CPUPressure, before.IOPressure}
	for p, is := range [...]service.Pressure{now.MemoryPressure, now.CPUPressure, now.IOPressure} {
		c.Stalled[p] = more(countsPressure<<p, of(was[p].Some.Total, was[p].Some.Set), of(is.Some.Total, is.Some.Set))
	}
}
