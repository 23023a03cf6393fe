package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"

	sd "github.com/coreos/go-systemd/v22/dbus"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/units"
)

// EnsureAnchor gives the path, below the cgroup root, of the cgroup in which
// services can be launched without systemd: that of the scope
// gladsheim-cgroups.scope, which is delegated to us. systemd keeps a scope as
// long as a process is in it, so a process that only sleeps sits in its leaf
// pause/; it outlives the agent, and the next agent finds it. If somebody ended
// it, it is replaced: by one more in the same scope when services live there,
// by a new scope else.
//
// It may be called again and again, by many goroutines at once. Errors are of
// Kind HostUnavailable or Timeout.
func (b *Backend) EnsureAnchor(ctx context.Context) (cgroupPath string, err error) {
	const op = "make the anchor scope"
	ctx, cancel := bounded(ctx)
	defer cancel()
	select {
	case b.anchoring <- struct{}{}:
		defer func() { <-b.anchoring }()
	case <-ctx.Done():
		return "", failure(op, service.Name{}, ctx.Err())
	}
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		anchor, err := b.ensureAnchor(ctx)
		switch {
		case err == nil:
			return anchor.Path(), nil
		case service.ReasonOf(err) != service.ReasonPreviousAlive || sleep(ctx, pause) != nil:
			return "", failure(op, service.Name{}, err)
		}
		// Another agent makes it at this moment.
	}
}

func (b *Backend) ensureAnchor(ctx context.Context) (cgroup.Group, error) {
	anchor := b.slice().Child(units.AnchorScope)
	held, err := anchor.Child(PauseLeaf).Populated()
	if err != nil {
		return anchor, err
	}
	if !held {
		inhabited, err := anchor.Populated()
		if err == nil && inhabited {
			err = b.repairAnchor(ctx, anchor)
		} else if err == nil {
			anchor, err = b.makeAnchor(ctx, anchor)
		}
		if err != nil {
			return anchor, err
		}
	}
	return anchor, passOn(anchor)
}

// PauseLeaf is the cgroup below the anchor in which no service lives.
const PauseLeaf = "pause"

// passOn gives the controllers of the anchor to the groups in it.
func passOn(anchor cgroup.Group) error {
	controllers, err := anchor.Controllers()
	if err != nil {
		return err
	}
	return anchor.Enable(slices.DeleteFunc(controllers, func(c string) bool { return !slices.Contains(cgroup.Wanted, c) }))
}

// repairAnchor puts a new process into the leaf, in which it is born.
func (b *Backend) repairAnchor(ctx context.Context, anchor cgroup.Group) error {
	leaf := anchor.Child(PauseLeaf)
	if err := leaf.Create(nil); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := leaf.RefuseFrozen(); err != nil {
		return err
	}
	dir, err := leaf.OpenDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	child, err := launch.StartPause(b.watcher, int(dir.Fd()))
	if err != nil {
		return err
	}
	return b.pause(ctx, child)
}

// makeAnchor makes the scope anew around a process that then moves to the leaf:
// only a group without processes of its own can pass controllers on.
func (b *Backend) makeAnchor(ctx context.Context, anchor cgroup.Group) (cgroup.Group, error) {
	a := &attempt{
		b: b, slots: make(chan struct{}, 1), // of its own: launches that hold one may wait for it
		scope: units.AnchorScope, units: []string{units.AnchorScope}, path: anchor.Path(), root: anchor.Path(),
		describe: func(can *link) ([]sd.Property, []sd.PropertyCollection) {
			return anchorProperties(can.knows253), []sd.PropertyCollection{}
		},
	}
	if err := a.begin(ctx); err != nil {
		return anchor, err
	}
	made, err := b.anchor(ctx, a)
	if err != nil {
		a.undo(ctx)
		return anchor, err
	}
	a.end()
	return made, nil
}

func (b *Backend) anchor(ctx context.Context, a *attempt) (cgroup.Group, error) {
	var err error
	if a.child, err = launch.StartPause(b.watcher, -1); err != nil {
		return cgroup.Group{}, err
	}
	if err := a.enter(ctx); err != nil {
		return cgroup.Group{}, err
	}
	made := b.tree.Group(a.path)
	leaf := made.Child(PauseLeaf)
	if err := leaf.Create(nil); err != nil && !errors.Is(err, fs.ErrExist) {
		return made, err
	}
	if err := leaf.Add(a.child.PID()); err != nil {
		return made, err
	}
	return made, b.pause(ctx, a.child)
}

// pause lets the child sleep, and keeps it to be reaped should it end before us.
func (b *Backend) pause(ctx context.Context, child *launch.Child) error {
	if err := child.Open(ctx); err != nil {
		return fmt.Errorf("start the process that keeps it: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pauses = append(slices.DeleteFunc(b.pauses, ended), child.Process())
	return nil
}

// ended lets go of a process that has ended.
func ended(p *process.Process) bool {
	select {
	case <-p.Exited():
		p.Close()
		return true
	default:
		return false
	}
}

// delegated are the controllers that services in cgroups may need, but for those that
// systemd does not know, such as hugetlb: it would refuse all of them.
var delegated = append(slices.Clone(cgroup.Wanted), "cpuset")

func anchorProperties(oomPolicy bool) []sd.Property {
	properties := []sd.Property{
		sd.PropDescription("Gladsheim services in cgroups of their own"),
		sd.PropSlice(units.Slice),
		property("CollectMode", "inactive-or-failed"),
		property("DelegateControllers", delegated), // and Delegate=yes with it
		property("SendSIGHUP", false),
		property("Before", []string{agentUnit}), // as scopes of services
		property("TasksMax", uint64(math.MaxUint64)),
	}
	if oomPolicy {
		// One service that runs out of memory is no reason to end the others.
		properties = append(properties, property("OOMPolicy", "continue"))
	}
	return properties
}
