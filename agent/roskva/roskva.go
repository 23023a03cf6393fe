// Package roskva asks services how they are: whether they are ready after a
// launch, and whether they are well while they run. A check of type process
// costs nothing, since the kernel tells of an end by itself; all others wait in
// one queue with one timer, and no more than a bounded number is under way at once.
package roskva

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/vigil"
	"github.com/gladsheim/gladsheim/watch"
)

// Between two questions whether a starting service is ready.
const (
	firstRetry = 20 * time.Millisecond
	lastRetry  = time.Second
)

// readyAnswer is how long the answer to one of them may take.
const readyAnswer = 5 * time.Second

// atOnce is how many health checks are under way at most; the others wait for their
// turn, the longest due first.
const atOnce = 256

// jitter is by how much of its interval a check comes sooner or later, at most:
// services that were started together are not asked together for ever.
const jitter = 0.1

// Checks that are a second or more apart are due at whole grains of time, so that many
// are begun at one wake of this process, which costs more than to begin one.
const grain = 50 * time.Millisecond

// A crowd of talks is looked at again shortly after it was begun.
const (
	crowd   = 16
	shortly = 5 * time.Millisecond
)

// Reporter is told every verdict.
type Reporter func(name service.Name, health service.Health)

// Exec runs the program of an exec check beside the service; nil says that it has
// ended well. When ctx ends, so does the program.
type Exec = func(ctx context.Context, argv []string) error

// Roskva runs the checks. Its methods may be called by many goroutines at once.
type Roskva struct {
	report Reporter
	spread func(time.Duration) time.Duration // makes an interval a wait; replaced in tests
	kick   chan struct{}
	began  time.Time // grains count from here
	end    context.CancelFunc
	wg     sync.WaitGroup
	loop   *watch.Watcher // of run, nil as long as no talk had to wait

	mu       sync.Mutex
	slower   int // times its interval lie between two health checks
	queue    queue
	patients map[service.Name]*patient // the latest of each name
	asking   int                       // how many checks are under way
	full     bool                      // some are due, and wait for one of these to end
}

// New returns a Roskva that tells report of every health check's outcome.
// report must not block, nor call a method of Roskva.
func New(report Reporter) *Roskva {
	ctx, end := context.WithCancel(context.Background())
	r := &Roskva{report: report, spread: spread, kick: make(chan struct{}, 1), began: time.Now(), end: end, slower: 1, patients: map[service.Name]*patient{}}
	r.wg.Go(func() { r.run(ctx) })
	return r
}

func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - jitter + 2*jitter*rand.Float64()))
}

// Close ends the queue, and waits for the checks under way; whoever called Attend has
// to leave first.
func (r *Roskva) Close() {
	r.end()
	r.wg.Wait()
	if r.loop != nil {
		_ = r.loop.Close() // nothing is left in it
	}
}

// Await returns nil as soon as the check succeeds, or how it failed last when ctx ends.
func (r *Roskva) Await(ctx context.Context, check service.Check, exec Exec) error {
	ask, _ := prepare(check, exec)
	why := fmt.Errorf("%s did not answer", cmp.Or(check.Target(), check.Type.String()))
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		once, awake := vigil.Keep(ctx, readyAnswer)
		err := ask(once)
		awake.Leave()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil { // else it was given up amid an answer
			why = err
		}
		select {
		case <-ctx.Done():
			return why
		case <-time.After(retry):
		}
	}
}

// Attend checks one incarnation at every interval until the returned function
// is called, which tells why it is not checked any more; after that nothing is told of
// it. unhealthy is called once, when Threshold checks in a row failed; one that failed does
// not count when excuse says why, nor do those before it.
func (r *Roskva) Attend(name service.Name, check service.Check, exec Exec, excuse func() error, unhealthy func()) (leave func(why string)) {
	if check.Type == service.CheckWatchdog {
		check = watched(check)
	}
	p := &patient{name: name, check: check, excuse: excuse, unhealthy: unhealthy, began: time.Now(), place: nowhere}
	p.ask, p.server = prepare(check, exec)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	r.mu.Lock()
	defer r.mu.Unlock()
	p.health = service.Health{Strategy: check.Type}
	switch check.Type {
	case service.CheckProcess:
		p.health.Status, p.health.Message, p.health.LastCheck = service.Healthy, "the main process runs", p.began
	case service.CheckWatchdog:
		p.health.Status, p.health.Message = service.Checking, "it has not said WATCHDOG=1 yet"
		r.patients[name] = p
		r.plan(p, p.began.Add(check.Interval))
	default:
		p.health.Status, p.health.Message = service.Checking, "first check under way"
		r.patients[name] = p
		r.plan(p, p.began)
	}
	r.report(name, p.health)
	return func(why string) { r.leave(p, why) }
}

