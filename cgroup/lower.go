package cgroup

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// How memory.max is lowered.
const (
	reclaimStep  = 32 << 20 // bytes that are asked back at a time
	worthwhile   = 1 << 20  // bytes that count as something given back
	lowerPause   = 50 * time.Millisecond
	lowerPatient = 3 * time.Second  // in which something has to be given back
	lowerLongest = 20 * time.Second // in which all of it has to

	// In a window tasks may wait for memory no longer than this: some of them, or all
	// at once (Documentation/accounting/psi.rst).
	strainWindow = time.Second
	mostSome     = strainWindow / 2
	mostFull     = strainWindow / 5
)

// MemoryUse is what a group has of memory, as far as it tells how low memory.max can go.
type MemoryUse struct {
	Current  uint64 // bytes in all
	Swapable uint64 // of them, those that only swap could take: anonymous and shared memory
	Locked   uint64 // of them, those that nothing can take
	Room     uint64 // bytes of swap that are free for the group
}

// Stuck is how many bytes can not be had back.
func (u MemoryUse) Stuck() uint64 { return u.Locked + u.Swapable - min(u.Room, u.Swapable) }

// InUseError says that memory.max was not lowered, since that would have killed or
// hurt. All is as it was before.
type InUseError struct {
	Max uint64 // bytes that were asked for
	Use MemoryUse
	Why string
}

func (e *InUseError) Error() string {
	text := fmt.Sprintf("%s: of %s in use %s can not be reclaimed", e.Why, mebi(e.Use.Current), mebi(e.Use.Stuck()))
	if e.Use.Swapable > e.Use.Room {
		text += fmt.Sprintf(" (anonymous or shared memory is %s, and there is room for %s in swap)", mebi(e.Use.Swapable), mebi(e.Use.Room))
	}
	return text
}

func mebi(n uint64) string { return fmt.Sprintf("%.1fMiB", float64(n)/(1<<20)) }

// Lower calls set, which is to apply l. The kernel kills what does not fit below
// memory.max when that is written, so if l lowers it, what is in use is brought down
// first: memory is reclaimed in steps (memory.reclaim; memory.high before Linux 5.19),
// then memory.high keeps off growth until memory.max is set. The error is an
// *InUseError when the use does not come down, or when tasks of the group have to wait
// for memory (PSI, where the kernel measures it). Then, and when ctx ends before set was
// called, all is as before. set gets a context that does not end. No other limit kills
// when it is lowered below what is in use.
func (g Group) Lower(ctx context.Context, l service.Limits, set func(context.Context) error) error {
	d, err := g.open()
	if err != nil {
		return err
	}
	defer d.Close()
	after, target := context.WithoutCancel(ctx), l[service.MemoryMax]
	now, err := readLimit(d, service.MemoryMax)
	if !target.Set || errors.Is(err, unix.ENOENT) || err == nil && target.Value >= now.Value {
		return set(after)
	}
	if err != nil {
		return err
	}
	high, err := readLimit(d, service.MemoryHigh)
	if err != nil {
		return err
	}
	w := &lowering{d: d, max: target.Value, high: high, begun: time.Now()}
	err = w.reach(ctx)
	if err == nil {
		err = set(after)
	}
	if err == nil && l[service.MemoryHigh].Set {
		return nil // it is another now
	}
	return errors.Join(err, w.release())
}

// lowering is a memory.max that is being lowered.
type lowering struct {
	d     *dir
	max   uint64        // what it is to be
	high  service.Quota // what memory.high was
	held  bool          // memory.high is another meanwhile
	begun time.Time

	strained   time.Time     // when the window began
	some, full time.Duration // that tasks had waited by then
}

// reach brings the use down to max and has memory.high keep it there. What had to be
// brought down is looked at for a window before it counts as done without harm.
func (w *lowering) reach(ctx context.Context) error {
	use, err := memoryUse(w.d)
	if err != nil {
		return err
	}
	if use.Stuck() > w.max {
		return &InUseError{w.max, use, "it would not fit"}
	}
	var trial time.Duration
	if use.Current > w.max {
		if err := w.reclaim(ctx, 0); err != nil {
			return err
		}
		trial = strainWindow
	}
	if w.high.Value > w.max {
		w.held = true
		if err := applyOne(w.d, service.MemoryHigh, service.Of(w.max)); err != nil {
			return err
		}
	}
	return w.reclaim(ctx, trial)
}

