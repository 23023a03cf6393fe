// Package fake is a backend without processes, for tests of the agent. What
// happens is scripted per service; what runs is kept by a Host, which several
// backends may share, one after the other or at once, as agents share a
// machine. It does no IO and starts no goroutine, so it works inside a bubble
// of testing/synctest; its time is that of package time.
package fake

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

var (
	_ backends.Backend   = (*Backend)(nil)
	_ backends.LogTeller = (*Backend)(nil)
)

// Config is what a Backend is made of; its zero value is a Backend that
// enforces everything on a Host of its own.
type Config struct {
	Host     *Host                // nil for a new one
	Enforces *service.Enforcement // nil for everything
	Shim     bool                 // what was launched by a backend before this one still tells how it ended

	// Scripts tells how the launches of a service behave, see Host.Script.
	Scripts map[service.Name][]Script
	// Program gives the script of a launch whose service has none in Scripts;
	// nil for the zero Script.
	Program func(service.Launch) Script
	// Fault, when not nil, is called before each operation ("launch",
	// "adopt", "signal", "kill", "limit", "limits", "usage", "processes", "freeze",
	// "thaw", "run", "finish", "release", "drift", "repair"); an error is returned at once and nothing else happens.
	Fault func(operation string, ref service.Ref) error
}

// Backend is a fake backend. The methods of its Host are at hand.
type Backend struct {
	*Host
	enforces service.Enforcement
	program  func(service.Launch) Script
	fault    func(string, service.Ref) error
	shim     bool
	closed   atomic.Bool
}

// New makes a Backend.
func New(c Config) *Backend {
	b := &Backend{
		Host: c.Host, enforces: Everything(),
		program: c.Program, fault: c.Fault, shim: c.Shim,
	}
	if b.Host == nil {
		b.Host = NewHost()
	}
	if c.Enforces != nil {
		b.enforces = *c.Enforces
	}
	if b.program == nil {
		b.program = func(service.Launch) Script { return Script{} }
	}
	if b.fault == nil {
		b.fault = func(string, service.Ref) error { return nil }
	}
	for name, scripts := range c.Scripts {
		b.Script(name, scripts...)
	}
	return b
}

// Everything is what a host enforces that lacks nothing.
func Everything() service.Enforcement {
	e := service.Enforcement{OOMVerdict: true, KillAll: true, BornInside: true, Freeze: true}
	for r := range e.Limits {
		e.Limits[r] = true
	}
	return e
}

// Name is "fake".
func (b *Backend) Name() string { return "fake" }

// Enforces tells what Config.Enforces says.
func (b *Backend) Enforces() service.Enforcement { return b.enforces }

// Plan puts each incarnation into a cgroup of its own.
func (b *Backend) Plan(l service.Launch) service.Ref {
	return service.Ref{
		Backend: b.Name(), Name: l.Name, Incarnation: l.Incarnation,
		Cgroup: fmt.Sprintf("/gladsheim/svc-%s-%08x", l.Name, l.Incarnation),
	}
}

// Launch follows the script.
func (b *Backend) Launch(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
	ref := b.Plan(l)
	if err := b.begin(l); err != nil {
		return nil, err
	}
	if err := b.fault("launch", ref); err != nil {
		return nil, err
	}
	g, err := b.gate(l, ref)
	if err != nil {
		return nil, err
	}
	h := &handle{backend: b, group: g, exited: g.ended, told: true, requested: l.Limits}
	if err := b.await(ctx, h, birth); err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.remove(g)
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.find(g.ref) != g {
		return nil, gaveUp("start", ref, errors.New("the host went down"))
	}
	g.run()
	h.froze = g.listen()
	return h, nil
}

// begin counts the launch, and refuses what can not be had.
func (b *Backend) begin(l service.Launch) error {
	b.mu.Lock()
	b.launches[l.Name]++
	b.mu.Unlock()
	if b.closed.Load() {
		return &service.Error{Op: "start", Service: l.Name, Kind: service.HostUnavailable, Err: errors.New("the backend is closed")}
	}
	if l.Spec.BestEffort {
		return nil
	}
	return b.enforceable("start", l.Name, l.Limits)
}

