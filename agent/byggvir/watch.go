package byggvir

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// How long violations last at least, and how far below its level a use has to fall for
// a warning to be over, in percent of the limit: so they do not flap.
const (
	hold  = 10 * time.Second
	slack = 5
)

// The window in which pressure is measured: that which the kernel lets everybody have
// (Documentation/accounting/psi.rst). For a trigger of who has CAP_SYS_RESOURCE it has a
// thread in each cgroup, so there is none that nobody asked for.
const pressureWindow = 2 * time.Second

// What a livelock is: all tasks held up for most of each window, for so long, while the
// memory stays near memory_high.
const (
	livelockShare = pressureWindow / 2
	livelockAfter = 10 * time.Second
	livelockLevel = 90 // percent of memory_high
)

// watch is what the Monitor knows of one incarnation.
type watch struct {
	monitor     *Monitor
	name        service.Name
	incarnation uint64
	subject     Subject

	// With the monitor's lock.
	due     time.Time
	left    bool
	remains *service.Remains // then
	// Whether it is read for its history, and when.
	remembered bool
	sampleDue  time.Time
	news       bool                        // the kernel has counted something
	pushed     [service.NumViolations]bool // by pressure, since the last look
	stirred    bool                        // a signal may have stopped it, or it goes on

	reading sync.Mutex // for the history; of what follows
	used    used
	over    bool // and what it left is in it

	// Of the monitor's goroutine.
	opened     bool
	deaf       error // why the kernel is not heard, as it was told
	leaveHear  func()
	presses    [service.NumViolations]press
	gauge      backends.Gauge
	last       seen
	need       uint64  // bytes of memory; where that is near a level without the cache
	rate       float64 // CPU time, in microseconds per second
	heldBack   bool    // since the reading before
	tally      *service.Tally
	lasting    service.Violations               // since when
	there      [service.NumViolations]bool      // at the last look
	latest     [service.NumViolations]time.Time // when the reason was last seen
	period     time.Duration                    // to the next look
	reins      [service.NumViolations]rein
	looked     time.Time // at the last look
	broken     time.Time // when a livelock was last broken
	ended      bool      // it was ordered to be stopped
	pressed    time.Time // when all of it was last held up for memory
	stuck      time.Time // since when that is so in each window
	stuckCount uint64    // how often memory_high was hit by then
	hang       hang
}

// press is a pressure that is watched, at a level.
type press struct {
	share time.Duration
	leave func()
}

// seen is a gauge as it was read at a time.
type seen struct {
	at time.Time
	service.Gauge
}

// look reads what the kernel tells, judges, and says when to look again.
func (w *watch) look(now time.Time) {
	m := w.monitor
	m.mu.Lock()
	news, pushed, stirred := w.news, w.pushed, w.stirred
	w.news, w.pushed, w.stirred = false, [service.NumViolations]bool{}, false
	m.mu.Unlock()
	w.takeUp()                           // before the status is read, which tells what was done
	period, remembered := soonest, false // it is about to be known, or to leave
	s, known := m.cfg.Status(w.name)
	switch {
	case !known || s.Machine.Incarnation != w.incarnation || !s.Machine.State.Alive():
	case s.Machine.Frozen: // nothing is its doing
		w.last, w.rate, period = seen{}, 0, latest
		w.calm()
	default:
		first := !w.opened
		w.listen(s)
		w.yield(s)
		w.measure(s, now)
		w.judge(s, now, news || first, pushed)
		w.climb(s, now, now.Sub(w.looked))
		w.standstill(s, now, stirred)
		if period = w.soon(s); s.Machine.State != service.Running {
			period = soonest // it is about to run, and then may hang
		}
		remembered = m.cfg.History != nil && m.cfg.History.wants(s)
	}
	w.period, w.looked = period, now
	m.mu.Lock()
	defer m.mu.Unlock()
	if remembered && !w.remembered {
		w.sampleDue = now
	}
	w.remembered = remembered
	if period > soonest {
		period *= time.Duration(m.slower)
	}
	w.due = m.grid(now, period)
	if w.news || w.stirred || w.pushed != [service.NumViolations]bool{} {
		w.due = now.Add(gather)
	}
}

