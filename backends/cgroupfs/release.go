package cgroupfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/place"
	"github.com/gladsheim/gladsheim/failpoint"
)

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
			Err: h.unkillable(),
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
	beside, err := place.Beholden(h.group)
	list, listErr := h.processes()
	if errors.Join(err, listErr) != nil {
		return
	}
	list = slices.DeleteFunc(list, func(p backends.Process) bool { return slices.Contains(beside, p.PID) })
	h.mu.Lock()
	h.leftovers = len(list)
	h.mu.Unlock()
}

// unkillable tells what was killed and is waited for.
func (h *handle) unkillable() error {
	list, err := h.processes()
	if err != nil {
		return fmt.Errorf("what was killed has not ended yet, and what it is can not be read: %w", err)
	}
	var names []string
	for _, p := range list {
		names = append(names, fmt.Sprintf("%d (%s)", p.PID, p.Command))
	}
	switch {
	case len(names) > 0:
		return fmt.Errorf("these processes were killed and have not ended yet: %s", strings.Join(names, ", "))
	case !h.mainEnded():
		return errors.New("no process is left in its cgroup; the end of its main process is waited for, which somebody moved elsewhere or which nobody has told of yet")
	}
	return fmt.Errorf("no process is listed in its cgroup %s; that the kernel calls it empty is waited for", h.group.Path())
}

// killAgain is how long to wait for the end of what was killed before killing
// once more, in case somebody has moved a process in meanwhile.
const killAgain = time.Second

// empty kills until nothing lives: neither in the cgroup, nor the main process,
// should somebody have moved it elsewhere.
func (h *handle) empty(ctx context.Context) error {
	h.group.Unthrottle()
	for {
		if err := failpoint.After(h.group.Kill(), failpoint.T5KillSent); err != nil {
			return err
		}
		if h.main != nil {
			if err := h.main.Signal(syscall.SIGKILL); err != nil && service.KindOf(err) != service.NotRunning {
				return err
			}
		}
		wait, cancel := context.WithTimeout(ctx, killAgain)
		err := failpoint.After(h.awaitEmpty(wait), failpoint.T6Empty)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
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
	done, err := h.take(ctx, op)
	if err != nil {
		return service.Remains{}, err
	}
	defer done()
	if r := h.remains(); r != nil {
		return *r, nil
	}
	if h.finished == nil {
		if _, err := h.finish(ctx, op); err != nil {
			return service.Remains{}, err
		}
	}
	r := h.finished
	if err := failpoint.After(h.group.Remove(), failpoint.T7CgroupRemoved); err != nil {
		h.finished = nil // somebody may have moved a process in
		return service.Remains{}, failure(op, h.ref.Name, service.HostUnavailable, err)
	}
	h.backend.unprotect(ctx)
	h.backend.shim.Released(h.ref.Name, h.ref.Incarnation)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.released = r
	return *r, nil
}

func (h *handle) Finish(ctx context.Context) (service.Remains, error) {
	const op = "finish"
	done, err := h.take(ctx, op)
	if err != nil {
		return service.Remains{}, err
	}
	defer done()
	if r := h.remains(); r != nil {
		return *r, nil
	}
	return h.finish(ctx, op)
}

// finish is Finish for whom has the turn.
func (h *handle) finish(ctx context.Context, op string) (service.Remains, error) {
	if err := h.kill(ctx, op); err != nil {
		return service.Remains{}, err
	}
	r, err := h.read()
	if err != nil {
		return service.Remains{}, failure(op, h.ref.Name, service.HostUnavailable, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Leftovers = h.leftovers
	h.finished = &r
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
	return r, nil
}
