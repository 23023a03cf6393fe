package systemd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// What systemd says to a freeze: a job of the unit is pending, or another freeze or
// thaw of it; the unit is not active (org.freedesktop.systemd1(5), systemd 246).
const (
	unitBusy     = "org.freedesktop.systemd1.UnitBusy"
	unitInactive = "org.freedesktop.systemd1.UnitInactive"
)

// undoTime bounds what puts a freeze right that was given up.
const undoTime = 5 * time.Second

// Freeze has systemd freeze the scope, so that it knows: it thaws what it is to stop.
// Whether it is frozen the kernel tells. A scope that systemd has forgotten, or does
// not freeze, is frozen all the same.
func (h *handle) Freeze(ctx context.Context) error {
	const op = "freeze"
	ctx, done, err := h.reach(ctx, op)
	if err != nil {
		return err
	}
	defer done()
	if err := h.place.Check(); err != nil {
		return &service.Error{Op: op, Service: h.ref.Name, Kind: service.Unenforceable, Err: err}
	}
	err = h.b.bus.freezer(ctx, "FreezeUnit", h.ref.Unit)
	if err == nil {
		err = h.scope.Freeze(ctx)
	}
	switch {
	case err == nil:
		return nil
	case gone(err):
		return &service.Error{Op: op, Service: h.ref.Name, Kind: service.NotRunning, Err: err}
	case errorIs(err, unitBusy), errorIs(err, unitInactive):
		return &service.Error{Op: op, Service: h.ref.Name, Kind: service.Conflict, Err: fmt.Errorf("systemd refuses: %w", err)}
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	_ = h.b.bus.freezer(undo, "ThawUnit", h.ref.Unit) // the kernel decides
	_, _, left := h.scope.Thaw(undo)
	return failure(op, h.ref.Name, errors.Join(err, left))
}

// Thaw has systemd thaw the scope, and sees to it. Where a cgroup above is frozen it
// does without systemd, of which some versions would thaw that, too.
func (h *handle) Thaw(ctx context.Context) error {
	const op = "thaw"
	ctx, done, err := h.reach(ctx, op)
	if err != nil {
		return err
	}
	defer done()
	_, held, err := h.cell.FrozenBy()
	if err == nil && !held {
		err = h.b.bus.freezer(ctx, "ThawUnit", h.ref.Unit)
		if errorIs(err, unitBusy) || errorIs(err, unitInactive) { // what is stopped is thawed
			err = nil
		}
	}
	by := h.scope
	if err == nil {
		by, held, err = h.scope.Thaw(ctx)
	}
	switch {
	case gone(err): // it has ended of what waited for that
		return nil
	case err != nil:
		return failure(op, h.ref.Name, err)
	case held:
		return &service.Error{Op: op, Service: h.ref.Name, Kind: service.Conflict,
			Err: fmt.Errorf("the cgroup %s above it is frozen; thaw that", by.Path())}
	}
	return nil
}

// limitFrozen writes limits that systemd was told of, if the scope is frozen: it keeps
// them and does not write them (systemd 257).
func (h *handle) limitFrozen(l service.Limits) error {
	frozen, err := h.scope.Frozen()
	if err != nil || !frozen {
		return err
	}
	if err := h.scope.Apply(l); err != nil {
		return err
	}
	return h.cell.Apply(amongSiblings(l))
}

// reach waits, within bounds, until nobody else changes what lives.
func (h *handle) reach(ctx context.Context, op string) (context.Context, func(), error) {
	if h.ended() {
		return nil, nil, &service.Error{Op: op, Service: h.ref.Name, Kind: service.NotRunning, Err: errors.New("its main process has ended")}
	}
	ctx, cancel := bounded(ctx)
	select {
	case h.limiting <- struct{}{}:
		return ctx, func() { <-h.limiting; cancel() }, nil
	case <-ctx.Done():
		cancel()
		return nil, nil, failure(op, h.ref.Name, fmt.Errorf("another change is under way: %w", ctx.Err()))
	}
}

// FrozenBy is told by the scope, in which the processes are.
func (h *handle) FrozenBy() (string, error) {
	by, frozen, err := h.scope.FrozenBy()
	switch {
	case gone(err) || err == nil && !frozen:
		return "", nil
	case err != nil:
		return "", failure("look whether is frozen", h.ref.Name, err)
	}
	return by.Path(), nil
}

func (h *handle) Froze() <-chan struct{} {
	if h.place == nil {
		return nil
	}
	return h.place.Froze()
}

// freezer has systemd freeze or thaw a unit. That it does not know the unit, or the
// method, is no error.
func (b *bus) freezer(ctx context.Context, method, unit string) error {
	err := b.do(ctx, func(ctx context.Context, l *link) error {
		return l.call(ctx, manager, "systemd1.Manager."+method, []any{unit})
	})
	switch {
	case errorIs(err, noSuchUnit), errorIs(err, "org.freedesktop.DBus.Error.UnknownMethod"), errorIs(err, "org.freedesktop.DBus.Error.NotSupported"):
		return nil
	case err != nil:
		return fmt.Errorf("%s %s: %w", method, unit, err)
	}
	return nil
}
