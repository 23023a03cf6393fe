package systemd

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/cgroup"
)

// attempt puts one child into a new scope, or leaves nothing.
type attempt struct {
	b        *Backend
	slots    chan struct{} // of which it takes one
	name     service.Name
	scope    string   // that the child is to be in
	units    []string // that are made
	path     string   // of the scope's cgroup, as far as is known
	root     string   // of the topmost cgroup that is made
	describe func(*link) ([]sd.Property, []sd.PropertyCollection)

	child  *launch.Child
	slot   bool              // it has one
	asked  bool              // the units may be there, or come, because of us
	lost   bool              // a request went without an answer
	byPID  bool              // the child was named by its number
	answer <-chan *dbus.Call // of systemd; nil when it was heard
}

// refuseLiving refuses to launch where something lives, whatever systemd knows
// about its unit: it would take the cgroup over with all that is in it.
func (b *Backend) refuseLiving(name service.Name, at cgroup.Group) error {
	populated, err := at.Populated()
	if err != nil || !populated {
		return err
	}
	pids, err := at.Processes()
	if err != nil {
		return err
	}
	return previousAlive(name, fmt.Errorf("processes %v of it live in %s; adopt or kill them first", pids, at.Path()))
}

func previousAlive(name service.Name, err error) error {
	return &service.Error{Op: "start", Service: name, Kind: service.Conflict, Reason: service.ReasonPreviousAlive, Err: err}
}

// begin waits for one of the slots. Two attempts for one scope are kept apart,
// also from the undoing of one.
func (a *attempt) begin(ctx context.Context) error {
	select {
	case a.slots <- struct{}{}:
		a.slot = true
	case <-ctx.Done():
		return fmt.Errorf("wait for one of %d launches under way to end: %w", inFlight, ctx.Err())
	}
	if _, underWay := a.b.making.LoadOrStore(a.scope, a); underWay {
		a.yield()
		return previousAlive(a.name, fmt.Errorf("%s is being made, or undone, already", a.scope))
	}
	return nil
}

// end gives back what begin took.
func (a *attempt) end() {
	a.b.making.Delete(a.scope)
	a.yield()
}

// yield lets another take the slot.
func (a *attempt) yield() {
	if a.slot {
		a.slot = false
		<-a.slots
	}
}

// enter puts the child into its scope.
func (a *attempt) enter(ctx context.Context) error {
	cleared := false
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		l, err := a.b.bus.link(ctx)
		if err != nil {
			return err
		}
		err = a.ask(ctx, l)
		switch {
		case err == nil, a.inside():
			// A request that was believed lost may have arrived after all.
			return nil
		case errorIs(err, unitExists) && !cleared:
			cleared = true
			// Undone is only what is ours, perhaps by a request that was lost.
			a.asked = a.lost
			if err := a.clear(ctx); err != nil {
				return err
			}
			continue
		case errorIs(err, destructive): // somebody stops the slice around it: that comes to its end
		case !lostAnswer(err):
			return fmt.Errorf("make %s: %w", a.scope, err)
		default:
			a.lost = true
		}
		if sleep(ctx, pause) != nil {
			return fmt.Errorf("make %s: %w", a.scope, errors.Join(ctx.Err(), err))
		}
	}
}

// ask asks systemd for the scope, and returns when the child is in it.
func (a *attempt) ask(ctx context.Context, l *link) error {
	ended, forget := a.b.bus.ends.expect(a.scope)
	defer forget()
	if err := a.request(ctx, l); err != nil {
		return err
	}
	defer a.heard()
	look := time.NewTimer(recheck)
	defer look.Stop()
	var job dbus.ObjectPath // that moves the child; the answer names it
	results := make(map[dbus.ObjectPath]string)
	for patience := recheck; ; {
		select {
		case call := <-a.answer:
			a.answer = nil
			if err := call.Store(&job); err != nil {
				return err
			}
		case end := <-ended:
			if a.inside() {
				return nil
			}
			results[end.job] = end.result
		case <-look.C:
			// The signal, or the answer, may have been lost.
			if a.inside() {
				return nil
			}
			patience *= 2
			look.Reset(patience)
		case <-l.lost():
			if a.answer != nil {
				call := <-a.answer
				a.answer = nil
				return errors.Join(dbus.ErrClosed, call.Err)
			}
			return dbus.ErrClosed
		case <-a.child.Process().Exited():
			return fmt.Errorf("the child ended at its gate: %s", a.child.Process().Exit())
		case <-ctx.Done():
			return fmt.Errorf("systemd has not answered yet: %w", ctx.Err())
		}
		if result, ours := results[job]; ours {
			return fmt.Errorf("systemd's job ended with %q, and the child is not in the scope", result)
		}
	}
}

