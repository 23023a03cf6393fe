package systemd

import (
	"context"
	"errors"
	"fmt"
	"path"

	sd "github.com/coreos/go-systemd/v22/dbus"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/failpoint"
)

// Launch brings l to life in a scope of its own; see backends.Backend.
//
// When PID 1 does not answer before ctx ends, the error is of Kind Timeout with
// reason BACKEND_TIMEOUT. Nothing of l runs then, and what systemd may make of
// the request later is removed as soon as it answers.
func (b *Backend) Launch(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
	const op = "start"
	if ctx.Err() != nil {
		return nil, failure(op, l.Name, ctx.Err())
	}
	limits, err := b.enforceable(l)
	if err != nil {
		return nil, err
	}
	output, err := launch.OpenOutput(l)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	h, err := b.try(ctx, l, output, limits, birth)
	if errors.Is(err, errLetGo) {
		h, err = b.try(ctx, l, output, limits, birth)
	}
	if err != nil {
		return nil, failure(op, l.Name, err)
	}
	return h, nil
}

// try launches l, or leaves nothing.
func (b *Backend) try(ctx context.Context, l service.Launch, output *launch.Output, limits service.Limits, birth backends.Birth) (*handle, error) {
	a := b.newAttempt(l, limits)
	if err := a.begin(ctx); err != nil {
		return nil, err
	}
	h, err := b.place(ctx, a, l, output, limits)
	if err == nil {
		err = b.bear(ctx, a, h, birth)
	}
	if err != nil {
		a.undo(ctx)
		return nil, err
	}
	a.end()
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
	for _, lack := range b.tree.Lacks(limits) {
		limits[lack.Resource] = service.Quota{}
	}
	return limits, nil
}

func (b *Backend) newAttempt(l service.Launch, limits service.Limits) *attempt {
	scope, cell, at := plan(l)
	return &attempt{
		b: b, slots: b.slots, name: l.Name, scope: scope, units: []string{scope, cell}, path: at, root: path.Dir(at),
		describe: func(can *link) ([]sd.Property, []sd.PropertyCollection) {
			return scopeProperties(l, limits, cell, can.knows253),
				[]sd.PropertyCollection{{Name: cell, Properties: cellProperties(l, limits)}}
		},
	}
}

// place makes a child that waits in its scope, under its limits.
func (b *Backend) place(ctx context.Context, a *attempt, l service.Launch, output *launch.Output, limits service.Limits) (_ *handle, err error) {
	ctx, cancel := bounded(ctx) // a turn may be long in coming, and no call has been made yet
	defer cancel()
	if err := b.refuseInstances(l.Name); err != nil {
		return nil, err
	}
	a.child, err = launch.Start(ctx, b.watcher, launch.Request{Launch: l, CgroupFD: -1, Shim: b.shim, Output: output})
	if err != nil {
		return nil, err
	}
	// Under the limits of the scope it might not get to where it waits: it needs
	// threads for that, and memory.
	if err := a.child.Ready(ctx); err != nil {
		return nil, err
	}
	if err := failpoint.After(a.enter(ctx), failpoint.S5CgroupMade); err != nil {
		return nil, err
	}
	if err := failpoint.After(a.held(ctx), failpoint.S9ScopeRegistered); err != nil {
		return nil, err
	}
	h := b.newHandle(service.Ref{
		Backend: b.Name(), Name: l.Name, Incarnation: l.Incarnation, Unit: a.scope, Cgroup: a.path,
		PID: a.child.PID(), StartTicks: a.child.StartTicks(), BootID: b.bootID,
	}, l)
	if err := h.groupKill(); err != nil {
		return nil, err
	}
	if err := failpoint.After(h.complete(ctx, limits), failpoint.S6LimitsSet); err != nil {
		return nil, err
	}
	if h.before, err = h.cell.OOMCounts(); err != nil {
		return nil, err
	}
	err = h.scope.SetMark(process.Mark(h.ref.PID, h.ref.StartTicks))
	if err != nil && !errors.Is(err, errors.ErrUnsupported) { // the record alone tells then
		return nil, err
	}
	return h, h.take(a.child.Process())
}

// bear has the child become the program.
func (b *Backend) bear(ctx context.Context, a *attempt, h *handle, birth backends.Birth) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, h.letGo())
		}
	}()
	if err := birth.Identify(h.ref); err != nil {
		return fmt.Errorf("record it: %w", err)
	}
	a.yield() // what birth does may take long, and nothing is asked of PID 1 meanwhile
	return a.child.Bear(ctx, birth, h.Run, func(ctx context.Context) error {
		if birth.Prepare != nil { // what the hooks have run into is not the program's
			if h.before, err = h.cell.OOMCounts(); err != nil {
				return err
			}
		}
		ctx, cancel := bounded(ctx)
		defer cancel()
		return a.child.Open(ctx)
	})
}

// refuseInstances refuses a service of which something lives, of whatever
// incarnation.
func (b *Backend) refuseInstances(name service.Name) error {
	slice := b.slice()
	cells, err := slice.Children()
	if err != nil && !gone(err) {
		return err
	}
	for _, cell := range cells {
		if of, _, ok := parseUnit(cell); ok && of == name {
			if err := b.refuseLiving(name, slice.Child(cell)); err != nil {
				return err
			}
		}
	}
	return nil
}

// groupKill makes the kernel kill the whole group when it runs out of memory, unless
// oom_group says otherwise.
// From systemd 253 on that is done by OOMPolicy. Before, scopes take none, and
// systemd writes 0 whenever it applies properties, also those that somebody
// else has set; so this is called after each change and again later.
func (h *handle) groupKill() error {
	want := h.oomGroup()
	now, err := h.scope.Limit(service.OOMGroup)
	if err != nil || !now.Set || now == want { // not set: a host without the memory controller
		return err
	}
	return h.scope.Apply(service.Limits{service.OOMGroup: want})
}
