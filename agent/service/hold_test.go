package service

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestHoldIsNoFailure: what is held for the battery from any machine comes to Held,
// wanted as before, and nothing is spent for it.
func TestHoldIsNoFailure(t *testing.T) {
	for _, policy := range policies {
		walk(policy, 7, func(m Machine) {
			if m.State == Stopped || m.State == Clearing || m.Cause != CauseNone || table[m.State][Hold] == nil {
				return
			}
			n, do := Next(m, Event{Kind: Hold})
			n = oblige(t, n, do)
			require.Equal(t, Held, n.State, "%+v", m)
			require.Equal(t, m.Failures, n.Failures)
			require.Equal(t, m.Restarts, n.Restarts)
			require.Equal(t, m.Incarnation, n.Incarnation)
			n, do = Next(n, Event{Kind: BackoffOver})
			require.Equal(t, Held, n.State, "nothing brings it back but a start")
			require.Empty(t, do)
			n, _ = Next(n, Event{Kind: Stop})
			require.Equal(t, Stopped, n.State)
			require.False(t, n.Up, "and what is stopped meanwhile stays so")
		})
	}
}

// TestHoldDuringAnEnd: whatever has a service end already, once it is held nothing is
// launched by itself; the end is what it was, and what would not have come back does not.
func TestHoldDuringAnEnd(t *testing.T) {
	for _, policy := range policies {
		walk(policy, 8, func(m Machine) {
			if m.State != Stopping && m.State != Clearing && (m.State != Adopting || m.Cause == CauseNone) {
				return
			}
			n, do := Next(m, Event{Kind: Hold})
			require.Equal(t, m.Up, n.Up)
			without := m
			without.Again = false
			end, held := oblige(t, without, nil), oblige(t, n, do)
			want := end.State
			if want == Backoff || want == Waiting || m.Again {
				want = Held
			}
			require.Equal(t, want, held.State, "%+v", m)
			require.Equal(t, m.Incarnation, held.Incarnation)
			require.False(t, held.Holding)
			if !m.Again {
				require.Equal(t, end.Failures, held.Failures, "%+v", m)
			}
			for kind, state := range map[EventKind]State{Start: Running, Restart: Running, Stop: Stopped, Kill: Stopped} {
				if n.Refuses(kind) == nil {
					wish, do := Next(n, Event{Kind: kind})
					require.Equal(t, state, oblige(t, wish, do).State, "%v in %+v", kind, n)
				}
			}
		})
	}
}

// TestHoldAndTheUser: a wish that comes while it is being held counts more.
func TestHoldAndTheUser(t *testing.T) {
	holding, _ := Next(Machine{State: Running, Incarnation: 1, Up: true}, Event{Kind: Hold})
	for kind, want := range map[EventKind]State{Start: Running, Restart: Running, Stop: Stopped, Kill: Stopped} {
		n, do := Next(holding, Event{Kind: kind})
		require.Equal(t, want, oblige(t, n, do).State, "%v", kind)
	}
	n, _ := Next(Machine{State: Stopped}, Event{Kind: Hold})
	require.Equal(t, Machine{State: Held, Up: true}, n, "a start that has to wait")
}

// TestSparedUntilThawed: what is frozen to save the battery is known as that until it is
// thawed or ends, whoever does it, and what somebody else froze never is.
func TestSparedUntilThawed(t *testing.T) {
	next := func(m Machine, kinds ...EventKind) Machine {
		for _, k := range kinds {
			m, _ = Next(m, Event{Kind: k, Incarnation: m.Incarnation})
		}
		return m
	}
	running := next(Machine{}, Start, Launched, Ready)
	spared := next(running, Spare, Froze)
	require.True(t, spared.Spared)
	require.True(t, spared.Frozen)
	require.Equal(t, PublicRunning, spared.Public())
	require.Equal(t, running, next(spared, Thawed))
	require.False(t, next(running, Froze, Spare).Spared)
	for _, k := range []EventKind{Stop, Kill, Restart, Exited, Hold} {
		require.False(t, next(spared, k).Spared, "%v", k)
	}
	require.Equal(t, running, next(running, Spare, Unspare), "it came to nothing")
	require.Equal(t, next(running, Froze), next(spared, Unspare), "somebody else wants it so, too")
	spared.State = Adopting
	require.True(t, next(spared, Adopted).Spared)
	require.False(t, next(spared, Adopted, Thawed).Spared)
}

// TestTheSparedAreHeld: whatever ends what is frozen to save the battery, or is about to be,
// nothing is launched after it until somebody starts it, be it on AC; a wish counts more.
func TestTheSparedAreHeld(t *testing.T) {
	for _, policy := range policies {
		walk(policy, 7, func(m Machine) {
			if m.State != Running || !m.Spared {
				return
			}
			for _, k := range []EventKind{Unbound, Unhealthy, Exceeded, Exited} {
				for _, x := range exits {
					n, do := Next(m, Event{Kind: k, Incarnation: m.Incarnation, Exit: x})
					if n == m {
						continue
					}
					n = oblige(t, n, do)
					require.Contains(t, []State{Held, Stopped, Crashed}, n.State, "%v in %+v", k, m)
					require.Equal(t, m.Incarnation, n.Incarnation)
					require.Equal(t, m.Up, n.Up)
					require.False(t, n.Holding)
				}
			}
			for k, want := range map[EventKind]State{Restart: Running, Stop: Stopped, Kill: Stopped} {
				n, do := Next(m, Event{Kind: k})
				require.Equal(t, want, oblige(t, n, do).State)
			}
		})
	}
	spared := Machine{State: Running, Incarnation: 1, Up: true, Spared: true, Frozen: true, Policy: policies[0]}
	n, do := Next(spared, Event{Kind: Unbound})
	require.Equal(t, Held, oblige(t, n, do).State)
	spared.State = Adopting
	n, do = Next(spared, Event{Kind: Exited, Exit: Exit{Signal: 9}})
	require.Equal(t, Held, oblige(t, n, do).State, "it ended when no agent was there")
}