// request sends the request for the scope. The call goes on when the caller has
// given up: what is queued at PID 1 is carried out however late, so its answer
// must be heard.
func (a *attempt) request(ctx context.Context, l *link) error {
	properties, aux := a.describe(l)
	if l.pidfds {
		properties = append(properties, property("PIDFDs", []dbus.UnixFD{dbus.UnixFD(a.child.PIDFD())}))
	} else {
		// The number is the child's as long as it waits at its gate, so the
		// gate stays shut, and the child there, until the answer has come.
		properties = append(properties, sd.PropPids(uint32(a.child.PID())))
	}
	call, err := l.send(ctx, context.Background(), manager, "systemd1.Manager.StartTransientUnit", a.scope, "fail", properties, aux)
	if err != nil {
		return err
	}
	a.asked, a.byPID, a.answer = true, !l.pidfds, call.Done
	return nil
}

// heard notes the answer if it has come meanwhile.
func (a *attempt) heard() {
	select {
	case <-a.answer:
		a.answer = nil
	default:
	}
}

// inside tells whether the child is in its scope, and notes where that is.
func (a *attempt) inside() bool {
	at, err := a.b.fs.Cgroup(a.child.PID())
	if err != nil || path.Base(at) != a.scope {
		return false
	}
	a.path = at
	return true
}

// errLetGo says that systemd takes the scope for dead, while the child is in
// its cgroup. Up to systemd 257 a scope that was just started may be taken for
// empty (systemd#36781). Such a one has no limits that could be changed.
var errLetGo = errors.New("systemd has let go of it at once")

// held wants systemd to hold the scope that the child is in.
func (a *attempt) held(ctx context.Context) error {
	var state string
	err := a.b.bus.do(ctx, func(ctx context.Context, l *link) (err error) {
		state, err = l.activeState(ctx, unitPath(a.scope))
		return err
	})
	if err == nil && state != "active" {
		err = errLetGo
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", a.scope, err)
	}
	return nil
}

// clear removes units that have the names of ours and hold nobody: what an
// earlier attempt, or a service that ended, has left. One that is about to be
// started holds nobody yet, but will.
func (a *attempt) clear(ctx context.Context) error {
	if !a.lost {
		starts, err := a.b.bus.starting(ctx, a.scope)
		if err != nil {
			return err
		}
		if starts {
			return previousAlive(a.name, fmt.Errorf("somebody else is starting %s", a.scope))
		}
	}
	if err := a.b.refuseLiving(a.name, a.b.tree.Group(a.root)); err != nil {
		return err
	}
	return a.b.bus.removeAll(ctx, a.units)
}

const (
	undoPatience = 3 * time.Second // while the caller waits
	undoPause    = 5 * time.Second // between later attempts
)

// undo removes what the attempt has left behind, and gives its slot back. What
// systemd does not confirm in time is removed later; until then the attempt
// keeps its slot, so that a PID 1 that does not answer is not asked ever more.
func (a *attempt) undo(ctx context.Context) {
	if a.child != nil && (a.answer == nil || !a.byPID) {
		a.child.Abandon()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
	defer cancel()
	if a.removed(ctx) == nil {
		a.end()
		return
	}
	a.b.tasks.Go(a.undoLater)
}

func (a *attempt) undoLater() {
	defer a.end()
	defer a.child.Abandon()
	began := time.Now()
	log := a.b.log.With("service", a.name.String(), "unit", a.scope)
	for {
		ctx, cancel := context.WithTimeout(a.b.ctx, patience)
		err := a.removed(ctx)
		cancel()
		switch {
		case err == nil:
			log.Warn("removed what systemd made of a launch that was given up", "after", time.Since(began))
			return
		case a.b.ctx.Err() != nil:
			log.Info("the next agent removes what systemd makes of a launch that was given up")
			return
		}
		log.Warn("cannot yet remove what systemd makes of a launch that was given up", "error", err)
		if sleep(a.b.ctx, undoPause) != nil {
			return
		}
	}
}

// removed waits for the answer that is still to come, and removes the units.
func (a *attempt) removed(ctx context.Context) error {
	if a.child == nil || !a.asked {
		return nil
	}
	if a.answer != nil {
		select {
		case <-a.answer:
			a.answer = nil
		case <-ctx.Done():
			return fmt.Errorf("systemd has not answered yet: %w", ctx.Err())
		}
	}
	a.child.Abandon()
	// While systemd waits for the agent's own end it starts nothing, and stops
	// nothing either: a scope is ordered before the agent.
	if err := a.b.bus.unstart(ctx, a.scope); err != nil {
		return err
	}
	if err := a.b.bus.removeAll(ctx, a.units); err != nil {
		return err
	}
	return a.b.tree.Group(a.root).Remove()
}
