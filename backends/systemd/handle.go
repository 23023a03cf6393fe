package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/place"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/backends/internal/rlimit"
	"github.com/gladsheim/gladsheim/cgroup"
)

// handle is one incarnation; see backends.Handle.
type handle struct {
	b     *Backend
	ref   service.Ref
	scope cgroup.Group // its processes and limits
	cell  cgroup.Group // its counters, also when the scope is gone

	before cgroup.OOMCounts // when it began, or was adopted

	main  *process.Main // nil if it had ended before it was adopted
	place *place.Place  // of main; nil without it
	like  launch.Likeness

	count     sync.Once // counts the leftovers, before the first kill
	mu        sync.Mutex
	requested service.Limits
	instead   service.Limits // of them: what the agent has set for now
	baseline  place.Baseline
	leftovers int
	throttled throttled
	removing  bool            // we have begun to have the scope removed
	foreign   dbus.ObjectPath // the job of its scope that somebody else has asked for; "" if there is none

	unhold func() // ends the news of jobs

	limiting  chan struct{} // held by the one who changes limits, which are read back, or who leads, or freezes or thaws
	releasing chan struct{} // held by the one who releases, and guards what follows
	released  bool
	finished  bool // with releasing held
	remains   service.Remains
}

// throttled is how often and how long the scope was held back, as last read:
// that is counted where the quota is, and goes with the scope.
type throttled struct{ usec, periods service.Quota }

var _ backends.Handle = (*handle)(nil)

func (b *Backend) newHandle(ref service.Ref, l service.Launch) *handle {
	scope := b.tree.Group(ref.Cgroup)
	return &handle{
		b: b, ref: ref, scope: scope, cell: scope.Parent(), requested: l.Limits, like: launch.LikenessOf(&l.Spec),
		limiting: make(chan struct{}, 1), releasing: make(chan struct{}, 1),
	}
}

// take makes p the main process.
func (h *handle) take(p *process.Process) error {
	main := process.Lead(p)
	at, err := place.Watch(h.b.watcher, h.b.fs, h.scope, main)
	if err != nil {
		return err
	}
	h.main, h.place = main, at
	h.unhold = h.b.bus.ends.hold(h.ref.Unit, h)
	return nil
}

// Succeed implements backends.Handle.
func (h *handle) Succeed(ctx context.Context, pid int) error {
	const op = "succeed"
	turn, cancel := bounded(ctx)
	defer cancel()
	select {
	case h.limiting <- struct{}{}:
		defer func() { <-h.limiting }()
	case <-turn.Done():
		return failure(op, h.ref.Name, fmt.Errorf("another change is under way: %w", turn.Err()))
	}
	if h.main == nil {
		return &service.Error{Op: op, Service: h.ref.Name, Kind: service.NotRunning, Err: errors.New("its main process had ended before it was adopted")}
	}
	if err := place.Succeed(h.b.watcher, h.b.fs, h.b.shim, h.scope, h.main, pid); err != nil {
		return failure(op, h.ref.Name, err)
	}
	return nil
}

// letGo ends all news of the incarnation but that of its end.
func (h *handle) letGo() error {
	h.unhold()
	return h.place.Close()
}

// jobBegan takes news of a job of the scope. Of a scope that is active jobs stop it,
// or change nothing.
func (h *handle) jobBegan(job dbus.ObjectPath) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.removing {
		h.foreign = job
	}
}

// jobEnded takes news of the end of a job. One that the main process lives
// through was none that stops it; of one whose end is heard after that of the process
// nobody can tell.
func (h *handle) jobEnded(job dbus.ObjectPath) {
	if h == nil || !h.main.Lives() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.foreign == job {
		h.foreign = ""
	}
}

// stopper is who has had the scope stopped, if that was not us.
func (h *handle) stopper() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.removing = true
	if h.foreign != "" {
		return "systemd"
	}
	return ""
}

func (h *handle) Ref() service.Ref { return h.main.Named(h.ref) }

func (h *handle) Exited() <-chan struct{} { return h.main.Exited() }

func (h *handle) Displaced() <-chan struct{} {
	if h.place == nil {
		return nil
	}
	return h.place.Left()
}

