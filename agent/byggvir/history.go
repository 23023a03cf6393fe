package byggvir

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// tiers are how fine what was used is remembered, and for how long.
var tiers = [...]struct {
	step  time.Duration
	cells uint64
}{
	{time.Second, 5 * 60},
	{10 * time.Second, 6 * 60},
	{time.Minute, 24 * 60},
}

// What the tiers come to.
const (
	// HistorySize is how many bytes the history of one service takes.
	HistorySize = (5*60 + 6*60 + 24*60) * cellSize
	// Remembered is how far it goes back.
	Remembered = 24 * time.Hour
	// mostInMemory is of how many services the history may be in memory, for want of
	// other room.
	mostInMemory = 64
)

// Room is what the history of a service is kept in: HistorySize bytes, zero at first.
// What is written may outlive the process.
type Room interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// HistoryConfig is what a History needs of the rest of the agent.
type HistoryConfig struct {
	// SinceBoot is the time that steps are counted by: nobody sets it.
	SinceBoot func() time.Duration
	// Open gives the room of a service, which an earlier agent of this boot may have
	// filled; check tells what is wrong with it. It is nil when there is none and make
	// is false, and when the service is not one to be remembered.
	Open func(name service.Name, check func(io.ReaderAt) error, make bool) (Room, error)
	// Lost is told why a service has no room, or can not use it any more, and whether
	// it is remembered all the same, until this process ends. Like Open it must not
	// call the History.
	Lost func(name service.Name, inMemory bool, why error)
}

// History remembers what services used, in steps that are the longer the longer ago it
// was. Its methods may be called by many goroutines at once.
type History struct {
	cfg HistoryConfig

	inMemory atomic.Int32 // rooms

	mu    sync.Mutex
	rings map[service.Name]*ring

	viewing sync.Mutex // apart: the Monitor is not to wait for a file
	views   map[*view]bool
}

// ring is what is known of one service.
type ring struct {
	mu     sync.Mutex
	room   Room
	latest [len(tiers)]cell // of each tier, also in room
	memory [cellSize]byte   // to write one
}

// NewHistory returns a History of what is kept, opened when it is wanted.
func NewHistory(cfg HistoryConfig) *History {
	return &History{cfg: cfg, rings: map[service.Name]*ring{}, views: map[*view]bool{}}
}

// Close lets go of all rooms. What is in them stays.
func (h *History) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.rings {
		h.leave(name)
	}
}

// Forget lets go of the room of one service.
func (h *History) Forget(name service.Name) {
	h.mu.Lock()
	h.leave(name)
	h.mu.Unlock()
	h.viewing.Lock()
	defer h.viewing.Unlock()
	for v := range h.views {
		delete(v.used, name)
	}
}

func (h *History) leave(name service.Name) {
	if r := h.rings[name]; r != nil {
		delete(h.rings, name)
		r.mu.Lock()
		defer r.mu.Unlock()
		h.drop(r)
		r.room = noRoom{}
	}
}

func (h *History) drop(r *ring) {
	if _, is := r.room.(memory); is {
		h.inMemory.Add(-1)
	}
	_ = r.room.Close() // each write was looked at
}

// ring finds what is known of a service, nil for nothing.
func (h *History) ring(name service.Name, make bool) (*ring, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.rings[name]; r != nil {
		return r, nil
	}
	room, err := h.cfg.Open(name, checkRoom, make)
	r := &ring{room: noRoom{}}
	if room != nil {
		r.room = room
		err = r.recall()
	}
	switch {
	case err != nil && !make:
		h.drop(r)
		return nil, err
	case err != nil:
		h.lose(name, r, err)
	case room == nil:
		return nil, nil
	}
	h.rings[name] = r
	return r, nil
}

// lose has a service whose room is of no use go on in memory, with what can be read of
// it, if not too many do.
func (h *History) lose(name service.Name, r *ring, why error) {
	kept := NewRoom()
	copyRoom(kept, r.room)
	h.drop(r)
	inMemory := h.inMemory.Add(1) <= mostInMemory
	r.room = kept
	if !inMemory {
		h.inMemory.Add(-1)
		r.room = noRoom{}
	}
	h.cfg.Lost(name, inMemory, why)
}

// copyRoom copies what can be read and is as it should be.
func copyRoom(to, from Room) {
	var b [cellSize]byte
	for at := int64(0); at < HistorySize; at += cellSize {
		if _, err := from.ReadAt(b[:], at); err != nil {
			continue
		}
		if c, err := decode(b[:]); err == nil && c.Number != 0 {
			_, _ = to.WriteAt(b[:], at) // of a file that is lost, too, the next write tells
		}
	}
}

// Renew has what is remembered kept anew: what it was kept in may be gone. It tells whose
// history is kept now.
func (h *History) Renew() (kept []service.Name) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, r := range h.rings {
		room, err := h.cfg.Open(name, checkRoom, true)
		if err != nil || room == nil {
			continue // it goes on as it does
		}
		r.mu.Lock()
		copyRoom(room, r.room)
		h.drop(r)
		r.room = room
		r.mu.Unlock()
		kept = append(kept, name)
	}
	return kept
}

