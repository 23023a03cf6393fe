package byggvir

import (
	"context"
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/sockets"
)

// Tables are what the kernel tells of the host as a whole.
type Tables interface {
	// Load is how many tasks ran, wanted to, or waited in the kernel in the latest minute.
	Load() (float64, error)
	// Queues lists the listening sockets in which connections wait, with an error those
	// that it can, and Clients names the
	// connections that wait in one of them; see package sockets.
	Queues() ([]sockets.Queue, error)
	Clients(sockets.Queue) ([]uint64, error)
	// Owner is the service that has the socket.
	Owner(sockets.Queue) (owner service.Name, known bool)
}

// The times that the queues of the host are looked at: while no connection waits in any,
// together with the rarest of the other looks, so that nobody is woken for that alone; and
// while one does.
const (
	queueEvery = latest
	queueSoon  = 500 * time.Millisecond
)

// strangerFor is how long a socket that is no service's is left alone: to find out whose
// it is may mean to look at all files of all processes.
const strangerFor = time.Minute

// maxSearches is how many sockets a look finds the owners of: anybody can have any number
// of them, and limits are looked at by the same goroutine.
const maxSearches = 4

// backlog is one listening socket in which connections wait.
type backlog struct {
	owner service.Name
	asked time.Time // for the owner
	watch *watch    // of the owner; nil while that is not looked at

	// Since nobody is accepted, and what the owner has does not change:
	stall   stall
	began   time.Time
	waiting int
	clients map[uint64]bool
	used    service.Usage
}

// lookAtQueues looks at all listening sockets of the host at once, if it is time and
// there is a service that they may be of.
func (m *Monitor) lookAtQueues(ctx context.Context, now time.Time) {
	switch {
	case m.cfg.Tables == nil || m.queuesDue.After(now):
		return
	case m.checked == 0:
		clear(m.backlogs)
		return
	}
	queues, err := m.cfg.Tables.Queues()
	if (err != nil) != m.blind {
		m.cfg.Blind(err)
	}
	m.blind = err != nil
	longest := map[*watch]stall{}
	for _, b := range m.backlogs {
		if b.watch != nil {
			longest[b.watch] = stall{} // unless one lasts
		}
	}
	m.searches = 0
	before := m.backlogs
	m.backlogs = make(map[uint64]*backlog, len(queues))
	for _, q := range queues {
		b, known := before[q.Inode]
		if !known { // most are empty again at the next look
			b = &backlog{}
		} else {
			m.lookAt(ctx, b, q, now)
		}
		m.backlogs[q.Inode] = b
		if b.watch != nil && b.stall.lasted >= longest[b.watch].lasted {
			longest[b.watch] = b.stall
		}
	}
	for w, stall := range longest {
		w.hang.stalls[queueHang] = stall
		if s := m.expected(w); s != nil {
			w.tellHang(s)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queuesDue = m.grid(now, queueEvery*time.Duration(m.slower))
	if len(queues) > 0 {
		m.queuesDue = now.Add(queueSoon)
	}
}

// lookAt looks at one in which connections waited at the last look as well.
func (m *Monitor) lookAt(ctx context.Context, b *backlog, q sockets.Queue, now time.Time) {
	if b.owner.IsZero() && now.Sub(b.asked) >= strangerFor && m.searches < maxSearches {
		m.searches++
		b.owner, _ = m.cfg.Tables.Owner(q)
		b.asked = now
	}
	if w := m.attended(b.owner); w != b.watch {
		*b = backlog{owner: b.owner, asked: b.asked, watch: w}
	}
	if b.watch == nil {
		return
	}
	clients, err := m.cfg.Tables.Clients(q)
	if err != nil {
		b.clients = nil
		return
	}
	used, err := b.watch.subject.Usage(ctx)
	if err != nil { // it is ending
		b.clients = nil
		return
	}
	threads, err := b.watch.subject.Threads()
	if err != nil || threads.Busy || b.clients == nil || b.accepts(q, clients) || !idle(b.used, used, now.Sub(b.began)) {
		b.stall, b.began, b.waiting, b.used = stall{}, now, q.Waiting, used
		b.clients = make(map[uint64]bool, len(clients))
		for _, c := range clients {
			b.clients[c] = true
		}
	}
	b.stall.seen(now, true)
	b.stall.why = fmt.Sprintf("%s has %s waiting for %v, and the service uses no CPU", q.Address, connections(q.Waiting), b.stall.lasted.Round(time.Second))
}

func connections(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// accepts tells whether somebody was accepted: else there are as many as there were, and
// who has come since. One whose other end is gone waits still, but is not named.
func (b *backlog) accepts(q sockets.Queue, clients []uint64) bool {
	came := 0
	for _, c := range clients {
		if !b.clients[c] {
			came++
		}
	}
	return q.Waiting < b.waiting+came
}

// What a service may use and be held up in some time, and be idle: what a runtime does
// beside the program, and what is uncertain about the reading.
const (
	idleShare  = 200 // a part of this, of one core
	pressShare = 10  // a part of this, for want of some resource
	uncertain  = 10 * time.Millisecond
)

// idle tells whether who has used that between two readings has not worked, and would
// have if it had wanted to.
func idle(before, now service.Usage, passed time.Duration) bool {
	for _, p := range [...][2]service.Stall{
		{before.CPUPressure.Some, now.CPUPressure.Some}, {before.MemoryPressure.Some, now.MemoryPressure.Some}, {before.IOPressure.Some, now.IOPressure.Some},
	} {
		if p[0].Set && p[1].Set && p[1].Total-p[0].Total > passed/pressShare {
			return false
		}
	}
	return now.CPUTime-before.CPUTime <= passed/idleShare+uncertain
}

// attended is the watch of a service that is expected to do something; nil if there is
// none.
func (m *Monitor) attended(name service.Name) *watch {
	m.mu.Lock()
	defer m.mu.Unlock()
	for w := range m.watches {
		if w.name == name && !w.left && m.expected(w) != nil {
			return w
		}
	}
	return nil
}

// expected is the status of a service that is to be told of when it hangs; nil when
// nothing is expected of it now, which may be so since the last look.
func (m *Monitor) expected(w *watch) *service.Status {
	s, known := m.cfg.Status(w.name)
	if !known || !w.hang.checked || s.Spec == nil || s.Machine.Frozen || s.Machine.State != service.Running || s.Machine.Incarnation != w.incarnation {
		return nil
	}
	return s
}
