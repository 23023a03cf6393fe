package cgroupfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/backends/internal/rlimit"
	"github.com/gladsheim/gladsheim/cgroup"
)

// handle is one incarnation: a cgroup and its main process.
type handle struct {
	backend *Backend
	group   cgroup.Group
	ref     service.Ref
	main    *process.Process // nil when it had ended before the incarnation was adopted

	base    cgroup.OOMCounts // what the kernel had counted before
	blurred bool             // part of what base should hold was counted while nobody looked

	turn chan struct{} // full while a Release is at work

	count     sync.Once // counts the leftovers, before the first kill
	mu        sync.Mutex
	leftovers int
	requested service.Limits
	released  *service.Remains
}

var _ backends.Handle = (*handle)(nil)

func (h *handle) Ref() service.Ref { return h.ref }

// over is the channel of a main process that had ended before.
var over = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (h *handle) Exited() <-chan struct{} {
	if h.main == nil {
		return over
	}
	return h.main.Exited()
}

func (h *handle) Exit() service.Exit {
	if h.main == nil {
		return service.Exit{Unknown: process.UnknownExit}
	}
	return h.main.Exit()
}

// mainEnded tells whether the main process has ended.
func (h *handle) mainEnded() bool {
	select {
	case <-h.Exited():
		return true
	default:
		return false
	}
}

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

func (h *handle) remains() *service.Remains {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.released
}

func (h *handle) Limit(ctx context.Context, l service.Limits) (service.Applied, error) {
	const op = "limit"
	if err := h.begin(ctx, op); err != nil {
		return service.Applied{}, err
	}
	if missing := h.backend.enforces.Missing(l); len(missing) > 0 {
		return service.Applied{}, h.backend.unenforceable(op, h.ref.Name, missing)
	}
	if h.mainEnded() {
		return service.Applied{}, h.notRunning(op)
	}
	if err := h.group.Apply(l); err != nil {
		return service.Applied{}, h.fileError(op, err)
	}
	if q := l[service.NoFile]; q.Set {
		if err := rlimit.SetNoFile(h.group.Processes, q.Value); err != nil {
			return service.Applied{}, h.fileError(op, err)
		}
	}
	h.mu.Lock()
	h.requested = l.Over(h.requested)
	h.mu.Unlock()
	return h.Limits(ctx)
}

