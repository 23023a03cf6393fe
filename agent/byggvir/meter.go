package byggvir

import (
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// shortest is the least time between the two readings that a CPU percentage
// is taken from; over less the kernel's counters are too coarse.
const shortest = 200 * time.Millisecond

// Meter turns the CPU time of services into percent of one core. Its methods
// may be called by many goroutines at once.
type Meter struct {
	mu       sync.Mutex
	readings map[service.Name]*readings
}

// readings are the latest two of one incarnation that are at least shortest apart.
type readings struct {
	incarnation uint64
	older       reading
	newer       reading
}

type reading struct {
	at   time.Time // with its monotonic part
	time time.Duration
}

// NewMeter returns a Meter that has read nothing.
func NewMeter() *Meter { return &Meter{readings: map[service.Name]*readings{}} }

// Percent notes that the incarnation, begun at started, had used cpu of CPU
// time at now, and returns percent of one core since the reading before, or
// since the start if this is the first.
func (m *Meter) Percent(name service.Name, incarnation uint64, started, now time.Time, cpu time.Duration) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.readings[name]
	if r == nil || r.incarnation != incarnation {
		begin := reading{at: started}
		if !started.Before(now) { // the clock was set back since
			begin = reading{at: now, time: cpu}
		}
		r = &readings{incarnation: incarnation, older: begin, newer: begin}
		m.readings[name] = r
	}
	if now.Sub(r.newer.at) >= shortest {
		r.older, r.newer = r.newer, reading{at: now, time: cpu}
	}
	return percent(cpu-r.older.time, now.Sub(r.older.at))
}

// Forget drops what is known of a service.
func (m *Meter) Forget(name service.Name) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.readings, name)
}

func percent(used, passed time.Duration) float64 {
	if passed <= 0 || used <= 0 {
		return 0
	}
	return 100 * float64(used) / float64(passed)
}
