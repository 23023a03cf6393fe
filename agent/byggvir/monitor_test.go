package byggvir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// play is a service that is looked at, and what is heard of it.
type play struct {
	*Monitor
	t *testing.T

	mu      sync.Mutex
	status  service.Status
	gauge   service.Gauge
	rate    float64 // of one core
	began   time.Time
	tally   service.Tally
	tell    func(string)
	pressed map[pressing]func()
	gone    bool
	deaf    bool
	full    bool // there is no room for a watch
	open    int  // of what has to be closed
	reads   int
	cache   uint64 // bytes of its memory
	sorted  int    // times that it was asked for that
	// Of hangs.
	asked    int // times that stops were to be told
	untold   bool
	stirs    func()
	looks    int // at threads
	threads  service.Threads
	pressure time.Duration // for the CPU, so far
	hung     []Hang
	*tables
	// Of whole readings.
	readings int
	reading  time.Duration // that one takes
	told     []string
	outcome  Outcome // of orders
	orders   []Order
}

type pressing struct {
	of   service.PressureOf
	full bool
}

var web = service.MustName("web")

// looked has f play a service that may use 100 MiB and 50 % of a core.
func looked(t *testing.T, f func(p *play)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		spec := service.Defaults()
		p := &play{t: t, began: time.Now(), pressed: map[pressing]func(){}, tables: &tables{}}
		p.tables.play = p
		p.status = service.Status{
			Name: web, Spec: &spec, Machine: service.Machine{State: service.Running, Incarnation: 1}, Warnings: spec.Warnings,
		}
		p.limit(service.MemoryMax, service.Of(100<<20))
		p.limit(service.CPUMax, service.Of(50*service.UsecPerPercent))
		p.Monitor = NewMonitor(MonitorConfig{
			Status: func(service.Name) (*service.Status, bool) {
				p.mu.Lock()
				defer p.mu.Unlock()
				s := p.status
				return &s, true
			},
			Tell: func(n News) {
				word := " over"
				if !n.Began.IsZero() {
					word = ""
					require.NotEmpty(t, n.Detail)
				}
				p.mu.Lock()
				defer p.mu.Unlock()
				p.told = append(p.told, n.Violation.String()+word)
				p.status.Violations[n.Violation] = n.Began
			},
			Hung:   func(h Hang) { p.change(func() { p.hung = append(p.hung, h) }) },
			Blind:  func(err error) { p.change(func() { p.told = append(p.told, fmt.Sprint("blind: ", err)) }) },
			Tables: p.tables,
			Deaf:   func(_ service.Name, err error) { p.change(func() { p.told = append(p.told, "deaf: "+err.Error()) }) },
			Act: func(o Order) {
				require.NotEmpty(t, o.Why)
				p.mu.Lock()
				defer p.mu.Unlock()
				outcome := p.outcome
				for r, q := range o.Limits {
					if q.Set && outcome == Done {
						require.Equal(t, p.status.Applied[r], o.Seen[r], "it was seen")
						asked := p.status.Applied[r].Requested
						instead := o.Limits.Instead(one(service.Resource(r), asked))[r]
						p.status.Applied[r] = service.LimitReport{Requested: asked, Instead: instead, Applied: q, Effective: q, Enforced: true}
					}
				}
				defer o.Done(outcome)
				p.orders = append(p.orders, o)
			},
		})
		defer func() {
			p.Close()
			require.Zero(t, p.open, "what was opened is closed")
		}()
		leave := p.Attend(web, 1, p, true)
		defer leave(nil)
		f(p)
	})
}

func (p *play) limit(r service.Resource, q service.Quota) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.Applied[r] = service.LimitReport{Requested: q, Applied: q, Effective: q, Enforced: true}
}

func (p *play) Hear(tell func(string)) (func(), error) {
	switch {
	case p.deaf:
		return nil, backends.ErrDeaf
	case p.full:
		return nil, errFull
	}
	p.open++
	p.tell = tell
	return func() { p.open--; p.tell = nil }, nil
}

func (p *play) Gauge() (backends.Gauge, error) {
	if p.deaf {
		return nil, backends.ErrDeaf
	}
	p.open++
	return meterOf{p}, nil
}

func (p *play) AwaitStop(tell func()) (func(), error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.untold {
		return nil, backends.ErrDeaf
	}
	p.stirs = tell
	return func() { p.change(func() { p.stirs = nil }) }, nil
}

func (p *play) Threads() (service.Threads, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks++
	return p.threads, nil
}

func (p *play) Tally() (service.Tally, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tally, nil
}

func (p *play) Press(of service.PressureOf, full bool, _, _ time.Duration, tell func()) (func(), error) {
	if p.deaf {
		return nil, backends.ErrDeaf
	}
	p.open++
	p.pressed[pressing{of, full}] = tell
	return func() { p.open--; delete(p.pressed, pressing{of, full}) }, nil
}

