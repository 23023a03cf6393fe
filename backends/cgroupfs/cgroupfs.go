// Package cgroupfs runs each incarnation in a cgroup of its own, made straight
// in the cgroup v2 tree: the limits are written and read back, the process is
// born inside (CLONE_INTO_CGROUP, clone(2)), and everything in the cgroup can be
// killed, counted and found again by the cgroup's name.
//
// The cgroups lie side by side below one parent, svc-<name>-<incarnation> each.
// No process may live in the parent itself. On a host without systemd the whole
// tree is ours and the parent is made when it is missing; on a systemd host the
// parent is a scope that systemd has delegated, and nothing above it is written.
// In a container that has a tree of its own without systemd, everything that
// lives in its root is moved into a leaf beside the services first.
package cgroupfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/place"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/units"
	"github.com/gladsheim/gladsheim/watch"
)

// name is what Refs call this backend.
const name = "cgroupfs"

// Config is what a Backend needs.
type Config struct {
	Watcher *watch.Watcher // tells of exits; stays the caller's
	Shim    *launch.Shim   // parent of what is launched; nil: this process itself, and how it ends is lost with it
	Procfs  procfs.FS
	Tree    cgroup.Tree

	// Parent is the cgroup below which services live, e.g. "/gladsheim". It may
	// not be the root.
	Parent string

	// Ours says that nobody else manages the tree, as on a host without systemd:
	// Parent is made if it is missing, and controllers are enabled from the root
	// down. Otherwise Parent must exist, delegated to us with the controllers it
	// has, and nothing above it is written.
	Ours bool

	// Restore makes a Parent that is not ours exist again, as it was, when
	// somebody has ended it; a Launch calls it then. It may be called by many
	// goroutines at once. nil: such a Launch fails.
	Restore func(context.Context) error

	// Protect has what is above a Parent that is not ours ask for as much memory as
	// is to be kept for those in it (memory.min, memory.low); called after a change
	// of the Parent's own. nil: nothing above it is to.
	Protect func(context.Context) error

	// Total reads what all services have used where a Parent that is not ours holds
	// only some of them. nil: it holds all.
	Total func() (service.Usage, error)
}

// Backend is the cgroupfs backend.
type Backend struct {
	tree        cgroup.Tree
	parent      cgroup.Group
	ours        bool
	restore     func(context.Context) error
	above       func(context.Context) error // Config.Protect
	total       func() (service.Usage, error)
	procfs      procfs.FS
	watcher     *watch.Watcher
	shim        *launch.Shim
	bootID      string
	controllers []string // that the parent passes on
	enforces    service.Enforcement

	protecting chan struct{} // held by the one who changes what the parent asks to be kept

	mu        sync.Mutex
	closed    bool
	launching map[service.Name]bool // services that a Launch is at work for
}

var (
	_ backends.Backend   = (*Backend)(nil)
	_ backends.LogTeller = (*Backend)(nil)
	_ backends.Totaller  = (*Backend)(nil)
)

// New makes a Backend and prepares its parent cgroup. It fails when the tree
// can not be used: the error says what is in the way and what to do about it.
func New(c Config) (*Backend, error) {
	b := &Backend{
		tree: c.Tree, parent: c.Tree.Group(c.Parent), ours: c.Ours, restore: c.Restore, above: c.Protect, total: c.Total,
		protecting: make(chan struct{}, 1),
		procfs:     c.Procfs, watcher: c.Watcher, shim: c.Shim, launching: map[service.Name]bool{},
	}
	if b.parent.Path() == "/" {
		return nil, failure("use cgroups", service.Name{}, service.Invalid, errors.New("the root of the tree can not be the parent of services"))
	}
	var err error
	if b.controllers, err = prepare(b.parent, c.Ours); err != nil {
		return nil, failure("use cgroups", service.Name{}, service.HostUnavailable, err)
	}
	if b.enforces, err = enforcement(b.parent, c.Ours); err != nil {
		return nil, failure("use cgroups", service.Name{}, service.HostUnavailable, err)
	}
	if b.bootID, err = c.Procfs.BootID(); err != nil {
		return nil, failure("use cgroups", service.Name{}, service.HostUnavailable, err)
	}
	return b, nil
}

// prepare makes the parent pass on every controller that it can have, and
// returns those.
func prepare(parent cgroup.Group, ours bool) ([]string, error) {
	offered, err := offered(parent, ours)
	if err != nil {
		return nil, err
	}
	controllers := slices.DeleteFunc(slices.Clone(cgroup.Wanted), func(c string) bool { return !slices.Contains(offered, c) })
	if ours {
		if err := vacate(parent); err != nil {
			return nil, err
		}
		if err := createAll(parent, controllers); err != nil {
			return nil, err
		}
	}
	return controllers, parent.Enable(controllers)
}

