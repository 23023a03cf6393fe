package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/units"
	"github.com/gladsheim/gladsheim/watch"
)

// Config is what a Backend works with.
type Config struct {
	Watcher *watch.Watcher
	Shim    *launch.Shim // of what is launched; nil: this process itself, and how it ends is lost with it
	Procfs  procfs.FS
	Tree    cgroup.Tree // the hierarchy that systemd manages
	Route   Route
	Log     *slog.Logger // told what is put right after a call has returned; nil: nobody

	PrivateSocket string // "" is /run/systemd/private
	BusSocket     string // "" is /run/dbus/system_bus_socket
}

const (
	// inFlight is how many scopes are asked for at a time. PID 1 handles one
	// after the other; more only fill queues, of which dbus-daemon's holds 128
	// answers for a connection.
	inFlight = 16

	// patience is how long a call takes when its context sets no limit.
	patience = 30 * time.Second
)

// Backend runs incarnations in transient scopes. It may be used by many
// goroutines at once.
type Backend struct {
	watcher *watch.Watcher
	shim    *launch.Shim
	fs      procfs.FS
	tree    cgroup.Tree
	log     *slog.Logger
	bootID  string
	can     service.Enforcement

	bus       *bus
	slots     chan struct{} // inFlight of them
	making    sync.Map      // attempts that hold a slot, by their scopes
	anchoring chan struct{} // held by the one who makes the anchor
	keeping   chan struct{} // held by the one who changes what the slice asks to be kept

	mu     sync.Mutex
	pauses []*process.Process // that keep anchors

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

var (
	_ backends.Backend   = (*Backend)(nil)
	_ backends.LogTeller = (*Backend)(nil)
	_ backends.Totaller  = (*Backend)(nil)
)

// New connects to systemd and finds out what can be enforced here. ctx bounds
// New alone. An error is of Kind HostUnavailable: PID 1 is not systemd, or does
// not answer, or cgroup v2 is not its hierarchy.
func New(ctx context.Context, cfg Config) (*Backend, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	b := &Backend{
		watcher: cfg.Watcher, shim: cfg.Shim, fs: cfg.Procfs, tree: cfg.Tree, log: cfg.Log,
		bus: newBus(cfg), slots: make(chan struct{}, inFlight), anchoring: make(chan struct{}, 1), keeping: make(chan struct{}, 1),
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if b.bootID, err = b.fs.BootID(); err != nil {
		return nil, failure("look at the host", service.Name{}, err)
	}
	if b.can, err = enforcement(b.tree); err != nil {
		return nil, failure("look at the host", service.Name{}, err)
	}
	if err := b.bus.present(); err != nil {
		return nil, failure("talk to systemd", service.Name{}, err)
	}
	if _, err := b.bus.link(ctx); err != nil {
		b.bus.close()
		return nil, failure("talk to systemd", service.Name{}, err)
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

// WatchLogs implements backends.LogTeller.
func (b *Backend) WatchLogs(tell func(service.LogTrouble)) { b.shim.WatchLogs(tell) }

// Total implements backends.Totaller. The anchor is in the slice, too, and with it the
// services that have no scope; the process that keeps it, and their parent, are not counted.
func (b *Backend) Total() (service.Usage, error) {
	u, err := b.slice().Total(b.slice().Child(units.AnchorScope).Child(PauseLeaf))
	if err != nil {
		return service.Usage{}, failure("measure all services", service.Name{}, err)
	}
	return u, nil
}

// Name is "systemd".
func (b *Backend) Name() string { return "systemd" }

// Enforces tells what the kernel enforces on scopes here.
func (b *Backend) Enforces() service.Enforcement { return b.can }

// Plan names the scope of l, and where its cgroup is expected.
func (b *Backend) Plan(l service.Launch) service.Ref {
	scope, _, path := plan(l)
	return service.Ref{Backend: b.Name(), Name: l.Name, Incarnation: l.Incarnation, Unit: scope, Cgroup: path}
}

// Close ends the connection and whatever is still being put right. Services
// are not touched.
func (b *Backend) Close() error {
	b.cancel()
	b.tasks.Wait()
	b.bus.close()
	b.mu.Lock()
	defer b.mu.Unlock()
	var failures []error
	for _, p := range b.pauses {
		failures = append(failures, p.Close())
	}
	return errors.Join(failures...)
}

// looksAt is a unit that always runs, and in whose cgroup every file can be
// found that a scope's may have.
const looksAt = "/init.scope"

// enforcement finds out which limits hold for scopes: those whose file is in a
// cgroup that exists, and those of a controller that nobody here has switched
// on yet but the kernel has; the latter are proven by each launch, which reads
// them back.
func enforcement(tree cgroup.Tree) (service.Enforcement, error) {
	can := service.Enforcement{KillAll: true}
	controllers, err := tree.Group("/").Controllers()
	if err != nil {
		return can, err
	}
	on, err := tree.Group(looksAt).Controllers()
	if err != nil {
		return can, err
	}
	if can.Limits, err = tree.Group(looksAt).Enforceable(); err != nil {
		return can, err
	}
	for r := range can.Limits {
		if controller := cgroup.Controller(service.Resource(r)); controller != "" && !slices.Contains(on, controller) {
			can.Limits[r] = slices.Contains(controllers, controller)
		}
	}
	can.Limits[service.HugetlbMax] = false
	if can.Freeze, err = tree.Group(looksAt).CanFreeze(); err != nil {
		return can, err
	}
	can.Limits[service.NoFile], can.Limits[service.Rlimits] = true, true
	for r, enforced := range can.Limits {
		if enforced {
			continue
		}
		if can.Why[r], err = tree.Group(looksAt).Lacking(service.Resource(r)); err != nil {
			return can, err
		}
	}
	can.Why[service.HugetlbMax] = "systemd has no setting for huge pages, and never passes the controller hugetlb on: set launch to cgroup, " +
		"write +hugetlb into cgroup.subtree_control of the root and of " + units.Slice + ", and restart the agent"
	can.OOMVerdict = slices.Contains(controllers, "memory")
	return can, nil
}

// unenforceable is the error for limits that the host does not keep, nil if
// there are none among them.
func (b *Backend) unenforceable(op string, name service.Name, limits service.Limits) error {
	var whys []string
	if missing := b.can.Missing(limits); len(missing) > 0 {
		whys = append(whys, "this host does not enforce "+b.can.Explain(missing))
	}
	for _, lack := range b.tree.Lacks(limits) {
		whys = append(whys, lack.Why)
	}
	if len(whys) == 0 {
		return nil
	}
	return &service.Error{Op: op, Service: name, Kind: service.Unenforceable, Reason: service.ReasonLimitUnenforceable,
		Err: fmt.Errorf("%s; leave the limit out, or set best_effort", strings.Join(whys, "; "))}
}

// bounded gives ctx a limit if it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, patience)
}

// failure turns err into the error that crosses the border; one that is a
// *service.Error already stays what it is.
func failure(op string, name service.Name, err error) error {
	if e, ok := errors.AsType[*service.Error](err); ok {
		if e.Service.IsZero() {
			e.Service = name
		}
		return e
	}
	out := &service.Error{Op: op, Service: name, Kind: service.HostUnavailable, Err: err}
	switch {
	case errorIs(err, "org.freedesktop.DBus.Error.AccessDenied"), errorIs(err, "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"):
		out.Kind = service.Denied
	case errors.Is(err, context.Canceled):
		out.Kind = service.Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		out.Kind, out.Reason = service.Timeout, service.ReasonBackendTimeout
	}
	return out
}