func (b *Backend) enforceable(op string, name service.Name, l service.Limits) error {
	if missing := b.enforces.Missing(l); len(missing) > 0 {
		return &service.Error{
			Op: op, Service: name, Kind: service.Unenforceable, Reason: service.ReasonLimitUnenforceable,
			Err: fmt.Errorf("this host can not enforce %s", missing[0]),
		}
	}
	return nil
}

// gate makes the incarnation, which waits at its gate.
func (b *Backend) gate(l service.Launch, ref service.Ref) (*group, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.find(ref) != nil {
		return nil, &service.Error{
			Op: "start", Service: l.Name, Kind: service.Exists, Reason: service.ReasonPreviousAlive,
			Err: fmt.Errorf("incarnation %d is there already", l.Incarnation),
		}
	}
	script, ok := b.nextScript(l.Name)
	if !ok {
		script = b.program(l)
	}
	ref.PID, ref.BootID = b.newPID(), b.bootID()
	ref.StartTicks = uint64(ref.PID) * 100
	limits := l.Limits
	for r := range limits {
		if !b.enforces.Limits[r] {
			limits[r] = service.Quota{}
		}
	}
	g := &group{
		host: b.Host, ref: ref, launch: l, script: script, parent: b,
		limits: limits,
		ended:  make(chan struct{}), empty: make(chan struct{}), displaced: make(chan struct{}),
	}
	b.groups = append(b.groups, g)
	return g, nil
}

// await lets the launch take its time, and does what birth says.
func (b *Backend) await(ctx context.Context, h *handle, birth backends.Birth) error {
	g := h.group
	if err := pause(ctx, g.script.LaunchTime); err != nil {
		return gaveUp("start", g.ref, err)
	}
	if err := g.script.LaunchError; err != nil {
		return err
	}
	if err := birth.Identify(g.ref); err != nil {
		return &service.Error{Op: "start", Service: g.ref.Name, Kind: service.KindOf(err), Err: fmt.Errorf("record its identity: %w", err)}
	}
	var err error
	if birth.Prepare != nil {
		err = birth.Prepare(ctx, h.Run)
	}
	if err == nil && ctx.Err() != nil {
		err = gaveUp("start", g.ref, ctx.Err())
	}
	if err == nil {
		err = g.script.OpenError
	}
	if err != nil && birth.Undo != nil {
		birth.Undo(h.Run, err)
	}
	return err
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// gaveUp is the error of what was not awaited.
func gaveUp(op string, ref service.Ref, err error) error {
	kind := service.Cancelled
	if errors.Is(err, context.DeadlineExceeded) {
		kind = service.Timeout
	}
	return &service.Error{Op: op, Service: ref.Name, Kind: kind, Err: err}
}

// Adopt takes up what runs at the place that ref names. The exit of a process
// that this Backend did not launch is unknown when it comes.
func (b *Backend) Adopt(ctx context.Context, ref service.Ref, l service.Launch) (backends.Handle, error) {
	if err := b.fault("adopt", ref); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, gaveUp("adopt", ref, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.find(ref)
	switch {
	case g == nil || (ref.BootID != "" && ref.BootID != b.bootID()):
		return nil, backends.ErrGone
	case !g.populated():
		b.remove(g)
		return nil, backends.ErrGone
	case g.main && g.ref == ref:
		return &handle{backend: b, group: g, exited: g.ended, froze: g.listen(), told: g.parent == b || b.shim, requested: l.Limits}, nil
	}
	over := make(chan struct{})
	close(over)
	return &handle{backend: b, group: g, exited: over, requested: l.Limits}, nil
}

// Leftovers lists every incarnation whose program has begun to run and that was
// not released, with a process or without.
func (b *Backend) Leftovers(ctx context.Context, _ []service.Name) ([]service.Ref, error) {
	if err := ctx.Err(); err != nil {
		return nil, gaveUp("look for leftovers", service.Ref{}, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var refs []service.Ref
	for _, g := range b.groups {
		if g.life != nil {
			refs = append(refs, g.ref)
		}
	}
	return refs, nil
}

// Close keeps b from launching; what runs goes on.
func (b *Backend) Close() error {
	b.closed.Store(true)
	return nil
}
