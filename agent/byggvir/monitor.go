package byggvir

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// Subject is what the Monitor needs of an incarnation; see backends.Handle.
type Subject interface {
	Hear(tell func(file string)) (leave func(), err error)
	Gauge() (backends.Gauge, error)
	Tally() (service.Tally, error)
	Press(of service.PressureOf, full bool, share, window time.Duration, tell func()) (leave func(), err error)
	Usage(ctx context.Context) (service.Usage, error)
	AwaitStop(tell func()) (forget func(), err error)
	Threads() (service.Threads, error)
}

// MonitorConfig is what a Monitor needs of the rest of the agent.
type MonitorConfig struct {
	// Status is how a service stands: its limits in effect, its levels, its ladder.
	Status func(service.Name) (*service.Status, bool)
	// Tell is told of violations that begin and end, Act what to do about them. Both
	// are called on the Monitor's goroutine, in the order of what happened, and must
	// not block.
	Tell func(News)
	Act  func(Order)
	// Deaf is told why the kernel can not be heard about a service, although it tells
	// of such, say because there are too many watches; likewise.
	Deaf func(service.Name, error)
	// Hung is told of hangs that begin and that are over, likewise. Blind is told why
	// queues of the host can not be looked at, when that begins, and nil when it is over.
	Hung  func(Hang)
	Blind func(error)
	// Tables are looked at for hangs; nil, and those are told that a service's own threads
	// show.
	Tables Tables
	// History gets what services use, once in soonest, of those that it wants.
	History *History
}

// News is that a violation has begun, or is over.
type News struct {
	Service     service.Name
	Incarnation uint64
	Violation   service.Violation
	Began       time.Time // zero: it is over
	Detail      string
}

// Order is what is to be done about an incarnation.
type Order struct {
	Service     service.Name
	Incarnation uint64
	Violation   service.Violation // that it is done for
	Limits      service.Limits    // to set, unless Stop
	Seen        service.Applied   // what was told of them when that was decided; else somebody else was faster
	Stop        bool              // end it
	Measure     service.Measure   // what it counts as
	Why         string
	Done        func(Outcome) // to be called once, by any goroutine
}

// Outcome is what became of an Order.
type Outcome uint8

// The outcomes.
const (
	Done      Outcome = iota // it was done
	Overtaken                // somebody else has set the limits meanwhile
	Failed                   // it could not be done
)

// The times that a service is looked at. The kernel tells at once when a limit was run
// into; it does not tell of a level below, so for that there is one timer, for all
// services. How soon each is looked at again depends on how near it is to its levels;
// those that are looked at as often are looked at together.
const (
	soonest = time.Second
	latest  = 16 * time.Second
	// gather is the least time between two looks at one service, however often the
	// kernel has news of it.
	gather = 250 * time.Millisecond
)

// Monitor looks at what services use, and decides about those that use too much. Its
// methods may be called by many goroutines at once, and do not wait for a look.
type Monitor struct {
	cfg   MonitorConfig
	began time.Time
	kick  chan struct{}
	leave context.CancelFunc
	done  chan struct{}

	// Of its goroutine.
	checked   int                 // services of which it is to be told when they hang
	queuesDue time.Time           // when those of the host are to be looked at
	searches  int                 // for owners, in this look
	backlogs  map[uint64]*backlog // in which connections wait, by inode
	blind     bool                // they can not be looked at, which was told
	hostLoad  float64
	loadAt    time.Time

	sampling atomic.Bool // somebody reads for the history
	samplers sync.WaitGroup

	mu      sync.Mutex
	watches map[*watch]bool
	slower  int       // times
	rested  time.Time // when the next round of readings may begin
}

// NewMonitor begins; Close ends it.
func NewMonitor(cfg MonitorConfig) *Monitor {
	ctx, leave := context.WithCancel(context.Background())
	m := &Monitor{
		cfg: cfg, began: time.Now(), kick: make(chan struct{}, 1), leave: leave, done: make(chan struct{}), watches: map[*watch]bool{}, slower: 1, backlogs: map[uint64]*backlog{},
	}
	go m.run(ctx)
	return m
}

