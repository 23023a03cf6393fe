// Package skirnir is the registry: it knows what runs, and tells. Readers
// take snapshots and hold no lock; writers change one service at a time, and
// every change reaches each subscriber once, in order, or shows as a hole in
// the sequence. Its Store keeps on disk what must outlive the agent.
package skirnir

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Caps on what is kept and queued, so that no client can make the agent grow.
const (
	keptNotices  = 1024 // at least, for late subscribers and `gladsheim events`
	queueNotices = 256  // per subscriber, before it loses some
)

// Registry holds the status of every known service. Its methods may be called
// by many goroutines at once.
type Registry struct {
	index atomic.Pointer[index] // replaced, never changed, when services come and go

	mu          sync.Mutex // held by writers, never across IO
	sequence    uint64
	kept        []service.Notice // the latest, oldest first
	keptSince   time.Time
	subscribers map[chan service.Notice]struct{}
}

// index finds the entries; it is immutable.
type index struct {
	byName map[service.Name]*entry
	sorted []*entry
}

type entry struct {
	status atomic.Pointer[service.Status]
}

// NewRegistry returns an empty registry that numbers its notices from after+1.
// An agent gives a number that grows from one agent to the next unless the clock
// is set back, so that a subscriber of an earlier one finds a hole and not a
// repetition.
func NewRegistry(after uint64) *Registry {
	r := &Registry{sequence: after, keptSince: time.Now(), subscribers: map[chan service.Notice]struct{}{}}
	r.index.Store(&index{byName: map[service.Name]*entry{}})
	return r
}

// Get returns the status of one service, in constant time.
func (r *Registry) Get(name service.Name) (*service.Status, bool) {
	e, ok := r.index.Load().byName[name]
	if !ok {
		return nil, false
	}
	return e.status.Load(), true
}

// List returns the status of every service whose public state is one of
// states, or of every service if none is given, in the order of their names.
func (r *Registry) List(states ...service.Public) []*service.Status {
	sorted := r.index.Load().sorted
	out := make([]*service.Status, 0, len(sorted))
	for _, e := range sorted {
		s := e.status.Load()
		if len(states) == 0 || slices.Contains(states, s.Machine.Public()) {
			out = append(out, s)
		}
	}
	return out
}

// Statistics counts the services in each public state.
func (r *Registry) Statistics() [service.NumPublic]int {
	var counts [service.NumPublic]int
	for _, e := range r.index.Load().sorted {
		counts[e.status.Load().Machine.Public()]++
	}
	return counts
}

// News is what a change has to tell; the zero value tells nothing.
type News struct {
	Kind   service.NoticeKind
	Reason string
	Detail string
	Silent bool // the change is visible to readers, and nobody is told
}

// Add makes services known. One that is known already keeps its status.
func (r *Registry) Add(statuses ...service.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.index.Load()
	next := &index{byName: make(map[service.Name]*entry, len(old.byName)+len(statuses)), sorted: slices.Clone(old.sorted)}
	for name, e := range old.byName {
		next.byName[name] = e
	}
	for _, s := range statuses {
		if _, known := next.byName[s.Name]; known {
			continue
		}
		e := &entry{}
		e.status.Store(&s)
		next.byName[s.Name] = e
		next.sorted = append(next.sorted, e)
	}
	slices.SortFunc(next.sorted, func(a, b *entry) int {
		return strings.Compare(a.status.Load().Name.String(), b.status.Load().Name.String())
	})
	r.index.Store(next)
}

// Remove forgets a service and tells subscribers so.
func (r *Registry) Remove(name service.Name, news News) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.index.Load()
	gone, known := old.byName[name]
	if !known {
		return
	}
	next := &index{byName: make(map[service.Name]*entry, len(old.byName))}
	for n, e := range old.byName {
		if e != gone {
			next.byName[n] = e
		}
	}
	next.sorted = slices.DeleteFunc(slices.Clone(old.sorted), func(e *entry) bool { return e == gone })
	r.index.Store(next)
	r.publish(gone.status.Load(), news)
}

// Update changes the status of one service and tells subscribers. It returns
// the new status, or nil if the service is not known. change must not block.
func (r *Registry) Update(name service.Name, news News, change func(*service.Status)) *service.Status {
	return r.Revise(name, func(s *service.Status) News {
		change(s)
		return news
	})
}

// Revise is Update for a change that has to be decided, with its news, by how the
// status is at that moment.
func (r *Registry) Revise(name service.Name, change func(*service.Status) News) *service.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, known := r.index.Load().byName[name]
	if !known {
		return nil
	}
	next := *e.status.Load()
	news := change(&next)
	e.status.Store(&next)
	r.publish(&next, news)
	return &next
}

// publish numbers a notice, keeps it and hands it to every subscriber that has
// room. The caller holds mu.
func (r *Registry) publish(s *service.Status, news News) {
	if news.Silent {
		return
	}
	r.sequence++
	n := service.Notice{
		Sequence: r.sequence, Time: time.Now(), Service: s.Name,
		Kind: news.Kind, Reason: news.Reason, Detail: news.Detail, Status: s,
	}
	if len(r.kept) == 2*keptNotices { // moved seldom, so that a notice costs little
		r.keptSince = r.kept[keptNotices-1].Time.Add(1) // just after the last that goes
		r.kept = append(r.kept[:0], r.kept[keptNotices:]...)
	}
	r.kept = append(r.kept, n)
	for ch := range r.subscribers {
		select {
		case ch <- n:
		default: // the hole in the sequence tells the subscriber, at the end Sequence does
		}
	}
}

// Watch returns a snapshot and every notice after it, until ctx ends; then the
// channel is closed. With after > 0 it begins with the kept notices beyond that
// sequence number instead, and the snapshot is nil, unless some of them are
// no longer kept. A subscriber that is too slow finds a hole in the sequence;
// one whose queue is empty and who is behind Sequence, read before, has lost the
// last ones.
func (r *Registry) Watch(ctx context.Context, after uint64) ([]*service.Status, <-chan service.Notice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	missed, whole := r.since(after)
	var snapshot []*service.Status
	if after == 0 || !whole {
		missed, snapshot = nil, r.List()
	}
	ch := make(chan service.Notice, queueNotices+len(missed))
	for _, n := range missed {
		ch <- n
	}
	r.subscribers[ch] = struct{}{}
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.subscribers, ch)
		close(ch)
	})
	return snapshot, ch
}

// since returns the kept notices beyond after, and whether none is missing.
func (r *Registry) since(after uint64) ([]service.Notice, bool) {
	if after > r.sequence {
		return nil, false
	}
	behind := r.sequence - after
	if behind > uint64(len(r.kept)) {
		return nil, false
	}
	return r.kept[len(r.kept)-int(behind):], true
}

// Recent returns up to n kept notices not older than since, oldest first;
// n ≤ 0 means all of them.
func (r *Registry) Recent(n int, since time.Time) []service.Notice {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := 0
	for first < len(r.kept) && r.kept[first].Time.Before(since) {
		first++
	}
	if n > 0 {
		first = max(first, len(r.kept)-n)
	}
	return slices.Clone(r.kept[first:])
}

// Sequence is the number of the latest notice.
func (r *Registry) Sequence() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sequence
}

// KeptSince is from when on Recent misses no notice.
func (r *Registry) KeptSince() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keptSince
}
