package byggvir

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gladsheim/gladsheim/agent/service"
)

// looks makes samples of a second, n of them.
func looks(n int, sample func(i int) service.Sample) (samples []service.Sample) {
	began := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	for i := range n {
		s := sample(i)
		s.Began, s.Step, s.Measured = began.Add(time.Duration(i)*time.Second), time.Second, time.Second
		samples = append(samples, s)
	}
	return samples
}

func share(percent float64) service.Share { return service.Share{Percent: percent, Set: true} }

// steady is a service that does the same all the time.
func steady(int) service.Sample {
	return service.Sample{
		MemoryPeak: service.Of(500 << 20), Held: service.Of(100 << 20), CPU: share(20), CPUPeak: share(40), Throttled: share(0), PidsPeak: service.Of(10), OOMKills: service.Of(0),
	}
}

// held are limits that hold.
func held(limits map[service.Resource]uint64) (a service.Applied) {
	for r, n := range limits {
		a[r] = service.LimitReport{Requested: service.Of(n), Applied: service.Of(n), Effective: service.Of(n), Enforced: true}
	}
	return a
}

// advised is what an Advice says, in the words of a definition.
func advised(a service.Advice) map[string]string {
	out := map[string]string{}
	for _, l := range a.Limits {
		out[l.Resource.String()] = l.Resource.Format(l.Advised)
	}
	return out
}

func TestAdvice(t *testing.T) {
	const mebibyte = 1 << 20
	type limits = map[service.Resource]uint64
	with := func(change func(i int, s *service.Sample)) func(int) service.Sample {
		return func(i int) service.Sample {
			s := steady(i)
			change(i, &s)
			return s
		}
	}
	for _, tt := range []struct {
		name       string
		sample     func(int) service.Sample
		holds      limits
		want       map[string]string
		confidence service.Confidence
		doubt      string
	}{
		{"steady", steady, nil, map[string]string{"memory_max": "105MiB", "memory_high": "105MiB", "cpu_percent": "44%", "pids_max": "26"}, service.ConfidenceLow, "looked at for 10m0s"},
		{"a sawtooth", with(func(i int, s *service.Sample) { s.Held = service.Of(uint64(i%60+1) * 2 * mebibyte) }), nil,
			map[string]string{"memory_max": "126MiB", "memory_high": "120MiB", "cpu_percent": "44%", "pids_max": "26"}, service.ConfidenceLow, ""},
		{"a spike", with(func(i int, s *service.Sample) {
			if i%100 == 0 {
				s.Held, s.CPUPeak, s.PidsPeak = service.Of(200*mebibyte), share(300), service.Of(100)
			}
		}), limits{service.MemoryHigh: 300 * mebibyte}, map[string]string{"memory_max": "210MiB", "memory_high": "max", "cpu_percent": "44%", "pids_max": "150"}, service.ConfidenceLow, ""},
		{"held back", with(func(_ int, s *service.Sample) { s.Throttled = share(30) }), limits{service.CPUMax: 40 * service.UsecPerPercent},
			map[string]string{"memory_max": "105MiB", "memory_high": "105MiB", "cpu_percent": "60%", "pids_max": "26"}, service.ConfidenceLow, "it was held back"},
		{"killed", with(func(i int, s *service.Sample) {
			if i == 7 {
				s.OOMKills = service.Of(1)
			}
		}), limits{service.MemoryMax: 200 * mebibyte, service.MemoryHigh: 150 * mebibyte}, map[string]string{"memory_max": "300MiB", "memory_high": "max", "cpu_percent": "44%", "pids_max": "26"},
			service.ConfidenceLow, "short of memory"},
		{"at its limit", steady, limits{service.MemoryMax: 102 * mebibyte}, map[string]string{"memory_max": "153MiB", "memory_high": "max", "cpu_percent": "44%", "pids_max": "26"},
			service.ConfidenceLow, "short of memory"},
		{"pressed", with(func(_ int, s *service.Sample) { s.Pressure[service.MemoryPressure] = share(20) }), limits{service.MemoryHigh: 400 * mebibyte},
			map[string]string{"memory_max": "150MiB", "memory_high": "max", "cpu_percent": "44%", "pids_max": "26"}, service.ConfidenceLow, "short of memory"},
		{"what was advised", steady, limits{service.MemoryMax: 105 * mebibyte, service.MemoryHigh: 105 * mebibyte, service.CPUMax: 44 * service.UsecPerPercent, service.PidsMax: 26},
			map[string]string{"memory_max": "105MiB", "memory_high": "105MiB", "cpu_percent": "44%", "pids_max": "26"}, service.ConfidenceLow, ""},
		{"asleep", func(int) service.Sample {
			return service.Sample{MemoryPeak: service.Of(mebibyte), Held: service.Of(mebibyte), CPU: share(0), CPUPeak: share(0.1), PidsPeak: service.Of(1)}
		}, nil, map[string]string{"memory_max": "8MiB", "memory_high": "8MiB", "cpu_percent": "5%", "pids_max": "17"}, service.ConfidenceLow, ""},
		{"nothing but CPU time counted", func(int) service.Sample { return service.Sample{CPU: share(1), CPUPeak: share(1000)} }, nil,
			map[string]string{"cpu_percent": "400%"}, service.ConfidenceLow, ""},
	} {
		a, err := Advise(looks(600, tt.sample), held(tt.holds), service.SystemUsage{Cores: 4, MemoryTotal: 4 << 30})
		require.NoError(t, err, tt.name)
		require.Equal(t, tt.want, advised(a), tt.name)
		require.Equal(t, tt.confidence, a.Confidence, tt.name)
		require.Contains(t, a.Doubt, tt.doubt, tt.name)
		for _, l := range a.Limits {
			require.NotEmpty(t, l.Why, tt.name)
			if l.Resource == service.CPUMax {
				require.Equal(t, tt.name == "a spike", strings.Contains(l.Why, "at times, as when it starts, it had up to 300.0 %, and is slower then"), tt.name)
			}
			require.NoError(t, l.Resource.Check(l.Advised), tt.name)
			if n := tt.holds[l.Resource]; n != 0 {
				require.Equal(t, service.Of(n), l.Now, tt.name)
				require.True(t, l.Enforced)
			}
		}
	}
}