// Close ends its goroutines and waits for them.
func (m *Monitor) Close() {
	m.leave()
	<-m.done
	m.samplers.Wait()
}

// Attend looks at one incarnation until leave is called. fresh says that it was
// launched just now, and has run into nothing before. remains are the counters that it
// has left behind, nil if nobody has read them.
func (m *Monitor) Attend(name service.Name, incarnation uint64, s Subject, fresh bool) (leave func(remains *service.Remains)) {
	w := &watch{monitor: m, name: name, incarnation: incarnation, subject: s, period: soonest}
	if fresh {
		w.tally = &service.Tally{}
		w.used = used{time.Now(), unused()}
	}
	m.mu.Lock()
	m.watches[w] = true
	w.due = m.grid(time.Now(), soonest)
	m.mu.Unlock()
	m.wake()
	return func(remains *service.Remains) {
		m.mu.Lock()
		w.left, w.remains = true, remains
		m.mu.Unlock()
		m.wake()
	}
}

// Revise looks at services soon, at all if none is named: their limits or levels have
// changed, or who wants to know what they use.
func (m *Monitor) Revise(names ...service.Name) {
	m.mu.Lock()
	for w := range m.watches {
		if len(names) == 0 || slices.Contains(names, w.name) {
			w.due = time.Now()
		}
	}
	m.mu.Unlock()
	m.wake()
}

// Slow has it look that many times less often, 1 for as often as it likes, at those that
// do not use too much. What the kernel tells is heard all the same.
func (m *Monitor) Slow(times int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slower = times
}

func (m *Monitor) wake() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// grid is the time after now that all are looked at together that are looked at once
// in a period.
func (m *Monitor) grid(now time.Time, period time.Duration) time.Time {
	return m.began.Add((now.Sub(m.began)/period + 1) * period)
}

func (m *Monitor) run(ctx context.Context) {
	defer close(m.done)
	timer := time.NewTimer(latest)
	defer timer.Stop()
	for {
		now := time.Now()
		due, history, left := m.due(now)
		for _, w := range left {
			w.close()
			m.sampleEnd(w)
		}
		for _, w := range due {
			w.look(now)
		}
		m.lookAtQueues(ctx, time.Now())
		m.sample(ctx, history)
		timer.Reset(m.next(time.Now()))
		select {
		case <-timer.C:
		case <-m.kick:
		case <-ctx.Done():
			m.mu.Lock()
			all := slices.Collect(maps.Keys(m.watches))
			m.mu.Unlock()
			for _, w := range all { // which waits for those that want the lock
				w.close()
				m.sampleEnd(w)
			}
			return
		}
	}
}

// due lists who is to be looked at now, for whose histories, and who has left.
func (m *Monitor) due(now time.Time) (due, history, left []*watch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for w := range m.watches {
		if w.left {
			delete(m.watches, w)
			left = append(left, w)
			continue
		}
		if !w.due.After(now) {
			due = append(due, w)
		}
		if w.remembered && !w.sampleDue.After(now) && !m.rested.After(now) {
			w.sampleDue = m.grid(now, soonest*time.Duration(m.slower))
			history = append(history, w)
		}
	}
	return due, history, left
}

// next is how long nobody is to be looked at.
func (m *Monitor) next(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	wait := time.Hour
	m.checked = 0
	for w := range m.watches {
		if w.hang.checked {
			m.checked++
		}
		wait = min(wait, max(w.due.Sub(now), 0))
		if w.remembered {
			wait = min(wait, max(w.sampleDue.Sub(now), m.rested.Sub(now), 0))
		}
	}
	if m.checked > 0 && m.cfg.Tables != nil {
		wait = min(wait, max(m.queuesDue.Sub(now), 0))
	}
	return wait
}
