package roskva

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// patient is one incarnation that is checked. What is not said to be fixed goes with
// Roskva.mu.
type patient struct {
	name      service.Name // fixed, as are the next eight
	check     service.Check
	ask       question
	server    *server // who is asked, nil for nobody
	excuse    func() error
	unhealthy func()
	began     time.Time
	ctx       context.Context // ends when it is left
	cancel    context.CancelFunc

	talk    *talk     // in which it is asked, if it is by one
	place   int       // in the queue, nowhere while it is asked
	due     time.Time // when it is to be asked
	asked   time.Time // when the last answer came, zero for never
	wait    time.Duration
	regular time.Time // when it would have been asked, had nobody wanted it now
	beat    time.Time // when it last said that it is well, with a watchdog
	left    bool
	health  service.Health
	chart   chart
	waiting []chan<- service.Health // for the next answer
}

// answer tells those who wait how it is; nothing when it is left.
func (p *patient) answer() {
	for _, waiting := range p.waiting {
		if !p.left {
			waiting <- p.health
		}
		close(waiting)
	}
	p.waiting = nil
}

// tooLate is how long we may sleep during a question whose answer is to count
// against the service: while we are not there, others may give us up.
const tooLate = time.Second

// Judge is the health after one more check that ended with err now, of an incarnation
// that is checked for so long, and during which we slept for so long. A failure below
// the threshold leaves the status as it was; one that may be our own sleep's does not
// count, nor one that is not the service's, nor does one in the start period of what has not been healthy yet.
func Judge(before service.Health, check service.Check, err error, slept time.Duration, now time.Time, age time.Duration) service.Health {
	after := before
	after.LastCheck = now
	switch {
	case err == nil:
		after.Failures = 0
		after.Successes++
		after.Message = "the check succeeded"
		if want := max(check.SuccessThreshold, 1); before.Status == service.Healthy || after.Successes >= want {
			after.Status = service.Healthy
		} else {
			after.Message = fmt.Sprintf("the check succeeded, %d times of %d in a row", after.Successes, want)
		}
		return after
	case errors.As(err, &excused{}): // checks begin anew
		after.Status, after.Failures, after.Successes, after.Message = service.Checking, 0, 0, err.Error()
		return after
	case slept > tooLate:
		after.Message = "the agent was held up during the check"
		return after
	case notItsDoing(err):
		after.Message = "it could not be asked: " + err.Error()
		return after
	case before.Status == service.Checking && age < check.StartPeriod:
		after.Successes = 0
		after.Message = fmt.Sprintf("it may still be starting (start_period %v): %v", check.StartPeriod, err)
		return after
	}
	after.Successes = 0
	after.Failures++
	after.Message = err.Error()
	switch {
	case after.Failures < check.Threshold:
	case errors.Is(err, context.DeadlineExceeded):
		after.Status = service.CheckTimedOut
	default:
		after.Status = service.Ill
	}
	return after
}

// excused is a failure of what can not be well, for a reason that is known.
type excused struct{ why error }

func (e excused) Error() string { return "it is not judged: " + e.why.Error() }

// notItsDoing tells whether a check came to nothing before the service was asked: for want
// of something of the host or of ours, since it is frozen, or since it ends anyway.
func notItsDoing(err error) bool {
	for _, lack := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ENOSPC, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, lack) {
			return true
		}
	}
	switch service.KindOf(err) {
	case service.HostUnavailable, service.Conflict, service.NotRunning:
		return true
	}
	return false
}

// kept is how many checks of an incarnation are remembered.
const kept = 64

// chart holds the latest checks of one incarnation; it grows as it needs to.
type chart struct {
	probes []service.Probe
	oldest int // once there are as many as are kept
}

func (c *chart) add(p service.Probe) {
	if len(c.probes) < kept {
		c.probes = append(c.probes, p)
		return
	}
	c.probes[c.oldest] = p
	c.oldest = (c.oldest + 1) % kept
}

// all lists them, the latest last.
func (c *chart) all() []service.Probe {
	return append(append([]service.Probe{}, c.probes[c.oldest:]...), c.probes[:c.oldest]...)
}

// queue is a heap (container/heap) of those that wait to be asked, by when that is due.
type queue []*patient

// nowhere is the place of one that is not in the queue.
const nowhere = -1

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push is heap.Interface's.
func (q *queue) Push(x any) {
	p := x.(*patient)
	p.place = len(*q)
	*q = append(*q, p)
}

// Pop is heap.Interface's.
func (q *queue) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	(*q)[last], *q = nil, (*q)[:last]
	p.place = nowhere
	return p
}
