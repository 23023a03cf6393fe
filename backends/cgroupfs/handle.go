package cgroupfs

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/place"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/backends/internal/rlimit"
	"github.com/gladsheim/gladsheim/cgroup"
)

// handle is one incarnation: a cgroup and its main process.
type handle struct {
	backend *Backend
	group   cgroup.Group
	ref     service.Ref
	main    *process.Main // nil when it had ended before the incarnation was adopted
	place   *place.Place  // of main; nil without it
	like    launch.Likeness

	base cgroup.OOMCounts // what the kernel had counted before

	turn chan struct{} // full while a Release or a Limit is at work

	count     sync.Once // counts the leftovers, before the first kill
	mu        sync.Mutex
	leftovers int
	requested service.Limits
	instead   service.Limits // of them: what the agent has set for now
	baseline  place.Baseline
	released  *service.Remains
	finished  *service.Remains // with the turn
}

var _ backends.Handle = (*handle)(nil)

func (h *handle) Ref() service.Ref { return h.main.Named(h.ref) }

func (h *handle) Exited() <-chan struct{} { return h.main.Exited() }

func (h *handle) Exit() service.Exit { return h.main.Exit() }

func (h *handle) ExitedAt() time.Time { return h.main.ExitedAt() }

func (h *handle) Displaced() <-chan struct{} {
	if h.place == nil {
		return nil
	}
	return h.place.Left()
}

// hold makes p the main process.
func (h *handle) hold(p *process.Process) (err error) {
	main := process.Lead(p)
	if h.place, err = place.Watch(h.backend.watcher, h.backend.procfs, h.group, main); err == nil {
		h.main = main
	}
	return err
}

// Succeed implements backends.Handle.
func (h *handle) Succeed(ctx context.Context, pid int) error {
	const op = "succeed"
	done, err := h.take(ctx, op)
	if err != nil {
		return err
	}
	defer done()
	if h.main == nil || h.remains() != nil {
		return h.notRunning(op)
	}
	if err := place.Succeed(h.backend.watcher, h.backend.procfs, h.backend.shim, h.group, h.main, pid); err != nil {
		return failure(op, h.ref.Name, service.HostUnavailable, err)
	}
	return nil
}

// mainEnded tells whether the main process has ended.
func (h *handle) mainEnded() bool { return h.main.Ended() }

func (h *handle) Signal(ctx context.Context, sig syscall.Signal) error {
	switch {
	case ctx.Err() != nil:
		return gaveUp(ctx, "signal", h.ref.Name, "")
	case h.main == nil:
		return h.notRunning("signal")
	}
	if err := h.main.Signal(sig); err != nil {
		return failure("signal", h.ref.Name, service.Internal, err)
	}
	return nil
}

func (h *handle) notRunning(op string) error {
	return &service.Error{Op: op, Service: h.ref.Name, Kind: service.NotRunning, Err: errors.New("it has ended")}
}

// Run implements backends.Handle.
func (h *handle) Run(ctx context.Context, p backends.Program) (backends.Ran, error) {
	if h.mainEnded() && !p.After {
		return backends.Ran{}, h.notRunning("run a program beside")
	}
	h.mu.Lock()
	limits := h.requested
	h.mu.Unlock()
	return place.Beside(ctx, h.backend.watcher, h.group, launch.Beside{
		Ref: h.ref, Like: h.like, Limits: limits, Program: p, Main: h.main,
	})
}

// fileError is the error of reading or writing files of the cgroup, which
// are gone when the incarnation is.
func (h *handle) fileError(op string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		if there, existsErr := h.group.Exists(); existsErr == nil && !there {
			return h.notRunning(op)
		}
	}
	return failure(op, h.ref.Name, service.HostUnavailable, err)
}

// begin is how what needs a living incarnation begins.
func (h *handle) begin(ctx context.Context, op string) error {
	if ctx.Err() != nil {
		return gaveUp(ctx, op, h.ref.Name, "")
	}
	if h.remains() != nil {
		return h.notRunning(op)
	}
	return nil
}

// take waits for the turn.
func (h *handle) take(ctx context.Context, op string) (done func(), err error) {
	select {
	case h.turn <- struct{}{}:
		return func() { <-h.turn }, nil
	case <-ctx.Done():
		return nil, gaveUp(ctx, op, h.ref.Name, "")
	}
}

