package systemd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/place"
	"github.com/gladsheim/gladsheim/failpoint"
)

// killAgain is how long a kill may take to show before it is repeated. One is
// enough where the kernel has cgroup.kill.
const killAgain = time.Second

// Kill kills every process of the incarnation; see backends.Handle.
func (h *handle) Kill(ctx context.Context) error {
	h.count.Do(h.countLeftovers)
	for {
		err := h.killOnce(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return h.unkillable(ctx.Err())
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			return failure("kill", h.ref.Name, err)
		}
	}
}

// killOnce kills all that is in the cell, and the main process wherever it is,
// and waits a while for the end.
func (h *handle) killOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killAgain)
	defer cancel()
	h.readThrottled()
	h.scope.Unthrottle()
	if err := failpoint.After(h.cell.Kill(), failpoint.T5KillSent); err != nil {
		return err
	}
	// Somebody may have moved it out of its cgroup.
	if err := h.killMain(ctx); err != nil {
		return err
	}
	return failpoint.After(h.cell.WaitEmpty(ctx), failpoint.T6Empty)
}

// killMain kills the main process, and waits for its end.
func (h *handle) killMain(ctx context.Context) error {
	if h.ended() {
		return nil
	}
	if err := h.main.Signal(syscall.SIGKILL); err != nil && service.KindOf(err) != service.NotRunning {
		return err
	}
	select {
	case <-h.Exited():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ended tells whether the main process has ended.
func (h *handle) ended() bool { return h.main.Ended() }

// unkillable tells which processes would not die.
func (h *handle) unkillable(cause error) error {
	e := &service.Error{Op: "kill", Service: h.ref.Name, Kind: service.Timeout, Reason: service.ReasonUnkillable}
	if errors.Is(cause, context.Canceled) {
		e.Kind = service.Cancelled
	}
	alive, err := h.Processes(context.Background())
	if err != nil {
		e.Err = errors.Join(cause, err)
		return e
	}
	if len(alive) == 0 {
		e.Err = fmt.Errorf("%w: no process is listed in its cgroup %s; that the kernel calls it empty, and the end of its main process is told, is waited for", cause, h.cell.Path())
		return e
	}
	e.Err = fmt.Errorf("%w: these live on after SIGKILL (they wait in the kernel, for a disk or a network file system perhaps): %v", cause, alive)
	return e
}

// Finish kills what is left and reads the counters; see backends.Handle.
func (h *handle) Finish(ctx context.Context) (service.Remains, error) {
	const op = "finish"
	done, err := h.turn(ctx, op)
	if err != nil {
		return service.Remains{}, err
	}
	defer done()
	if h.released {
		return h.remains, nil
	}
	err = h.finish(ctx, op)
	return h.remains, err
}

// turn waits until nobody else finishes or releases.
func (h *handle) turn(ctx context.Context, op string) (done func(), err error) {
	select {
	case h.releasing <- struct{}{}:
		return func() { <-h.releasing }, nil
	case <-ctx.Done():
		return nil, failure(op, h.ref.Name, fmt.Errorf("somebody else is at it: %w", ctx.Err()))
	}
}

func (h *handle) finish(ctx context.Context, op string) error {
	if err := h.Kill(ctx); err != nil {
		return err
	}
	if err := h.read(); err != nil {
		return failure(op, h.ref.Name, err)
	}
	h.remains.Stopper = h.stopper()
	h.finished = true
	return nil
}

// Release removes scope and cell of what is finished; see backends.Handle.
func (h *handle) Release(ctx context.Context) (service.Remains, error) {
	const op = "clear"
	done, err := h.turn(ctx, op)
	if err != nil {
		return service.Remains{}, err
	}
	defer done()
	if h.released {
		return h.remains, nil
	}
	if !h.finished {
		if err := h.finish(ctx, op); err != nil {
			return service.Remains{}, err
		}
	}
	h.finished = false // should it fail, somebody may have moved a process in
	limited, cancel := bounded(ctx)
	defer cancel()
	if err := h.b.bus.removeAll(limited, []string{h.ref.Unit, cellOf(h.ref.Unit)}); err != nil {
		return service.Remains{}, failure(op, h.ref.Name, err)
	}
	// systemd has removed the cgroups with the units; not so when it had
	// forgotten the units while processes lived.
	if err := failpoint.After(h.cell.Remove(), failpoint.T7CgroupRemoved); err != nil {
		return service.Remains{}, failure(op, h.ref.Name, err)
	}
	h.released = true
	h.b.unprotect(limited)
	h.b.shim.Released(h.ref.Name, h.ref.Incarnation)
	return h.remains, h.Close()
}

// countLeftovers counts who outlived the main process. What is killed together
// with it is not left over.
func (h *handle) countLeftovers() {
	if !h.ended() {
		return
	}
	beside, err := place.Beholden(h.scope)
	pids, listErr := h.cell.Processes()
	if errors.Join(err, listErr) != nil {
		return
	}
	pids = slices.DeleteFunc(pids, func(pid int) bool { return pid == h.Ref().PID || slices.Contains(beside, pid) })
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leftovers = len(pids)
}

// read fills remains from the cell, the first time: after a removal that
// failed half-way it may be gone.
func (h *handle) read() error {
	h.mu.Lock()
	leftovers := h.leftovers
	h.mu.Unlock()
	verdict, level, _, err := h.cell.OOMSince(h.before)
	if gone(err) {
		h.remains.Leftovers = leftovers
		return nil
	}
	if err != nil {
		return err
	}
	u, err := h.usage()
	if err != nil && !gone(err) {
		return err
	}
	if verdict == service.OOMOwn {
		level = h.ref.Cgroup // the cell has no limit of its own
	}
	h.remains = service.Remains{Usage: u, OOM: verdict, OOMLevel: level, Leftovers: leftovers}
	return nil
}
