package thjalfi

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// Exceed ends an incarnation that used too much for too long; what follows is for its
// policy to say. It returns when that has begun. One that ends already, or is no more, is
// service.NotRunning, and one that is frozen service.Conflict: what that has is not its
// doing.
func (t *Thjalfi) Exceed(ctx context.Context, name service.Name, incarnation uint64, why string) error {
	return t.end(ctx, name, service.Event{Kind: service.Exceeded, Incarnation: incarnation}, why, func(*actor) error { return nil })
}

// Hang is Exceed for an incarnation that hangs: it goes the way of one whose checks
// failed. stopped says that a signal keeps it from running; if somebody has sent that by
// Signal, it is his wish, and service.Conflict.
func (t *Thjalfi) Hang(ctx context.Context, name service.Name, incarnation uint64, why string, stopped bool) error {
	return t.end(ctx, name, service.Event{Kind: service.Unhealthy, Incarnation: incarnation}, why, func(a *actor) error {
		if who := a.pauser(); stopped && who != "" {
			return fmt.Errorf("%s has stopped it", who)
		}
		return nil
	})
}

// end ends an incarnation that fails, unless something speaks against it.
func (t *Thjalfi) end(ctx context.Context, name service.Name, ev service.Event, why string, against func(*actor) error) error {
	const op = "end"
	a, err := t.find(op, name)
	if err != nil {
		return err
	}
	return ask(ctx, a, op, func(reply chan<- error) {
		if !a.sawExit() {
			a.hearFreeze()
		}
		ours := a.machine.Incarnation == ev.Incarnation
		if err := against(a); err != nil && ours {
			reply <- &service.Error{Op: op, Service: name, Kind: service.Conflict, Err: err}
			return
		}
		before := a.machine
		a.happen(ev)
		switch {
		case a.machine != before:
			a.why, a.hung = why, ev.Kind == service.Unhealthy
			reply <- nil
		case a.machine.Frozen && ours:
			reply <- &service.Error{Op: op, Service: name, Kind: service.Conflict, Err: errors.New("it is frozen")}
		default:
			reply <- notRunning(op, name)
		}
	})
}

// pause notes, also for the next agent, that somebody has stopped it with a signal, or
// lets it go on: then its checks begin anew.
func (a *actor) pause(sig syscall.Signal, actor string) {
	before := a.pauser()
	switch sig {
	case syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
		a.setPauser(actor)
	case syscall.SIGCONT:
		a.setPauser("")
	}
	now := a.pauser()
	if now != before {
		a.record()
	}
	if now == "" && before != "" && a.leaveHC != nil {
		a.leaveHC("it goes on")
		a.leaveHC = nil
		a.probe()
	}
}

// pauser is who has stopped it with a signal, "" for nobody.
func (a *actor) pauser() string {
	if who := a.paused.Load(); who != nil {
		return *who
	}
	return ""
}

func (a *actor) setPauser(who string) {
	a.paused.Store(nil)
	if who != "" {
		a.paused.Store(&who)
	}
}

// excuse tells why that a check fails is no fault of the present incarnation. It may be
// called by anybody.
func (a *actor) excuse() func() error {
	h, watchdog := a.handle, a.plan.Spec.Health.Type == service.CheckWatchdog
	return func() error {
		who := a.pauser()
		switch {
		case who != "" && standsStill(h):
			return fmt.Errorf("%s has stopped it with a signal, until it gets CONT", who)
		case watchdog && a.cfg.Listener.Unread(a.name):
			return errors.New("it says more than is read of it, and WATCHDOG=1 may be among the rest")
		}
		return nil
	}
}

// standsStill tells whether a signal to stop does keep the main process from running: not
// every one stops every program, and others may have let it go on.
func standsStill(h backends.Handle) bool {
	threads, err := h.Threads()
	return err == nil && threads.Stopped
}