func (h *handle) remains() *service.Remains {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.released
}

func (h *handle) Limit(ctx context.Context, l service.Limits) (service.Applied, error) {
	return h.limit(ctx, l, h.group.Lower, h.asked)
}

func (h *handle) Force(ctx context.Context, l service.Limits) (service.Applied, error) {
	return h.limit(ctx, l, place.AtOnce, h.asked)
}

func (h *handle) Throttle(ctx context.Context, l service.Limits) (service.Applied, error) {
	return h.limit(ctx, l, h.group.Lower, h.throttled)
}

// asked notes what somebody has asked for, throttled what the agent has set instead.
func (h *handle) asked(l service.Limits) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requested, h.instead = l.Over(h.requested), h.instead.Without(l)
}

func (h *handle) throttled(l service.Limits) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.instead = l.Instead(h.requested).Over(h.instead.Without(l))
}

// limit changes limits, and has note know of it.
func (h *handle) limit(ctx context.Context, l service.Limits, by place.Lowering, note func(service.Limits)) (service.Applied, error) {
	const op = "limit"
	done, err := h.take(ctx, op)
	if err != nil {
		return service.Applied{}, err
	}
	defer done()
	if err := h.begin(ctx, op); err != nil {
		return service.Applied{}, err
	}
	if err := h.backend.unenforceable(op, h.ref.Name, l); err != nil {
		return service.Applied{}, err
	}
	if h.mainEnded() {
		return service.Applied{}, h.notRunning(op)
	}
	if err := h.place.Check(); err != nil {
		return service.Applied{}, failure(op, h.ref.Name, service.Unenforceable, err)
	}
	if err := place.Whole(ctx, h.group, l, by, h.change); err != nil {
		return service.Applied{}, h.limitError(ctx, op, err)
	}
	note(l)
	applied, err := h.Limits(context.WithoutCancel(ctx))
	if err == nil {
		h.baseline.Set(l, applied)
	}
	return applied, err
}

// change limits the cgroup, and then the processes in it.
func (h *handle) change(ctx context.Context, l service.Limits) error {
	if err := h.apply(ctx, l); err != nil {
		return err
	}
	return h.limitProcesses(l)
}

func (h *handle) limitProcesses(l service.Limits) error {
	h.mu.Lock()
	requested := h.requested
	h.mu.Unlock()
	limits, err := rlimit.Wanted(l, requested)
	if err != nil {
		return err
	}
	return rlimit.Set(h.group.Processes, limits)
}

func (h *handle) Drift(ctx context.Context, answer func(service.Drift) service.OnDrift) ([]service.Drift, error) {
	const op = "look after the limits of"
	done, err := h.take(ctx, op)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := h.begin(ctx, op); err != nil {
		return nil, err
	}
	return h.baseline.Repair(ctx, h.group, answer, h.apply, func(err error) error { return h.limitError(ctx, op, err) })
}

// limitError is why limits were not set.
func (h *handle) limitError(ctx context.Context, op string, err error) error {
	if refusal := place.InUse(ctx, op, h.ref.Name, err); refusal != nil {
		return refusal
	}
	return h.fileError(op, err)
}

func (h *handle) Limits(ctx context.Context) (service.Applied, error) {
	const op = "read the limits of"
	if err := h.begin(ctx, op); err != nil {
		return service.Applied{}, err
	}
	h.mu.Lock()
	requested, instead := h.requested, h.instead
	h.mu.Unlock()
	applied, err := h.group.Limits(requested)
	if err != nil {
		return service.Applied{}, h.fileError(op, err)
	}
	h.baseline.Begin(requested, applied)
	applied.Held(instead)
	applied[service.NoFile].Enforced = true
	applied.Offer(h.backend.enforces)
	if h.mainEnded() {
		return applied, nil
	}
	n, err := rlimit.NoFile(h.main.PID())
	if err == nil {
		applied[service.Rlimits], err = rlimit.Report(h.main.PID(), requested[service.Rlimits])
	}
	switch {
	case errors.Is(err, syscall.ESRCH) || h.mainEnded():
	case err != nil:
		return service.Applied{}, failure(op, h.ref.Name, service.HostUnavailable, err)
	default:
		applied[service.NoFile].Applied, applied[service.NoFile].Effective = service.Of(n), service.Of(n)
	}
	return applied, nil
}

