package launch

import (
	"errors"
	"fmt"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

// Succession makes another process of an incarnation its main one.
type Succession struct {
	Watcher *watch.Watcher
	Proc    procfs.FS
	Shim    *Shim         // nil: there is none
	Main    *process.Main // who is succeeded
	// Belongs tells whether the process that has a number now is one of the incarnation
	// that may lead it.
	Belongs func(pid int) (bool, error)
	// Mark marks the incarnation with who is about to lead it; nil does nothing.
	Mark func(*process.Process) error
}

// By has the living process pid succeed. An error is a *service.Error of Kind NotRunning when
// it is no more, of Kind Conflict when it does not belong, or one of the host.
func (s Succession) By(pid int) error {
	if main, ticks := s.Main.Identity(); main == pid {
		now, err := s.Proc.StartTicks(pid)
		switch {
		case s.Main.Lives():
			return nil
		case err != nil || now == ticks: // it may not have been reaped yet
			return over(pid, process.ErrGone)
		}
	}
	next, err := s.find(pid)
	if err != nil {
		return err
	}
	if s.Mark != nil {
		if err := s.Mark(next); err != nil {
			return errors.Join(err, next.Close())
		}
	}
	return s.Main.Succeed(next)
}

// find takes the process up if it belongs. That is asked before, for who is of another
// incarnation is held by that one, and again when nobody else can have its number any more.
func (s Succession) find(pid int) (*process.Process, error) {
	ticks, err := s.Proc.StartTicks(pid)
	if err == nil {
		err = s.check(pid)
	}
	if err != nil {
		return nil, over(pid, err)
	}
	var teller process.Teller
	if s.Shim != nil {
		teller = s.Shim
	}
	p, err := process.Find(s.Watcher, s.Proc, teller, pid, ticks)
	if err != nil {
		return nil, over(pid, err)
	}
	err = s.check(pid)
	if !p.Lives() {
		err = over(pid, process.ErrGone)
	}
	if err != nil {
		return nil, errors.Join(over(pid, err), p.Close())
	}
	return p, nil
}

func (s Succession) check(pid int) error {
	belongs, err := s.Belongs(pid)
	if err == nil && !belongs {
		err = &service.Error{Op: "succeed", Kind: service.Conflict, Err: fmt.Errorf("process %d is none of the service's own", pid)}
	}
	return err
}

// over is err, in words where it says that there is no such process.
func over(pid int, err error) error {
	if errors.Is(err, procfs.ErrNoProcess) || errors.Is(err, process.ErrGone) {
		return &service.Error{Op: "succeed", Kind: service.NotRunning, Err: fmt.Errorf("process %d has ended", pid)}
	}
	return err
}
