package byggvir

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/sockets"
)

// tables play the kernel's, of a host with one listening socket, of web.
type tables struct {
	play     *play // whose lock guards the rest
	load     float64
	waiting  []uint64 // connections in it, the first to be accepted first
	gone     int      // of those that nobody names any more
	came     uint64   // so far
	stranger bool     // it is nobody's
	fault    error
	dumps    int
	owners   int // times that was asked for
}

func (h *tables) Load() (float64, error) {
	h.play.mu.Lock()
	defer h.play.mu.Unlock()
	return h.load, nil
}

func (h *tables) Queues() ([]sockets.Queue, error) {
	h.play.mu.Lock()
	defer h.play.mu.Unlock()
	h.dumps++
	if len(h.waiting) == 0 || h.fault != nil {
		return nil, h.fault
	}
	return []sockets.Queue{{Address: "127.0.0.1:8080", Inode: 7, Waiting: len(h.waiting), Limit: 128}}, nil
}

func (h *tables) Clients(sockets.Queue) ([]uint64, error) {
	h.play.mu.Lock()
	defer h.play.mu.Unlock()
	return slices.Clone(h.waiting[h.gone:]), nil
}

func (h *tables) Owner(sockets.Queue) (service.Name, bool) {
	h.play.mu.Lock()
	defer h.play.mu.Unlock()
	h.owners++
	if h.stranger {
		return service.Name{}, false
	}
	return web, true
}

// come has so many connect.
func (p *play) come(n int) {
	p.change(func() {
		for range n {
			p.tables.came++
			p.tables.waiting = append(p.tables.waiting, p.tables.came)
		}
	})
}

// accept has the service accept so many.
func (p *play) accept(n int) {
	p.change(func() { p.tables.waiting = p.tables.waiting[min(n, len(p.tables.waiting)):] })
}

// set changes what its threads do; of a stop the kernel tells.
func (p *play) set(t service.Threads) {
	p.change(func() { p.threads = t })
	p.stir()
}

func (p *play) stir() {
	p.mu.Lock()
	tell := p.stirs
	p.stirs = nil
	p.mu.Unlock()
	if tell != nil {
		tell()
	}
}

// news are the hangs that were told, and forgets them.
func (p *play) news() (all []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.hung {
		require.Equal(p.t, web, h.Service)
		require.EqualValues(p.t, 1, h.Incarnation)
		switch {
		case h.Ill:
			all = append(all, "ill: "+h.Why)
		case h.Lasts():
			all = append(all, h.Why)
		default:
			all = append(all, "over "+h.Detail)
		}
	}
	p.hung = nil
	return all
}

// onHang changes the definition; the old one may be being read.
func (p *play) onHang(h service.OnHang) {
	p.change(func() {
		spec := *p.status.Spec
		spec.Hang = h
		p.status.Spec = &spec
	})
}

// times reads how often something was done.
func (p *play) times(n *int) (times int) {
	p.change(func() { times = *n })
	return times
}

var (
	stopped = service.Threads{Stopped: true, Held: true}
	inDisk  = service.Threads{Held: true, Turns: 40, Waits: "nfs_wait", Busy: true}
)

const (
	whyStopped = "all threads are stopped (SIGSTOP)"
	whyHeld    = "all threads wait in the kernel (D), in nfs_wait"
)

func TestAStopIsToldWithinSeconds(t *testing.T) {
	looked(t, func(p *play) {
		time.Sleep(time.Hour)
		looks := p.times(&p.looks)
		require.Less(t, looks, 10, "nobody looks at who is idle")
		p.set(stopped)
		time.Sleep(4 * time.Second)
		require.Equal(t, []string{whyStopped}, p.news())
		time.Sleep(time.Hour)
		require.Empty(t, p.news(), "told once")
		p.set(service.Threads{})
		time.Sleep(time.Second)
		require.Len(t, p.news(), 1)
		p.set(stopped)
		time.Sleep(4 * time.Second)
		require.Equal(t, []string{whyStopped}, p.news(), "another time")
	})
}

// TestWhatIsStoppedInTurnsIsNotHung: as by a program that slows it down so.
func TestWhatIsStoppedInTurnsIsNotHung(t *testing.T) {
	looked(t, func(p *play) {
		for range 1000 {
			p.set(stopped)
			time.Sleep(70 * time.Millisecond)
			p.set(service.Threads{})
			time.Sleep(30 * time.Millisecond)
		}
		require.Empty(t, p.news())
	})
}

// TestAStopThatNobodyTellsOf: where no shim tells, it is looked for now and then.
func TestAStopThatNobodyTellsOf(t *testing.T) {
	looked(t, func(p *play) {
		p.change(func() { p.untold = true })
		p.stir()
		time.Sleep(time.Minute)
		p.set(stopped)
		time.Sleep(latest + 4*time.Second)
		require.Equal(t, []string{whyStopped}, p.news())
	})
}

