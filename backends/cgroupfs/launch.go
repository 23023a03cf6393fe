package cgroupfs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/failpoint"
	"github.com/gladsheim/gladsheim/units"
)

// cleanTime is how long the cleaning after a failed launch may take, whatever
// became of the caller's context.
const cleanTime = 10 * time.Second

// Launch makes the cgroup, limits it, and gives birth to the process inside. A
// cgroup of the same incarnation in which nothing lives is removed first; one
// in which something lives, of this or any other incarnation of the service, is
// an error of reason PREVIOUS_INSTANCE_ALIVE.
func (b *Backend) Launch(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
	if ctx.Err() != nil {
		return nil, gaveUp(ctx, "start", l.Name, "")
	}
	limits, err := b.enforceable(l)
	if err != nil {
		return nil, err
	}
	done, err := b.begin(l)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := b.restoreParent(ctx); err != nil {
		return nil, failure("start", l.Name, service.HostUnavailable, err)
	}
	if err := b.makeWay(l); err != nil {
		return nil, err
	}
	h := &handle{
		backend: b, ref: b.Plan(l), group: b.group(l), requested: l.Limits, like: launch.LikenessOf(&l.Spec), turn: make(chan struct{}, 1),
	}
	if err := h.group.Create(b.controllers); err != nil {
		return nil, failure("start", l.Name, service.HostUnavailable, fmt.Errorf("create its cgroup: %w", err))
	}
	if err := h.launch(ctx, l, limits, birth); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		failed := failure("start", l.Name, service.HostUnavailable, err)
		if cleanErr := h.clean(clean); cleanErr != nil {
			failed.Err = fmt.Errorf("%w; then, while cleaning up: %w", failed.Err, cleanErr)
		}
		return nil, failed
	}
	return h, nil
}

func (b *Backend) group(l service.Launch) cgroup.Group {
	return b.parent.Child(units.Dir(l.Name, l.Incarnation))
}

// enforceable returns the limits that the kernel will hold: all that were asked
// for, or with best effort those it can, and what holds where nobody asks.
func (b *Backend) enforceable(l service.Launch) (service.Limits, error) {
	limits := l.Limits
	if err := b.unenforceable("start", l.Name, limits); err != nil && !l.Spec.BestEffort {
		return service.Limits{}, err
	}
	for _, r := range b.enforces.Missing(limits) {
		limits[r] = service.Quota{}
	}
	for _, lack := range b.tree.Lacks(limits) {
		limits[lack.Resource] = service.Quota{}
	}
	if !limits[service.OOMGroup].Set && b.enforces.Limits[service.OOMGroup] {
		limits[service.OOMGroup] = service.Of(1)
	}
	return limits, nil
}

// unenforceable is the refusal of limits that this host does not enforce, nil if there
// are none among them.
func (b *Backend) unenforceable(op string, name service.Name, limits service.Limits) error {
	var err error
	if missing := b.enforces.Missing(limits); len(missing) > 0 {
		err = fmt.Errorf("this host does not enforce %s; leave the limit out, or set best_effort", b.enforces.Explain(missing))
	} else if lacks := b.tree.Lacks(limits); len(lacks) > 0 {
		err = errors.New(lacks[0].Why)
	}
	if err == nil {
		return nil
	}
	return &service.Error{Op: op, Service: name, Kind: service.Unenforceable, Reason: service.ReasonLimitUnenforceable, Err: err}
}

// begin keeps two launches of one service apart.
func (b *Backend) begin(l service.Launch) (done func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, failure("start", l.Name, service.HostUnavailable, errors.New("the backend is closed"))
	case b.launching[l.Name]:
		return nil, previousAlive(l, errors.New("an instance of it is being started already"))
	}
	b.launching[l.Name] = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.launching, l.Name)
	}, nil
}

func previousAlive(l service.Launch, err error) error {
	return &service.Error{Op: "start", Service: l.Name, Kind: service.Exists, Reason: service.ReasonPreviousAlive, Err: err}
}

// restoreParent makes the parent anew if somebody has removed it, with all that
// lived in it.
func (b *Backend) restoreParent(ctx context.Context) error {
	there, err := b.parent.Exists()
	if err != nil || there {
		return err
	}
	if !b.ours && b.restore == nil {
		return fmt.Errorf("%s, in which services live, was removed", b.parent.Path())
	}
	if !b.ours {
		if err := b.restore(ctx); err != nil {
			return err
		}
	}
	_, err = prepare(b.parent, b.ours)
	return err
}

// makeWay refuses a service of which something lives, and removes an empty
// cgroup that stands where the new one is to be.
func (b *Backend) makeWay(l service.Launch) error {
	dirs, err := b.parent.Children()
	if err != nil {
		return failure("start", l.Name, service.HostUnavailable, err)
	}
	for _, dir := range dirs {
		if other, _, ok := units.ParseDir(dir); !ok || other != l.Name {
			continue
		}
		group := b.parent.Child(dir)
		alive, err := group.Populated()
		if err != nil {
			return failure("start", l.Name, service.HostUnavailable, err)
		}
		if alive {
			pids, _ := group.Processes()
			return previousAlive(l, fmt.Errorf("processes %v of an earlier instance live in %s", pids, group.Path()))
		}
		if group == b.group(l) {
			if err := group.Remove(); err != nil {
				return failure("start", l.Name, service.HostUnavailable, err)
			}
		}
	}
	return nil
}