func (r *Roskva) leave(p *patient, why string) {
	p.cancel()
	if t := r.dismiss(p, why); t != nil {
		t.end(context.Canceled)
	}
}

// dismiss forgets a patient, and tells what talk he is in.
func (r *Roskva) dismiss(p *patient, why string) *talk {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.left {
		return nil
	}
	p.left = true
	if p.place != nowhere {
		heap.Remove(&r.queue, p.place)
	}
	if r.patients[p.name] == p {
		delete(r.patients, p.name)
	}
	p.answer()
	r.report(p.name, service.Health{Strategy: p.check.Type, Message: why})
	return p.talk
}

// plan has a patient asked at a time. The caller holds mu.
func (r *Roskva) plan(p *patient, due time.Time) {
	p.due, p.health.NextCheck = due, due
	if p.place == nowhere {
		heap.Push(&r.queue, p)
	} else {
		heap.Fix(&r.queue, p.place)
	}
	if p.place == 0 || r.full {
		r.wake()
	}
}

// grained is the whole grain at or after due.
func (r *Roskva) grained(due time.Time) time.Time {
	if into := due.Sub(r.began) % grain; into > 0 {
		return due.Add(grain - into)
	}
	return due
}

func (r *Roskva) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Slow has health checks be so many times their interval apart, at once; 1 is as they
// are defined. Readiness is asked for as ever.
func (r *Roskva) Slow(times int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if times == r.slower {
		return
	}
	r.slower = times
	for _, p := range r.patients {
		switch {
		case p.place == nowhere, p.asked.IsZero(), len(p.waiting) > 0: // it is asked now, or about to be
			continue
		case p.check.Type == service.CheckWatchdog: // it asks nobody
			continue
		}
		r.plan(p, p.asked.Add(time.Duration(times)*p.wait))
		r.report(p.name, p.health)
	}
}

// Now has a service checked at once, and returns what that says; a check that is under
// way does. A failure is told and counts for nothing: the next regular check decides. known is false when the service is not checked, as when it does not run, or
// is not checked any more when ctx ends.
func (r *Roskva) Now(ctx context.Context, name service.Name) (health service.Health, known bool, err error) {
	r.mu.Lock()
	p := r.patients[name]
	if p == nil {
		r.mu.Unlock()
		return service.Health{}, false, nil
	}
	if p.check.Type == service.CheckWatchdog { // it says so by itself
		defer r.mu.Unlock()
		return p.health, true, nil
	}
	answer := make(chan service.Health, 1)
	p.waiting = append(p.waiting, answer)
	if now := time.Now(); p.place != nowhere && p.due.After(now) {
		p.regular = p.due
		r.plan(p, now)
	}
	r.mu.Unlock()
	select {
	case health, known = <-answer:
		return health, known, nil
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		p.waiting = slices.DeleteFunc(p.waiting, func(waiting chan<- service.Health) bool { return waiting == answer })
		return service.Health{}, true, ctx.Err()
	}
}

// Checks are the latest checks of the incarnation that is checked, the latest last.
func (r *Roskva) Checks(name service.Name) []service.Probe {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.patients[name]; p != nil {
		return p.chart.all()
	}
	return nil
}

// run asks whoever is due, when there is a turn for him.
func (r *Roskva) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		due, wait := r.next()
		var talks []*talk
		for _, p := range due {
			if t := r.begin(p); t != nil {
				talks = append(talks, t)
			}
		}
		r.await(talks)
		if len(due) > 0 { // which took a while
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-r.kick:
		case <-ctx.Done():
		}
	}
}

