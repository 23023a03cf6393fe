package systemd

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/place"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/units"
)

// Adopt takes up an incarnation; see backends.Backend. If it ended while no
// agent was there, its cell is left, and Release tells from it what it used and
// whether memory ran out.
func (b *Backend) Adopt(ctx context.Context, ref service.Ref, l service.Launch) (backends.Handle, error) {
	const op = "adopt"
	ctx, cancel := bounded(ctx)
	defer cancel()
	if ref.Unit == "" {
		ref.Unit = units.Scope(ref.Name, ref.Incarnation)
	}
	if ref.Cgroup == "" {
		ref.Cgroup = cgroupOf(ref.Unit)
	}
	if path.Base(ref.Cgroup) != ref.Unit || path.Base(path.Dir(ref.Cgroup)) != cellOf(ref.Unit) {
		return nil, &service.Error{Op: op, Service: ref.Name, Kind: service.Invalid,
			Err: fmt.Errorf("the record names the cgroup %s, which is not one of %s", ref.Cgroup, ref.Unit)}
	}
	if ref.BootID != "" && ref.BootID != b.bootID {
		return nil, backends.ErrGone
	}
	h := b.newHandle(ref, l)
	if err := h.find(); err != nil {
		return nil, failure(op, ref.Name, err)
	}
	counts, err := h.cell.OOMCounts()
	if err != nil && !gone(err) {
		return nil, errors.Join(failure(op, ref.Name, err), h.Close())
	}
	h.before = counts.Base()
	if err := errors.Join(place.EndBeside(ctx, h.scope), place.EndBeside(ctx, h.cell)); err != nil {
		return nil, errors.Join(failure(op, ref.Name, err), h.Close())
	}
	if h.main != nil {
		if err := h.groupKill(); err != nil && !gone(err) { // of one that has ended it may be gone
			return nil, errors.Join(failure(op, ref.Name, err), h.Close())
		}
		return h, nil
	}
	left, err := h.left(ctx)
	switch {
	case err != nil:
		return nil, failure(op, ref.Name, err)
	case !left:
		b.shim.Released(ref.Name, ref.Incarnation)
		return nil, backends.ErrGone
	}
	return h, nil
}

// find takes up the main process, if it lives.
func (h *handle) find() error {
	if h.ref.PID == 0 {
		return nil
	}
	p, err := launch.Find(h.b.watcher, h.b.fs, h.b.shim, h.ref.PID, h.ref.StartTicks)
	if errors.Is(err, process.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	ours, err := h.ours(p)
	if ours && err == nil {
		err = h.take(p)
	}
	if !ours || err != nil {
		return errors.Join(err, p.Close())
	}
	return nil
}

// ours tells whether p is one of ours: that it is the process of the record does
// not make it one. It is in its scope, or was moved out of one that is still there,
// or out of one that is gone but not out of the hands of its parent. Of what has
// ended that parent has told.
func (h *handle) ours(p *process.Process) (bool, error) {
	if p.Ended() {
		return true, nil
	}
	at, err := h.b.fs.Cgroup(h.ref.PID)
	switch {
	case errors.Is(err, procfs.ErrNoProcess), err == nil && at == h.ref.Cgroup:
		return true, nil
	case err != nil:
		return false, err
	}
	there, err := h.cell.Exists()
	return there || place.Kept(h.b.fs, h.ref.PID, "/"+units.Slice), err
}

// left tells whether a cgroup or a unit of the incarnation is left.
func (h *handle) left(ctx context.Context) (bool, error) {
	if there, err := h.cell.Exists(); there || err != nil {
		return there, err
	}
	for _, unit := range []string{h.ref.Unit, cellOf(h.ref.Unit)} {
		if state, err := h.b.bus.activeState(ctx, unit); state != "" || err != nil {
			return state != "", err
		}
	}
	return false, nil
}

// Leftovers lists the incarnations that systemd knows and those that have a
// cgroup, which it may have forgotten.
func (b *Backend) Leftovers(ctx context.Context, _ []service.Name) ([]service.Ref, error) {
	const op = "list leftovers"
	ctx, cancel := bounded(ctx)
	defer cancel()
	names, err := b.bus.list(ctx, ours+"*"+scopeSuffix, ours+"*"+sliceSuffix)
	if err != nil {
		return nil, failure(op, service.Name{}, err)
	}
	slice := b.tree.Group("/" + units.Slice)
	cells, err := slice.Children()
	if err != nil && !gone(err) {
		return nil, failure(op, service.Name{}, err)
	}
	found := refs(slice, append(names, cells...))
	for i, ref := range found {
		if found[i], err = b.identified(ref); err != nil {
			return nil, failure(op, ref.Name, err)
		}
	}
	return found, nil
}

// identified adds to ref the main process that the scope is marked with. A service
// of root may write that mark, too, and so who lives must live in there.
func (b *Backend) identified(ref service.Ref) (service.Ref, error) {
	scope := b.tree.Group(ref.Cgroup)
	mark, err := scope.Mark()
	if err != nil && !gone(err) { // its scope is empty, or never was
		return ref, err
	}
	pid, ticks, ok := process.ParseMark(mark)
	if !ok {
		return ref, nil
	}
	led, err := process.Believable(b.fs, pid, ticks, func() (bool, error) {
		at, err := b.fs.Cgroup(pid)
		return scope.Holds(at), err
	})
	if err == nil && led {
		ref.PID, ref.StartTicks, ref.BootID = pid, ticks, b.bootID
	}
	return ref, err
}

// refs makes one Ref of each incarnation that is named.
func refs(slice cgroup.Group, names []string) []service.Ref {
	var found []service.Ref
	seen := make(map[string]bool)
	for _, name := range names {
		service_, incarnation, ok := parseUnit(name)
		scope := units.Scope(service_, incarnation)
		if !ok || seen[scope] {
			continue
		}
		seen[scope] = true
		found = append(found, service.Ref{Backend: "systemd", Name: service_, Incarnation: incarnation,
			Unit: scope, Cgroup: slice.Child(cellOf(scope)).Child(scope).Path()})
	}
	return found
}
