// Package skirnir is the registry: it knows what runs, and tells. Readers
// take snapshots and hold no lock; writers change one service at a time, and
// every change reaches each subscriber once, in order, or shows as a hole in
// the sequence. What was told the next agent of this boot can tell again. Its
// Store keeps on disk what must outlive the agent.
package skirnir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// queueNotices is how many wait for a subscriber before it loses some, so that no
// client can make the agent grow.
const queueNotices = 256

// Registry holds the status of every known service. Its methods may be called
// by many goroutines at once.
type Registry struct {
	index atomic.Pointer[index] // replaced, never changed, when services come and go

	mu          sync.Mutex // held by writers, never across IO
	ring        *ring      // the latest notices
	boot        string
	path        string // of the ring's file
	transient   error  // why it has none
	closed      bool
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

// OpenRegistry returns a registry without services that goes on with the notices
// of the last agent of this boot, as they are kept in the run directory, and with
// their numbers. fault tells that what was kept there had to be set aside: then
// the numbers go on beyond all that were given, so that a subscriber of before
// finds a hole and not a repetition.
func OpenRegistry(runDir, bootID string) (r *Registry, fault error) {
	kept, fault, transient := openRing(runDir, bootID)
	r = newRegistry(kept)
	r.boot, r.path, r.transient = bootID, filepath.Join(runDir, ringFile), transient
	return r, fault
}

func newRegistry(kept *ring) *Registry {
	r := &Registry{ring: kept, subscribers: map[chan service.Notice]struct{}{}}
	r.index.Store(&index{byName: map[service.Name]*entry{}})
	return r
}

// Close lets go of the file. From then on nothing is told any more.
func (r *Registry) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	left := r.ring
	r.closed, r.ring = true, newRing(r.boot, left.sequence)
	return left.leave()
}

// Transient tells why notices end with this agent, or is nil: the next one goes on
// where it left off.
func (r *Registry) Transient() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.transient
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

// Tell tells subscribers of what concerns the host and no service.
func (r *Registry) Tell(news News) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.publish(&service.Status{}, news)
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

// publish keeps a notice, which numbers it, and then hands it to every subscriber
// that has room: none is told what the next agent would not know. The caller holds
// mu.
func (r *Registry) publish(s *service.Status, news News) {
	if news.Silent || r.closed {
		return
	}
	n := s.Notice(news.Kind, news.Reason, news.Detail)
	n.Time = time.Now()
	body := encode(n)
	r.touch(func(kept *ring) error { return kept.append(n.Time, body) })
	n.Sequence = r.ring.sequence
	if len(r.subscribers) == 0 {
		return
	}
	// As it was kept: an event is the same whenever it is told.
	if told, err := decode(note{sequence: n.Sequence, time: n.Time.UnixNano(), body: body}); err == nil {
		n = told
	}
	for ch := range r.subscribers {
		select {
		case ch <- n:
		default: // the hole in the sequence tells the subscriber, at the end Sequence does
		}
	}
}

// touch has f use the ring. When the ring's file can not be had any more it goes on
// in memory. The caller holds mu.
func (r *Registry) touch(f func(*ring) error) {
	kept := r.ring
	if err := guard(func() error { return f(kept) }); err != nil {
		r.lose(kept, err)
		_ = f(r.ring)
	}
}

// lose leaves a ring that is of no use any more. Its file goes, or the next agent
// would give our numbers again; that this waits for the file system happens once.
// The caller holds mu.
func (r *Registry) lose(lost *ring, why error) {
	if r.ring != lost { // somebody else did
		return
	}
	r.ring = newRing(r.boot, lost.sequence)
	r.transient = errors.Join(fmt.Errorf("cannot use %s: %w", r.path, why), lost.leave(), removeFile(r.path))
}

// encode writes a notice, shortened until it fits into a ring.
func encode(n service.Notice) []byte {
	for {
		body, err := json.Marshal(n)
		switch {
		case err != nil: // a number that is none
			n.Exit, n.Detail = nil, "how it ended can not be kept: "+err.Error()
		case len(body) <= maxBody:
			return body
		default:
			shorten(&n)
		}
	}
}

// shorten drops half of the last lines, the older ones, and when there are none
// half of each text.
func shorten(n *service.Notice) {
	var x service.ExitRecord
	if n.Exit != nil {
		x = *n.Exit
		n.Exit = &x
	}
	if lines := len(x.LastLines); lines > 0 {
		x.LastLines = x.LastLines[(lines+1)/2:]
		return
	}
	for _, text := range []*string{&n.Reason, &n.Detail, &n.Actor, &x.Exit.Unknown, &x.Remains.OOMLevel, &x.RequestedBy, &x.Message} {
		*text = (*text)[:len(*text)/2]
	}
}

func decode(kept note) (service.Notice, error) {
	n := service.Notice{Sequence: kept.sequence, Time: time.Unix(0, kept.time)}
	err := json.Unmarshal(kept.body, &n)
	return n, err
}

// Watch gives every notice after the one of the returned sequence, until ctx ends;
// then the channel is closed. A subscriber that is too slow finds a hole in the
// sequence; one whose queue is empty and who is behind Sequence, read before, has
// lost the last ones.
func (r *Registry) Watch(ctx context.Context) (after uint64, notices <-chan service.Notice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := make(chan service.Notice, queueNotices)
	r.subscribers[ch] = struct{}{}
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.subscribers, ch)
		close(ch)
	})
	return r.ring.sequence, ch
}

// Kept gives the notices that are kept of those after the one of a sequence, oldest
// first. They are without holes, and reach to the latest.
func (r *Registry) Kept(after uint64) []service.Notice {
	r.mu.Lock()
	var copied []byte
	r.touch(func(kept *ring) error { copied = kept.kept(); return nil })
	from := r.ring
	r.mu.Unlock()
	notices, err := decodeAll(copied, after)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.lose(from, err)
	}
	return notices
}

func decodeAll(kept []byte, after uint64) ([]service.Notice, error) {
	notes, err := readNotes(kept, after)
	if err != nil {
		return nil, err
	}
	notices := make([]service.Notice, len(notes))
	for i, n := range notes {
		if notices[i], err = decode(n); err != nil {
			return nil, err
		}
	}
	return notices, nil
}

// Sequence is the number of the latest notice.
func (r *Registry) Sequence() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ring.sequence
}

// KeptSince is from when on Kept misses no notice.
func (r *Registry) KeptSince() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	var since time.Time
	r.touch(func(kept *ring) error { since = kept.since(); return nil })
	return since
}
