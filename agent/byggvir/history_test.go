package byggvir

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestACellFits(t *testing.T) {
	c := cell{Number: 7, Memory: 1 << 40, CPUPeak: 12.5, Counted: countsMemory | countsCPU}
	b := make([]byte, cellSize)
	c.encode(b)
	back, err := decode(b)
	require.NoError(t, err)
	c.Check = back.Check
	require.Equal(t, c, back)
	for i := range b {
		b[i] ^= 1
		_, err := decode(b)
		require.Error(t, err, "byte %d", i)
		b[i] ^= 1
	}
	require.EqualValues(t, HistorySize, place(len(tiers)-1, 0)+int64(tiers[len(tiers)-1].cells)*cellSize)
	require.Equal(t, Remembered, reach(len(tiers)-1))
}

// What a tier tells is what all of the points in its reach come to.
func TestEveryTierAgreesWithAReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var at time.Duration
		room := NewRoom()
		h := NewHistory(HistoryConfig{
			SinceBoot: func() time.Duration { return at },
			Open:      func(service.Name, func(io.ReaderAt) error, bool) (Room, error) { return room, nil },
			Lost:      func(_ service.Name, _ bool, err error) { t.Fatal(err) },
		})
		type point struct {
			at time.Duration
			cell
		}
		var points []point
		for range rapid.IntRange(1, 200).Draw(t, "points") {
			at += time.Duration(rapid.Int64Range(int64(time.Second), int64(10*time.Minute)).Draw(t, "later"))
			n := rapid.Uint32Range(0, 1000).Draw(t, "amount")
			c := cell{
				Counted: countsMemory | countsCPU | countsPids | countsIO, Covered: 1e6, Memory: uint64(n), MemoryPeak: uint64(2 * n), CPU: uint64(n),
				CPUPeak: float32(n), Pids: n, PidsPeak: n, ReadBytes: uint64(n), OOMKills: n,
			}
			points = append(points, point{at, c})
			h.add(web, c)
			if rapid.IntRange(0, 20).Draw(t, "restart") == 0 {
				h.rings = map[service.Name]*ring{} // of the next agent
			}
		}
		require.NoError(t, checkRoom(room))
		for tier, of := range tiers {
			want := map[uint64]cell{}
			for _, p := range points {
				number := uint64(p.at/of.step) + 1
				if uint64(at/of.step)+1-number >= of.cells {
					continue
				}
				c := want[number]
				c.Number, c.Counted = number, p.Counted
				c.Covered, c.CPU, c.ReadBytes, c.OOMKills = c.Covered+p.Covered, c.CPU+p.CPU, c.ReadBytes+p.ReadBytes, c.OOMKills+p.OOMKills
				c.Memory, c.Pids = p.Memory, p.Pids
				c.MemoryPeak, c.CPUPeak, c.PidsPeak = max(c.MemoryPeak, p.MemoryPeak), max(c.CPUPeak, p.CPUPeak), max(c.PidsPeak, p.PidsPeak)
				want[number] = c
			}
			kept, err := readTier(room, tier)
			require.NoError(t, err)
			got := map[uint64]cell{}
			for _, c := range kept {
				if uint64(at/of.step)+1-c.Number < of.cells { // older ones stand there until they are overwritten
					c.Check = 0
					got[c.Number] = c
				}
			}
			require.Equal(t, want, got)
		}
	})
}

// watched has f play a service that is remembered.
func watched(t *testing.T, f func(*play, *Monitor, *History)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		h := NewHistory(HistoryConfig{
			SinceBoot: func() time.Duration { return time.Since(began) },
			Open:      func(service.Name, func(io.ReaderAt) error, bool) (Room, error) { return NewRoom(), nil },
			Lost:      func(_ service.Name, _ bool, err error) { t.Error(err) },
		})
		defer h.Close()
		p := &play{t: t, began: began, pressed: map[pressing]func(){}}
		s := &service.Status{Name: web, Spec: &service.Spec{UsageHistory: true}, Machine: service.Machine{State: service.Running, Incarnation: 1}}
		m := NewMonitor(MonitorConfig{Status: func(service.Name) (*service.Status, bool) { return s, true }, History: h})
		defer m.Close()
		f(p, m, h)
	})
}

func TestOnlyWhoAsksIsRead(t *testing.T) {
	looked(t, func(p *play) {
		pass(time.Minute)
		require.Zero(t, p.readings)
	})
	watched(t, func(p *play, m *Monitor, h *History) {
		p.use(10, 50)
		defer m.Attend(web, 1, p, true)(nil)
		pass(time.Minute + 500*time.Millisecond)
		p.use(30, 50)
		pass(time.Minute)
		p.change(func() { require.InDelta(t, 120, p.readings, 2) })
		samples, err := h.Samples(web, Remembered, 0)
		require.NoError(t, err)
		require.InDelta(t, 120, len(samples), 2)
		require.Equal(t, service.Of(30<<20), samples[len(samples)-1].Memory)
		require.InDelta(t, 50, samples[len(samples)-1].CPU.Percent, 0.1)
		samples, err = h.Samples(web, time.Hour, time.Minute)
		require.NoError(t, err)
		require.LessOrEqual(t, len(samples), 3)
		m.Slow(4)
		p.change(func() { p.readings = 0 })
		pass(time.Minute)
		p.change(func() { require.InDelta(t, 15, p.readings, 2) })
	})
}