func TestADiskThatDoesNotAnswer(t *testing.T) {
	looked(t, func(p *play) {
		time.Sleep(time.Minute)
		p.change(func() { p.threads = inDisk })
		looks := p.times(&p.looks)
		time.Sleep(time.Hour)
		require.Equal(t, looks, p.times(&p.looks), "a host that is at rest has nobody who waits in the kernel")
		require.Empty(t, p.news())

		p.change(func() { p.tables.load = 1 })
		time.Sleep(hangAfter[heldHang])
		require.Empty(t, p.news(), "disks may take long")
		time.Sleep(heldEvery + latest)
		require.Equal(t, []string{whyHeld}, p.news())
		p.change(func() { p.threads = service.Threads{} })
		time.Sleep(2 * time.Second)
		require.Len(t, p.news(), 1)
	})
}

// TestADiskThatIsBusy: who waits for it again and again, whenever it is looked at, runs
// in between.
func TestADiskThatIsBusy(t *testing.T) {
	looked(t, func(p *play) {
		p.change(func() { p.tables.load = 1; p.threads = inDisk })
		for range 600 {
			time.Sleep(time.Second)
			p.change(func() { p.threads.Turns++ })
		}
		require.Empty(t, p.news())
	})
}

func TestAQueueThatNobodyTakesFrom(t *testing.T) {
	looked(t, func(p *play) {
		time.Sleep(time.Minute)
		require.InDelta(t, time.Minute/queueEvery, p.times(&p.tables.dumps), 2)
		p.come(12)
		time.Sleep(queueEvery + 4*time.Second)
		require.Equal(t, []string{"127.0.0.1:8080 has 12 connections waiting for 3s, and the service uses no CPU"}, p.news())
		p.come(3)
		time.Sleep(time.Minute)
		require.Empty(t, p.news(), "told once")
		p.accept(1)
		time.Sleep(time.Second)
		require.Len(t, p.news(), 1, "it goes on, though others wait still")
		time.Sleep(6 * time.Second)
		require.Len(t, p.news(), 1, "that was all")
		p.accept(20)
		time.Sleep(time.Second)
		require.Len(t, p.news(), 1)
		require.Equal(t, 1, p.times(&p.tables.owners))
	})
}

// TestAQueueThatIsTakenFrom: however long it is, and however slowly, and although as many
// come as are accepted.
func TestAQueueThatIsTakenFrom(t *testing.T) {
	looked(t, func(p *play) {
		p.come(100)
		for range 300 {
			time.Sleep(2 * time.Second)
			p.accept(1)
			p.come(1)
		}
		require.Empty(t, p.news())
	})
}

// TestClientsThatLeave: who is gone before he was accepted was not accepted.
func TestClientsThatLeave(t *testing.T) {
	looked(t, func(p *play) {
		p.come(5)
		for range 10 {
			time.Sleep(time.Second)
			p.come(1)
			p.change(func() { p.tables.gone++ })
		}
		require.Len(t, p.news(), 1)
	})
}

// TestWhoWorksIsNotHung: nor who would if it could.
func TestWhoWorksIsNotHung(t *testing.T) {
	for name, work := range map[string]func(p *play){
		"uses the CPU":       func(p *play) { p.use(1, 2) },
		"runs":               func(p *play) { p.threads.Busy = true },
		"waits for the CPU":  func(p *play) { p.pressure += time.Second },
		"is nobody's socket": func(p *play) { p.tables.stranger = true },
		"is frozen":          func(p *play) { p.status.Machine.Frozen = true },
		"ends":               func(p *play) { p.status.Machine.State = service.Stopping },
		"starts":             func(p *play) { p.status.Machine.State = service.Starting },
		"is ignored":         func(p *play) { p.onHang(service.HangIgnore) },
		"is nobody's":        func(p *play) { p.status.Spec = nil },
	} {
		t.Run(name, func(t *testing.T) {
			looked(t, func(p *play) {
				time.Sleep(time.Minute)
				p.come(3)
				for range 100 {
					if name == "uses the CPU" || name == "is ignored" { // which take the lock
						work(p)
					} else {
						p.change(func() { work(p) })
					}
					time.Sleep(400 * time.Millisecond)
				}
				require.Empty(t, p.news())
				require.LessOrEqual(t, p.times(&p.tables.owners), 2)
			})
		})
	}
}

// TestTheFrozenAndTheStopped: what is frozen is not hung, also when it is stopped as
// well, and what hung is over.
func TestTheFrozenAndTheStopped(t *testing.T) {
	looked(t, func(p *play) {
		p.set(stopped)
		time.Sleep(4 * time.Second)
		require.Len(t, p.news(), 1)
		p.change(func() { p.status.Machine.Frozen = true })
		time.Sleep(4 * time.Second)
		require.Len(t, p.news(), 1, "over")
		time.Sleep(time.Hour)
		require.Empty(t, p.news())
		p.change(func() { p.status.Machine.Frozen = false })
		p.Revise(web)
		time.Sleep(time.Minute)
		require.Equal(t, []string{whyStopped}, p.news())
	})
}

