package systemd

import (
	"sync"

	"github.com/godbus/dbus/v5"
)

// jobEnds tells those who wait for a job of a unit that it has ended. Waiters
// are known by the name of the unit, which they know before the call; the
// job's own number comes with the answer, and the signal may be faster.
//
// An end is news, not proof: it can be lost, come twice, or be of another job.
type jobEnds struct {
	mu      sync.Mutex
	waiting map[string]map[chan string]struct{}
}

// expect returns the results of the jobs of a unit that end from now on. Call
// forget when they matter no more.
func (j *jobEnds) expect(unit string) (results <-chan string, forget func()) {
	// Nobody waits for two jobs at once; what does not fit adds nothing.
	c := make(chan string, 4)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.waiting == nil {
		j.waiting = make(map[string]map[chan string]struct{})
	}
	if j.waiting[unit] == nil {
		j.waiting[unit] = make(map[chan string]struct{})
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

// read hands on what comes in, until the connection is closed.
func (j *jobEnds) read(signals <-chan *dbus.Signal) {
	for s := range signals {
		if s.Name != "org.freedesktop.systemd1.Manager.JobRemoved" {
			continue
		}
		var id uint32
		var job dbus.ObjectPath
		var unit, result string
		if dbus.Store(s.Body, &id, &job, &unit, &result) == nil {
			j.deliver(unit, result)
		}
	}
}

// deliver never blocks: one slow waiter must not hold up the others.
func (j *jobEnds) deliver(unit, result string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for c := range j.waiting[unit] {
		select {
		case c <- result:
		default:
		}
	}
}