// offered lists the controllers that the parent may pass on.
func offered(parent cgroup.Group, ours bool) ([]string, error) {
	if ours {
		parent = parent.Root()
	}
	return parent.Controllers()
}

// supervisor is the leaf below the parent for the agent, and whoever else lives
// in the root of a container.
const supervisor = "supervisor"

// ShimLeaf is the leaf below a parent that is ours for the parent of all services.
const ShimLeaf = "shim"

// vacate lets the root of the tree pass controllers on. In a container it is a
// cgroup like any other, in which all begin to live, the agent too.
func vacate(parent cgroup.Group) error {
	root := parent.Root()
	own, err := root.Own()
	if err != nil || len(own) == 0 {
		return err
	}
	leaf := parent.Child(supervisor)
	if err := createAll(leaf, nil); err != nil {
		return err
	}
	return root.Vacate(leaf)
}

// createAll makes g and what is missing above it.
func createAll(g cgroup.Group, controllers []string) error {
	if g.Path() == "/" {
		return nil
	}
	if err := createAll(g.Parent(), controllers); err != nil {
		return err
	}
	err := g.Create(controllers)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// enforcement asks the kernel. The parent has the same controllers as the
// cgroups below it, and so the same files, but for controllers that nobody has
// demanded yet.
func enforcement(parent cgroup.Group, ours bool) (service.Enforcement, error) {
	limits, err := parent.Enforceable()
	if err != nil {
		return service.Enforcement{}, err
	}
	offered, err := offered(parent, ours)
	if err != nil {
		return service.Enforcement{}, err
	}
	for r := range limits {
		if c := cgroup.Controller(service.Resource(r)); slices.Contains(cgroup.OnDemand, c) {
			limits[r] = slices.Contains(offered, c)
		}
	}
	limits[service.NoFile], limits[service.Rlimits] = true, true // of each process, by prlimit(2)
	counts, err := parent.OOMCounts()
	if err != nil {
		return service.Enforcement{}, err
	}
	freeze, err := parent.CanFreeze()
	if err != nil {
		return service.Enforcement{}, err
	}
	can := service.Enforcement{Limits: limits, OOMVerdict: counts.TellsLevel(), KillAll: true, BornInside: true, Freeze: freeze}
	for r, enforced := range limits {
		if enforced {
			continue
		}
		if can.Why[r], err = parent.Lacking(service.Resource(r)); err != nil {
			return service.Enforcement{}, err
		}
	}
	return can, nil
}

// WatchLogs implements backends.LogTeller.
func (b *Backend) WatchLogs(tell func(service.LogTrouble)) { b.shim.WatchLogs(tell) }

// Total implements backends.Totaller. Leaves in which no service lives are not counted.
func (b *Backend) Total() (service.Usage, error) {
	if b.total != nil {
		return b.total()
	}
	u, err := b.parent.Total(b.parent.Child(supervisor), b.parent.Child(ShimLeaf))
	if err != nil {
		return service.Usage{}, failure("measure all services", service.Name{}, service.HostUnavailable, err)
	}
	return u, nil
}

// Name is "cgroupfs".
func (b *Backend) Name() string { return name }

// Enforces tells which limits have a file in the parent cgroup. The limit on
// open files is enforced for each process, as setrlimit(2) does.
func (b *Backend) Enforces() service.Enforcement { return b.enforces }

// Plan names the cgroup of the incarnation.
func (b *Backend) Plan(l service.Launch) service.Ref {
	return service.Ref{
		Backend: name, Name: l.Name, Incarnation: l.Incarnation,
		Cgroup: b.parent.Child(units.Dir(l.Name, l.Incarnation)).Path(),
	}
}

// Leftovers lists the incarnations that have a cgroup below the parent, with
// processes in it or without.
func (b *Backend) Leftovers(ctx context.Context, _ []service.Name) ([]service.Ref, error) {
	if ctx.Err() != nil {
		return nil, gaveUp(ctx, "look for leftovers", service.Name{}, "")
	}
	names, err := b.parent.Children()
	if err != nil {
		return nil, failure("look for leftovers", service.Name{}, service.HostUnavailable, err)
	}
	var refs []service.Ref
	for _, dir := range names {
		if name, incarnation, ok := units.ParseDir(dir); ok {
			ref, err := b.identified(b.Plan(launchOf(name, incarnation)))
			if err != nil {
				return nil, failure("look for leftovers", name, service.HostUnavailable, err)
			}
			refs = append(refs, ref)
		}
	}
	slices.SortFunc(refs, func(a, b service.Ref) int { return strings.Compare(a.Cgroup, b.Cgroup) })
	return refs, nil
}

// identified adds to ref the main process that the cgroup is marked with. A service
// of root may write that mark, too, and so who lives must live in there.
func (b *Backend) identified(ref service.Ref) (service.Ref, error) {
	mark, err := b.tree.Group(ref.Cgroup).Mark()
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // it may have gone meanwhile
		return ref, err
	}
	pid, ticks, ok := process.ParseMark(mark)
	if !ok {
		return ref, nil
	}
	led, err := process.Believable(b.procfs, pid, ticks, func() (bool, error) {
		at, err := b.procfs.Cgroup(pid)
		return b.tree.Group(ref.Cgroup).Holds(at), err
	})
	if err == nil && led {
		ref.PID, ref.StartTicks, ref.BootID = pid, ticks, b.bootID
	}
	return ref, err
}

