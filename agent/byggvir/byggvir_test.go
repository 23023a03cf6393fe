package byggvir

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func enforcing(rs ...service.Resource) service.Enforcement {
	var e service.Enforcement
	for _, r := range rs {
		e.Limits[r] = true
	}
	return e
}

func TestPlan(t *testing.T) {
	host := Host{Cores: 2}
	host.Defaults[service.MemoryMax] = service.Of(512 << 20)
	host.Defaults[service.PidsMax] = service.Of(512)
	all := enforcing(service.MemoryMax, service.PidsMax, service.CPUMax)

	spec := service.Defaults()
	spec.Name = service.MustName("web")
	spec.Limits[service.MemoryMax] = service.Of(64 << 20)
	got, err := Plan("start", &spec, host, "cgroupfs", all)
	require.NoError(t, err)
	require.Equal(t, service.Of(64<<20), got[service.MemoryMax], "the definition wins")
	require.Equal(t, service.Of(512), got[service.PidsMax], "the default fills the gap")

	_, err = Plan("start", &spec, host, "exec", enforcing(service.NoFile))
	require.Equal(t, service.Unenforceable, service.KindOf(err))
	require.ErrorContains(t, err, "memory_max")
	require.NotContains(t, err.Error(), "pids_max", "nobody asked for the default")

	lacking := enforcing(service.PidsMax)
	lacking.Why[service.MemoryMax] = "the controller memory ends in /above"
	_, err = Plan("start", &spec, host, "cgroupfs", lacking)
	require.ErrorContains(t, err, "memory_max (the controller memory ends in /above) on this host; remove it")

	spec.BestEffort = true
	got, err = Plan("start", &spec, host, "exec", enforcing(service.NoFile))
	require.NoError(t, err)
	require.Equal(t, service.Of(64<<20), got[service.MemoryMax], "kept, so that it is told as not enforced")
	require.False(t, got[service.PidsMax].Set)

	spec.Limits[service.CPUMax] = service.Of(201 * service.UsecPerPercent)
	_, err = Plan("start", &spec, host, "cgroupfs", all)
	require.Equal(t, service.Invalid, service.KindOf(err))
	require.ErrorContains(t, err, "200%")
	spec.Limits[service.CPUMax] = service.Of(service.Unlimited)
	_, err = Plan("start", &spec, host, "cgroupfs", all)
	require.NoError(t, err)
}

func TestPercent(t *testing.T) {
	m, web, start := NewMeter(), service.MustName("web"), time.Now()
	at := func(d time.Duration) time.Time { return start.Add(d) }
	require.InDelta(t, 50, m.Percent(web, 1, start, at(time.Second), 500*time.Millisecond), 0.01, "since the start")
	require.InDelta(t, 20, m.Percent(web, 1, start, at(2*time.Second), 700*time.Millisecond), 0.01, "since the reading before")
	require.InDelta(t, 20, m.Percent(web, 1, start, at(2*time.Second+10*time.Millisecond), 702*time.Millisecond), 0.1, "too soon: over the longer time")
	require.Zero(t, m.Percent(web, 2, at(3*time.Second), at(3*time.Second), 0), "a new incarnation starts afresh")
	require.InDelta(t, 100, m.Percent(web, 2, at(3*time.Second), at(4*time.Second), time.Second), 0.01)
	m.Forget(web)
	require.InDelta(t, 10, m.Percent(web, 2, at(3*time.Second), at(13*time.Second), time.Second), 0.01)
}

// The start of a service that an earlier agent launched is known by the clock
// alone, and that may have been set back.
func TestPercentAfterTheClockWasSetBack(t *testing.T) {
	m, web, now := NewMeter(), service.MustName("web"), time.Now()
	require.Zero(t, m.Percent(web, 1, now.Add(time.Hour), now, 5*time.Second))
	require.InDelta(t, 50, m.Percent(web, 1, now.Add(time.Hour), now.Add(time.Second), 5500*time.Millisecond), 0.01)
}

// A high that is not above the limit in force is no use: it would be killed
// before it is slowed down.
func TestPlanComparesWithTheDefaults(t *testing.T) {
	host := Host{Cores: 2}
	host.Defaults[service.MemoryMax] = service.Of(512 << 20)
	spec := service.Defaults()
	spec.Name = service.MustName("web")
	spec.Limits[service.MemoryHigh] = service.Of(1 << 30)
	_, err := Plan("register", &spec, host, "cgroupfs", enforcing(service.MemoryMax, service.MemoryHigh))
	require.Equal(t, service.Invalid, service.KindOf(err))
	require.ErrorContains(t, err, "cannot register web: limits.memory_high: 1GiB is above memory_max, 512MiB on this platform")
	_, err = Plan("register", &spec, host, "cgroupfs", enforcing(service.MemoryHigh))
	require.NoError(t, err, "there is no memory_max here")
	spec.Limits[service.MemoryMax] = service.Of(2 << 30)
	_, err = Plan("register", &spec, host, "cgroupfs", enforcing(service.MemoryMax, service.MemoryHigh))
	require.NoError(t, err)
}

// What is saved up is saved of a quota, be it the platform's.
func TestPlanOfABurst(t *testing.T) {
	host, can := Host{Cores: 2}, enforcing(service.CPUMax, service.CPUBurst)
	spec := service.Defaults()
	spec.Name = service.MustName("web")
	spec.Limits[service.CPUBurst] = service.Of(30 * service.UsecPerPercent)
	_, err := Plan("start", &spec, host, "cgroupfs", can)
	require.ErrorContains(t, err, "limits.cpu_burst_percent: has nothing to save from: it wants a cpu_percent")
	host.Defaults[service.CPUMax] = service.Of(20 * service.UsecPerPercent)
	_, err = Plan("start", &spec, host, "cgroupfs", can)
	require.ErrorContains(t, err, "limits.cpu_burst_percent: 30% is above cpu_percent, 20% on this platform, unless the definition sets it")
	host.Defaults[service.CPUMax] = service.Of(40 * service.UsecPerPercent)
	_, err = Plan("start", &spec, host, "cgroupfs", can)
	require.NoError(t, err)
}
