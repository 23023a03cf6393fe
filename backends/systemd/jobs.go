package systemd

import (
	"sync"

	"github.com/godbus/dbus/v5"
)

// jobEnds tells those who wait for a job of a unit that it has ended. Waiters
// are known by the name of the unit, which they know before the call; the
// job's own path comes with the answer, and the signal may be faster.
//
// An end is news, not proof: it can be lost, come twice, or be of another job.
type jobEnds struct {
	mu      sync.Mutex
	waiting map[string]map[chan jobEnd]struct{}
	held    map[string]*handle // living incarnations by their scopes
}

// jobEnd is how a job has ended: "done", "failed", "canceled", …
type jobEnd struct {
	job    dbus.ObjectPath
	result string
}

const (
	managerInterface = "org.freedesktop.systemd1.Manager"
	jobNew           = "JobNew"
	jobRemoved       = "JobRemoved"
)

// expect returns the ends of the jobs of a unit from now on. Call forget when
// they matter no more.
func (j *jobEnds) expect(unit string) (ends <-chan jobEnd, forget func()) {
	// Nobody waits for two jobs at once; what does not fit adds nothing.
	c := make(chan jobEnd, 4)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.waiting == nil {
		j.waiting = make(map[string]map[chan jobEnd]struct{})
	}
	if j.waiting[unit] == nil {
		j.waiting[unit] = make(map[chan jobEnd]struct{})
	}
	j.waiting[unit][c] = struct{}{}
	return c, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.waiting[unit], c)
		if len(j.waiting[unit]) == 0 {
			delete(j.waiting, unit)
		}
	}
}

// hold has the handle of a scope told of its jobs, until release.
func (j *jobEnds) hold(scope string, h *handle) (release func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.held == nil {
		j.held = make(map[string]*handle)
	}
	j.held[scope] = h
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.held[scope] == h {
			delete(j.held, scope)
		}
	}
}

func (j *jobEnds) holder(scope string) *handle {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.held[scope]
}

// DeliverSignal hands on the beginning and the end of a job. godbus calls it in
// the goroutine that also reads the answers, so signals and answers keep their order.
func (j *jobEnds) DeliverSignal(iface, name string, s *dbus.Signal) {
	if iface != managerInterface || name != jobNew && name != jobRemoved {
		return
	}
	var id uint32
	var end jobEnd
	var unit string
	if name == jobNew {
		if dbus.Store(s.Body, &id, &end.job, &unit) == nil {
			j.holder(unit).jobBegan(end.job)
		}
		return
	}
	if dbus.Store(s.Body, &id, &end.job, &unit, &end.result) == nil {
		j.holder(unit).jobEnded(end.job)
		j.deliver(unit, end)
	}
}

// deliver never blocks: one slow waiter must not hold up the others.
func (j *jobEnds) deliver(unit string, end jobEnd) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for c := range j.waiting[unit] {
		select {
		case c <- end:
		default:
		}
	}
}
