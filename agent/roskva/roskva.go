// Package roskva asks services how they are: whether they are ready after a
// launch, and whether they are well while they run. A check of type process
// costs nothing, since the kernel tells of an end by itself; every other check
// is one goroutine per running incarnation, ended by its owner.
package roskva

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Between two questions whether a starting service is ready.
const (
	firstRetry = 20 * time.Millisecond
	lastRetry  = time.Second
)

// readyAnswer is how long the answer to one of them may take.
const readyAnswer = 5 * time.Second

// tooLate is how long we may sleep during a question whose answer is to count
// against the service: while we are not there, others may give us up.
const tooLate = time.Second

// Reporter is told every verdict.
type Reporter func(name service.Name, health service.Health)

// Roskva runs the checks. Its methods may be called by many goroutines at once.
type Roskva struct {
	report Reporter
	wg     sync.WaitGroup

	mu     sync.Mutex
	slower int           // times its interval lie between two health checks
	paced  chan struct{} // closed when that changes
}

// New returns a Roskva that tells report of every health check's outcome.
// report must not block.
func New(report Reporter) *Roskva {
	return &Roskva{report: report, slower: 1, paced: make(chan struct{})}
}

// Slow has health checks be so many times their interval apart, at once; 1 is as they
// are defined. Readiness is asked for as ever.
func (r *Roskva) Slow(times int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if times != r.slower {
		r.slower = times
		close(r.paced)
		r.paced = make(chan struct{})
	}
}

// pace is by how much health checks are slower, and tells when that changes.
func (r *Roskva) pace() (times int, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.slower, r.paced
}

// Close waits for the checks; whoever called Attend has to leave first.
func (r *Roskva) Close() { r.wg.Wait() }

// Await returns nil as soon as the check succeeds, or an error when ctx ends.
func (r *Roskva) Await(ctx context.Context, check service.Check) error {
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		once, vigil := awake(ctx, readyAnswer)
		err := Ask(once, check)
		vigil.leave()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-time.After(retry):
		}
	}
}

// Attend checks one incarnation at every interval until the returned function
// is called, which tells why it is not checked any more; after that nothing is told of
// it. unhealthy is called once,
// when Threshold checks in a row failed.
func (r *Roskva) Attend(name service.Name, check service.Check, unhealthy func()) (leave func(why string)) {
	var mu sync.Mutex // held while telling, so that the last word is the last
	left := false
	tell := func(h service.Health) {
		mu.Lock()
		defer mu.Unlock()
		if !left {
			r.report(name, h)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	if check.Type == service.CheckProcess {
		tell(service.Health{Status: service.Healthy, Strategy: check.Type, Message: "the main process runs", LastCheck: time.Now()})
	} else {
		r.wg.Go(func() { r.attend(ctx, check, tell, unhealthy) })
	}
	return func(why string) {
		cancel()
		mu.Lock()
		defer mu.Unlock()
		if !left {
			left = true
			r.report(name, service.Health{Strategy: check.Type, Message: why})
		}
	}
}

func (r *Roskva) attend(ctx context.Context, check service.Check, tell func(service.Health), unhealthy func()) {
	health := service.Health{Status: service.Checking, Strategy: check.Type, Message: "first check under way", NextCheck: time.Now()}
	tell(health)
	wait := time.NewTimer(check.Interval)
	defer wait.Stop()
	for {
		once, vigil := awake(ctx, check.Timeout)
		err := Ask(once, check)
		slept := vigil.leave()
		if ctx.Err() != nil {
			return
		}
		times, paced := r.pace()
		wait.Reset(time.Duration(times) * check.Interval)
		before, asked := health.Failures, time.Now()
		health = Judge(health, check, err, slept, asked)
		health.NextCheck = asked.Add(time.Duration(times) * check.Interval)
		tell(health)
		if health.Failures > before && health.Failures == check.Threshold {
			unhealthy()
		}
		for due := false; !due; {
			select {
			case <-ctx.Done():
				return
			case <-paced:
				times, paced = r.pace()
				health.NextCheck = asked.Add(time.Duration(times) * check.Interval)
				wait.Reset(time.Until(health.NextCheck))
				tell(health)
			case <-wait.C:
				due = true
			}
		}
	}
}

// Judge is the health after one more check that ended with err now, and during
// which we slept for so long. A failure below the threshold leaves the status
// as it was; one that may be our own sleep's does not count.
func Judge(before service.Health, check service.Check, err error, slept time.Duration, now time.Time) service.Health {
	after := before
	after.LastCheck, after.NextCheck = now, now.Add(check.Interval)
	switch {
	case err == nil:
		after.Status, after.Failures, after.Message = service.Healthy, 0, "the check succeeded"
		return after
	case slept > tooLate:
		after.Message = "the agent was held up during the check"
		return after
	}
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