func (h *handle) Exit() service.Exit { return h.main.Exit() }

func (h *handle) ExitedAt() time.Time { return h.main.ExitedAt() }

func (h *handle) Signal(_ context.Context, sig syscall.Signal) error {
	if h.ended() {
		return &service.Error{Op: "signal", Service: h.ref.Name, Kind: service.NotRunning, Err: errors.New("its main process has ended")}
	}
	h.readThrottled() // it may be the end of the scope
	if err := h.main.Signal(sig); err != nil {
		return failure("signal", h.ref.Name, err)
	}
	return nil
}

func (h *handle) Limit(ctx context.Context, l service.Limits) (service.Applied, error) {
	return h.change(ctx, l, h.scope.Lower, h.asked)
}

func (h *handle) Force(ctx context.Context, l service.Limits) (service.Applied, error) {
	return h.change(ctx, l, place.AtOnce, h.asked)
}

func (h *handle) Throttle(ctx context.Context, l service.Limits) (service.Applied, error) {
	return h.change(ctx, l, h.scope.Lower, h.heldTo)
}

// asked notes what somebody has asked for, heldTo what the agent has set instead.
func (h *handle) asked(l service.Limits) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requested, h.instead = l.Over(h.requested), h.instead.Without(l)
}

func (h *handle) heldTo(l service.Limits) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.instead = l.Instead(h.requested).Over(h.instead.Without(l))
}

// change changes limits, and has note know of it.
func (h *handle) change(ctx context.Context, l service.Limits, by place.Lowering, note func(service.Limits)) (service.Applied, error) {
	const op = "limit"
	if h.ended() {
		return service.Applied{}, &service.Error{Op: op, Service: h.ref.Name, Kind: service.NotRunning,
			Err: errors.New("its main process has ended")}
	}
	if err := h.b.unenforceable(op, h.ref.Name, l); err != nil {
		return service.Applied{}, err
	}
	if err := h.place.Check(); err != nil {
		return service.Applied{}, &service.Error{Op: op, Service: h.ref.Name, Kind: service.Unenforceable, Err: err}
	}
	for r, q := range l {
		if err := service.Resource(r).Check(q); err != nil {
			return service.Applied{}, &service.Error{Op: op, Service: h.ref.Name, Kind: service.Invalid, Err: err}
		}
	}
	turn, cancel := bounded(ctx)
	defer cancel()
	select {
	case h.limiting <- struct{}{}:
		defer func() { <-h.limiting }()
	case <-turn.Done():
		return service.Applied{}, failure(op, h.ref.Name, fmt.Errorf("another change is under way: %w", turn.Err()))
	}
	err := h.keepsOOMPolicy(turn, l)
	if err == nil {
		err = place.Whole(ctx, h.scope, rounded(l), by, h.limit)
	}
	if err != nil {
		return service.Applied{}, h.limitError(ctx, op, err)
	}
	note(l)
	applied, err := h.Limits(ctx)
	if err == nil {
		h.baseline.Set(rounded(l), applied)
	}
	return applied, err
}

func (h *handle) Drift(ctx context.Context, answer func(service.Drift) service.OnDrift) ([]service.Drift, error) {
	const op = "look after the limits of"
	select {
	case h.limiting <- struct{}{}:
		defer func() { <-h.limiting }()
	case <-ctx.Done():
		return nil, failure(op, h.ref.Name, ctx.Err())
	}
	return h.baseline.Repair(ctx, h.scope, answer, h.limit, func(err error) error { return h.limitError(ctx, op, err) })
}

// limitError is why limits were not set.
func (h *handle) limitError(ctx context.Context, op string, err error) error {
	switch refusal := place.InUse(ctx, op, h.ref.Name, err); {
	case refusal != nil:
		return refusal
	case gone(err) || errorIs(err, noSuchUnit):
		return &service.Error{Op: op, Service: h.ref.Name, Kind: service.NotRunning, Err: err}
	}
	return failure(op, h.ref.Name, err)
}

