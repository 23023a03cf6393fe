// Package offer opens the backends that a host offers, in the order of
// preference. It is the one place that knows all of them.
package offer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/cgroupfs"
	"github.com/gladsheim/gladsheim/backends/exec"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/backends/systemd"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/lockfile"
	"github.com/gladsheim/gladsheim/platform"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

// Config says what to open.
type Config struct {
	Backend string // auto, systemd, cgroupfs or exec
	Facts   platform.Facts
	Procfs  procfs.FS
	AgentID string // names this agent among those of the host; the same after a restart
	RunDir  string // of the agent alone; what must be found again in this boot
	Log     *slog.Logger
}

// Auto takes every backend with real limits, or plain exec where there is none.
const Auto = "auto"

// Offer is what was opened.
type Offer struct {
	Backends []backends.Backend // the preferred one first
	Findings []service.Finding  // what is missing that the host should have
	watcher  *watch.Watcher
	shim     *launch.Shim    // of services, nil when that is the agent
	locks    []*os.File      // that keep other agents out of the tree of cgroups
	reaper   *process.Reaper // of all orphans, nil when that is not our task
}

// NotYet is an error of PID 1, which the host has and which does not serve now.
// Trying again may help, as nothing else does.
type NotYet struct{ Err error }

func (e NotYet) Error() string { return e.Err.Error() }

// Unwrap gives Err.
func (e NotYet) Unwrap() error { return e.Err }

// parent is the cgroup that holds services where systemd does not run.
const parent = "/gladsheim"

