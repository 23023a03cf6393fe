package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"syscall"

	"github.com/gladsheim/gladsheim/agent/byggvir"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/agent/thjalfi"
	"github.com/gladsheim/gladsheim/backends"
)

// Start launches a registered service and answers when it is ready.
func (a *Agent) Start(ctx context.Context, name service.Name, opts service.StartOptions) (*service.Status, error) {
	return a.start(ctx, name, opts, false)
}

// start is Start; called says that it is for others, which require the service.
func (a *Agent) start(ctx context.Context, name service.Name, opts service.StartOptions, called bool) (*service.Status, error) {
	if known, err := a.thjalfi.Recall(ctx, name, service.Start, opts.Actor, opts.Request); err != nil {
		return nil, err
	} else if known {
		return a.Status(name)
	}
	plan, err := a.launchPlan("start", name, opts)
	if err != nil {
		return nil, err
	}
	plan.Called = called
	return a.launch(ctx, "start", plan, func() error {
		if err := a.begun(name); err != nil {
			return err
		}
		return a.thjalfi.Start(ctx, name, plan)
	})
}

// Restart ends a service if it runs, and answers when a fresh incarnation is
// ready: of the definition as it is now, with the options of the last start. What runs is
// not ended unless what it requires is there, or can be started.
func (a *Agent) Restart(ctx context.Context, name service.Name, opts service.StopOptions) (*service.Status, error) {
	if known, err := a.thjalfi.Recall(ctx, name, service.Restart, opts.Actor, opts.Request); err != nil {
		return nil, err
	} else if known {
		return a.Status(name)
	}
	options, known, err := a.thjalfi.Options(ctx, name)
	if err != nil {
		return nil, err
	}
	if !known { // they were of an earlier boot
		options = a.wantedOf(name).Options
	}
	options.Actor = opts.Actor
	plan, err := a.launchPlan("restart", name, options)
	if err != nil {
		return nil, err
	}
	return a.launch(ctx, "restart", plan, func() error {
		if err := a.begun(name); err != nil {
			return err
		}
		if err := a.provide(ctx, &plan.Spec, opts.Actor); err != nil {
			return err
		}
		if !opts.Force {
			defer a.part(ctx, name)()
		}
		return a.thjalfi.Restart(ctx, name, plan, opts)
	})
}

// launch carries out what a plan was made for.
func (a *Agent) launch(ctx context.Context, op string, plan thjalfi.Plan, do func() error) (*service.Status, error) {
	name := plan.Spec.Name
	admitted, err := a.admit(op, plan)
	if err != nil {
		return nil, err
	}
	defer admitted()
	if err := a.look(ctx, op, name, plan.Backend); err != nil {
		return nil, err
	}
	if err := do(); err != nil {
		return nil, err
	}
	return a.Status(name)
}

// Stop ends a service and answers when nothing of it is left. Those that are bound to it
// end first, unless it is to be killed.
func (a *Agent) Stop(ctx context.Context, name service.Name, opts service.StopOptions) (*service.Status, error) {
	var err error
	if opts.Force || len(a.boundTo(name)) == 0 {
		err = a.rest(ctx, name, opts)
	} else {
		err = a.stopBound(ctx, name, opts)
	}
	if err != nil {
		return nil, err
	}
	return a.Status(name)
}

