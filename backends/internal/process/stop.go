package process

import (
	"errors"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/procfs"
)

// AwaitStop calls tell, which must not block, once: when a signal may have stopped the
// process (SIGSTOP and its like, signal(7)), or it goes on. Who wants to hear of the
// next time asks again, and looks at the process only then. told is false when nobody
// tells of this, as of a nil Process.
func (p *Process) AwaitStop(tell func()) (forget func(), told bool) {
	if p == nil || p.teller == nil {
		return nil, false
	}
	return p.teller.AwaitStop(p.pid, p.start, tell)
}

// Threads looks at its threads. A nil Process has ended.
func (p *Process) Threads(fs procfs.FS) (service.Threads, error) {
	over := &service.Error{Op: "look at the threads of", Kind: service.NotRunning, Err: errors.New("it has ended")}
	if p == nil {
		return service.Threads{}, over
	}
	t, err := fs.Threads(p.pid)
	if !p.Lives() { // the number may have been another's
		return service.Threads{}, over
	}
	return t, err
}