// reclaim returns when no more than max is in use, and at least that time has passed.
func (w *lowering) reclaim(ctx context.Context, atLeast time.Duration) error {
	start := time.Now()
	least, progress := uint64(service.Unlimited), start
	for {
		if ctx.Err() != nil {
			return fmt.Errorf("given up while memory was reclaimed, and nothing was changed: %w", ctx.Err())
		}
		current, err := memoryCurrent(w.d)
		if err != nil {
			return err
		}
		if current+worthwhile <= least {
			least, progress = current, time.Now()
		}
		hurt, err := w.hurts()
		switch {
		case err != nil:
			return err
		case hurt != "":
			return w.refuse(hurt)
		case current <= w.max && time.Since(start) >= atLeast:
			return nil
		case current <= w.max:
		case time.Since(w.begun) > lowerLongest || time.Since(progress) > lowerPatient:
			return w.refuse(fmt.Sprintf("after %v it still does not fit", time.Since(w.begun).Round(100*time.Millisecond)))
		default:
			more, err := w.take(min(current-w.max, reclaimStep), current)
			if err != nil {
				return err
			}
			if more {
				continue
			}
		}
		select {
		case <-time.After(lowerPause):
		case <-ctx.Done():
		}
	}
}

// take asks n bytes of current back. It tells whether they were had.
func (w *lowering) take(n, current uint64) (had bool, err error) {
	err = w.d.write("memory.reclaim", strconv.FormatUint(n, 10))
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case errors.Is(err, unix.ENOENT) && w.high.Value > current-n:
		w.held = true // it reclaims what is above
		return false, applyOne(w.d, service.MemoryHigh, service.Of(current-n))
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return err == nil, err
}

func (w *lowering) refuse(why string) error {
	use, err := memoryUse(w.d)
	if err != nil {
		return err
	}
	return &InUseError{w.max, use, why}
}

// hurts says how tasks of the group had to wait in the present window, if they had to
// for too long.
func (w *lowering) hurts() (string, error) {
	some, full, err := stalls(w.d)
	if err != nil {
		return "", err
	}
	if w.strained.IsZero() || time.Since(w.strained) >= 2*strainWindow {
		w.strained, w.some, w.full = time.Now(), some, full
		return "", nil
	}
	switch waited, all := some-w.some, full-w.full; {
	case waited > mostSome:
		return fmt.Sprintf("it was held up for want of memory, for %v of %v", waited.Round(time.Millisecond), time.Since(w.strained).Round(time.Millisecond)), nil
	case all > mostFull:
		return fmt.Sprintf("all of it was held up for want of memory, for %v of %v", all.Round(time.Millisecond), time.Since(w.strained).Round(time.Millisecond)), nil
	}
	if time.Since(w.strained) >= strainWindow {
		w.strained, w.some, w.full = time.Now(), some, full
	}
	return "", nil
}

// release sets memory.high to what it was.
func (w *lowering) release() error {
	if !w.held {
		return nil
	}
	if err := applyOne(w.d, service.MemoryHigh, w.high); !gone(err) {
		return err
	}
	return nil // with all that was limited
}

func memoryCurrent(d *dir) (uint64, error) {
	text, err := d.read("memory.current")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s/memory.current holds %q: %w", d.Name(), text, err)
	}
	return n, nil
}

// memoryUse reads what is in use. By the lists of the kernel, not by kinds: what is
// shared is on those of anonymous memory, what is locked on none of both.
func memoryUse(d *dir) (MemoryUse, error) {
	current, err := memoryCurrent(d)
	if err != nil {
		return MemoryUse{}, err
	}
	stat, err := readEvents(d, "memory.stat")
	if err != nil {
		return MemoryUse{}, err
	}
	u := MemoryUse{
		Current: current, Swapable: stat["active_anon"].Value + stat["inactive_anon"].Value, Locked: stat["unevictable"].Value,
	}
	u.Room, err = swapRoom(d)
	return u, err
}

// swapRoom is how much swap the group may fill further: no more than the host has free.
func swapRoom(d *dir) (uint64, error) {
	most, err := readLimit(d, service.MemorySwapMax)
	if errors.Is(err, unix.ENOENT) { // a kernel without swap
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	text, err := d.read("memory.swap.current")
	if err != nil {
		return 0, err
	}
	used, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s/memory.swap.current holds %q: %w", d.Name(), text, err)
	}
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		return 0, fmt.Errorf("ask for the free swap (sysinfo): %w", err)
	}
	return min(most.Value-min(used, most.Value), uint64(host.Freeswap)*uint64(host.Unit)), nil
}

// stalls is for how long in all some tasks of the group, and all at once, have waited
// for memory; zero where the kernel does not measure it.
func stalls(d *dir) (some, full time.Duration, err error) {
	text, err := d.read("memory.pressure")
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(text) {
		kind, _, _ := strings.Cut(line, " ")
		_, total, found := strings.Cut(line, "total=")
		usec, err := strconv.ParseInt(strings.TrimSpace(total), 10, 64)
		if !found || err != nil {
			return 0, 0, fmt.Errorf("%s/memory.pressure holds %q: %w", d.Name(), line, errForm)
		}
		switch kind {
		case "some":
			some = time.Duration(usec) * time.Microsecond
		case "full":
			full = time.Duration(usec) * time.Microsecond
		}
	}
	return some, full, nil
}