// hasten has it looked at soon, because of news. The caller holds the monitor's lock.
func (w *watch) hasten() {
	if soon := time.Now().Add(gather); soon.Before(w.due) {
		w.due = soon
	}
}

// listen opens what news come from, as far as it is not open. Where the kernel tells
// nothing there is nothing to judge.
func (w *watch) listen(s *service.Status) {
	if !w.opened {
		var err error
		w.leaveHear, err = w.subject.Hear(func(file string) {
			if file != "memory.events" && file != "pids.events" && file != "" {
				return
			}
			w.monitor.mu.Lock()
			w.news = true
			w.hasten()
			w.monitor.mu.Unlock()
			w.monitor.wake()
		})
		w.opened = w.hears(err)
	}
	for p, level := range s.Warnings.Pressure {
		of := service.PressureOf(p)
		w.press(service.PressedBy(of), of, false, time.Duration(level*float64(pressureWindow)/100))
	}
	guard := time.Duration(0)
	if bounded(s.Applied[service.MemoryHigh].Applied) { // that of a cgroup above is not for it to live by
		guard = livelockShare
	}
	w.press(service.Livelock, service.MemoryPressure, true, guard)
}

func (w *watch) press(v service.Violation, of service.PressureOf, full bool, share time.Duration) {
	p := &w.presses[v]
	if p.share == share {
		return
	}
	if p.leave != nil {
		p.leave()
	}
	*p = press{share: share}
	if share == 0 {
		return
	}
	leave, err := w.subject.Press(of, full, share, pressureWindow, func() {
		w.monitor.mu.Lock()
		w.pushed[v] = true
		w.hasten()
		w.monitor.mu.Unlock()
		w.monitor.wake()
	})
	if w.hears(err) {
		p.leave = leave
	} else {
		*p = press{} // at the next look
	}
}

// hears tells, once of each reason, why the kernel can not be heard; where it never tells
// there is nothing to be heard.
func (w *watch) hears(err error) bool {
	if err == nil || errors.Is(err, backends.ErrDeaf) {
		return true
	}
	if errors.Is(err, fs.ErrNotExist) || service.KindOf(err) == service.NotRunning {
		return false // it is ending
	}
	if w.deaf == nil || w.deaf.Error() != err.Error() {
		w.deaf = err
		w.monitor.cfg.Deaf(w.name, err)
	}
	return false
}

// bounded tells whether a quota bounds anything.
func bounded(q service.Quota) bool { return q.Set && q.Value != service.Unlimited }

// measured tells which levels there are to compare use with.
func measured(s *service.Status) (memory, cpu bool) {
	return s.Warnings.Memory > 0 && bounded(s.Applied[service.MemoryMax].Effective),
		s.Warnings.CPU > 0 && bounded(s.Applied[service.CPUMax].Effective)
}

func (w *watch) measure(s *service.Status, now time.Time) {
	memory, cpu := measured(s)
	if !memory && !cpu && w.presses[service.Livelock].share == 0 {
		return
	}
	if !w.gauged() {
		return
	}
	g, err := w.gauge.Read()
	if err != nil {
		return // it is ending
	}
	switch passed := now.Sub(w.last.at); {
	case w.last.at.IsZero():
	case passed < shortest:
		g.CPUTime, g.Periods, g.ThrottledPeriods, now = w.last.CPUTime, w.last.Periods, w.last.ThrottledPeriods, w.last.at
	default:
		w.rate = float64(g.CPUTime-w.last.CPUTime) / float64(passed) * float64(time.Second/time.Microsecond)
	}
	w.heldBack = g.ThrottledPeriods.Value > w.last.ThrottledPeriods.Value && !w.last.at.IsZero()
	w.last = seen{now, g}
	w.need = g.Memory.Value
	if top := s.Applied[service.MemoryMax].Effective; memory && percentOf(float64(w.need), float64(top.Value)) >= s.Warnings.Memory-slack {
		w.need -= min(w.need, w.cache())
	}
}