func (h *handle) Usage(ctx context.Context) (service.Usage, error) {
	const op = "read the usage of"
	if err := h.begin(ctx, op); err != nil {
		return service.Usage{}, err
	}
	u, err := h.usage()
	if err != nil {
		return service.Usage{}, h.fileError(op, err)
	}
	return u, nil
}

// usage reads the counters. Memory is added up from the processes where the
// kernel does not count it for the cgroup.
func (h *handle) usage() (service.Usage, error) {
	u, err := h.group.Usage()
	if err != nil || h.backend.enforces.Limits[service.MemoryMax] {
		return u, err
	}
	pids, err := h.group.Processes()
	if err != nil {
		return service.Usage{}, err
	}
	for _, pid := range pids {
		if rss, err := h.backend.procfs.RSS(pid); err == nil {
			u.Memory += rss
		}
	}
	return u, nil
}

// Hear tells of the files of the cgroup.
func (h *handle) Hear(tell func(file string)) (leave func(), err error) {
	dir, err := h.group.OpenDir()
	if err == nil {
		defer dir.Close()
		leave, err = h.backend.watcher.Hear(dir, cgroup.Notified, tell)
	}
	if err != nil {
		return nil, h.fileError("hear", err)
	}
	return leave, nil
}

// Gauge opens the counters.
func (h *handle) Gauge() (backends.Gauge, error) {
	gauge, err := h.group.Gauge()
	if err != nil {
		return nil, h.fileError("measure", err)
	}
	return gauge, nil
}

// Tally reads the counters of the limits.
func (h *handle) Tally() (service.Tally, error) {
	tally, err := h.group.Tally()
	if err != nil {
		return tally, h.fileError("count the limits hit of", err)
	}
	return tally, nil
}

// Press watches a pressure file.
func (h *handle) Press(of service.PressureOf, full bool, share, window time.Duration, tell func()) (leave func(), err error) {
	leave, err = place.Press(h.backend.watcher, h.group, of, full, share, window, tell)
	if err != nil {
		return nil, h.fileError("watch the pressure on", err)
	}
	return leave, nil
}

func (h *handle) AwaitStop(tell func()) (func(), error) {
	if forget, told := h.main.AwaitStop(tell); told {
		return forget, nil
	}
	return nil, backends.ErrDeaf
}

func (h *handle) Threads() (service.Threads, error) {
	t, err := h.main.Threads(h.backend.procfs)
	if err != nil {
		return t, failure("look at", h.ref.Name, service.HostUnavailable, err)
	}
	return t, nil
}

func (h *handle) Processes(ctx context.Context) ([]backends.Process, error) {
	const op = "list the processes of"
	if err := h.begin(ctx, op); err != nil {
		return nil, err
	}
	list, err := h.processes()
	if err != nil {
		return nil, failure(op, h.ref.Name, service.HostUnavailable, err)
	}
	return list, nil
}

func (h *handle) processes() ([]backends.Process, error) {
	pids, err := h.group.Processes()
	if err != nil {
		return nil, err
	}
	main := h.Ref().PID
	if at := slices.Index(pids, main); at > 0 {
		pids = slices.Insert(slices.Delete(pids, at, at+1), 0, main)
	}
	list := make([]backends.Process, 0, len(pids))
	for _, pid := range pids {
		p, err := h.backend.procfs.Process(pid)
		if err != nil || !p.Alive() {
			continue // it has ended meanwhile
		}
		list = append(list, backends.Process{PID: pid, Parent: p.PPID, Command: h.backend.procfs.Command(pid)})
	}
	return list, nil
}

// Owns implements backends.Handle.
func (h *handle) Owns(pid int) (bool, error) {
	owns, err := place.Owns(h.backend.procfs, h.group, h.main, pid)
	if err != nil {
		return false, failure("look at a process for", h.ref.Name, service.HostUnavailable, err)
	}
	return owns, nil
}

func (h *handle) Close() error {
	if h.main == nil {
		return nil
	}
	if err := errors.Join(h.place.Close(), h.main.Close()); err != nil {
		return failure("let go of", h.ref.Name, service.Internal, err)
	}
	return nil
}