func (p *play) Usage(context.Context) (service.Usage, error) {
	time.Sleep(p.reading)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readings++
	if p.gone {
		return service.Usage{}, fs.ErrNotExist
	}
	p.spend()
	return service.Usage{Source: "cgroup", Memory: p.gauge.Memory.Value, MemoryPeak: p.gauge.Memory, CPUTime: p.gauge.CPUTime, OOMKills: service.Of(0),
		CPUPressure: service.Pressure{Some: service.Stall{Set: true, Total: p.pressure}}}, nil
}

// meterOf is the gauge.
type meterOf struct{ *play }

func (p meterOf) Read() (service.Gauge, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reads++
	if p.gone {
		return service.Gauge{}, fs.ErrNotExist
	}
	p.spend()
	return p.gauge, nil
}

func (p meterOf) Cache() (service.Quota, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sorted++
	return service.Of(p.cache), nil
}

func (p meterOf) Close() error {
	p.open--
	return nil
}

// spend has it use CPU time until now.
func (p *play) spend() {
	now := time.Now()
	p.gauge.CPUTime += time.Duration(p.rate * float64(now.Sub(p.began)))
	p.began = now
}

// change changes what is read by others.
func (p *play) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// use has it use that much from now on, in MiB and percent of one core.
func (p *play) use(mebibytes uint64, percent float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spend()
	p.gauge.Memory, p.rate = service.Of(mebibytes<<20), percent/100
}