func launchOf(name service.Name, incarnation uint64) service.Launch {
	return service.Launch{Name: name, Incarnation: incarnation}
}

// Adopt finds the incarnation by its cgroup, and its main process by number and
// start ticks within this boot, also where somebody has moved it elsewhere. A
// cgroup in which nothing lives any more is adopted too: its counters tell
// whether memory ran out.
func (b *Backend) Adopt(ctx context.Context, ref service.Ref, l service.Launch) (backends.Handle, error) {
	const op = "adopt"
	if ctx.Err() != nil {
		return nil, gaveUp(ctx, op, ref.Name, "")
	}
	group := b.tree.Group(ref.Cgroup)
	if ref.Backend != name || group != b.group(launchOf(ref.Name, ref.Incarnation)) {
		return nil, failure(op, ref.Name, service.Invalid, fmt.Errorf("%q of backend %q is not a cgroup of incarnation %d", ref.Cgroup, ref.Backend, ref.Incarnation))
	}
	if ref.BootID != "" && ref.BootID != b.bootID {
		return nil, backends.ErrGone
	}
	there, err := group.Exists()
	if err != nil {
		return nil, failure(op, ref.Name, service.HostUnavailable, err)
	}
	h := &handle{backend: b, group: group, ref: ref, requested: l.Limits, like: launch.LikenessOf(&l.Spec), turn: make(chan struct{}, 1)}
	if there {
		counts, err := group.OOMCounts()
		if err != nil {
			return nil, failure(op, ref.Name, service.HostUnavailable, err)
		}
		h.base = counts.Base()
		if err := place.EndBeside(ctx, group); err != nil {
			return nil, failure(op, ref.Name, service.HostUnavailable, err)
		}
	}
	main, err := b.findMain(ref)
	if err == nil && main != nil {
		if err = h.hold(main); err != nil {
			err = errors.Join(err, main.Close())
		}
	}
	if err != nil {
		return nil, failure(op, ref.Name, service.HostUnavailable, err)
	}
	// A process alone proves nothing; how ours ended does, and whose child it is.
	if !there && (h.main == nil || !h.main.Ended() && !place.Kept(b.procfs, ref.PID, b.parent.Path())) {
		b.shim.Released(ref.Name, ref.Incarnation)
		return nil, errors.Join(backends.ErrGone, h.Close())
	}
	return h, nil
}

// findMain takes up the main process of an incarnation, nil if it is gone.
func (b *Backend) findMain(ref service.Ref) (*process.Process, error) {
	if ref.PID <= 0 {
		return nil, nil
	}
	main, err := launch.Find(b.watcher, b.procfs, b.shim, ref.PID, ref.StartTicks)
	if errors.Is(err, process.ErrGone) {
		return nil, nil
	}
	return main, err
}

// Close makes Launch fail from now on. There is nothing else to end.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

// failure is an error as it crosses the border. One that is a *service.Error
// already keeps its kind and reason, and is not wrapped in words it says itself.
func failure(op string, name service.Name, kind service.Kind, err error) *service.Error {
	inner, ok := errors.AsType[*service.Error](err)
	if !ok {
		return &service.Error{Op: op, Service: name, Kind: kind, Err: err}
	}
	outer := *inner
	outer.Op, outer.Service = op, name
	if err != error(inner) || inner.Op != op {
		outer.Err, outer.Faults = err, nil
	}
	return &outer
}

// gaveUp is the error of what ctx did not leave the time for.
func gaveUp(ctx context.Context, op string, name service.Name, reason service.Reason) error {
	kind := service.Cancelled
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		kind = service.Timeout
	}
	return &service.Error{Op: op, Service: name, Kind: kind, Reason: reason, Err: context.Cause(ctx)}
}
