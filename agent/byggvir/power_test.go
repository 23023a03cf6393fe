package byggvir

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gladsheim/gladsheim/agent/service"
)

var alfheim = PowerPolicy{StopBelow: 15, ReduceBelow: 30}

func drains(percent float64) service.Power {
	return service.Power{Battery: true, Draining: true, Percent: percent}
}

func charges(percent float64) service.Power { return service.Power{Battery: true, Percent: percent} }

func TestPowerPolicy(t *testing.T) {
	now := time.Now()
	var b Battery
	for _, step := range []struct {
		after time.Duration
		power service.Power
		want  service.PowerLevel
		wait  time.Duration
	}{
		{0, charges(10), service.PowerFull, 0},
		{0, drains(100), service.PowerFull, 0},
		{0, drains(30), service.PowerFull, 0},
		{0, drains(29.9), service.PowerReduced, 0},
		{0, drains(35), service.PowerReduced, 0},
		{0, drains(35.1), service.PowerFull, 0},
		{0, drains(20), service.PowerReduced, 0},
		{0, drains(15), service.PowerReduced, 0},
		{0, drains(14), service.PowerLow, 0},
		{0, drains(20), service.PowerLow, 0},
		{0, drains(21), service.PowerReduced, 0},
		{0, drains(5), service.PowerLow, 0},
		{0, charges(5), service.PowerLow, settled},
		{settled - time.Second, charges(6), service.PowerLow, time.Second},
		{0, drains(6), service.PowerLow, 0}, // the plug was loose
		{time.Hour, charges(6), service.PowerLow, settled},
		{settled, charges(7), service.PowerFull, 0},
		{0, drains(7), service.PowerLow, 0}, // and that is a crossing again
		{0, service.Power{}, service.PowerLow, settled},
		{settled, service.Power{}, service.PowerFull, 0}, // the battery was taken out
	} {
		now = now.Add(step.after)
		var wait time.Duration
		b, wait = alfheim.Next(b, step.power, now)
		require.Equal(t, step.want, b.Level, "%v at %v", step.power, now)
		require.Equal(t, step.wait, wait)
	}
}

// An agent that comes back goes on from the level of the one before.
func TestPowerPolicyAfterAnEnd(t *testing.T) {
	b, wait := alfheim.Next(Battery{Level: service.PowerLow}, charges(50), time.Now())
	require.Equal(t, service.PowerLow, b.Level)
	require.Equal(t, settled, wait)
	b, _ = alfheim.Next(Battery{Level: service.PowerLow}, drains(18), time.Now())
	require.Equal(t, service.PowerLow, b.Level)
}

func TestPowerPolicyLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := PowerPolicy{StopBelow: rapid.IntRange(0, 100).Draw(t, "stop"), ReduceBelow: rapid.IntRange(0, 100).Draw(t, "reduce")}
		var b Battery
		now := time.Now()
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			power := service.Power{
				Battery: rapid.Bool().Draw(t, "battery"), Draining: rapid.Bool().Draw(t, "draining"), Percent: rapid.Float64Range(0, 100).Draw(t, "percent"),
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "seconds")) * time.Second)
			next, wait := p.Next(b, power, now)
			again, _ := p.Next(next, power, now)
			require.Equal(t, next, again, "nothing follows from looking twice")
			if next.Level > b.Level {
				require.True(t, power.Battery && power.Draining, "more is saved on battery alone")
			}
			if power.Battery && power.Draining && power.Percent < float64(p.StopBelow) {
				require.Equal(t, service.PowerLow, next.Level)
			}
			if p.StopBelow == 0 {
				require.NotEqual(t, service.PowerLow, next.Level)
			}
			if wait > 0 {
				require.NotZero(t, next.Level)
				after, wait := p.Next(next, power, now.Add(wait))
				require.Equal(t, service.PowerFull, after.Level, "it comes back by itself")
				require.Zero(t, wait)
			}
			b = next
		}
	})
}

func TestSacrifice(t *testing.T) {
	spec := func(name string, class service.PowerClass, priority int) *service.Spec {
		return &service.Spec{Name: service.MustName(name), Power: class, StartPriority: priority}
	}
	var names []string
	for _, s := range Sacrifice([]*service.Spec{
		spec("a", service.PowerClassNormal, 500), spec("b", service.PowerClassDeferrable, 900), spec("c", service.PowerClassEssential, 0),
		spec("d", service.PowerClassNormal, 100), spec("e", service.PowerClassDeferrable, 500), spec("f", service.PowerClassNormal, 500),
	}) {
		names = append(names, s.Name.String())
	}
	require.Equal(t, []string{"e", "b", "d", "a", "f"}, names)
	require.True(t, Saves(service.PowerLow, service.PowerClassNormal))
	require.False(t, Saves(service.PowerLow, service.PowerClassEssential))
	require.False(t, Saves(service.PowerReduced, service.PowerClassDeferrable))
}
