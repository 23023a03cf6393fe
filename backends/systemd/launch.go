package systemd

import (
	"context"
	"fmt"
	"path"

	sd "github.com/coreos/go-systemd/v22/dbus"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/cgroup"
)

// Launch brings l to life in a scope of its own; see backends.Backend.
//
// When PID 1 does not answer before ctx ends, the error is of Kind Timeout with
// reason BACKEND_TIMEOUT. Nothing of l runs then, and what systemd may make of
// the request later is removed as soon as it answers.
func (b *Backend) Launch(ctx context.Context, l service.Launch, identify func(service.Ref) error) (backends.Handle, error) {
	const op = "start"
	ctx, cancel := bounded(ctx)
	defer cancel()
	if ctx.Err() != nil {
		return nil, failure(op, l.Name, ctx.Err())
	}
	limits, err := b.enforceable(l)
	if err != nil {
		return nil, err
	}
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, failure(op, l.Name, fmt.Errorf("wait for one of %d launches under way to end: %w", inFlight, ctx.Err()))
	}
	a := b.newAttempt(l, limits)
	h, err := b.launch(ctx, a, l, limits, identify)
	if err != nil {
		a.undo(ctx)
		return nil, failure(op, l.Name, err)
	}
	<-b.slots
	return h, nil
}

// enforceable returns the limits of l as systemd is to keep them, without those
// that can not be enforced here if l may run without them.
func (b *Backend) enforceable(l service.Launch) (service.Limits, error) {
	limits := rounded(l.Limits)
	err := b.unenforceable("start", l.Name, limits)
	if err == nil || !l.Spec.BestEffort {
		return limits, err
	}
	for _, r := range b.can.Missing(limits) {
		limits[r] = service.Quota{}
	}
	return limits, nil
}

func (b *Backend) newAttempt(l service.Launch, limits service.Limits) *attempt {
	scope, cell, at := plan(l)
	return &attempt{
		b: b, name: l.Name, scope: scope, units: []string{scope, cell}, path: at, root: path.Dir(at),
		describe: func(can *link) ([]sd.Property, []sd.PropertyCollection) {
			return scopeProperties(l, limits, cell, can.oomPolicy),
				[]sd.PropertyCollection{{Name: cell, Properties: cellProperties(l, limits)}}
		},
	}
}

func (b *Backend) launch(ctx context.Context, a *attempt, l service.Launch, limits service.Limits,
	identify func(service.Ref) error,
) (*handle, error) {
	if err := a.refusePrevious(); err != nil {
		return nil, err
	}
	var err error
	a.child, err = launch.Start(ctx, b.watcher, launch.Request{Launch: l, CgroupFD: -1})
	if err != nil {
		return nil, err
	}
	if err := a.enter(ctx); err != nil {
		return nil, err
	}
	h := b.newHandle(service.Ref{
		Backend: b.Name(), Name: l.Name, Incarnation: l.Incarnation, Unit: a.scope, Cgroup: a.path,
		PID: a.child.PID(), StartTicks: a.child.StartTicks(), BootID: b.bootID,
	}, l.Limits)
	if err := b.groupKill(ctx, h.scope); err != nil {
		return nil, err
	}
	if err := h.verifyLimits(limits); err != nil {
		return nil, err
	}
	if h.before, err = h.cell.OOMCounts(); err != nil {
		return nil, err
	}
	if err := identify(h.ref); err != nil {
		return nil, fmt.Errorf("record it: %w", err)
	}
	if err := a.child.Open(ctx); err != nil {
		return nil, err
	}
	h.take(a.child.Process())
	return h, nil
}

// groupKill makes the kernel kill the whole group when it runs out of memory,
// where scopes take no OOMPolicy. systemd writes 0 again whenever it applies
// properties, so this is called after each change.
func (b *Backend) groupKill(ctx context.Context, g cgroup.Group) error {
	l, err := b.bus.link(ctx)
	if err != nil || l.oomPolicy {
		return err
	}
	return g.SetOOMGroup(true)
}