// await hears what most servers have answered by now, and has the loop wait for the others.
// When these are many, they are looked at once more before: that costs less than a turn of the
// loop for each.
func (r *Roskva) await(talks []*talk) {
	talks = slices.DeleteFunc(talks, (*talk).look)
	if len(talks) >= crowd {
		time.Sleep(shortly)
		talks = slices.DeleteFunc(talks, (*talk).look)
	}
	for _, t := range talks {
		if r.loop == nil {
			var err error
			if r.loop, err = watch.New(); err != nil {
				t.end(err)
				continue
			}
		}
		t.await(r.loop)
	}
}

// next takes who is due from the queue, and tells how long nobody else is.
func (r *Roskva) next() (due []*patient, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.full = false
	for len(r.queue) > 0 && !r.queue[0].due.After(now) {
		if r.asking == atOnce {
			r.full = true // whoever is answered wakes us
			return due, time.Hour
		}
		due = append(due, heap.Pop(&r.queue).(*patient))
		r.asking++
	}
	if len(r.queue) == 0 {
		return due, time.Hour
	}
	return due, r.queue[0].due.Sub(now)
}

// begin asks one patient: in a talk if that can be, which is to be awaited, else with a
// goroutine.
func (r *Roskva) begin(p *patient) *talk {
	if p.server != nil {
		if to, plain := p.server.plain(); plain {
			return r.talk(p, to)
		}
	}
	r.wg.Go(func() { r.question(p) })
	return nil
}

func (r *Roskva) talk(p *patient, to netip.AddrPort) *talk {
	began := time.Now()
	r.wg.Add(1)
	t := newTalk(p.server, to, func(err error, slept time.Duration) {
		if err == nil {
			r.conclude(p, began, nil, slept)
			r.wg.Done()
			return
		}
		go func() { // who judges it may have to read files
			defer r.wg.Done()
			r.conclude(p, began, err, slept)
		}()
	})
	r.mu.Lock()
	p.talk = t
	left := p.left
	r.mu.Unlock()
	if left {
		t.end(context.Canceled)
		return nil
	}
	t.begin(p.check.Timeout)
	return t
}

// question asks one patient, and waits for the answer.
func (r *Roskva) question(p *patient) {
	began := time.Now()
	once, awake := vigil.Keep(p.ctx, p.check.Timeout)
	err := p.ask(once)
	r.conclude(p, began, err, awake.Leave())
}

// conclude takes what came of a check.
func (r *Roskva) conclude(p *patient, began time.Time, err error, slept time.Duration) {
	if err != nil {
		if why := p.excuse(); why != nil {
			err = excused{why}
		}
	}
	if r.answered(p, began, err, slept) {
		p.unhealthy()
	}
}

// answered takes the answer of a check, and tells whether it makes the service unhealthy.
func (r *Roskva) answered(p *patient, began time.Time, err error, slept time.Duration) (unhealthy bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asking--
	p.talk = nil
	if p.left {
		r.wake()
		return false
	}
	if p.check.Type == service.CheckWatchdog {
		if !p.beat.Before(p.due) {
			err = nil
		}
		return r.hear(p, began, err, slept+began.Sub(p.due)) // late by a sleep of ours, perhaps
	}
	before, regular := p.health.Failures, p.regular
	p.asked, p.wait, p.regular = time.Now(), r.spread(p.check.Interval), time.Time{}
	due := p.asked.Add(time.Duration(r.slower) * p.wait)
	if p.check.Interval >= time.Second {
		due = r.grained(due)
	}
	if err != nil && regular.After(p.asked) { // who asks more often than is defined does not make it ill the sooner
		p.health.LastCheck, p.health.Message, due = p.asked, err.Error(), regular
	} else {
		p.health = Judge(p.health, p.check, err, slept, p.asked, p.asked.Sub(p.began))
	}
	p.health.Failed = err != nil
	p.chart.add(service.Probe{At: began, Took: p.asked.Sub(began), Status: p.health.Status, Failed: err != nil, Message: p.health.Message})
	r.plan(p, due)
	r.report(p.name, p.health)
	p.answer()
	return p.health.Failures > before && p.health.Failures == p.check.Threshold
}
