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
)

// attempt puts one child into a new scope, or leaves nothing.
type attempt struct {
	b        *Backend
	name     service.Name
	scope    string   // that the child is to be in
	units    []string // that are made
	path     string   // of the scope's cgroup, as far as is known
	root     string   // of the topmost cgroup that is made
	describe func(*link) ([]sd.Property, []sd.PropertyCollection)

	child  *launch.Child
	asked  bool         // systemd was asked for the scope
	byPID  bool         // and the child named by its number
	answer <-chan error // of systemd; nil when it was heard
}

// refusePrevious refuses to launch where processes of the same incarnation
// live, whatever systemd knows about their unit: it would take the cgroup over
// with all that is in it.
func (a *attempt) refusePrevious() error {
	at := a.b.tree.Group(a.root)
	populated, err := at.Populated()
	if err != nil || !populated {
		return err
	}
	pids, err := at.Processes()
	if err != nil {
		return err
	}
	return &service.Error{Op: "start", Service: a.name, Kind: service.Conflict, Reason: service.ReasonPreviousAlive,
		Err: fmt.Errorf("processes %v of the same incarnation live in %s; adopt or kill them first", pids, at.Path())}
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
			if err := a.clear(ctx); err != nil {
				return err
			}
		case !lostAnswer(err):
			return fmt.Errorf("make %s: %w", a.scope, err)
		case sleep(ctx, pause) != nil:
			return fmt.Errorf("make %s: %w", a.scope, errors.Join(ctx.Err(), err))
		}
	}
}

// ask asks systemd for the scope, and returns when the child is in it.
func (a *attempt) ask(ctx context.Context, l *link) error {
	ended, forget := a.b.bus.ends.expect(a.scope)
	defer forget()
	a.request(l)
	defer a.heard()
	look := time.NewTimer(recheck)
	defer look.Stop()
	for patience := recheck; ; {
		select {
		case err := <-a.answer:
			a.answer = nil
			if err != nil {
				return err
			}
		case result := <-ended:
			if a.inside() {
				return nil
			}
			return fmt.Errorf("systemd's job ended with %q, and the child is not in the scope", result)
		case <-look.C:
			// The signal, or the answer, may have been lost.
			if a.inside() {
				return nil
			}
			patience *= 2
			look.Reset(patience)
		case <-l.lost():
			if a.answer != nil {
				err := <-a.answer
				a.answer = nil
				return errors.Join(dbus.ErrClosed, err)
			}
			return dbus.ErrClosed
		case <-a.child.Process().Exited():
			return fmt.Errorf("the child ended at its gate: %s", a.child.Process().Exit())
		case <-ctx.Done():
			return fmt.Errorf("systemd has not answered yet: %w", ctx.Err())
		}
	}
}

// request sends the request for the scope. The call goes on when the caller has
// given up: what is queued at PID 1 is carried out however late, so its answer
// must be heard.
func (a *attempt) request(l *link) {
	properties, aux := a.describe(l)
	a.asked, a.byPID = true, !l.pidfds
	if l.pidfds {
		properties = append(properties, property("PIDFDs", []dbus.UnixFD{dbus.UnixFD(a.child.PIDFD())}))
	} else {
		// The number is the child's as long as it waits at its gate, so the
		// gate stays shut, and the child there, until the answer has come.
		properties = append(properties, sd.PropPids(uint32(a.child.PID())))
	}
	answer := make(chan error, 1)
	a.answer = answer
	a.b.tasks.Go(func() {
		_, err := l.systemd.StartTransientUnitAux(a.b.ctx, a.scope, "fail", properties, aux, nil)
		answer <- err
	})
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

// clear removes units that have the names of ours and hold nobody: what an
// earlier attempt, or a service that ended, has left.
func (a *attempt) clear(ctx context.Context) error {
	if err := a.refusePrevious(); err != nil {
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
		<-a.b.slots
		return
	}
	a.b.tasks.Go(a.undoLater)
}

func (a *attempt) undoLater() {
	defer func() { <-a.b.slots }()
	defer a.child.Abandon()
	began := time.Now()
	log := a.b.log.With("service", a.name.String(), "unit", a.scope)
	for {
		ctx, cancel := context.WithTimeout(a.b.ctx, patience)
		err := a.removed(ctx)
		cancel()
		if err == nil {
			log.Warn("removed what systemd made of a launch that was given up", "after", time.Since(began))
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
	if err := a.b.bus.removeAll(ctx, a.units); err != nil {
		return err
	}
	return a.b.tree.Group(a.root).Remove()
}
