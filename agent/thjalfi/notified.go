package thjalfi

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Listener hears what services say of themselves, those whose definition asks for it
// (service.Spec.Notifies).
type Listener interface {
	// Provide makes the socket that a service which runs knows from its launch; Outlet does
	// it for a launch.
	Provide(spec *service.Spec) error
	// Attend has tell told of what the present incarnation says, until leave is called. tell
	// must not block. That owns says of a process that it is of the incarnation is asked for
	// each message.
	Attend(name service.Name, owns func(pid int) (bool, error), tell func(service.Heard)) (leave func(), err error)
	// Hear has told of all that the service has said until now, unless that is too much.
	Hear(name service.Name)
	// Unread tells whether the service has said something that has not been read yet. It may
	// be asked by anybody.
	Unread(name service.Name) bool
	// Forget is told when nothing of the incarnation is left. It does IO.
	Forget(name service.Name)
}

// backlog is how many words of a service may wait for its actor, which does no IO.
const backlog = 128

// speech is what the present incarnation says.
type speech struct {
	leave     func()             // ends the hearing
	news      chan service.Heard // nil as long as nobody hears
	notified  service.Notified
	ready     bool // it has said so, or may have when nobody heard
	heirs     int  // that are about to be its main process
	follows   bool // one of them, since that has ended
	unheard   bool // it was launched by an earlier agent: what it said since that ended is lost
	complaint bool // that something is wrong with what came was told
}

func silent() speech { return speech{leave: func() {}} }

// listen has the present incarnation heard, if it is one that says something.
func (a *actor) listen() {
	if !a.plan.Spec.Notifies() {
		return
	}
	news, handle := make(chan service.Heard, backlog), a.handle
	owns := func(pid int) (bool, error) {
		if pid == handle.Ref().PID { // also when it has said who follows it, and left
			return true, nil
		}
		return handle.Owns(pid)
	}
	leave, err := a.cfg.Listener.Attend(a.name, owns, func(h service.Heard) {
		select {
		case news <- h:
		default: // it says more than anybody could take in
		}
	})
	if err != nil {
		a.publish(service.NoticeState, "notify", "what it says of itself is not heard: "+err.Error())
		return
	}
	a.said.leave, a.said.news = leave, news
}

// unheard has an incarnation of which nothing is left not heard any more. It does IO.
func (a *actor) unheard(spec *service.Spec) {
	if spec.Notifies() {
		a.cfg.Listener.Forget(a.name)
	}
}

// hearNews takes what it has said and nobody has heard yet, and tells whether the timer is
// not what it was.
func (a *actor) hearNews() (changed bool) {
	before, served := a.machine.State, a.served
	for {
		select {
		case h := <-a.said.news:
			a.heard(h)
		default:
			return a.machine.State != before || a.served != served || a.armed
		}
	}
}

// heard takes one word.
func (a *actor) heard(h service.Heard) {
	n, was := h.Said, a.said.notified
	is := was.After(h, time.Now())
	a.said.notified = is
	a.said.ready = a.said.ready || n.Ready
	if n.Extend > 0 {
		a.extend(n.Extend)
	}
	switch {
	case h.Why != "" && !a.said.complaint:
		a.said.complaint = true
		a.publish(service.NoticeState, "notify", h.Why)
	case is.Stopping && !was.Stopping:
		a.publish(service.NoticeState, "says-stopping", is.Status)
	case is.Reloading && !was.Reloading:
		a.publish(service.NoticeState, "reloading", is.Status)
	case !is.Reloading && was.Reloading:
		a.publish(service.NoticeState, "reloaded", is.Status)
	default:
		a.cfg.Keeper.Show(a.name, func(s *service.Status) { s.Notified = is })
	}
	// After an end it comes too late, and as a rule a service names the one that it is.
	if is.MainPID != was.MainPID && a.exit == nil && (is.MainPID != a.ref.PID || a.said.heirs > 0) {
		a.succeed(is.MainPID)
	}
	if n.Alive {
		a.cfg.Prober.Beat(a.name)
	}
	if n.Trigger {
		a.cfg.Prober.Trigger(a.name)
	}
	if n.Ready {
		a.readyBySaying()
	}
}

// succeed has another process of the incarnation be its main one.
func (a *actor) succeed(pid int) {
	h := a.handle
	a.said.heirs++
	a.thenSurely(func() func() {
		ctx, cancel := context.WithTimeout(context.Background(), a.cfg.ClearTimeout)
		defer cancel()
		err := h.Succeed(ctx, pid)
		return func() {
			if a.handle == h {
				a.succeeded(pid, err)
			}
		}
	})
}

// succeeded takes who is the main process now, of whose end alone it is told from then on.
func (a *actor) succeeded(pid int, err error) {
	a.said.heirs--
	was := a.ref
	a.ref = a.handle.Ref()
	if a.exit == nil {
		a.exited = a.handle.Exited() // what was seen of the former's is seen again if that stays
	}
	switch {
	case err != nil:
		a.publish(service.NoticeState, "notify", fmt.Sprintf("it calls process %d its main one, and that stays process %d: %v", pid, was.PID, err))
	case a.ref != was:
		a.said.follows = false
		a.record()
		a.publish(service.NoticeState, "main-process", fmt.Sprintf("process %d, which it calls its main one (MAINPID); it was process %d", a.ref.PID, was.PID))
		if a.machine.State == service.Stopping && !a.machine.Killing { // that was told to the former
			h, sig := a.handle, a.plan.Spec.Stop.Signal
			a.then(func(ctx context.Context) func() { return a.tellToEnd(ctx, h, sig) })
		}
	}
	a.readyBySaying()
}

// inherited tells whether another process is about to be the main one in the stead of one
// that has ended: before that it may have said so.
func (a *actor) inherited() bool {
	if a.said.news != nil && !a.said.follows { // what is said after the end is too late
		a.hearNews() // so that there is room for what comes
		a.cfg.Listener.Hear(a.name)
		a.hearNews()
	}
	a.said.follows = a.said.heirs > 0
	return a.said.follows
}

// readyBySaying takes that it has said that it is ready. What is frozen has when it is thawed,
// and what has named another main process when that is the one.
func (a *actor) readyBySaying() {
	if a.said.heirs > 0 {
		return
	}
	if a.machine.State != service.Starting || a.plan.Spec.Ready.Type != service.CheckNotify || !a.said.ready || a.served {
		return
	}
	a.abort() // nobody waits for it any more
	a.serve()
}

// extend gives it so much time from now on to start or to end, if it has less. Its own
// time is never cut, and what was asked to be killed is.
func (a *actor) extend(d time.Duration) {
	starts := a.machine.State == service.Starting && a.fires == service.StartupOver && !a.served
	ends := a.machine.State == service.Stopping && a.fires == service.GraceOver && !a.machine.Killing
	if (starts || ends) && d > a.remaining() {
		a.arm(d, a.fires)
	}
}

// remaining is until the timer fires at last.
func (a *actor) remaining() time.Duration {
	if !a.armed {
		return 0
	}
	return a.left + time.Until(a.partOver)
}

// excuse is what it said of why it ends, "" if nothing.
func (w speech) excuse() string {
	switch n := w.notified; {
	case n.Errno != 0 && n.BusError != "":
		return fmt.Sprintf("it said ERRNO=%d (%v), BUSERROR=%s", n.Errno, syscall.Errno(n.Errno), n.BusError)
	case n.Errno != 0:
		return fmt.Sprintf("it said ERRNO=%d (%v)", n.Errno, syscall.Errno(n.Errno))
	case n.BusError != "":
		return "it said BUSERROR=" + n.BusError
	}
	return ""
}