// gauged tells whether there is a gauge.
func (w *watch) gauged() bool {
	if w.gauge == nil {
		var err error
		if w.gauge, err = w.subject.Gauge(); err != nil {
			w.gauge = nil
		}
	}
	return w.gauge != nil
}

// cache is how many bytes of its memory it does not miss when they are taken back.
func (w *watch) cache() uint64 {
	c, err := w.gauge.Cache()
	if err != nil { // it is ending
		return 0
	}
	return c.Value
}

// ample tells whether it has page cache to give back at its own memory_max: then to run
// into that harms nothing, and whoever reads large files does so all the time.
func (w *watch) ample(s *service.Status) bool {
	top := s.Applied[service.MemoryMax].Applied
	return bounded(top) && w.gauged() && percentOf(float64(w.cache()), float64(top.Value)) >= slack
}

// judge finds out which violations there are.
func (w *watch) judge(s *service.Status, now time.Time, news bool, pushed [service.NumViolations]bool) {
	var hit hits
	if news || pushed[service.Livelock] {
		hit = w.count()
	}
	memory, cpu := measured(s)
	top := s.Applied[service.MemoryMax].Effective
	part := percentOf(float64(w.need), float64(top.Value))
	w.mark(service.MemoryWarning, now, memory && part >= w.level(service.MemoryWarning, s.Warnings.Memory), !memory || part < s.Warnings.Memory-slack, func() string {
		return fmt.Sprintf("%s of memory, %.0f%% of %s", service.FormatSize(w.need), part, service.MemoryMax.Format(top))
	})
	quota := w.quota(s)
	share := percentOf(w.rate, float64(quota.Value))
	busy := func() string {
		return fmt.Sprintf("%.1f%% of a core, %.0f%% of %s", w.rate/service.UsecPerPercent, share, service.CPUMax.Format(quota))
	}
	w.mark(service.CPUWarning, now, cpu && share >= w.level(service.CPUWarning, s.Warnings.CPU), !cpu || share < s.Warnings.CPU-slack, busy)
	held := cpu && w.heldBack && share >= 100-slack
	w.mark(service.CPUExceeded, now, held, !held, busy)
	w.mark(service.MemoryExceeded, now, hit.oom || hit.memory && !w.ample(s), true, func() string {
		return "it ran into " + service.MemoryMax.Format(top)
	})
	w.mark(service.PidsExceeded, now, hit.pids, true, func() string {
		return "forks were refused at " + service.PidsMax.Format(s.Applied[service.PidsMax].Effective)
	})
	for p, level := range s.Warnings.Pressure {
		v := service.PressedBy(service.PressureOf(p))
		w.mark(v, now, pushed[v], true, func() string {
			return fmt.Sprintf("some of it was held up for %v%% of the time", level)
		})
	}
	w.mark(service.Livelock, now, w.livelocked(s, now, pushed[service.Livelock]), true, func() string {
		return fmt.Sprintf("held up at memory_high %s for %v, with %s in use", service.MemoryHigh.Format(s.Applied[service.MemoryHigh].Effective),
			now.Sub(w.stuck).Round(time.Second), service.FormatSize(w.last.Memory.Value))
	})
}

// level is where a warning begins: what is held back to its level hovers there.
func (w *watch) level(v service.Violation, percent float64) float64 {
	if w.reins[v].throttled() {
		return percent - slack
	}
	return percent
}

// quota is the CPU time that it may have, or might before it was throttled.
func (w *watch) quota(s *service.Status) service.Quota {
	if r := &w.reins[service.CPUWarning]; r.throttled() {
		return r.base
	}
	return s.Applied[service.CPUMax].Effective
}

func percentOf(used, limit float64) float64 {
	if limit <= 0 {
		return 0
	}
	return 100 * used / limit
}

