package byggvir

import (
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Hang is that an incarnation does nothing any more, though nobody has frozen it, or
// that it goes on.
type Hang struct {
	Service     service.Name
	Incarnation uint64
	service.Hang
	Reason string // of one that begins: stopped, waiting or queue
	Detail string // when it is over: how long it lasted
	// Ill is told in addition, once, of one whose definition has it count as unhealthy.
	Ill bool
	// Signal says that a signal keeps it from running, which may be somebody's wish.
	Signal bool
}

// The ways in which an incarnation may hang, the surest first.
const (
	stoppedHang = iota // a signal has stopped all threads of its main process
	heldHang           // each of them waits in the kernel, and none has run meanwhile
	queueHang          // connections wait to be accepted, and it does not even use the CPU
	numHangs
)

var hangReasons = [numHangs]string{stoppedHang: "stopped", heldHang: "waiting", queueHang: "queue"}

// How long each has to last before it is told. What uses the CPU in turns with its
// stops, as under a program that slows it down so, is not stopped; disks may take long.
var hangAfter = [numHangs]time.Duration{stoppedHang: 2 * time.Second, heldHang: 30 * time.Second, queueHang: 3 * time.Second}

// awake is how much one look can add to what has lasted: however long we were stopped
// or starved, and others with us, that counts as one.
const awake = 2 * time.Second

// stall is something that may be a hang, and how long it has lasted as far as we were
// there. The zero value is that it is not so.
type stall struct {
	began, latest time.Time
	lasted        time.Duration
	why           string
}

// seen is the stall after one more look that found it there, or not.
func (s *stall) seen(now time.Time, there bool) {
	if !there {
		*s = stall{}
		return
	}
	if s.began.IsZero() {
		s.began = now
	} else {
		s.lasted += min(now.Sub(s.latest), awake)
	}
	s.latest = now
}

func (s *stall) there() bool { return !s.began.IsZero() }

// hang is what is known of one incarnation.
type hang struct {
	listens bool   // to its stops; else it has to be looked at in any case
	forget  func() // ends that
	unheard bool   // nobody tells of its stops
	looked  time.Time
	turns   uint64 // of its threads, at the last look

	checked bool // it is to be told of
	stalls  [numHangs]stall
	told    service.Hang
	ill     bool // that was told
}

// heldEvery is the least time between two looks whether one waits in the kernel that did
// not at the last one: where the host is busy all are looked at, the idle too.
const heldEvery = 2 * time.Minute

// uneasy is the load of the host from which on somebody may wait in the kernel: one task
// that does raises it as high within a quarter of a minute (proc_loadavg(5)). Below it
// nobody is looked at.
const uneasy = 0.2

// standstill looks whether it is kept from running, where that may be.
func (w *watch) standstill(s *service.Status, now time.Time, stirred bool) {
	h := &w.hang
	switch {
	case s.Machine.State != service.Running: // it is starting, or ending: then what was told ends with it
		h.checked, h.listens, h.stalls = false, false, [numHangs]stall{}
		return
	case s.Spec == nil || s.Spec.Hang == service.HangIgnore:
		w.calm()
		return
	}
	h.checked = true
	if !h.listens || stirred {
		w.listenForStops() // before the look: what comes later is told
		stirred = true
		h.stalls[stoppedHang] = stall{} // it may have gone on in between
	}
	if !stirred && !h.uncertain() && !h.unheard && (now.Sub(h.looked) < heldEvery || w.monitor.load(now) < uneasy) {
		return
	}
	h.looked = now
	t, err := w.subject.Threads()
	if err != nil {
		return // it is ending
	}
	h.stalls[stoppedHang].seen(now, t.Stopped)
	h.stalls[stoppedHang].why = "all threads are stopped (SIGSTOP)"
	if t.Turns != h.turns {
		h.stalls[heldHang] = stall{}
	}
	h.turns = t.Turns
	h.stalls[heldHang].seen(now, t.Held && !t.Stopped)
	h.stalls[heldHang].why = "all threads wait in the kernel (D)"
	if t.Waits != "" {
		h.stalls[heldHang].why += ", in " + t.Waits
	}
	w.tellHang(s)
}

// listenForStops has it looked at soon when it is stopped or goes on.
func (w *watch) listenForStops() {
	h := &w.hang
	if h.forget != nil {
		h.forget()
	}
	var err error
	h.forget, err = w.subject.AwaitStop(func() {
		w.monitor.mu.Lock()
		w.stirred = true
		w.hasten()
		w.monitor.mu.Unlock()
		w.monitor.wake()
	})
	h.listens, h.unheard = true, err != nil
}

// calm is for what is not expected to do anything.
func (w *watch) calm() {
	h := &w.hang
	h.checked, h.listens, h.stalls = false, false, [numHangs]stall{}
	w.goesOn()
}

// tellHang tells that a hang has begun, that it has lasted as long as failing checks
// would take to make it unhealthy, or that it is over.
func (w *watch) tellHang(s *service.Status) {
	h := &w.hang
	for kind := range h.stalls {
		stall := &h.stalls[kind]
		if !stall.there() || stall.lasted < hangAfter[kind] {
			continue
		}
		news := Hang{Service: w.name, Incarnation: w.incarnation, Reason: hangReasons[kind], Signal: kind == stoppedHang}
		if !h.told.Lasts() {
			h.told = service.Hang{Since: stall.began, Why: stall.why}
			news.Hang = h.told
			w.monitor.cfg.Hung(news)
		}
		patience := time.Duration(s.Spec.Health.Threshold) * s.Spec.Health.Interval
		if s.Spec.Hang == service.HangUnhealthy && !h.ill && (kind == stoppedHang || stall.lasted >= patience) {
			h.ill = true
			news.Hang, news.Ill = h.told, true
			w.monitor.cfg.Hung(news)
		}
		return
	}
	w.goesOn()
}

func (w *watch) goesOn() {
	h := &w.hang
	if !h.told.Lasts() {
		return
	}
	lasted := time.Since(h.told.Since).Round(time.Second)
	h.told, h.ill = service.Hang{}, false
	w.monitor.cfg.Hung(Hang{Service: w.name, Incarnation: w.incarnation, Detail: "after " + lasted.String()})
}

// uncertain tells whether it is to be looked at again soon.
func (h *hang) uncertain() bool {
	return h.told.Lasts() || h.stalls[stoppedHang].there() || h.stalls[heldHang].there()
}

// load is how busy the host is, asked for once in a while.
func (m *Monitor) load(now time.Time) float64 {
	if m.cfg.Tables != nil && now.Sub(m.loadAt) >= soonest {
		if load, err := m.cfg.Tables.Load(); err == nil { // else nobody can tell
			m.hostLoad = load
		}
		m.loadAt = now
	}
	return m.hostLoad
}
