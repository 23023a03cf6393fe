package exec

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/failpoint"
	"github.com/gladsheim/gladsheim/procfs"
)

// handle is one incarnation.
type handle struct {
	backend *Backend
	ref     service.Ref
	brand   brand
	main    *process.Main // nil when it was gone at the adoption
	like    launch.Likeness

	// turn is held by the one who kills, releases or changes limits.
	turn chan struct{}

	mu        sync.Mutex
	requested service.Limits
	dead      time.Duration // CPU time of orphans that were reaped
	latest    service.Usage
	condemned map[int]bool // were sent SIGKILL by us
	corpses   map[int]bool // were found dead
	signs     int          // of members that were not, dead or alive
	leftovers int
	remains   *service.Remains // once released
	finished  *service.Remains // with the turn
}

var _ backends.Handle = (*handle)(nil)

func (h *handle) Ref() service.Ref { return h.main.Named(h.ref) }

func (h *handle) Exited() <-chan struct{} { return h.main.Exited() }

// ended tells whether the main process has ended.
func (h *handle) ended() bool { return h.main.Ended() }

// Displaced is nil: there is no cgroup to be taken out of.
func (h *handle) Displaced() <-chan struct{} { return nil }

func (h *handle) Exit() service.Exit { return h.main.Exit() }

func (h *handle) ExitedAt() time.Time { return h.main.ExitedAt() }

// Hear has no cgroup to hear of.
func (h *handle) Hear(func(string)) (func(), error) { return nil, backends.ErrDeaf }

// Gauge has no files to keep open.
func (h *handle) Gauge() (backends.Gauge, error) { return nil, backends.ErrDeaf }

// Tally has no limits that the kernel counts.
func (h *handle) Tally() (service.Tally, error) { return service.Tally{}, backends.ErrDeaf }

// Press has no pressure that is measured.
func (h *handle) Press(service.PressureOf, bool, time.Duration, time.Duration, func()) (func(), error) {
	return nil, backends.ErrDeaf
}

func (h *handle) AwaitStop(tell func()) (func(), error) {
	if forget, told := h.main.AwaitStop(tell); told {
		return forget, nil
	}
	return nil, backends.ErrDeaf
}

func (h *handle) Threads() (service.Threads, error) {
	t, err := h.main.Threads(h.backend.proc)
	if err != nil {
		return t, &service.Error{Op: "look at", Service: h.ref.Name, Kind: service.KindOf(err), Err: err}
	}
	return t, nil
}

func (h *handle) Signal(_ context.Context, sig syscall.Signal) error {
	if h.ended() {
		return &service.Error{Op: "signal", Service: h.ref.Name, Kind: service.NotRunning, Err: errors.New("its main process has ended")}
	}
	err := h.main.Signal(sig)
	if e, ok := errors.AsType[*service.Error](err); ok {
		return &service.Error{Op: e.Op, Service: h.ref.Name, Kind: e.Kind, Reason: e.Reason, Err: e.Err}
	}
	return err
}

