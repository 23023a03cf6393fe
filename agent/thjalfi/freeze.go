package thjalfi

import (
	"context"
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// freezeTime is how long a service may take to freeze, or to thaw. Who waits for a disk
// in the kernel may take longer, and a stop waits behind it.
const freezeTime = 5 * time.Second

// still freezes or thaws the service, and replies when that is so and on record.
func (a *actor) still(freeze bool, actor string, reply chan<- error) {
	op := stillOp(freeze)
	h, state := a.handle, a.machine.State
	switch {
	case h == nil && state == service.Launching: // one was begun in between
		a.then(func(context.Context) func() { return func() { a.still(freeze, actor, reply) } })
		return
	case h == nil && state == service.Adopting:
		reply <- &service.Error{Op: op, Service: a.name, Kind: service.HostUnavailable,
			Err: fmt.Errorf("it is not known yet whether it runs: %w", a.failure)}
		return
	case h == nil:
		reply <- notRunning(op, a.name)
		return
	case freeze && state != service.Running:
		reply <- &service.Error{Op: op, Service: a.name, Kind: service.Conflict,
			Err: fmt.Errorf("it is %s, and only what is ready can be frozen", state)}
		return
	}
	a.stilling++
	a.then(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, freezeTime)
		defer cancel()
		var err error
		if freeze {
			err = h.Freeze(ctx)
		} else {
			err = h.Thaw(ctx)
		}
		return func() {
			a.stilling--
			a.lookAtFreeze(func(frozen bool) string {
				if frozen != freeze {
					return ""
				}
				a.actor = actor
				return service.CauseAsked.String()
			})
			a.unspared()
			a.afterwards(func() { reply <- err })
		}
	})
}

// spare freezes the service to save the battery. That it is for this is on record before.
func (a *actor) spare(actor string, reply chan<- error) {
	if a.machine.Frozen {
		reply <- nil
		return
	}
	if a.machine, _ = service.Next(a.machine, a.event(service.Spare)); a.machine.Spared {
		a.record() // what there is to tell comes with the freeze
	}
	a.still(true, actor, reply)
}

// unspared forgets that it was to be frozen to save the battery, if that has come to
// nothing: who freezes it next does so for another reason.
func (a *actor) unspared() {
	if !a.machine.Spared || a.machine.Frozen || a.stilling > 0 {
		return
	}
	a.machine, _ = service.Next(a.machine, a.event(service.Unspare))
	a.record()
	m := a.machine
	a.cfg.Keeper.Show(a.name, func(s *service.Status) { s.Machine = m })
}

// claim has what is frozen for the battery be frozen for somebody who asks for it: then
// the end of that does not thaw it.
func (a *actor) claim(actor string) {
	if a.machine.Spared && a.machine.Frozen {
		a.actor = actor
		a.happenAs(notice{service.NoticeFrozen, service.CauseAsked.String(), "by " + a.frozenBy}, a.event(service.Unspare))
	}
}

func stillOp(freeze bool) string {
	if freeze {
		return "freeze"
	}
	return "thaw"
}

// hearFreeze takes the news that it may have been frozen or thawed, if there is any, and
// tells whether that was so.
func (a *actor) hearFreeze() (changed bool) {
	before := a.machine.Frozen
	select {
	case <-a.froze:
		a.sawFreeze()
	default:
	}
	return a.machine.Frozen != before
}

// sawFreeze takes such news. What comes while we are at it ourselves is taken when we
// are done.
func (a *actor) sawFreeze() {
	if a.stilling == 0 {
		a.lookAtFreeze(func(bool) string { return "" })
	}
}

// lookAtFreeze asks the kernel, and tells what has changed and why: it is a word for who
// has brought it about, "" for somebody else.
func (a *actor) lookAtFreeze(why func(frozen bool) string) {
	if a.handle == nil || a.exit != nil {
		return
	}
	by, err := a.handle.FrozenBy()
	if err != nil || by == a.frozenBy { // an error is that of an end, or comes again with the next news
		return
	}
	told := notice{kind: service.NoticeThawed}
	ev := a.event(service.Thawed)
	if a.frozenBy = by; by != "" {
		told.kind, told.detail, ev = service.NoticeFrozen, "by "+by, a.event(service.Froze)
	}
	switch told.reason = why(by != ""); {
	case told.reason != "":
	case by == "" && a.machine.State == service.Stopping:
		told.reason = service.Stop.String()
	default:
		told.reason = "outside"
	}
	a.happenAs(told, ev)
}

// thaw has what is told to end able to heed that. What is frozen by a cgroup that is not
// ours stays so, and can only be killed.
func thaw(ctx context.Context, h backends.Handle) error {
	if by, err := h.FrozenBy(); err != nil || by == "" {
		return nil
	}
	err := h.Thaw(ctx)
	if service.KindOf(err) == service.Conflict {
		return nil
	}
	return err
}
