package byggvir

import (
	"context"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Shown is what one service used since it was shown before.
type Shown struct {
	Service service.Name
	service.Sample
}

// queueShown is how many wait for whoever looks on. One who is slower gets longer steps.
const queueShown = 64

// view is somebody who looks on.
type view struct {
	names    map[service.Name]bool // none: all
	interval time.Duration
	shown    chan Shown
	used     map[service.Name]*since // not shown yet
}

// since is what was used since a time since boot.
type since struct {
	at time.Duration
	cell
}

func (v *view) wants(name service.Name) bool { return len(v.names) == 0 || v.names[name] }

// Watch gives what services use, of each after about an interval; of all if none is
// named. Until ctx ends, when the channel is closed, they are looked at for it: the
// Monitor has to be told by Revise.
func (h *History) Watch(ctx context.Context, interval time.Duration, names ...service.Name) <-chan Shown {
	v := &view{names: map[service.Name]bool{}, interval: interval, shown: make(chan Shown, queueShown), used: map[service.Name]*since{}}
	for _, name := range names {
		v.names[name] = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.views[v] = true
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.views, v)
		close(v.shown)
	})
	return v.shown
}

// wants tells whether a service is to be remembered.
func (h *History) wants(s *service.Status) bool {
	if s.Spec != nil && s.Spec.UsageHistory {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for v := range h.views {
		if v.wants(s.Name) {
			return true
		}
	}
	return false
}

// show has those who look on see what was used until now.
func (h *History) show(name service.Name, now time.Duration, used cell) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for v := range h.views {
		if !v.wants(name) {
			continue
		}
		s := v.used[name]
		if s == nil {
			s = &since{at: now - time.Duration(used.Covered)*time.Microsecond}
			v.used[name] = s
		}
		s.add(used)
		passed := now - s.at
		if passed < v.interval-soonest/2 || s.Covered == 0 {
			continue
		}
		select {
		case v.shown <- Shown{name, s.sample(time.Now().Add(-passed), passed)}:
			*s = since{at: now}
		default: // the next has more to tell
		}
	}
}