// Succeed implements backends.Handle. What the living tell of who led them at the launch
// stays as it is: most are not ours to change.
func (h *handle) Succeed(ctx context.Context, pid int) error {
	const op = "succeed"
	done, err := h.take(ctx, op)
	if err != nil {
		return err
	}
	defer done()
	if h.main == nil || h.released() != nil {
		return &service.Error{Op: op, Service: h.ref.Name, Kind: service.NotRunning, Err: errors.New("its main process had ended before")}
	}
	used := h.main.Used().CPUTime // of the former, if it has ended
	err = launch.Succession{
		Watcher: h.backend.watch, Proc: h.backend.proc, Shim: h.backend.shim, Main: h.main,
		Belongs: func(pid int) (bool, error) {
			mark, self, err := h.backend.marksOf(pid)
			return mark == h.brand && !launch.IsBeside(self), err
		},
	}.By(pid)
	if e, ok := errors.AsType[*service.Error](err); ok {
		return &service.Error{Op: op, Service: h.ref.Name, Kind: e.Kind, Err: e.Err}
	}
	if err != nil {
		return h.failure(op, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dead += used
	return nil
}

// Freeze refuses: to send SIGSTOP to each process would not be that, see
// backends.Handle.
func (h *handle) Freeze(context.Context) error { return h.unfrozen("freeze") }

// Thaw refuses: what is frozen is so by a cgroup that is not ours.
func (h *handle) Thaw(context.Context) error { return h.unfrozen("thaw") }

func (h *handle) unfrozen(op string) error {
	if h.ended() {
		return &service.Error{Op: op, Service: h.ref.Name, Kind: service.NotRunning, Err: errors.New("its main process has ended")}
	}
	return &service.Error{Op: op, Service: h.ref.Name, Kind: service.Unenforceable,
		Err: errors.New("the exec backend has no cgroup to freeze; that needs a host with cgroup v2")}
}

// FrozenBy is "": nobody can tell here.
func (h *handle) FrozenBy() (string, error) { return "", nil }

// Froze is nil: nobody tells.
func (h *handle) Froze() <-chan struct{} { return nil }

// take waits for the turn.
func (h *handle) take(ctx context.Context, op string) (done func(), err error) {
	release := func() { <-h.turn }
	select { // even with a context that has ended, if nobody is in the way
	case h.turn <- struct{}{}:
		return release, nil
	default:
	}
	select {
	case h.turn <- struct{}{}:
		return release, nil
	case <-ctx.Done():
		return nil, ended(ctx, op, h.ref.Name, errors.New("while another call was working on it"))
	}
}

func (h *handle) Kill(ctx context.Context) error {
	done, err := h.take(ctx, "kill")
	if err != nil {
		return err
	}
	defer done()
	return h.kill(ctx, "kill")
}

// kill is Kill for whom has the turn.
func (h *handle) kill(ctx context.Context, op string) error {
	if h.released() != nil {
		return nil
	}
	hunt := hunt{handle: h, leftOver: h.ended()}
	err := failpoint.After(hunt.run(ctx), failpoint.T6Empty)
	if err == nil && !h.ended() {
		// It is a zombie at most; whoever asks from now on hears its exit.
		select {
		case <-h.Exited():
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return h.backend.survivors(h.ref.Name, op, h.brand, h.main, err)
	}
	return h.failure(op, err)
}

// condemn notes that pid is sent SIGKILL, and whether it is a leftover.
func (h *handle) condemn(pid int, leftOver bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.condemned[pid] {
		return
	}
	h.condemned[pid] = true
	h.signs++
	if leftOver {
		h.leftovers++
	}
}

// corpse notes that pid was found dead: if we have not killed it, others may
// live whom it has left behind.
func (h *handle) corpse(pid int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	// Each counts once: a parent that never reaps keeps its corpse for ever.
	if !h.condemned[pid] && !h.corpses[pid] {
		h.corpses[pid] = true
		h.signs++
	}
}

func (h *handle) signsOfLife() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.signs
}

// Processes lists the processes that live.
func (h *handle) Processes(context.Context) ([]backends.Process, error) {
	list, err := h.backend.survey(h.brand, h.main)
	if err != nil {
		return nil, h.failure("list the processes of", err)
	}
	out := make([]backends.Process, 0, len(list))
	for _, p := range list {
		out = append(out, backends.Process{PID: p.PID, Parent: p.PPID, Command: h.backend.proc.Command(p.PID)})
	}
	return out, nil
}

// Owns implements backends.Handle: it carries the brand, or is in the session of who does.
func (h *handle) Owns(pid int) (bool, error) {
	mark, err := h.backend.brandOf(pid)
	switch {
	case errors.Is(err, procfs.ErrNoProcess):
		return false, nil
	case err != nil:
		return false, h.failure("look at a process for", err)
	case mark == h.brand:
		return true, nil
	case mark.is():
		return false, nil
	}
	list, err := h.backend.survey(h.brand, h.main)
	if err != nil {
		return false, h.failure("look at a process for", err)
	}
	return slices.ContainsFunc(list, func(p procfs.Process) bool { return p.PID == pid }), nil
}

// Release implements backends.Handle. What ran has left nothing but numbers,
// which this host does not keep: the counters are those of the latest reading,
// and CPU time as far as we reaped what used it.
func (h *handle) Release(ctx context.Context) (service.Remains, error) {
	done, err := h.take(ctx, "release")
	if err != nil {
		return service.Remains{}, err
	}
	defer done()
	if r := h.released(); r != nil {
		return *r, nil
	}
	r := h.finished
	if r == nil {
		if r, err = h.finish(ctx, "release"); err != nil {
			return service.Remains{}, err
		}
	}
	h.backend.forget(h.brand)
	h.backend.shim.Released(h.ref.Name, h.ref.Incarnation)
	if h.main != nil {
		if err := h.main.Close(); err != nil {
			return service.Remains{}, h.failure("release", err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remains = r
	return *r, nil
}

// Finish implements backends.Handle.
func (h *handle) Finish(ctx context.Context) (service.Remains, error) {
	done, err := h.take(ctx, "finish")
	if err != nil {
		return service.Remains{}, err
	}
	defer done()
	r := h.released()
	if r == nil {
		r, err = h.finish(ctx, "finish")
	}
	if err != nil {
		return service.Remains{}, err
	}
	return *r, nil
}

// finish is Finish for whom has the turn.
func (h *handle) finish(ctx context.Context, op string) (*service.Remains, error) {
	if err := h.kill(ctx, op); err != nil {
		return nil, err
	}
	usage, err := h.Usage(ctx)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.finished = &service.Remains{Usage: usage, Leftovers: h.leftovers}
	return h.finished, nil
}

func (h *handle) released() *service.Remains {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.remains
}

// Close implements backends.Handle.
func (h *handle) Close() error {
	h.backend.forget(h.brand)
	if h.main == nil {
		return nil
	}
	if err := h.main.Close(); err != nil {
		return h.failure("let go of", err)
	}
	return nil
}

// failure is an error that nobody foresaw: /proc did not serve.
func (h *handle) failure(op string, err error) error {
	kind := service.HostUnavailable
	switch {
	case errors.Is(err, context.Canceled):
		kind = service.Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		kind = service.Timeout
	}
	return &service.Error{Op: op, Service: h.ref.Name, Kind: kind, Err: fmt.Errorf("look at /proc: %w", err)}
}
