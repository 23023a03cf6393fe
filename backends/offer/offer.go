// Package offer opens the backends that a host offers, in the order of
// preference. It is the one place that knows all of them.
package offer

import (
	"context"
	"errors"
	"fmt"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/cgroupfs"
	"github.com/gladsheim/gladsheim/backends/exec"
	"github.com/gladsheim/gladsheim/backends/internal/watch"
	"github.com/gladsheim/gladsheim/backends/systemd"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/platform"
	"github.com/gladsheim/gladsheim/procfs"
)

// Config says what to open.
type Config struct {
	Backend string // auto, systemd, cgroupfs or exec
	Facts   platform.Facts
	Procfs  procfs.FS
	AgentID string // names this agent among those of the host; the same after a restart
}

// Auto takes every backend with real limits, or plain exec where there is none.
const Auto = "auto"

// Offer is what was opened.
type Offer struct {
	Backends []backends.Backend // the preferred one first
	watcher  *watch.Watcher
}

// parent is the cgroup that holds services where systemd does not run.
const parent = "/gladsheim"

// Open opens what c names. On a systemd host the cgroup backend is opened
// beside the systemd backend, for definitions that ask for it.
func Open(ctx context.Context, c Config) (*Offer, error) {
	w, err := watch.New()
	if err != nil {
		return nil, err
	}
	o := &Offer{watcher: w}
	if err := o.open(ctx, c); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// Close closes what Open opened; services run on.
func (o *Offer) Close() error {
	var all error
	for _, b := range o.Backends {
		all = errors.Join(all, b.Close())
	}
	return errors.Join(all, o.watcher.Close())
}

// Names are the names of the backends.
func (o *Offer) Names() []string {
	var names []string
	for _, b := range o.Backends {
		names = append(names, b.Name())
	}
	return names
}

func (o *Offer) open(ctx context.Context, c Config) error {
	can := map[string]service.BackendInfo{}
	for _, b := range c.Facts.Backends() {
		can[b.Name] = b
	}
	if named, known := can[c.Backend]; c.Backend != Auto && (!known || !named.Available) {
		return fmt.Errorf("the %s backend is not to be had: %s", c.Backend, named.Reason)
	}
	switch {
	case c.Backend == "exec", c.Backend == Auto && !can["cgroupfs"].Available:
		return o.openExec(c)
	case can["systemd"].Available:
		return o.openSystemd(ctx, c)
	case c.Facts.Systemd.Has:
		// The cgroup tree is systemd's; without its leave we may not write there.
		return fmt.Errorf("cgroups are systemd's on this host, and the systemd backend is not to be had: %s", can["systemd"].Reason)
	}
	return o.openCgroupfs(c, cgroupfs.Config{Parent: parent, Ours: true})
}

func (o *Offer) openExec(c Config) error {
	b, err := exec.New(o.watcher, c.Procfs, c.AgentID)
	if err != nil {
		return err
	}
	o.Backends = append(o.Backends, b)
	return nil
}

// openSystemd opens both; cgroups lie below a scope of ours that systemd has
// delegated, since the rest of the tree is systemd's.
func (o *Offer) openSystemd(ctx context.Context, c Config) error {
	tree, err := cgroup.Open(c.Facts.CgroupRoot)
	if err != nil {
		return err
	}
	b, err := systemd.New(ctx, systemd.Config{Watcher: o.watcher, Procfs: c.Procfs, Tree: tree})
	if err != nil {
		return err
	}
	anchor, err := b.EnsureAnchor(ctx)
	if err != nil {
		return errors.Join(err, b.Close())
	}
	below := cgroupfs.Config{Parent: anchor, Restore: func(ctx context.Context) error {
		_, err := b.EnsureAnchor(ctx)
		return err
	}}
	if c.Backend != "cgroupfs" {
		o.Backends = append(o.Backends, b)
		return o.openCgroupfs(c, below)
	}
	if err := o.openCgroupfs(c, below); err != nil {
		return errors.Join(err, b.Close())
	}
	o.Backends = append(o.Backends, b)
	return nil
}

// openCgroupfs opens the cgroups below the parent that how names.
func (o *Offer) openCgroupfs(c Config, how cgroupfs.Config) error {
	tree, err := cgroup.Open(c.Facts.CgroupRoot)
	if err != nil {
		return err
	}
	how.Watcher, how.Procfs, how.Tree = o.watcher, c.Procfs, tree
	b, err := cgroupfs.New(how)
	if err != nil {
		return err
	}
	o.Backends = append(o.Backends, b)
	return nil
}
