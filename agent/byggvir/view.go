package byggvir

import (
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// queueShown is how many wait for whoever looks on. One who is slower gets longer steps.
const queueShown = 256

// view is somebody who looks on.
type view struct {
	names    map[service.Name]bool // none: all
	interval time.Duration
	shown    chan service.Used
	used     map[service.Name]*since // not shown yet
}

// since is what was used since a time since boot.
type since struct {
	at time.Duration
	cell
}

func (v *view) wants(name service.Name) bool { return len(v.names) == 0 || v.names[name] }

// Watch gives what services use, of each at the first look and then after about an
// interval; of all if none is named. They are looked at for it until leave is called,
// which closes the channel: the Monitor has to be told of either by Revise.
func (h *History) Watch(interval time.Duration, names ...service.Name) (shown <-chan service.Used, leave func()) {
	v := &view{names: map[service.Name]bool{}, interval: interval, shown: make(chan service.Used, queueShown), used: map[service.Name]*since{}}
	for _, name := range names {
		v.names[name] = true
	}
	h.viewing.Lock()
	defer h.viewing.Unlock()
	h.views[v] = true
	return v.shown, func() {
		h.viewing.Lock()
		defer h.viewing.Unlock()
		if h.views[v] {
			delete(h.views, v)
			close(v.shown)
		}
	}
}

// wants tells whether a service is to be remembered.
func (h *History) wants(s *service.Status) bool {
	if s.Spec != nil && s.Spec.UsageHistory {
		return true
	}
	h.viewing.Lock()
	defer h.viewing.Unlock()
	for v := range h.views {
		if v.wants(s.Name) {
			return true
		}
	}
	return false
}

// show has those who look on see what was used until now.
func (h *History) show(name service.Name, now time.Duration, used cell) {
	h.viewing.Lock()
	defer h.viewing.Unlock()
	for v := range h.views {
		if !v.wants(name) {
			continue
		}
		s, known := v.used[name]
		if !known {
			s = &since{}
			v.used[name] = s
		}
		if s.Counted == 0 { // all of it was shown, maybe long ago
			s.at = now - time.Duration(used.Covered)*time.Microsecond
		}
		s.add(used)
		passed := now - s.at
		if known && passed < v.interval-soonest/2 {
			continue
		}
		select {
		case v.shown <- service.Used{Service: name, Sample: s.sample(time.Now().Add(-passed), passed)}:
			*s = since{}
		default: // the next has more to tell
		}
	}
}