// count has the kernel count.
func (p *play) count(t service.Tally) {
	p.mu.Lock()
	p.tally = t
	p.mu.Unlock()
	p.tell("memory.events")
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func one(r service.Resource, q service.Quota) (l service.Limits) {
	l[r] = q
	return l
}

// says wants to be told what is new.
func (p *play) says(want ...string) {
	p.t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Equal(p.t, want, p.told)
	p.told = nil
}

func TestWarningsDoNotFlap(t *testing.T) {
	looked(t, func(p *play) {
		p.use(10, 1)
		pass(time.Hour)
		p.says()
		p.use(81, 1)
		pass(latest)
		p.says("memory-warning")
		for range 100 { // up and down around the level
			p.use(79, 1)
			pass(time.Second)
			p.use(81, 1)
			pass(time.Second)
		}
		p.says()
		p.use(76, 1) // below it, but not by much
		pass(time.Minute)
		p.says()
		p.use(74, 1)
		pass(hold - 2*time.Second)
		p.says()
		pass(3 * time.Second)
		p.says("memory-warning over")
	})
}

// Page cache that the kernel takes back is no use, and is asked for only near a level.
func TestCacheIsNoUse(t *testing.T) {
	looked(t, func(p *play) {
		p.use(50, 0)
		pass(time.Minute)
		require.Zero(t, p.sorted)
		p.change(func() { p.cache = 98 << 20 })
		p.use(99, 0)
		pass(time.Minute)
		p.count(service.Tally{MemoryMax: service.Of(10)})
		pass(time.Minute)
		p.says()
		require.NotZero(t, p.sorted)
		p.change(func() { p.sorted = 0 })
		pass(time.Hour)
		require.LessOrEqual(t, p.sorted, int(time.Hour/latest)+1, "it is far from its level")

		p.change(func() { p.cache = 15 << 20 })
		pass(latest)
		p.says("memory-warning")
		p.change(func() { p.cache = 1 << 20 })
		p.count(service.Tally{MemoryMax: service.Of(20)})
		pass(gather)
		p.says("memory-exceeded")
		p.change(func() { p.cache = 98 << 20 })
		pass(time.Minute)
		p.says("memory-warning over", "memory-exceeded over")
		p.count(service.Tally{MemoryMax: service.Of(30), OOM: service.Of(1)})
		pass(gather)
		p.says("memory-exceeded")
	})
}

func TestCPUWarnings(t *testing.T) {
	looked(t, func(p *play) {
		p.use(1, 39)
		pass(time.Minute)
		p.says()
		p.use(1, 41)
		pass(latest)
		p.says("cpu-warning")
		p.use(1, 10)
		pass(hold + 2*time.Second)
		p.says("cpu-warning over")
	})
}

// The kernel tells when a limit was run into, so that is known at once.
func TestWhatTheKernelTellsIsKnownAtOnce(t *testing.T) {
	looked(t, func(p *play) {
		p.use(10, 0)
		pass(time.Minute)
		p.count(service.Tally{MemoryMax: service.Of(1)})
		pass(gather)
		p.says("memory-exceeded")
		p.count(service.Tally{MemoryMax: service.Of(1), PidsMax: service.Of(7)})
		pass(gather)
		p.says("pids-exceeded")
		p.count(service.Tally{MemoryMax: service.Of(1), PidsMax: service.Of(7), MemoryHigh: service.Of(9)})
		pass(time.Minute)
		p.says("memory-exceeded over", "pids-exceeded over")
	})
}

// What was counted before it was taken up is nobody's news.
func TestWhatWasBefore(t *testing.T) {
	looked(t, func(p *play) {
		p.change(func() { p.tally = service.Tally{MemoryMax: service.Of(5)} })
		leave := p.Attend(web, 1, &quiet{p}, false)
		defer leave(nil)
		pass(2 * time.Second)
		p.says("memory-exceeded") // of the one that is fresh
	})
}

// quiet is the same service, with nothing of its own to close.
type quiet struct{ *play }

func (q *quiet) Hear(func(string)) (func(), error) { return func() {}, nil }
func (q *quiet) Gauge() (backends.Gauge, error)    { return nil, backends.ErrDeaf }

func TestPressure(t *testing.T) {
	looked(t, func(p *play) {
		pass(time.Minute)
		require.Empty(t, p.pressed, "nobody asked")
		p.change(func() { p.status.Warnings.Pressure[service.IOPressure] = 20 })
		p.Revise(web)
		synctest.Wait()
		p.pressed[pressing{service.IOPressure, false}]()
		pass(gather)
		p.says("io-pressure")
		pass(time.Minute)
		p.says("io-pressure over")
		p.change(func() { p.status.Warnings.Pressure[service.IOPressure] = 0 })
		p.Revise(web)
		synctest.Wait()
		require.Empty(t, p.pressed)
	})
}

// Memory that is short elsewhere, and stalls now and then, are no livelock.
func TestNoLivelock(t *testing.T) {
	looked(t, func(p *play) {
		p.limit(service.MemoryHigh, service.Of(60<<20))
		p.use(30, 1)
		pass(2 * time.Second)
		stall := p.pressed[pressing{service.MemoryPressure, true}]
		for range 15 {
			stall()
			pass(pressureWindow)
		}
		p.use(60, 1)
		for i := range 15 {
			stall()
			p.count(service.Tally{MemoryHigh: service.Of(uint64(i))})
			pass(4 * pressureWindow)
		}
		p.says()
		require.Empty(t, p.ordered())
	})
}

// Whoever is far below its levels costs next to nothing, and who has none nothing.
func TestLooksAreFewer(t *testing.T) {
	looked(t, func(p *play) {
		p.use(1, 0)
		pass(time.Minute)
		p.change(func() { p.reads = 0 })
		pass(time.Hour)
		require.LessOrEqual(t, p.reads, int(time.Hour/latest)+1)
		p.Slow(4)
		p.change(func() { p.reads = 0 })
		pass(time.Hour)
		require.LessOrEqual(t, p.reads, int(time.Hour/latest)/4+1)
		p.Slow(1)
		pass(4 * latest)
		p.use(79, 0)
		pass(latest)
		p.change(func() { p.reads = 0 })
		pass(time.Minute)
		require.GreaterOrEqual(t, p.reads, 59, "near its level it is looked at each second")
		p.limit(service.MemoryMax, service.Of(service.Unlimited))
		p.limit(service.CPUMax, service.Of(service.Unlimited))
		p.Revise(web)
		pass(hold)
		p.change(func() { p.reads = 0 })
		pass(time.Hour)
		require.Zero(t, p.reads)
	})
}

// Services that are looked at as often are looked at together.
func TestLooksAreTogether(t *testing.T) {
	looked(t, func(p *play) {
		p.use(1, 0)
		at := map[time.Time]int{}
		for i := range 100 {
			pass(17 * time.Millisecond)
			leave := p.Attend(web, 1, &counted{play: p, at: at, n: i}, true)
			defer leave(nil)
		}
		pass(time.Minute)
		p.change(func() { clear(at) })
		pass(time.Minute)
		require.LessOrEqual(t, len(at), int(time.Minute/latest)+1)
		for _, n := range at {
			require.Equal(t, 100, n)
		}
	})
}

type counted struct {
	*play
	at map[time.Time]int
	n  int
}

func (c *counted) Hear(func(string)) (func(), error) { return func() {}, nil }
func (c *counted) Gauge() (backends.Gauge, error)    { return c, nil }
func (c *counted) Close() error                      { return nil }

func (c *counted) Cache() (service.Quota, error) { return service.Quota{}, nil }

func (c *counted) Read() (service.Gauge, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at[time.Now()]++
	return service.Gauge{Memory: service.Of(1)}, nil
}

func TestNothingIsToldOfTheDeaf(t *testing.T) {
	looked(t, func(p *play) {
		p.change(func() { p.deaf = true })
		p.limit(service.MemoryHigh, service.Of(60<<20))
		p.use(99, 50)
		pass(time.Hour)
		p.says()
	})
}

var errFull = errors.New("too many watches")

// Why the kernel is not heard is told once, and it is tried again.
func TestThereIsNoRoomForAWatch(t *testing.T) {
	looked(t, func(p *play) {
		p.change(func() { p.full = true })
		p.use(1, 0)
		pass(time.Hour)
		p.says("deaf: too many watches")
		p.change(func() { p.full = false })
		pass(time.Minute)
		p.count(service.Tally{MemoryMax: service.Of(1)})
		pass(gather)
		p.says("memory-exceeded")
	})
}

// One that has ended is not judged, and no other by what it used.
func TestAnEndWhileItIsLookedAt(t *testing.T) {
	looked(t, func(p *play) {
		p.use(99, 50)
		p.change(func() { p.gone = true })
		pass(time.Minute)
		p.says()
		p.change(func() { p.gone = false })
		p.change(func() { p.status.Machine.Incarnation = 2 })
		pass(time.Minute)
		p.says()
	})
}
