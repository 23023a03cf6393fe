package fake

import (
	"maps"
	"slices"
	"syscall"

	"github.com/gladsheim/gladsheim/agent/service"
)

// halt is what the threads of a main process do, and who waits for that to change.
type halt struct {
	threads service.Threads
	signals []syscall.Signal // that wait until it goes on
	waits   map[*int]func()
}

func (h *halt) stopped() bool { return h.threads.Stopped }

// stops tells which signals stop a program that does nothing about them (signal(7)).
func stops(sig syscall.Signal) bool {
	return sig == syscall.SIGSTOP || sig == syscall.SIGTSTP || sig == syscall.SIGTTIN || sig == syscall.SIGTTOU
}

// Signal sends a signal to the main process of the latest incarnation of a service behind
// the agent's back. It panics when that has none.
func (h *Host) Signal(name service.Name, sig syscall.Signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running(name).signal(sig)
}

// Hold has its threads be seen so, of which nobody tells.
func (h *Host) Hold(name service.Name, threads service.Threads) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running(name).halt.threads = threads
}

// pause stops the main process, or lets it go on, and tells. The caller holds the lock.
func (g *group) pause(stopped bool) {
	if g.halt.threads.Stopped == stopped {
		return
	}
	g.halt.threads = service.Threads{Stopped: stopped, Held: stopped}
	waits := slices.Collect(maps.Values(g.halt.waits))
	clear(g.halt.waits)
	for _, tell := range waits {
		tell()
	}
	signals := g.halt.signals
	if stopped {
		return
	}
	g.halt.signals = nil
	for _, sig := range signals {
		g.signal(sig)
	}
}

func (h *handle) AwaitStop(tell func()) (forget func(), err error) {
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	g, key := h.group, new(int)
	if g.halt.waits == nil {
		g.halt.waits = map[*int]func(){}
	}
	g.halt.waits[key] = tell
	return func() {
		g.host.mu.Lock()
		defer g.host.mu.Unlock()
		delete(g.halt.waits, key)
	}, nil
}

func (h *handle) Threads() (service.Threads, error) {
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	if !h.group.main {
		return service.Threads{}, h.notRunning("look at")
	}
	return h.group.halt.threads, nil
}