func (h *handle) Limits(ctx context.Context) (service.Applied, error) {
	const op = "read the limits of"
	if err := h.begin(ctx, op); err != nil {
		return service.Applied{}, err
	}
	h.mu.Lock()
	requested := h.requested
	h.mu.Unlock()
	applied, err := h.group.Limits(requested)
	if err != nil {
		return service.Applied{}, h.fileError(op, err)
	}
	applied[service.NoFile].Enforced = true
	if h.mainEnded() {
		return applied, nil
	}
	n, err := rlimit.NoFile(h.ref.PID)
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
	if at := slices.Index(pids, h.ref.PID); at > 0 {
		pids = slices.Insert(slices.Delete(pids, at, at+1), 0, h.ref.PID)
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

func (h *handle) Kill(ctx context.Context) error {
	if h.remains() != nil {
		return nil
	}
	return h.kill(ctx, "kill")
}

func (h *handle) kill(ctx context.Context, op string) error {
	h.count.Do(h.countLeftovers)
	err := h.empty(ctx)
	if err != nil && ctx.Err() != nil {
		return &service.Error{
			Op: op, Service: h.ref.Name, Kind: service.Timeout, Reason: service.ReasonUnkillable,
			Err: fmt.Errorf("these processes were killed and have not ended yet: %s", h.survivors()),
		}
	}
	if err != nil {
		return failure(op, h.ref.Name, service.HostUnavailable, err)
	}
	return nil
}

// countLeftovers counts what has outlived the main process. What is killed
// together with it is not left over.
func (h *handle) countLeftovers() {
	if !h.mainEnded() {
		return
	}
	if list, err := h.processes(); err == nil {
		h.mu.Lock()
		h.leftovers = len(list)
		h.mu.Unlock()
	}
}

func (h *handle) survivors() string {
	list, err := h.processes()
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, p := range list {
		names = append(names, fmt.Sprintf("%d (%s)", p.PID, p.Command))
	}
	return strings.Join(names, ", ")
}

// killAgain is how long to wait for the end of what was killed before killing
// once more, in case somebody has moved a process in meanwhile.
const killAgain = time.Second

// empty kills until nothing lives: neither in the cgroup, nor the main process,
// should somebody have moved it elsewhere.
func (h *handle) empty(ctx context.Context) error {
	h.letDie()
	for {
		if err := h.group.Kill(); err != nil {
			return err
		}
		if h.main != nil {
			if err := h.main.Signal(syscall.SIGKILL); err != nil && service.KindOf(err) != service.NotRunning {
				return err
			}
		}
		wait, cancel := context.WithTimeout(ctx, killAgain)
		err := h.awaitEmpty(wait)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

// deathCPU is more CPU time than any machine has. It is not Unlimited because
// lifting the last such limit of a host makes the kernel patch its scheduler.
const deathCPU = 100 * service.UsecPerPercent * 4096

// letDie raises a limit on CPU time: dying takes some too, and who is out of it
// would wait for the next period. If that fails, they die more slowly.
func (h *handle) letDie() {
	if now, err := h.group.Limits(service.Limits{}); err == nil && now[service.CPUMax].Applied.Value < deathCPU && now[service.CPUMax].Applied.Set {
		_ = h.group.Apply(service.Limits{service.CPUMax: service.Of(deathCPU)})
	}
}

func (h *handle) awaitEmpty(ctx context.Context) error {
	if err := h.group.WaitEmpty(ctx); err != nil {
		return err
	}
	select {
	case <-h.Exited():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *handle) Release(ctx context.Context) (service.Remains, error) {
	const op = "release"
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return service.Remains{}, gaveUp(ctx, op, h.ref.Name, "")
	}
	if r := h.remains(); r != nil {
		return *r, nil
	}
	if err := h.kill(ctx, op); err != nil {
		return service.Remains{}, err
	}
	r, err := h.read()
	if err != nil {
		return service.Remains{}, failure(op, h.ref.Name, service.HostUnavailable, err)
	}
	if err := h.group.Remove(); err != nil {
		return service.Remains{}, failure(op, h.ref.Name, service.HostUnavailable, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Leftovers = h.leftovers
	h.released = &r
	return r, nil
}

// read reads the counters for the last time, after everything has ended. Of a
// cgroup that somebody else has removed they are unknown.
func (h *handle) read() (service.Remains, error) {
	there, err := h.group.Exists()
	if err != nil || !there {
		return service.Remains{Usage: service.Usage{Source: "cgroup"}}, err
	}
	var r service.Remains
	if r.Usage, err = h.usage(); err != nil {
		return service.Remains{}, err
	}
	if r.OOM, r.OOMLevel, _, err = h.group.OOMSince(h.base); err != nil {
		return service.Remains{}, err
	}
	if h.blurred && r.OOM == service.OOMAncestor {
		r.OOM, r.OOMLevel = service.OOMNone, cgroup.UnknownLevel
	}
	return r, nil
}

// countFromNow sets the base of an incarnation that was launched by an earlier
// agent, whose base is lost. If nothing was killed yet, the present counters
// serve as well. Otherwise all that was ever counted must be taken into account,
// and an ancestor's counters may tell of something else long ago.
func (h *handle) countFromNow() error {
	now, err := h.group.OOMCounts()
	if err != nil {
		return err
	}
	if now.Kills().Value > 0 {
		h.blurred = true
		return nil
	}
	h.base = now
	return nil
}

func (h *handle) Close() error {
	if h.main == nil {
		return nil
	}
	if err := h.main.Close(); err != nil {
		return failure("let go of", h.ref.Name, service.Internal, err)
	}
	return nil
}