func TestAHangThatCountsAsUnhealthy(t *testing.T) {
	looked(t, func(p *play) {
		p.onHang(service.HangUnhealthy)
		p.come(1)
		time.Sleep(6 * time.Second)
		why := "127.0.0.1:8080 has 1 connection waiting for 3s, and the service uses no CPU"
		require.Equal(t, []string{why}, p.news())
		time.Sleep(6 * time.Second)
		require.Empty(t, p.news(), "checks would fail three times in 15 s")
		time.Sleep(10 * time.Second)
		require.Equal(t, []string{"ill: " + why}, p.news())
		time.Sleep(time.Hour)
		require.Empty(t, p.news(), "once")
		p.accept(1)
		time.Sleep(2 * time.Second)
		require.Len(t, p.news(), 1)
		p.set(stopped)
		time.Sleep(4 * time.Second)
		require.Equal(t, []string{whyStopped, "ill: " + whyStopped}, p.news(), "that is certain")
	})
}

// TestWhatTheDefinitionSaysNow: it may change while it hangs.
func TestWhatTheDefinitionSaysNow(t *testing.T) {
	looked(t, func(p *play) {
		p.set(stopped)
		time.Sleep(4 * time.Second)
		require.Len(t, p.news(), 1)
		p.onHang(service.HangIgnore)
		time.Sleep(2 * time.Second)
		require.Len(t, p.news(), 1, "over")
		p.onHang(service.HangUnhealthy)
		time.Sleep(time.Minute)
		require.Equal(t, []string{whyStopped, "ill: " + whyStopped}, p.news())
		p.change(func() { p.status.Machine.State = service.Stopping })
		time.Sleep(time.Minute)
		require.Empty(t, p.news(), "its end tells")
	})
}

// TestOurOwnStall: what was there before we were held up and after it has lasted for one
// look of ours (invariant I11).
func TestOurOwnStall(t *testing.T) {
	var s stall
	now := time.Now()
	s.seen(now, true)
	s.seen(now.Add(time.Hour), true)
	require.Equal(t, awake, s.lasted)
	require.Less(t, s.lasted, hangAfter[queueHang])
	s.seen(now.Add(time.Hour+time.Second), true)
	require.Equal(t, awake+time.Second, s.lasted)
	s.seen(now.Add(time.Hour+2*time.Second), false)
	require.Equal(t, stall{}, s)
}

func TestQueuesThatCanNotBeSeen(t *testing.T) {
	looked(t, func(p *play) {
		p.change(func() { p.tables.fault = errors.New("not permitted") })
		time.Sleep(time.Minute)
		require.Equal(t, []string{"blind: not permitted"}, p.said(), "once")
		p.change(func() { p.tables.fault = nil })
		time.Sleep(queueEvery)
		require.Equal(t, []string{"blind: not permitted", "blind: <nil>"}, p.said())
		p.come(1)
		time.Sleep(queueEvery + 4*time.Second)
		require.Len(t, p.news(), 1)
	})
}

// said is what was told.
func (p *play) said() (told []string) {
	p.change(func() { told = p.told })
	return told
}

// TestNoHangNoLook: while nothing runs the kernel is asked nothing.
func TestNoHangNoLook(t *testing.T) {
	looked(t, func(p *play) {
		p.onHang(service.HangIgnore)
		time.Sleep(time.Minute)
		dumps := p.times(&p.tables.dumps)
		time.Sleep(time.Hour)
		require.Equal(t, dumps, p.times(&p.tables.dumps))
		require.Zero(t, p.times(&p.looks))
	})
}

// BenchmarkLookAtQueues is one look at queues in none of which anybody waits.
func BenchmarkLookAtQueues(b *testing.B) {
	m := &Monitor{cfg: MonitorConfig{Tables: &tables{play: &play{}}}, checked: 1000, backlogs: map[uint64]*backlog{}, slower: 1}
	b.ReportAllocs()
	for now := time.Now(); b.Loop(); now = now.Add(time.Hour) {
		m.lookAtQueues(b.Context(), now)
	}
}

// crowd is a host on which somebody has very many sockets in which connections wait.
type crowd struct{ searches int }

func (*crowd) Load() (float64, error) { return 0, nil }

func (*crowd) Queues() (all []sockets.Queue, err error) {
	for inode := range uint64(5000) {
		all = append(all, sockets.Queue{Inode: inode + 1, Waiting: 1})
	}
	return all, nil
}

func (*crowd) Clients(sockets.Queue) ([]uint64, error) { return nil, nil }

func (c *crowd) Owner(sockets.Queue) (service.Name, bool) {
	c.searches++
	return service.Name{}, false
}

// Whoever opens very many sockets does not keep us from looking at limits.
func TestManyQueuesOfStrangers(t *testing.T) {
	c := &crowd{}
	m := &Monitor{cfg: MonitorConfig{Tables: c}, checked: 1, slower: 1}
	now := time.Now()
	for look := range 3 {
		m.lookAtQueues(t.Context(), now.Add(time.Duration(look)*time.Second))
	}
	require.Equal(t, 2*maxSearches, c.searches, "at each look but the first")
}