// launch goes through the steps of a start. After an error clean is to be
// called.
func (h *handle) launch(ctx context.Context, l service.Launch, limits service.Limits, birth backends.Birth) error {
	if err := failpoint.Hit(failpoint.S5CgroupMade); err != nil {
		return err
	}
	now, atOpening := roomForGate(limits)
	if err := failpoint.After(h.enclose(ctx, now), failpoint.S6LimitsSet); err != nil {
		return err
	}
	if err := h.group.RefuseFrozen(); err != nil {
		return err
	}
	dir, err := h.group.OpenDir()
	if err != nil {
		return err
	}
	child, err := launch.Start(ctx, h.backend.watcher, launch.Request{Launch: l, CgroupFD: int(dir.Fd()), Shim: h.backend.shim})
	if err := errors.Join(err, dir.Close()); err != nil {
		return err
	}
	defer child.Abandon() // does nothing once the gate was opened
	if err := h.identify(child, birth.Identify); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return gaveUp(ctx, "start", l.Name, "")
	}
	if err := h.tighten(ctx, child, atOpening); err != nil {
		return err
	}
	if err := h.hold(child.Process()); err != nil {
		return err
	}
	err = child.Bear(ctx, birth, h.Run, func(ctx context.Context) error {
		if birth.Prepare != nil { // what the hooks have run into is not the program's
			if h.base, err = h.group.OOMCounts(); err != nil {
				return err
			}
		}
		return h.explain(child.Open(ctx))
	})
	if err != nil {
		err = errors.Join(err, h.place.Close())
		h.main, h.place = nil, nil
	}
	return err
}

// enclose limits the cgroup and takes down what is counted so far.
func (h *handle) enclose(ctx context.Context, limits service.Limits) error {
	if err := h.apply(ctx, limits); err != nil {
		return fmt.Errorf("limit its cgroup: %w", err)
	}
	var err error
	h.base, err = h.group.OOMCounts()
	return err
}

// apply limits the cgroup, and has what is above it keep memory for it.
func (h *handle) apply(ctx context.Context, limits service.Limits) error {
	if err := h.backend.parent.Enable(cgroup.Demanded(limits)); err != nil {
		return err
	}
	if err := h.group.Apply(limits); err != nil || !cgroup.Protects(limits) {
		return err
	}
	return h.backend.protect(ctx)
}

// identify finds out who the child is and that it was born where it belongs,
// and tells the caller.
func (h *handle) identify(child *launch.Child, tell func(service.Ref) error) error {
	at, err := h.backend.procfs.Cgroup(child.PID())
	if err != nil {
		return err
	}
	if at != h.group.Path() {
		return fmt.Errorf("process %d was born in cgroup %s instead of %s", child.PID(), at, h.group.Path())
	}
	h.ref.PID, h.ref.StartTicks, h.ref.BootID = child.PID(), child.StartTicks(), h.backend.bootID
	err = h.group.SetMark(process.Mark(h.ref.PID, h.ref.StartTicks))
	if err != nil && !errors.Is(err, errors.ErrUnsupported) { // the record alone tells then
		return err
	}
	if err := tell(h.ref); err != nil {
		return fmt.Errorf("record its identity: %w", err)
	}
	return nil
}

// tighten sets the limits that were too small for the gate to get to where it
// waits.
func (h *handle) tighten(ctx context.Context, child *launch.Child, limits service.Limits) error {
	if limits == (service.Limits{}) {
		return nil
	}
	if err := child.Ready(ctx); err != nil {
		return h.explain(err)
	}
	if err := h.group.Apply(limits); err != nil {
		return fmt.Errorf("limit its cgroup: %w", err)
	}
	return nil
}

// explain adds to the error of a gate that died what the kernel has killed it
// for.
func (h *handle) explain(err error) error {
	failed, ok := errors.AsType[*service.Error](err)
	_, _, kills, readErr := h.group.OOMSince(h.base)
	if !ok || readErr != nil || kills == 0 {
		return err
	}
	told := *failed
	told.Err = fmt.Errorf("its memory limit is too small to start in, which takes about %s: %w", service.FormatSize(gateWaits), failed.Err)
	return &told
}

// clean removes whatever a failed launch has left.
func (h *handle) clean(ctx context.Context) error {
	if err := h.empty(ctx); err != nil {
		return err
	}
	if err := h.group.Remove(); err != nil {
		return err
	}
	h.backend.unprotect(ctx)
	return nil
}

// What the gate itself needs besides launch.GateMemory.
const (
	gateWaits = 4 << 20 // to wait there and to become the program
	gateTasks = 32
	gateCPU   = 10 * service.UsecPerPercent
)

// roomForGate splits limits by when they are set. Most hold from birth. A gate
// does not come to where it waits within the smallest, or not within useful
// time, so those are set when it waits there: before the program's first
// instruction, too. Where memory is not even enough for a gate that waits the
// kernel kills it, and nothing was started.
func roomForGate(limits service.Limits) (now, atOpening service.Limits) {
	now = limits
	for r, least := range map[service.Resource]uint64{
		service.PidsMax: gateTasks, service.CPUMax: gateCPU, service.MemoryMax: launch.GateMemory, service.MemoryHigh: launch.GateMemory,
	} {
		if limits[r].Set && limits[r].Value < least {
			now[r], atOpening[r] = service.Of(least), limits[r]
		}
	}
	return now, atOpening
}
