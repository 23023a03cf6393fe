package cgroupfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/gladsheim/gladsheim/agent/service"
)

func (h *handle) Freeze(ctx context.Context) error {
	const op = "freeze"
	done, err := h.reach(ctx, op)
	if err != nil {
		return err
	}
	defer done()
	if err := h.place.Check(); err != nil {
		return failure(op, h.ref.Name, service.Unenforceable, err)
	}
	err = h.group.Freeze(ctx)
	if err != nil && ctx.Err() != nil {
		return gaveUp(ctx, op, h.ref.Name, "")
	}
	if err != nil {
		return h.fileError(op, err)
	}
	return nil
}

func (h *handle) Thaw(ctx context.Context) error {
	const op = "thaw"
	done, err := h.reach(ctx, op)
	if err != nil {
		return err
	}
	defer done()
	by, held, err := h.group.Thaw(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return gaveUp(ctx, op, h.ref.Name, "")
	case err != nil:
		return h.fileError(op, err)
	case held:
		return failure(op, h.ref.Name, service.Conflict, fmt.Errorf("the cgroup %s above it is frozen; thaw that", by.Path()))
	}
	return nil
}

// reach takes the turn with what lives.
func (h *handle) reach(ctx context.Context, op string) (done func(), err error) {
	if done, err = h.take(ctx, op); err != nil {
		return nil, err
	}
	if err = h.begin(ctx, op); err == nil && h.mainEnded() {
		err = h.notRunning(op)
	}
	if err != nil {
		done()
		return nil, err
	}
	return done, nil
}

func (h *handle) FrozenBy() (string, error) {
	by, frozen, err := h.group.FrozenBy()
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && !frozen:
		return "", nil
	case err != nil:
		return "", h.fileError("look whether is frozen", err)
	}
	return by.Path(), nil
}

func (h *handle) Froze() <-chan struct{} {
	if h.place == nil {
		return nil
	}
	return h.place.Froze()
}
