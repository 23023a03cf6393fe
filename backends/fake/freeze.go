package fake

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/gladsheim/gladsheim/agent/service"
)

// ice is what keeps a group from running.
type ice struct {
	own     bool   // it is frozen itself
	above   string // the cgroup above it that is, "" for none
	signals []syscall.Signal
	end     *End // that is to come when it is thawed
	heard   []chan struct{}
}

func (i *ice) frozen() bool { return i.own || i.above != "" }

// Freeze freezes the latest incarnation of a service behind the agent's back, by its
// own cgroup or, if that is not "", by one above it. It panics when it has no main
// process, as Thaw does.
func (h *Host) Freeze(name service.Name, above string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.running(name)
	g.freeze(above == "" || g.ice.own, above)
}

// Thaw thaws it, whatever it was frozen by.
func (h *Host) Thaw(name service.Name) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running(name).freeze(false, "")
}

// Frozen tells whether the latest incarnation of a service is frozen; one without a
// main process is not.
func (h *Host) Frozen(name service.Name) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.groups {
		if g.ref.Name == name && g.main && g.ice.frozen() {
			return true
		}
	}
	return false
}

// freeze freezes or thaws the group, and tells. What has waited happens when it is
// thawed. The caller holds the lock.
func (g *group) freeze(own bool, above string) {
	before := g.ice.frozen()
	g.ice.own, g.ice.above = own, above
	if g.ice.frozen() == before {
		return
	}
	for _, c := range g.ice.heard {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	if before {
		signals, end := g.ice.signals, g.ice.end
		g.ice.signals, g.ice.end = nil, nil
		for _, sig := range signals {
			g.signal(sig)
		}
		if end != nil {
			g.end(*end)
		}
	}
}

// listen is a channel of Froze, with the value of the beginning in it. The caller
// holds the lock.
func (g *group) listen() <-chan struct{} {
	c := make(chan struct{}, 1)
	c <- struct{}{}
	g.ice.heard = append(g.ice.heard, c)
	return c
}

func (h *handle) Freeze(ctx context.Context) error {
	if err := h.freezable(ctx, "freeze"); err != nil {
		return err
	}
	defer h.group.host.mu.Unlock()
	h.group.freeze(true, h.group.ice.above)
	return nil
}

func (h *handle) Thaw(ctx context.Context) error {
	if err := h.freezable(ctx, "thaw"); err != nil {
		return err
	}
	defer h.group.host.mu.Unlock()
	above := h.group.ice.above
	if h.group.freeze(false, above); above != "" {
		return &service.Error{Op: "thaw", Service: h.group.ref.Name, Kind: service.Conflict,
			Err: fmt.Errorf("the cgroup %s above it is frozen; thaw that", above)}
	}
	return nil
}

// freezable leaves with the host locked when there is no error.
func (h *handle) freezable(ctx context.Context, op string) error {
	if err := h.begin(ctx, op); err != nil {
		return err
	}
	var err error
	switch {
	case !h.group.main:
		err = h.notRunning(op)
	case !h.backend.enforces.Freeze:
		err = &service.Error{Op: op, Service: h.group.ref.Name, Kind: service.Unenforceable, Err: errors.New("the fake backend was told not to")}
	}
	if err != nil {
		h.group.host.mu.Unlock()
	}
	return err
}

func (h *handle) FrozenBy() (string, error) {
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	switch i := h.group.ice; {
	case !h.group.main && len(h.group.children) == 0:
		return "", nil
	case i.own:
		return h.group.ref.Cgroup, nil
	default:
		return i.above, nil
	}
}

func (h *handle) Froze() <-chan struct{} { return h.froze }