// limitCell gives the cell the limits that the scope had, and reads them back.
func (h *handle) limitCell(ctx context.Context) error {
	h.mu.Lock()
	l := service.Launch{Name: h.ref.Name, Limits: h.requested, Spec: service.Spec{BestEffort: true}}
	h.mu.Unlock()
	limits, err := h.b.enforceable(l)
	if err != nil {
		return err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	link, err := h.b.bus.link(ctx)
	if err != nil {
		return err
	}
	if err := h.b.bus.set(ctx, cellOf(h.ref.Unit), limitsAsProperties(limits, link.knows253)); err != nil {
		return err
	}
	if err := h.cell.Apply(left(limits)); err != nil {
		return err
	}
	return holds(h.cell, limits)
}

// limit changes limits and reads each back.
func (h *handle) limit(ctx context.Context, l service.Limits) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	link, err := h.b.bus.link(ctx)
	if err != nil {
		return err
	}
	if l[service.CPUMax].Set && l[service.CPUBurst].Set {
		// The kernel refuses a quota below the burst.
		if err := h.scope.Apply(service.Limits{service.CPUBurst: service.Of(0)}); err != nil {
			return err
		}
	}
	told, err := h.withMemoryMax(l)
	if err != nil {
		return err
	}
	if err := h.b.bus.set(ctx, h.ref.Unit, limitsAsProperties(told, link.knows253)); err != nil {
		return err
	}
	if err := h.b.bus.set(ctx, cellOf(h.ref.Unit), limitsAsProperties(amongSiblings(l), true)); err != nil {
		return err
	}
	if err := h.groupKill(); err != nil {
		return err
	}
	if err := h.limitFrozen(l); err != nil {
		return err
	}
	if err := h.complete(ctx, l); err != nil {
		return err
	}
	h.mu.Lock()
	requested := h.requested
	h.mu.Unlock()
	ofProcesses, err := rlimit.Wanted(l, requested)
	if err != nil {
		return err
	}
	return rlimit.Set(h.cell.Processes, ofProcesses)
}

// withMemoryMax adds to limits of which systemd is told the memory_max that holds. With
// each property it writes all limits of the unit anew, and where somebody else has raised
// memory.max since, the kernel would kill.
func (h *handle) withMemoryMax(l service.Limits) (service.Limits, error) {
	if l[service.MemoryMax].Set || len(limitsAsProperties(l, true)) == 0 {
		return l, nil
	}
	now, err := h.scope.Limit(service.MemoryMax)
	l[service.MemoryMax] = now
	return l, err
}

// keepsOOMPolicy refuses to change oom_group of a scope that has an OOMPolicy: that is
// set when it is made, and systemd goes by it whatever the kernel was told.
func (h *handle) keepsOOMPolicy(ctx context.Context, l service.Limits) error {
	want := l[service.OOMGroup]
	if !want.Set || want == h.oomGroup() {
		return nil
	}
	if can, err := h.b.bus.link(ctx); err != nil || !can.knows253 {
		return err
	}
	return &service.Error{Op: "limit", Service: h.ref.Name, Kind: service.Unenforceable, Reason: service.ReasonLimitUnenforceable,
		Err: errors.New("oom_group of a scope is what it was when the scope was made; set it in the definition, and restart the service")}
}

// oomGroup is what oom_group is to be.
func (h *handle) oomGroup() service.Quota {
	h.mu.Lock()
	defer h.mu.Unlock()
	if asked := h.requested[service.OOMGroup]; asked.Set {
		return asked
	}
	return service.Of(1)
}

// complete adds to limits that systemd has set what it can not, and reads all of them
// back.
func (h *handle) complete(ctx context.Context, l service.Limits) error {
	if err := h.scope.Apply(left(l)); err != nil {
		return err
	}
	if err := h.cell.Apply(only(l, []service.Resource{service.IODeviceWeight})); err != nil {
		return err
	}
	if cgroup.Protects(l) {
		if err := h.b.Protect(ctx); err != nil {
			return err
		}
	}
	return h.verifyLimits(l)
}

// verifyLimits compares the kernel's values with l; of those that count among siblings
// also the cell's, which are the ones that do.
func (h *handle) verifyLimits(l service.Limits) error {
	if err := holds(h.scope, l); err != nil {
		return err
	}
	if only := amongSiblings(l); only != (service.Limits{}) {
		return holds(h.cell, only)
	}
	return nil
}