// What is advised can be set: what else the service asks for is no hindrance.
func TestAdviceCanBeTaken(t *testing.T) {
	holds := map[service.Resource]uint64{
		service.MemoryMax: 1 << 30, service.MemoryHigh: 900 << 20, service.MemoryLow: 200 << 20, service.MemoryMin: 16 << 20,
		service.CPUMax: 100 * service.UsecPerPercent, service.CPUBurst: 80 * service.UsecPerPercent,
	}
	a, err := Advise(looks(600, steady), held(holds), service.SystemUsage{})
	require.NoError(t, err)
	require.Equal(t, map[string]string{
		"memory_max": "105MiB", "memory_high": "105MiB", "cpu_percent": "44%", "pids_max": "26", "memory_low": "105MiB", "cpu_burst_percent": "44%",
	}, advised(a))
}

// What enforcement has set for now is not taken for what the service has: at its next
// start that is gone, and the advice would be as well.
func TestAdviceIsBesideWhatWasAskedFor(t *testing.T) {
	a := held(map[service.Resource]uint64{service.MemoryHigh: 60 << 20, service.CPUMax: 20 * service.UsecPerPercent})
	throttle := func(r service.Resource, n uint64) {
		a[r].Applied, a[r].Effective, a[r].Instead = service.Of(n), service.Of(n), service.Of(n)
	}
	throttle(service.MemoryHigh, service.Unlimited) // a livelock was broken
	throttle(service.CPUMax, 16*service.UsecPerPercent)
	now := func() map[service.Resource]service.Quota {
		out := map[service.Resource]service.Quota{}
		advice, err := Advise(looks(600, steady), a, service.SystemUsage{})
		require.NoError(t, err)
		for _, l := range advice.Limits {
			out[l.Resource] = l.Now
		}
		return out
	}
	require.Equal(t, service.Of(60<<20), now()[service.MemoryHigh])
	require.Equal(t, service.Of(20*service.UsecPerPercent), now()[service.CPUMax])
	a[service.MemoryHigh].Requested = service.Quota{}
	throttle(service.MemoryHigh, 80<<20)
	require.Equal(t, service.Of(service.Unlimited), now()[service.MemoryHigh], "nobody asked for any")
}

func TestConfidence(t *testing.T) {
	_, err := Advise(nil, service.Applied{}, service.SystemUsage{})
	require.ErrorContains(t, err, "looked at for 0s")
	_, err = Advise(looks(59, steady), service.Applied{}, service.SystemUsage{})
	require.ErrorContains(t, err, "no advice before 1m0s")
	for n, want := range map[int]service.Confidence{60: service.ConfidenceLow, 3600: service.ConfidenceMedium, 72_000: service.ConfidenceHigh} {
		a, err := Advise(looks(n, steady), service.Applied{}, service.SystemUsage{})
		require.NoError(t, err)
		require.Equal(t, want, a.Confidence)
		require.Equal(t, want != service.ConfidenceHigh, a.Doubt != "")
		require.Equal(t, time.Duration(n)*time.Second, a.Watched)
		require.Equal(t, n, a.Samples)
	}
}

// Whatever a service does, what is advised would have been enough for it, but for the
// CPU time of one sample in twenty, and is not far above it.
func TestAdviceIsEnough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		memory := rapid.SliceOfN(rapid.Uint64Range(16<<20, 64<<30), 60, 200).Draw(t, "memory")
		busy := rapid.SliceOfN(rapid.Float64Range(0, 800), len(memory), len(memory)).Draw(t, "busy")
		a, err := Advise(looks(len(memory), func(i int) service.Sample {
			return service.Sample{MemoryPeak: service.Of(memory[i]), Held: service.Of(memory[i]), CPUPeak: share(busy[i]), PidsPeak: service.Of(memory[i] >> 20)}
		}), service.Applied{}, service.SystemUsage{})
		require.NoError(t, err)
		peak, over := uint64(0), 0
		limits := map[service.Resource]uint64{}
		for _, l := range a.Limits {
			limits[l.Resource] = l.Advised.Value
		}
		for i := range memory {
			peak = max(peak, memory[i])
			if busy[i] > float64(limits[service.CPUMax])/service.UsecPerPercent {
				over++
			}
		}
		require.GreaterOrEqual(t, limits[service.MemoryMax], peak)
		require.LessOrEqual(t, float64(limits[service.MemoryMax]), math.Ceil(float64(peak)*1.05)+1<<20)
		require.GreaterOrEqual(t, limits[service.MemoryHigh], peak, "it is not to be held up")
		require.LessOrEqual(t, over, len(memory)/20)
		require.Greater(t, limits[service.PidsMax], peak>>20)
	})
}
