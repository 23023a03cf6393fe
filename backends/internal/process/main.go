package process

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/procfs"
)

// Main is the main process of an incarnation. Another one may succeed it, and then all
// that is asked here is asked of that one. Its methods may be called by many goroutines
// at once; a nil Main is one that had ended before anybody looked.
type Main struct {
	present atomic.Pointer[Process]

	mu        sync.Mutex
	succeeded chan struct{}  // closed when present is
	stirs     map[*stir]bool // who waits for stops, until they do not want to know any more
	closed    bool
}

// stir is one who waits for a stop.
type stir struct {
	tell   func()
	forget func()
}

// Lead makes p the main process, which from now on is the Main's own. Of nil it gives nil.
func Lead(p *Process) *Main {
	if p == nil {
		return nil
	}
	m := &Main{succeeded: make(chan struct{}), stirs: map[*stir]bool{}}
	m.present.Store(p)
	return m
}

// Succeed makes next the main process, and lets go of the present one, whether that has
// ended or not: the Exited of one that has not is never closed. It closes next if it fails.
func (m *Main) Succeed(next *Process) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return errors.Join(errors.New("its main process was let go"), next.Close())
	}
	was, stirs := m.present.Swap(next), m.stirs
	close(m.succeeded)
	m.succeeded, m.stirs = make(chan struct{}), map[*stir]bool{}
	m.mu.Unlock()
	for s := range stirs { // they ask again, then about next
		s.forget()
		s.tell()
	}
	return was.Close()
}

// gone is the Exited of a nil Main.
var gone = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// PID is that of Process.
func (m *Main) PID() int { return m.present.Load().PID() }

// Identity is PID and StartTicks of one and the same process.
func (m *Main) Identity() (pid int, startTicks uint64) {
	p := m.present.Load()
	return p.PID(), p.StartTicks()
}

// Named is ref with the process that leads now; of a nil Main as it is.
func (m *Main) Named(ref service.Ref) service.Ref {
	if m != nil {
		ref.PID, ref.StartTicks = m.Identity()
	}
	return ref
}

// Exited is closed when the process that leads now has ended.
func (m *Main) Exited() <-chan struct{} {
	if m == nil {
		return gone
	}
	return m.present.Load().Exited()
}

// Await returns when the main process has ended, whoever it is by then, or false when ctx has.
func (m *Main) Await(ctx context.Context) bool {
	for {
		m.mu.Lock()
		p, succeeded := m.present.Load(), m.succeeded
		m.mu.Unlock()
		select {
		case <-p.Exited():
			return true
		case <-succeeded:
		case <-ctx.Done():
			return false
		}
	}
}

// Ended tells whether the process that leads now has.
func (m *Main) Ended() bool { return m == nil || m.present.Load().Ended() }

// Lives is that of Process.
func (m *Main) Lives() bool { return m.present.Load().Lives() }

// Exit is that of Process; nobody knows it of a nil Main.
func (m *Main) Exit() service.Exit {
	if m == nil {
		return service.Exit{Unknown: UnknownExit}
	}
	return m.present.Load().Exit()
}

// ExitedAt is that of Process; zero of a nil Main.
func (m *Main) ExitedAt() time.Time {
	if m == nil {
		return time.Time{}
	}
	return m.present.Load().ExitedAt()
}

// Used is that of Process.
func (m *Main) Used() Used { return m.present.Load().Used() }

// Signal is that of Process.
func (m *Main) Signal(sig syscall.Signal) error {
	return m.led(func(p *Process) error { return p.Signal(sig) })
}

// SignalGroup is that of Process.
func (m *Main) SignalGroup(sig syscall.Signal) error {
	return m.led(func(p *Process) error { return p.SignalGroup(sig) })
}

// led does something to the process that leads, and again if that was succeeded meanwhile.
func (m *Main) led(do func(*Process) error) error {
	for {
		p := m.present.Load()
		if err := do(p); err == nil || p == m.present.Load() {
			return err
		}
	}
}

// AwaitStop is that of Process. tell is also called when another one has succeeded.
func (m *Main) AwaitStop(tell func()) (forget func(), told bool) {
	if m == nil {
		return nil, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &stir{tell: sync.OnceFunc(tell)}
	if s.forget, told = m.present.Load().AwaitStop(s.tell); !told {
		return nil, false
	}
	m.stirs[s] = true
	return func() {
		m.mu.Lock()
		delete(m.stirs, s)
		m.mu.Unlock()
		s.forget()
	}, true
}

// Threads is that of Process.
func (m *Main) Threads(fs procfs.FS) (service.Threads, error) {
	if m == nil {
		return (*Process)(nil).Threads(fs)
	}
	return m.present.Load().Threads(fs)
}

// Close is that of Process.
func (m *Main) Close() error {
	m.mu.Lock()
	m.closed = true
	p := m.present.Load()
	m.mu.Unlock()
	return p.Close()
}