// hits are the limits that were run into.
type hits struct{ memory, oom, pids bool }

// count finds out which limits were run into since the count before. Of one that was
// taken up nobody knows what was before.
func (w *watch) count() (hit hits) {
	t, err := w.subject.Tally()
	if err != nil {
		return hit
	}
	if w.tally != nil {
		hit.memory, hit.oom = t.MemoryMax.Value > w.tally.MemoryMax.Value, t.OOM.Value > w.tally.OOM.Value
		hit.pids = t.PidsMax.Value > w.tally.PidsMax.Value
	}
	w.tally = &t
	return hit
}

// livelocked tells whether all tasks were held up for memory in each window for a while,
// and memory_high is what holds them up.
func (w *watch) livelocked(s *service.Status, now time.Time, pushed bool) bool {
	high := s.Applied[service.MemoryHigh].Applied
	if !pushed || !bounded(high) {
		return false
	}
	before := w.pressed
	w.pressed = now
	if now.Sub(before) > 3*pressureWindow { // without CAP_SYS_RESOURCE every other window is not told
		w.stuck, w.stuckCount = now, w.highs()
		return false
	}
	if now.Sub(w.stuck) < livelockAfter {
		return false
	}
	return w.highs() > w.stuckCount && w.last.Memory.Value >= high.Value/100*livelockLevel
}

func (w *watch) highs() uint64 {
	if w.tally == nil {
		return 0
	}
	return w.tally.MemoryHigh.Value
}

// mark notes whether a violation is there, and tells when it begins and when it is over:
// when it was not there for a while.
func (w *watch) mark(v service.Violation, now time.Time, there, gone bool, detail func() string) {
	since := &w.lasting[v]
	w.there[v] = there
	switch {
	case there:
		w.latest[v] = now
		if since.IsZero() {
			*since = now
			w.tell(News{Violation: v, Began: now, Detail: detail()})
		}
	case !gone:
		w.latest[v] = now
	case !since.IsZero() && now.Sub(w.latest[v]) >= hold:
		lasted := now.Sub(*since).Round(time.Second)
		*since = time.Time{}
		w.tell(News{Violation: v, Detail: fmt.Sprintf("after %v", lasted)})
	}
}

func (w *watch) tell(n News) {
	n.Service, n.Incarnation = w.name, w.incarnation
	w.monitor.cfg.Tell(n)
}

// soon is how long to wait for the next look. Nothing has to be looked at again of what
// the kernel tells by itself.
func (w *watch) soon(s *service.Status) time.Duration {
	if w.hang.uncertain() || slices.ContainsFunc(w.lasting[:], func(t time.Time) bool { return !t.IsZero() }) || slices.ContainsFunc(w.reins[:], func(r rein) bool { return r.throttled() }) {
		return soonest
	}
	memory, cpu := measured(s)
	if !memory && !cpu {
		return latest
	}
	near := 0.0 // how much of the way to a level it has gone
	if memory {
		near = percentOf(float64(w.need), float64(s.Applied[service.MemoryMax].Effective.Value)) / s.Warnings.Memory
	}
	if cpu {
		near = max(near, percentOf(w.rate, float64(w.quota(s).Value))/s.Warnings.CPU)
	}
	return min(patience(near), 2*w.period)
}

// patience is longer the further it is to a level: a power of two, so that many are
// looked at together.
func patience(near float64) time.Duration {
	left := uint(math.Ceil(max(0, 1-near) * float64(latest/soonest)))
	return soonest << (bits.Len(max(left, 1)) - 1)
}

// close lets go of everything.
func (w *watch) close() {
	if w.leaveHear != nil {
		w.leaveHear()
	}
	if w.hang.forget != nil {
		w.hang.forget()
	}
	for _, p := range w.presses {
		if p.leave != nil {
			p.leave()
		}
	}
	if w.gauge != nil {
		_ = w.gauge.Close() // it was only read
	}
}