func holds(g cgroup.Group, l service.Limits) error {
	now, err := g.Limits(l)
	if err != nil {
		return err
	}
	for i, q := range l {
		r, has := service.Resource(i), now[i].Applied
		lifted := q.Value == service.Unlimited && (!has.Set || r.Unit() == service.List) // a list by complete
		if !q.Set || r == service.NoFile || r == service.Rlimits || has == q || lifted {
			continue
		}
		return fmt.Errorf("systemd was told that %s is %s, but %s holds %s", r, r.Format(q), g.Path(), r.Format(has))
	}
	return nil
}

func (h *handle) Limits(context.Context) (service.Applied, error) {
	h.mu.Lock()
	requested, instead := h.requested, h.instead
	h.mu.Unlock()
	applied, err := h.scope.Limits(requested)
	if err == nil {
		err = h.groupKill()
	}
	if gone(err) {
		return applied, &service.Error{Op: "read limits of", Service: h.ref.Name, Kind: service.NotRunning, Err: err}
	}
	if err != nil {
		return applied, failure("read limits of", h.ref.Name, err)
	}
	h.baseline.Begin(rounded(requested), applied)
	applied.Held(instead)
	soft, err := h.openFiles()
	if err != nil {
		return applied, failure("read limits of", h.ref.Name, err)
	}
	applied.Offer(h.b.can)
	files := &applied[service.NoFile]
	files.Applied, files.Effective, files.Enforced = soft, soft, soft.Set
	if soft.Set {
		applied[service.Rlimits], err = rlimit.Report(h.main.PID(), requested[service.Rlimits])
	}
	if err != nil && !errors.Is(err, unix.ESRCH) && !h.ended() {
		return applied, failure("read limits of", h.ref.Name, err)
	}
	return applied, nil
}

// openFiles reads RLIMIT_NOFILE of the main process; unset when that has ended.
func (h *handle) openFiles() (service.Quota, error) {
	if h.ended() {
		return service.Quota{}, nil
	}
	now, err := rlimit.NoFile(h.main.PID())
	if errors.Is(err, unix.ESRCH) {
		return service.Quota{}, nil
	}
	return service.Of(now), err
}

func (h *handle) Usage(context.Context) (service.Usage, error) {
	_ = h.groupKill() // the scope may be gone; to put this right is not what was asked
	u, err := h.usage()
	if gone(err) {
		return u, &service.Error{Op: "read usage of", Service: h.ref.Name, Kind: service.NotRunning, Err: err}
	}
	if err != nil {
		return u, failure("read usage of", h.ref.Name, err)
	}
	return u, nil
}

// usage reads the counters of the cell: systemd removes the scope, file by file,
// as soon as it is empty, and the cell counts the same. The throttling alone is
// counted where the quota is. A group that goes while it is read looks like one
// that has used nothing, so the reading counts only if the group is still there.
func (h *handle) usage() (service.Usage, error) {
	u, err := h.cell.Usage()
	if there, existsErr := h.cell.Exists(); existsErr == nil && !there {
		return service.Usage{}, fmt.Errorf("read the counters of %s: %w", h.cell.Path(), fs.ErrNotExist)
	}
	u.Throttled, u.ThrottledPeriods = h.readThrottled()
	return u, err
}

// readThrottled is the throttling as the scope tells it, or as it was last told
// if the scope is gone. A reading that comes late does not replace a later one.
func (h *handle) readThrottled() (usec, periods service.Quota) {
	usec, periods, err := h.scope.Throttled()
	h.mu.Lock()
	defer h.mu.Unlock()
	if last := h.throttled; err == nil && usec.Set && periods.Set && periods.Value >= last.periods.Value {
		h.throttled = throttled{usec, periods}
	}
	return h.throttled.usec, h.throttled.periods
}

// gone tells whether err says that a cgroup is not there, or went while it was
// read.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// Close lets go of the incarnation.
func (h *handle) Close() error {
	if h.main == nil {
		return nil
	}
	return errors.Join(h.letGo(), h.main.Close())
}
