package service

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDoneIsAJobThatEndedWell: from every machine that does a job, Done is told of one
// whose end was clean and of which nothing is left, and of no other.
func TestDoneIsAJobThatEndedWell(t *testing.T) {
	done := 0
	for _, policy := range policies {
		if policy.When == RestartAlways {
			continue // no oneshot has it
		}
		walkFrom(Machine{Policy: policy, ForceKill: true, Once: true}, 8, func(m Machine) {
			if m.Done {
				done++
				require.Equal(t, Stopped, m.State, "%+v", m)
			}
			for k := range numEvents {
				for _, x := range exits {
					n, do := Next(m, Event{Kind: k, Incarnation: m.Incarnation, Exit: x})
					if n.Done && !m.Done {
						require.Equal(t, Clearing, m.State)
						require.Equal(t, Cleared, k)
						require.False(t, m.Failed, "%+v", m)
						require.Equal(t, CauseNone, m.Cause)
						require.False(t, n.Up, "a reboot would run it again")
					}
					require.NotContains(t, do, ArmStable, "a job has no failures to be forgiven while it runs")
				}
			}
		})
	}
	require.Positive(t, done)
}

// TestPausedUntilSomebodyStartsIt: a schedule rests from a stop to the next start that
// somebody asks for; nothing that happens by itself ends that.
func TestPausedUntilSomebodyStartsIt(t *testing.T) {
	walkFrom(Machine{Policy: policies[0], ForceKill: true, Once: true}, 6, func(m Machine) {
		n, do := Next(m, Event{Kind: Pause})
		require.True(t, n.Paused, "%+v", m)
		require.Empty(t, do)
		n.Paused = m.Paused
		require.Equal(t, m, n, "and nothing else")
		for k := range numEvents {
			n, _ := Next(m, Event{Kind: k, Incarnation: m.Incarnation})
			switch {
			case k == Pause:
			case k == Start || k == Restart:
				require.True(t, !n.Paused || m.Refuses(k) != nil, "%v in %+v", k, m)
			case !(m.Again && m.Asked): // else somebody has asked for a start already
				require.Equal(t, m.Paused, n.Paused, "%v in %+v", k, m)
			}
		}
	})
}
