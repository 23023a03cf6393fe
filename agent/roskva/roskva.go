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

// Reporter is told every verdict.
type Reporter func(name service.Name, health service.Health)

// Roskva runs the checks. Its methods may be called by many goroutines at once.
type Roskva struct {
	report Reporter
	wg     sync.WaitGroup
}

// New returns a Roskva that tells report of every health check's outcome.
// report must not block.
func New(report Reporter) *Roskva { return &Roskva{report: report} }

// Close waits for the checks; whoever called Attend has to leave first.
func (r *Roskva) Close() { r.wg.Wait() }

// Await returns nil as soon as the check succeeds, or an error when ctx ends.
func (r *Roskva) Await(ctx context.Context, check service.Check) error {
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		once, cancel := context.WithTimeout(ctx, lastRetry)
		err := Ask(once, check)
		cancel()
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
// is called. unhealthy is called once, when Threshold checks in a row failed.
func (r *Roskva) Attend(name service.Name, check service.Check, unhealthy func()) (leave func()) {
	if check.Type == service.CheckProcess {
		r.report(name, service.Health{Status: service.Healthy, Strategy: check.Type, Message: "the main process runs", LastCheck: time.Now()})
		return func() { r.report(name, service.Health{Strategy: check.Type, Message: "it does not run"}) }
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.wg.Go(func() {
		r.attend(ctx, name, check, unhealthy)
		r.report(name, service.Health{Strategy: check.Type, Message: "it does not run"})
	})
	return cancel
}

func (r *Roskva) attend(ctx context.Context, name service.Name, check service.Check, unhealthy func()) {
	health := service.Health{Status: service.Checking, Strategy: check.Type, Message: "first check under way", NextCheck: time.Now()}
	r.report(name, health)
	ticker := time.NewTicker(check.Interval)
	defer ticker.Stop()
	for {
		once, cancel := context.WithTimeout(ctx, check.Timeout)
		err := Ask(once, check)
		cancel()
		if ctx.Err() != nil {
			return
		}
		health = Judge(health, check, err, time.Now())
		r.report(name, health)
		if health.Status == service.Ill && health.Failures == check.Threshold {
			unhealthy()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Judge is the health after one more check that ended with err. A failure
// below the threshold leaves the status as it was.
func Judge(before service.Health, check service.Check, err error, now time.Time) service.Health {
	after := before
	after.LastCheck, after.NextCheck = now, now.Add(check.Interval)
	if err == nil {
		after.Status, after.Failures, after.Message = service.Healthy, 0, "the check succeeded"
		return after
	}
	after.Failures++
	after.Message = err.Error()
	switch {
	case after.Failures >= check.Threshold:
		after.Status = service.Ill
	case errors.Is(err, context.DeadlineExceeded) && before.Status != service.Healthy:
		after.Status = service.CheckTimedOut
	}
	return after
}