// stopBound ends those first that are bound to the service. Like any stop it goes on when
// the caller's time is over: else they would have ended for nothing.
func (a *Agent) stopBound(ctx context.Context, name service.Name, opts service.StopOptions) error {
	done := make(chan error, 1)
	a.background.Go(func() {
		defer a.part(a.ctx, name)()
		done <- a.rest(context.WithoutCancel(ctx), name, opts)
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	kind := service.Cancelled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		kind = service.Timeout
	}
	return &service.Error{Op: "stop", Service: name, Kind: kind, Err: fmt.Errorf("%w; it goes on without you", ctx.Err())}
}

// Signal sends sig to the main process.
func (a *Agent) Signal(ctx context.Context, name service.Name, sig syscall.Signal, actor string) (*service.Status, error) {
	if err := a.thjalfi.Signal(ctx, name, sig, actor); err != nil {
		return nil, err
	}
	return a.Status(name)
}

// ReloadService makes a service read its configuration anew, as its definition is now.
func (a *Agent) ReloadService(ctx context.Context, name service.Name, actor string) (*service.Status, error) {
	s, err := a.Status(name)
	if err != nil {
		return nil, err
	}
	if s.Spec.Reload.IsZero() {
		return nil, &service.Error{Op: "reload", Service: name, Kind: service.Conflict, Reason: service.ReasonNoReload,
			Err: errors.New(`its definition does not say how ("reload")`)}
	}
	if err := a.thjalfi.Reload(ctx, name, s.Spec.Reload, actor); err != nil {
		return nil, err
	}
	return a.Status(name)
}

// Freeze stops a running service where it is, until Thaw or its end.
func (a *Agent) Freeze(ctx context.Context, name service.Name, actor string) (*service.Status, error) {
	if err := a.thjalfi.Freeze(ctx, name, actor); err != nil {
		return nil, err
	}
	return a.Status(name)
}

// Thaw lets it run on, whoever froze it.
func (a *Agent) Thaw(ctx context.Context, name service.Name, actor string) (*service.Status, error) {
	if err := a.thjalfi.Thaw(ctx, name, actor); err != nil {
		return nil, err
	}
	return a.Status(name)
}

// Status is what is known of a service, without asking the host.
func (a *Agent) Status(name service.Name) (*service.Status, error) {
	if s, known := a.registry.Get(name); known {
		return s, nil
	}
	return nil, &service.Error{Op: "find", Service: name, Kind: service.NotFound, Reason: service.ReasonServiceNotFound,
		Err: errors.New("no such service is registered")}
}

// List is the status of every service whose public state is one of states, or
// of every service if none is given, ordered by name.
func (a *Agent) List(states ...service.Public) []*service.Status { return a.registry.List(states...) }

// launchPlan makes the plan of a launch that somebody asks for, or refuses it.
func (a *Agent) launchPlan(op string, name service.Name, opts service.StartOptions) (thjalfi.Plan, error) {
	a.mu.Lock()
	d, err := a.find(op, name)
	if err != nil {
		a.mu.Unlock()
		return thjalfi.Plan{}, err
	}
	spec, over := d.spec, a.wanted[name]
	stranger, alive := a.strangers[name]
	a.mu.Unlock()
	if alive {
		return thjalfi.Plan{}, previousAlive(op, stranger.refs[0], stranger.why)
	}
	return a.compose(op, spec, over, opts)
}

// compose makes the plan of a definition, with what was set over it and what is
// asked for besides.
func (a *Agent) compose(op string, spec service.Spec, over skirnir.Wanted, opts service.StartOptions) (thjalfi.Plan, error) {
	a.mu.Lock()
	defaults := a.settings.DefaultLimits()
	a.mu.Unlock()
	name := spec.Name
	spec.Limits = opts.Limits.Over(over.Limits.Over(spec.Limits))
	spec.Warnings = opts.Warnings.Over(over.Warnings.Over(spec.Warnings))
	if len(opts.Environment) > 0 {
		spec.Environment = maps.Clone(spec.Environment)
		if spec.Environment == nil {
			spec.Environment = map[string]string{}
		}
		maps.Copy(spec.Environment, opts.Environment)
	}
	if opts.WorkingDirectory != "" {
		spec.WorkingDirectory = opts.WorkingDirectory
	}
	if len(opts.Args) > 0 {
		spec.Exec = append([]string{spec.Exec[0]}, opts.Args...)
	}
	if faults := spec.Validate(); len(faults) > 0 {
		return thjalfi.Plan{}, &service.Error{Op: op, Service: name, Kind: service.Invalid, Faults: faults}
	}
	plan, err := a.planFor(op, spec, defaults, opts.Actor)
	plan.Options, plan.Patient = opts, patient(opts.Actor)
	return plan, err
}

func (a *Agent) planFor(op string, spec service.Spec, defaults service.Limits, actor string) (thjalfi.Plan, error) {
	backend, err := backends.Choose(a.cfg.Backends, spec.Launch)
	if err != nil {
		return thjalfi.Plan{}, err
	}
	capacity, err := a.capacity()
	if err != nil {
		return thjalfi.Plan{}, &service.Error{Op: op, Service: spec.Name, Kind: service.HostUnavailable, Err: err}
	}
	host := byggvir.Host{Cores: capacity.Cores, Defaults: defaults}
	limits, err := byggvir.Plan(op, &spec, host, backend.Name(), backend.Enforces())
	if err != nil {
		return thjalfi.Plan{}, err
	}
	return thjalfi.Plan{Spec: spec, Limits: limits, Backend: backend, Actor: actor}, nil
}

func (a *Agent) logPath(name service.Name) string {
	return filepath.Join(a.cfg.LogDir, name.String()+".log")
}