// recall finds the latest cells.
func (r *ring) recall() error {
	for tier := range tiers {
		cells, err := readTier(r.room, tier)
		if err != nil {
			return err
		}
		for _, c := range cells {
			if c.Number > r.latest[tier].Number {
				r.latest[tier] = c
			}
		}
	}
	return nil
}

// add notes what a service has used up to now.
func (h *History) add(name service.Name, used cell) {
	at := h.cfg.SinceBoot()
	if r, _ := h.ring(name, true); r != nil {
		r.mu.Lock()
		if err := r.add(at, used); err != nil && !errors.Is(err, errNoRoom) {
			h.lose(name, r, err)
		}
		r.mu.Unlock()
	}
	h.show(name, at, used)
}

func (r *ring) add(at time.Duration, used cell) error {
	for tier, t := range tiers {
		c := &r.latest[tier]
		if number := uint64(at/t.step) + 1; c.Number != number {
			*c = cell{Number: number}
		}
		c.add(used)
		c.encode(r.memory[:])
		if _, err := r.room.WriteAt(r.memory[:], place(tier, c.Number)); err != nil {
			return err
		}
	}
	return nil
}

// Samples tells what a service used since a time ago, oldest first, in steps of at
// least step, or, for 0, in the shortest that are kept of all of that. Steps in which it
// was not looked at are left out.
func (h *History) Samples(name service.Name, since, step time.Duration) ([]service.Sample, error) {
	r, err := h.ring(name, false)
	if err != nil {
		return nil, fmt.Errorf("cannot read what is kept of it: %w", err)
	}
	if r == nil {
		return nil, nil
	}
	now, at := time.Now(), h.cfg.SinceBoot()
	cells, step, err := r.since(at, since, step)
	if err != nil {
		return nil, fmt.Errorf("cannot read what is kept of it: %w", err)
	}
	samples := make([]service.Sample, len(cells))
	for i, c := range cells {
		samples[i] = c.sample(now.Add(time.Duration(c.Number-1)*step-at), step)
	}
	return samples, nil
}

// since gives the cells of a time ago until now, in order, in steps of at least step.
func (r *ring) since(now, ago, step time.Duration) ([]cell, time.Duration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ago = min(ago, now)
	oldest, err := r.oldest()
	if err != nil {
		return nil, 0, err
	}
	tier := 0
	for tier < len(tiers)-1 && (reach(tier) < min(ago, now-oldest) || tiers[tier+1].step <= step) {
		tier++
	}
	cells, err := readTier(r.room, tier)
	if err != nil {
		return nil, 0, err
	}
	first := uint64(max(now-min(ago, reach(tier)), 0)/tiers[tier].step) + 1
	cells = slices.DeleteFunc(cells, func(c cell) bool { return c.Number < first })
	slices.SortFunc(cells, func(a, b cell) int { return cmp.Compare(a.Number, b.Number) })
	many := uint64(max((step+tiers[tier].step-1)/tiers[tier].step, 1))
	return joined(cells, many), time.Duration(many) * tiers[tier].step, nil
}

// oldest is since when anything is kept, in the longest steps.
func (r *ring) oldest() (time.Duration, error) {
	last := len(tiers) - 1
	cells, err := readTier(r.room, last)
	oldest := r.latest[last].Number
	for _, c := range cells {
		oldest = min(oldest, c.Number)
	}
	return time.Duration(max(oldest, 1)-1) * tiers[last].step, err
}

func reach(tier int) time.Duration { return tiers[tier].step * time.Duration(tiers[tier].cells) }

// joined makes steps of many each out of cells, which are in order.
func joined(cells []cell, many uint64) (out []cell) {
	for _, c := range cells {
		number := (c.Number-1)/many + 1
		if len(out) == 0 || out[len(out)-1].Number != number {
			out = append(out, cell{Number: number})
		}
		out[len(out)-1].add(c)
	}
	return out
}

// NewRoom is a Room that ends with the process.
func NewRoom() Room { return make(memory, HistorySize) }

type memory []byte

func (m memory) ReadAt(b []byte, at int64) (int, error)  { return copy(b, m[at:]), nil }
func (m memory) WriteAt(b []byte, at int64) (int, error) { return copy(m[at:], b), nil }
func (m memory) Close() error                            { return nil }

// noRoom is that of a service that was forgotten, or that there is no room for.
type noRoom struct{}

var errNoRoom = errors.New("there is no room for it")

func (noRoom) ReadAt([]byte, int64) (int, error)  { return 0, errNoRoom }
func (noRoom) WriteAt([]byte, int64) (int, error) { return 0, errNoRoom }
func (noRoom) Close() error                       { return nil }