// Open opens what c names. On a systemd host the cgroup backend is opened
// beside the systemd backend, for definitions that ask for it. Where another
// agent uses the same cgroups the error is a *service.Error of Kind Conflict:
// two would take each other's services for leftovers. A NotYet may be tried
// again; any other error is of a host that lacks what c names.
func Open(ctx context.Context, c Config) (*Offer, error) {
	names, err := choose(c.Backend, c.Facts)
	if err != nil {
		return nil, err
	}
	w, err := watch.New()
	if err != nil {
		return nil, err
	}
	o := &Offer{watcher: w}
	if err := o.open(ctx, c, names); err != nil {
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
	if o.shim != nil {
		all = errors.Join(all, o.shim.Close())
	}
	if o.reaper != nil {
		o.reaper.Stop()
	}
	for _, f := range o.locks {
		all = errors.Join(all, f.Close())
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

// choose names the backends to open, the preferred one first.
func choose(wanted string, facts platform.Facts) ([]string, error) {
	can := map[string]service.BackendInfo{}
	for _, b := range facts.Backends() {
		can[b.Name] = b
	}
	if named, known := can[wanted]; wanted != Auto && (!known || !named.Available) {
		return nil, fmt.Errorf("the %s backend is not to be had: %s", wanted, named.Reason)
	}
	scopes, cgroups := can["systemd"].Available, can["cgroupfs"].Available
	switch {
	case wanted == "exec", !scopes && !cgroups:
		return []string{"exec"}, nil
	case scopes && !cgroups:
		return []string{"systemd"}, nil
	case scopes && wanted == "cgroupfs":
		return []string{"cgroupfs", "systemd"}, nil
	case scopes:
		return []string{"systemd", "cgroupfs"}, nil
	case facts.Systemd.Has:
		// The cgroup tree is systemd's; without its leave we may not write there.
		return nil, fmt.Errorf("cgroups are systemd's on this host, and the systemd backend is not to be had: %s", can["systemd"].Reason)
	}
	return []string{"cgroupfs"}, nil
}

func (o *Offer) open(ctx context.Context, c Config, names []string) error {
	if os.Getpid() == 1 { // as in a container
		o.reaper = process.StartReaper(c.Procfs)
	}
	if names[0] == "exec" {
		return o.openExec(c)
	}
	if err := o.own(c.Procfs, ownFile(), os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	if !slices.Contains(names, "systemd") {
		o.shim = launch.NewShim(launch.ShimConfig{Watcher: o.watcher, Dir: c.RunDir, Place: func(context.Context) (*os.File, error) {
			return leaf(c, parent+"/"+cgroupfs.ShimLeaf)
		}})
		return o.openCgroupfs(c, cgroupfs.Config{Parent: parent, Ours: true})
	}
	return o.openSystemd(ctx, c, names)
}

// ownFile is what an agent locks that uses the host's cgroups, wherever its own
// directories are. It lies where only root may make files, or only the user whose
// agent this is.
func ownFile() string {
	return filepath.Join(filepath.Dir(platform.RunDir(os.Geteuid(), os.Getenv)), "gladsheim-cgroups.lock")
}

// own keeps other agents out of the tree of cgroups: the names of scopes and
// cgroups do not tell whose they are. The lock on the file ends with us. Nobody else
// may be able to open the file, or they could keep every agent out.
func (o *Offer) own(fs procfs.FS, path string, flags int) error {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the lock of the cgroups: %w", err)
	}
	o.locks = append(o.locks, f)
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return fmt.Errorf("%s, the lock of the cgroups, belongs to user %d with mode %#o, and others could hold it; remove it, then start the agent", path, st.Uid, st.Mode&0o7777)
	}
	err = lockfile.Lock(fs, f)
	if errors.Is(err, lockfile.ErrHeld) {
		return &service.Error{Op: "open the backends", Kind: service.Conflict, Err: fmt.Errorf("another agent has its services in the cgroups of this host: it holds %s", path)}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}

func (o *Offer) openExec(c Config) error {
	b, err := exec.New(o.watcher, c.Procfs, c.AgentID, c.RunDir)
	if err != nil {
		return err
	}
	o.Backends = append(o.Backends, b)
	return nil
}

// openSystemd opens systemd and, if it is named, cgroupfs: its cgroups lie below
// a scope of ours that systemd has delegated, since the rest of the tree is
// systemd's.
func (o *Offer) openSystemd(ctx context.Context, c Config, names []string) error {
	tree, err := cgroup.Open(c.Facts.CgroupRoot)
	if err != nil {
		return err
	}
	var b *systemd.Backend
	o.shim = launch.NewShim(launch.ShimConfig{Watcher: o.watcher, Dir: c.RunDir, Place: func(ctx context.Context) (*os.File, error) {
		if !slices.Contains(names, "cgroupfs") {
			return nil, nil // it lives with the agent: the unit has KillMode=process
		}
		anchor, err := b.EnsureAnchor(ctx) // somebody may have stopped it
		if err != nil {
			return nil, nil
		}
		return leaf(c, anchor+"/"+systemd.PauseLeaf)
	}})
	b, err = systemd.New(ctx, systemd.Config{Watcher: o.watcher, Shim: o.shim, Procfs: c.Procfs, Tree: tree, Log: c.Log})
	switch kind := service.KindOf(err); {
	case kind == service.Timeout, kind == service.Cancelled, kind == service.HostUnavailable:
		return NotYet{err}
	case err != nil:
		return err
	}
	o.Backends = append(o.Backends, b)
	if !slices.Contains(names, "cgroupfs") {
		return nil
	}
	anchor, err := b.EnsureAnchor(ctx)
	switch kind := service.KindOf(err); {
	case err == nil:
	case kind == service.Timeout, kind == service.Cancelled:
		return NotYet{err}
	case names[0] == "cgroupfs":
		return err
	default: // services in scopes do without it
		o.Findings = append(o.Findings, noAnchor(err))
		return nil
	}
	err = o.openCgroupfs(c, cgroupfs.Config{Parent: anchor, Protect: b.Protect, Total: b.Total, Restore: func(ctx context.Context) error {
		_, err := b.EnsureAnchor(ctx)
		return err
	}})
	if names[0] == "cgroupfs" {
		slices.Reverse(o.Backends)
	}
	return err
}

// leaf opens a cgroup, made if there is none, for a process to be born in.
func leaf(c Config, at string) (*os.File, error) {
	tree, err := cgroup.Open(c.Facts.CgroupRoot)
	if err != nil {
		return nil, err
	}
	group := tree.Group(at)
	if err := group.Create(nil); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := group.RefuseFrozen(); err != nil {
		return nil, err
	}
	return group.OpenDir()
}

func noAnchor(err error) service.Finding {
	return service.Finding{
		Level: service.SeverityProblem, Title: `services with "launch": "cgroup" can not be started or taken up`,
		Detail: err.Error(), Fix: "Mend that, then restart the agent; services run on meanwhile.",
	}
}

// openCgroupfs opens the cgroups below the parent that how names.
func (o *Offer) openCgroupfs(c Config, how cgroupfs.Config) error {
	tree, err := cgroup.Open(c.Facts.CgroupRoot)
	if err != nil {
		return err
	}
	how.Watcher, how.Shim, how.Procfs, how.Tree = o.watcher, o.shim, c.Procfs, tree
	b, err := cgroupfs.New(how)
	if err != nil {
		return err
	}
	// An agent in another mount namespace may see another ownFile, but this one.
	err = o.own(c.Procfs, filepath.Join(c.Facts.CgroupRoot, how.Parent, "cgroup.kill"), os.O_WRONLY)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // Linux 5.14
		return errors.Join(err, b.Close())
	}
	o.Backends = append(o.Backends, b)
	return nil
}