// The kernel's peak counts where it rose, and cache that is taken back at no cost does
// not, be it there at the one look or the other.
func TestWhatWasHeld(t *testing.T) {
	of := service.Of
	for name, tt := range map[string]struct {
		before, now        service.Usage
		memory, peak, held uint64
	}{
		"nothing was known before": {service.Usage{}, service.Usage{Memory: 50, MemoryPeak: of(90)}, 50, 50, 50},
		"no peak is counted":       {service.Usage{Memory: 70}, service.Usage{Memory: 50}, 50, 50, 50},
		"it rose no further":       {service.Usage{MemoryPeak: of(90)}, service.Usage{Memory: 50, MemoryPeak: of(90)}, 50, 50, 50},
		"it rose between":          {service.Usage{MemoryPeak: of(60)}, service.Usage{Memory: 50, MemoryPeak: of(90)}, 50, 90, 90},
		"some is cache":            {service.Usage{MemoryPeak: of(90), Inactive: of(20)}, service.Usage{Memory: 80, MemoryPeak: of(90), Inactive: of(30)}, 80, 80, 50},
		"cache grew":               {service.Usage{MemoryPeak: of(60)}, service.Usage{Memory: 90, MemoryPeak: of(100), Inactive: of(60)}, 90, 100, 40},
		"cache was dropped":        {service.Usage{MemoryPeak: of(90), Inactive: of(80)}, service.Usage{Memory: 20, MemoryPeak: of(100)}, 20, 100, 20},
		"cache made place":         {service.Usage{MemoryPeak: of(90), Inactive: of(80)}, service.Usage{Memory: 95, MemoryPeak: of(100), Inactive: of(5)}, 95, 100, 90},
	} {
		c := there(tt.before, tt.now)
		require.Equal(t, []uint64{tt.memory, tt.peak, tt.held}, []uint64{c.Memory, c.MemoryPeak, c.Held}, name)
	}
	require.Zero(t, there(service.Usage{}, service.Usage{}).Counted, "absent is not zero")
}

// Where a reading takes long, readings do not take all the time there is.
func TestSlowReadings(t *testing.T) {
	watched(t, func(p *play, m *Monitor, h *History) {
		p.reading = 700 * time.Millisecond
		defer m.Attend(web, 1, p, true)(nil)
		pass(10 * time.Minute)
		p.change(func() { require.InDelta(t, 600/7, p.readings, 5) })
		samples, err := h.Samples(web, Remembered, 0)
		require.NoError(t, err)
		measured := time.Duration(0)
		for _, s := range samples {
			measured += s.Measured
		}
		require.InDelta(t, 600, measured.Seconds(), 10, "no time is missing")
	})
}

// Of a service that was away for long, who looks on is not told of a long step.
func TestAViewOverAPause(t *testing.T) {
	watched(t, func(p *play, m *Monitor, h *History) {
		shown, leave := h.Watch(time.Second, web)
		defer leave()
		away := m.Attend(web, 1, p, true)
		pass(10 * time.Second)
		away(nil)
		for len(shown) > 0 {
			<-shown
		}
		pass(time.Hour)
		defer m.Attend(web, 1, p, true)(nil)
		pass(10 * time.Second)
		require.NotEmpty(t, shown)
		for len(shown) > 0 {
			require.LessOrEqual(t, (<-shown).Step, 3*time.Second)
		}
		h.Forget(web)
		for v := range h.views {
			require.Empty(t, v.used)
		}
	})
}

// What an incarnation used up to its end is remembered, too, above all that the kernel
// has killed it for want of memory between two looks.
func TestTheEndIsRemembered(t *testing.T) {
	watched(t, func(p *play, m *Monitor, h *History) {
		p.use(10, 50)
		away := m.Attend(web, 1, p, true)
		pass(2*time.Minute + 700*time.Millisecond)
		before, err := h.Samples(web, Remembered, 0)
		require.NoError(t, err)
		p.change(func() { p.spend() })
		away(&service.Remains{Usage: service.Usage{
			MemoryPeak: service.Of(400 << 20), OOMKills: service.Of(1), CPUTime: p.gauge.CPUTime, Inactive: service.Of(20 << 20),
		}})
		pass(time.Minute)
		samples, err := h.Samples(web, Remembered, 0)
		require.NoError(t, err)
		require.InDelta(t, len(before), len(samples), 1)
		last := samples[len(samples)-1]
		require.Equal(t, service.Of(1), last.OOMKills)
		require.Equal(t, service.Of(10<<20), last.Memory)
		require.Equal(t, service.Of(400<<20), last.MemoryPeak)
		require.Equal(t, service.Of(380<<20), last.Held)
		require.InDelta(t, 50, last.CPU.Percent, 1)
		limits := held(map[service.Resource]uint64{service.MemoryMax: 400 << 20})
		a, err := Advise(samples, limits, service.SystemUsage{Cores: 1, MemoryTotal: 4 << 30})
		require.NoError(t, err)
		require.Contains(t, a.Doubt, "short of memory")
		require.Equal(t, "600MiB", advised(a)["memory_max"])

		brief := m.Attend(web, 2, p, true)
		brief(&service.Remains{Usage: service.Usage{MemoryPeak: service.Of(500 << 20), OOMKills: service.Of(1)}})
		lost := m.Attend(web, 3, p, true)
		lost(&service.Remains{Lost: true})
		pass(time.Second)
		samples, err = h.Samples(web, 2*time.Second, 0)
		require.NoError(t, err)
		require.Len(t, samples, 1)
		require.Equal(t, service.Of(500<<20), samples[0].Held)
		require.Equal(t, service.Of(1), samples[0].OOMKills)
	})
}
