package thjalfi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/vigil"
	"github.com/gladsheim/gladsheim/backends"
)

const opReload = "reload"

// Reload makes a service that runs read its configuration anew, in the way that is given,
// and returns when the signal is sent or the program has ended. A launch under way is
// waited for; what is not ready then, frozen or ending is service.Conflict. A program
// goes on when ctx ends, and ends with its time or the service.
func (t *Thjalfi) Reload(ctx context.Context, name service.Name, how service.Reload, actor string) error {
	a, err := t.find(opReload, name)
	if err != nil {
		return err
	}
	return ask(ctx, a, opReload, func(reply chan<- error) {
		a.then(func(context.Context) func() { return func() { a.reload(how, actor, reply) } })
	})
}

func (a *actor) reload(how service.Reload, actor string, reply chan<- error) {
	h := a.handle
	if why := a.reloadable(); why != nil {
		reply <- why
		return
	}
	if how.Signal != 0 {
		a.then(func(ctx context.Context) func() {
			err := h.Signal(ctx, how.Signal)
			return func() {
				if err == nil {
					if a.sent == nil {
						a.sent = map[syscall.Signal]string{}
					}
					a.sent[how.Signal] = actor
				}
				a.reloaded(actor, service.SignalName(how.Signal), err)
				reply <- err
			}
		})
		return
	}
	a.loading = true
	ending := a.ending
	a.waits.Go(func() {
		ctx, watch := vigil.Keep(ending, how.Timeout)
		defer watch.Leave()
		ran, err := h.Run(ctx, backends.Program{Argv: how.Exec})
		err = a.reloadError(ran, err, how.Timeout)
		a.tell(a.ctx, func() {
			a.loading = false
			a.reloaded(actor, strings.Join(how.Exec, " "), err)
			reply <- err
		})
	})
}

// reloadable tells why it can not be done now, or nil.
func (a *actor) reloadable() error {
	refuse := func(why string) error {
		return &service.Error{Op: opReload, Service: a.name, Kind: service.Conflict, Err: errors.New(why)}
	}
	switch state := a.machine.State; {
	case a.handle == nil && state == service.Adopting:
		return &service.Error{Op: opReload, Service: a.name, Kind: service.HostUnavailable,
			Err: fmt.Errorf("it is not known yet whether it runs: %w", a.failure)}
	case a.handle == nil:
		return notRunning(opReload, a.name)
	case state != service.Running:
		return refuse("it is " + state.String() + ", and only what is ready can reload")
	case a.machine.Frozen:
		return refuse("it is frozen")
	case a.loading:
		return refuse("a reload is under way")
	}
	return nil
}

// reloadError is why a reload by a program failed, with what that wrote.
func (a *actor) reloadError(ran backends.Ran, err error, timeout time.Duration) error {
	if err == nil && ran.Exit.Clean() {
		return nil
	}
	failed := &service.Error{Op: opReload, Service: a.name, Kind: service.Conflict, Reason: service.ReasonReloadFailed,
		Err: fmt.Errorf("the program ended: %s", ran.Exit)}
	switch kind := service.KindOf(err); {
	case err == nil:
	case kind == service.Timeout:
		failed.Kind, failed.Err = kind, fmt.Errorf("the program did not end within %v (reload.timeout), and was killed", timeout)
	default:
		failed.Kind, failed.Err = kind, err
	}
	failed.LastLines = linesOf(ran.Output)
	if n := len(failed.LastLines); n > 0 {
		failed.Err = fmt.Errorf("%w: %s", failed.Err, failed.LastLines[n-1])
	}
	return failed
}

// reloaded tells of a reload, and who asked for it.
func (a *actor) reloaded(actor, way string, err error) {
	a.actor = cmp.Or(actor, a.actor)
	detail := way + ", by " + actor
	if err != nil {
		detail += "; it failed: " + err.Error()
	}
	a.publish(service.NoticeState, opReload, detail)
}
