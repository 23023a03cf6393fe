package roskva

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// onItsWay is how long a word that was said in time may take to be heard.
const onItsWay = 250 * time.Millisecond

// watched is a check that asks nobody, and fails when its service has said nothing in an
// interval. Who says nothing once has failed.
func watched(check service.Check) service.Check {
	check.Threshold, check.SuccessThreshold, check.StartPeriod = 1, 1, 0
	return check
}

func silence(check service.Check) question {
	return func(ctx context.Context) error {
		select {
		case <-time.After(onItsWay):
		case <-ctx.Done():
		}
		return fmt.Errorf("it has not said WATCHDOG=1 within %v", check.Interval)
	}
}

// watchdog finds the patient of a name whose check is a watchdog, nil if there is none. The
// caller holds mu.
func (r *Roskva) watchdog(name service.Name) *patient {
	if p := r.patients[name]; p != nil && p.check.Type == service.CheckWatchdog {
		return p
	}
	return nil
}

// Beat takes that a service has said that it is well (WATCHDOG=1): its interval begins anew.
func (r *Roskva) Beat(name service.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.watchdog(name)
	if p == nil {
		return
	}
	p.beat = time.Now()
	if p.place != nowhere { // else it is asked now, and that is its answer
		r.hear(p, p.beat, nil, 0)
	}
}

// Trigger takes that a service has said that it is not (WATCHDOG=trigger).
func (r *Roskva) Trigger(name service.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.watchdog(name)
	if p != nil && p.place != nowhere && r.hear(p, time.Now(), errors.New("it said WATCHDOG=trigger"), 0) {
		r.wg.Go(p.unhealthy) // which may have to wait for who tells us
	}
}

// hear takes what a watchdog's service said, or that it said nothing, and tells whether that
// makes it unhealthy. The caller holds mu.
func (r *Roskva) hear(p *patient, began time.Time, err error, slept time.Duration) (unhealthy bool) {
	before := p.health
	p.asked = time.Now()
	p.health = Judge(before, p.check, err, slept, p.asked, p.asked.Sub(p.began))
	p.health.Failed = err != nil
	if err == nil {
		p.health.Message = "it said WATCHDOG=1"
	}
	if err != nil || before.Status != p.health.Status { // else there would be nothing but beats
		p.chart.add(service.Probe{At: began, Took: p.asked.Sub(began), Status: p.health.Status, Failed: err != nil, Message: p.health.Message})
	}
	from := p.asked
	if err == nil {
		from = p.beat
	}
	r.plan(p, from.Add(p.check.Interval))
	r.report(p.name, p.health)
	return p.health.Failures > before.Failures && p.health.Failures == p.check.Threshold
}
