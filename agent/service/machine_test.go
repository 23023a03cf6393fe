package service

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite golden files")

// exits are the ends that the walk and the fuzzer let a process have.
var exits = []Exit{{}, {Code: 1}, {Signal: 9}, {Unknown: "agent_was_down"}}

// kindsOf are machines in one state that differ in all that rules look at.
func kindsOf(s State) []Machine {
	var out []Machine
	for _, cause := range []Cause{CauseNone, CauseAsked, CauseStartup, CauseHeld, CauseUnbound} {
		for bits := range 1 << 10 {
			is := func(bit int) bool { return bits>>bit&1 == 1 }
			m := Machine{
				State: s, Incarnation: 1, Up: true, Again: is(0), Asked: is(0), Cause: cause, Killing: is(1), Failed: is(2), Unready: is(3),
				ForceKill: is(4), Policy: RestartPolicy{When: RestartOnFailure},
			}
			m.Frozen, m.Spared, m.Once = is(7), is(8), is(9)
			m.Again = m.Again && s != Waiting
			if is(5) {
				m.Policy.MaxAttempts = 1
			}
			if is(6) {
				m.Policy.When = RestartAlways
			}
			if m.Again && cause != CauseAsked || !s.Alive() && (cause != CauseNone || m.Killing) ||
				(m.Frozen || m.Spared) && s != Adopting && s != Starting && s != Running {
				continue // no rule makes one
			}
			out = append(out, m)
		}
	}
	return out
}

// TestGoldenDiagram prints all that may follow from each cell of the machine,
// so that a change of behaviour is a visible diff and the diagram in the docs
// can not go stale.
func TestGoldenDiagram(t *testing.T) {
	var b strings.Builder
	fmt.Fprintln(&b, "stateDiagram-v2")
	fmt.Fprintln(&b, "  [*] --> stopped")
	for s := range numStates {
		var arrows []string // without the events
		events := map[string][]string{}
		for k := range numEvents {
			if table[s][k] == nil {
				continue
			}
			for _, m := range kindsOf(s) {
				for _, exit := range exits {
					for _, flags := range []int{0, 1, 2, 3} {
						permanent, lacking := flags&1 != 0, flags&2 != 0
						// A failure that does not count any more differs from none in Stable alone.
						next, do := Next(m, Event{Kind: k, Exit: exit, Permanent: permanent, Lacking: lacking, Recent: map[bool]int{true: 1}[permanent && k == Stable]})
						arrow := fmt.Sprintf("  %s --> %s: %%s %v\n", s, next.State, do)
						if !slices.Contains(arrows, arrow) {
							arrows = append(arrows, arrow)
						}
						if !slices.Contains(events[arrow], k.String()) {
							events[arrow] = append(events[arrow], k.String())
						}
					}
				}
			}
		}
		for _, arrow := range arrows {
			fmt.Fprintf(&b, arrow, strings.Join(events[arrow], ", "))
		}
	}
	const golden = "testdata/machine.mmd"
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(b.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String(), "the machine changed; run go test ./agent/service -update and copy the diagram into docs/architecture.md")
}

// walk visits every machine reachable within depth events.
func walk(policy RestartPolicy, depth int, visit func(Machine)) {
	walkFrom(Machine{Policy: policy, ForceKill: true}, depth, visit)
}

func walkFrom(first Machine, depth int, visit func(Machine)) {
	seen := map[Machine]bool{}
	var step func(Machine, int)
	step = func(m Machine, depth int) {
		key := m
		key.Incarnation, key.Restarts, key.CleanEnds = 0, 0, 0
		if seen[key] || depth == 0 {
			return
		}
		seen[key] = true
		visit(m)
		for k := range numEvents {
			for _, x := range exits {
				for _, flags := range []int{0, 1, 2} {
					n, _ := Next(m, Event{Kind: k, Incarnation: m.Incarnation, Exit: x, Permanent: flags == 1, Lacking: flags == 2})
					step(n, depth-1)
				}
			}
		}
	}
	step(first, depth)
}

var policies = []RestartPolicy{
	{When: RestartOnFailure, MaxAttempts: 2}, {When: RestartAlways, MaxAttempts: 1}, {When: RestartNever},
}

// oblige plays a world that does what the effects ask for.
func oblige(t require.TestingT, m Machine, do []Effect) Machine {
	for range 16 {
		var ev EventKind
		switch {
		case m.State == Stopped, m.State == Crashed, m.State == Backoff, m.State == Held, m.State == Waiting, m.State == Running:
			return m
		case m.State == Adopting:
			ev = Adopted
		case m.State == Launching:
			ev = Launched
		case m.State == Starting:
			ev = Ready
		case m.State == Stopping:
			ev = Exited
		case m.State == Clearing:
			ev = Cleared
		}
		m, do = Next(m, Event{Kind: ev, Incarnation: m.Incarnation})
	}
	require.Failf(t, "no end", "%+v after %v", m, do)
	return m
}

// TestStopAlwaysEnds: from every reachable machine, a stop that is taken and
// an obliging world lead to Stopped, never to another launch (invariant I5).
func TestStopAlwaysEnds(t *testing.T) {
	for _, policy := range policies {
		visited := 0
		walk(policy, 7, func(m Machine) {
			visited++
			for _, k := range []EventKind{Stop, Kill} {
				if m.Refuses(k) != nil {
					require.Equal(t, Stopped, m.State, "%+v refuses %v", m, k)
					continue
				}
				n, do := Next(m, Event{Kind: k})
				require.False(t, n.Up, "%v in %+v", k, m)
				end := oblige(t, n, do)
				require.Equal(t, Stopped, end.State, "%v in %+v ends in %+v", k, m, end)
				require.Equal(t, m.Incarnation, end.Incarnation, "%v in %+v launches again", k, m)
			}
		})
		require.Greater(t, visited, 20)
	}
}

// TestRefusedEventsChangeNothing: what Refuses refuses, Next ignores; what it
// takes, Next heeds.
func TestRefusedEventsChangeNothing(t *testing.T) {
	walk(policies[0], 6, func(m Machine) {
		for k := Start; k <= Kill; k++ {
			n, do := Next(m, Event{Kind: k})
			if m.Refuses(k) != nil {
				require.Equal(t, m, n)
				require.Empty(t, do)
				continue
			}
			require.False(t, n == m && do == nil && m.Cause != CauseAsked && !m.Again, "%v in %+v is taken and does nothing", k, m)
		}
	})
}

// TestOneIncarnationAtATime: a launch is asked for only when nothing of an
// earlier incarnation can be left (invariant I2).
func TestOneIncarnationAtATime(t *testing.T) {
	for _, policy := range policies {
		walk(policy, 7, func(m Machine) {
			for k := range numEvents {
				n, do := Next(m, Event{Kind: k, Incarnation: m.Incarnation, Exit: Exit{Code: 1}})
				for _, e := range do {
					if e != DoLaunch {
						continue
					}
					require.Equal(t, Launching, n.State)
					if m.Unbegun {
						require.Equal(t, m.Incarnation, n.Incarnation)
					} else {
						require.Equal(t, m.Incarnation+1, n.Incarnation)
					}
					require.False(t, n.Unbegun)
					gone := !m.State.Alive() || (m.State == Clearing && k == Cleared) || k == LaunchFailed
					require.True(t, gone, "%v in %+v launches beside what may live", k, m)
				}
			}
		})
	}
}

func TestStaleNewsIsIgnored(t *testing.T) {
	m := Machine{State: Running, Incarnation: 2}
	n, do := Next(m, Event{Kind: Exited, Incarnation: 1})
	require.Equal(t, m, n)
	require.Empty(t, do)
}

func TestPermanentLaunchFailureIsNotRetried(t *testing.T) {
	m, _ := Next(Machine{Policy: policies[0]}, Event{Kind: Start})
	m, _ = Next(m, Event{Kind: LaunchFailed, Incarnation: 1, Permanent: true})
	require.Equal(t, Crashed, m.State)
}

func TestCrashLoopGivesUp(t *testing.T) {
	m, _ := Next(Machine{Policy: RestartPolicy{MaxAttempts: 2}}, Event{Kind: Start})
	launches := 1
	for range 20 {
		for _, k := range []EventKind{Launched, Ready, Exited, Cleared, BackoffOver} {
			n, _ := Next(m, Event{Kind: k, Incarnation: m.Incarnation, Exit: Exit{Code: 3}, Recent: m.Recent})
			if n.Incarnation != m.Incarnation {
				launches++
			}
			m = n
		}
	}
	require.Equal(t, Crashed, m.State)
	require.Equal(t, 3, launches, "the first launch and two attempts")
	require.EqualValues(t, 2, m.Restarts)
}

func TestStableForgivesFailures(t *testing.T) {
	m := Machine{State: Running, Failures: 2}
	m, _ = Next(m, Event{Kind: Stable})
	require.Zero(t, m.Failures)
}

// Of what is frozen nothing is expected, and nothing it does not do is a failure. When
// it is thawed all begins anew.
func TestNothingIsExpectedOfTheFrozen(t *testing.T) {
	do := func(m Machine, kinds ...EventKind) (Machine, []Effect) {
		var effects []Effect
		for _, k := range kinds {
			var more []Effect
			m, more = Next(m, Event{Kind: k, Incarnation: m.Incarnation})
			effects = append(effects, more...)
		}
		return m, effects
	}
	running, _ := do(Machine{Failures: 1}, Start, Launched, Ready)
	frozen, effects := do(running, Froze)
	require.True(t, frozen.Frozen)
	require.Equal(t, PublicRunning, frozen.Public())
	require.Equal(t, []Effect{Disarm, DoUnprobe}, effects)
	same, effects := do(frozen, Unhealthy, Stable, Ready, StartupOver, Froze)
	require.Equal(t, frozen, same)
	require.Empty(t, effects)
	thawed, effects := do(frozen, Thawed, Thawed)
	require.Equal(t, running, thawed)
	require.Equal(t, []Effect{DoProbe, ArmStable}, effects)

	starting, _ := do(Machine{}, Start, Launched)
	cold, effects := do(starting, Froze, Ready, StartupOver)
	require.Equal(t, Starting, cold.State)
	require.Equal(t, []Effect{Disarm, DoAbort}, effects)
	_, effects = do(cold, Thawed)
	require.Equal(t, []Effect{DoAwait}, effects)

	for _, m := range []Machine{frozen, cold} {
		for _, k := range []EventKind{Stop, Kill, Restart, Exited} {
			n, _ := do(m, k)
			require.False(t, n.Frozen, "%v", k)
		}
		m.State = Adopting
		n, effects := do(m, Adopted)
		require.True(t, n.Frozen)
		require.Empty(t, effects)
		n, _ = do(m, Stop, Adopted)
		require.Equal(t, Stopping, n.State)
		require.False(t, n.Frozen)
	}
}

func TestDelayDoublesUpToItsCap(t *testing.T) {
	p := RestartPolicy{Backoff: time.Second, MaxBackoff: 5 * time.Second}
	for failures, want := range map[int]time.Duration{0: 1, 1: 1, 2: 2, 3: 4, 4: 5, 1000: 5} {
		require.Equal(t, want*time.Second, p.Delay(failures, 0.5), "%d failures", failures)
	}
	require.Zero(t, RestartPolicy{}.Delay(3, 1))
}

// TestPublicStates holds the seven states of the wire against every machine.
func TestPublicStates(t *testing.T) {
	want := map[State][2]Public{ // without and with Again
		Stopped:   {PublicStopped, PublicStopped},
		Adopting:  {PublicUnknown, PublicUnknown},
		Launching: {PublicStarting, PublicStarting},
		Starting:  {PublicStarting, PublicStarting},
		Running:   {PublicRunning, PublicRunning},
		Stopping:  {PublicStopping, PublicRestarting},
		Clearing:  {PublicStopping, PublicRestarting},
		Backoff:   {PublicRestarting, PublicRestarting},
		Crashed:   {PublicCrashed, PublicCrashed},
		Held:      {PublicStopped, PublicStopped},
		Waiting:   {PublicRestarting, PublicRestarting},
	}
	require.Len(t, want, int(numStates))
	for s, p := range want {
		require.Equal(t, p[0], Machine{State: s}.Public(), "%v", s)
		require.Equal(t, p[1], Machine{State: s, Again: true}.Public(), "%v again", s)
	}
}

// TestNextIsTotal throws any events in any order at the machine.
func TestNextIsTotal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := Machine{ForceKill: rapid.Bool().Draw(t, "force"), Policy: policies[rapid.IntRange(0, 2).Draw(t, "policy")]}
		for range rapid.IntRange(0, 60).Draw(t, "length") {
			m = play(t, m, byte(rapid.IntRange(0, 255).Draw(t, "event")))
		}
	})
}

func FuzzNext(f *testing.F) {
	for _, story := range [][]EventKind{
		{Start, Launched, Ready, Exited, Cleared, BackoffOver, Launched},
		{Start, Stop, Launched, Exited, Start, Cleared},
		{Start, Launched, Unhealthy, Ready, Unhealthy, GraceOver, Restart, Exited, Cleared, Kill},
	} {
		script := make([]byte, len(story))
		for i, k := range story {
			script[i] = byte(k) + byte(numEvents)*3 // an exit that is not clean
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		m := Machine{Policy: RestartPolicy{MaxAttempts: 3}, ForceKill: true}
		for _, b := range script {
			m = play(t, m, b)
		}
	})
}

// play lets one event happen and checks what always holds.
func play(t require.TestingT, m Machine, b byte) Machine {
	ev := Event{Kind: EventKind(b % byte(numEvents)), Exit: exits[b>>4%4], Permanent: b&0x80 != 0, Lacking: b&0x40 != 0, Recent: m.Recent}
	if ev.Kind == Adopt && m.State == Stopped { // what lives was started by somebody, whose record says so
		m.Up = true
	}
	n, do := Next(m, ev)
	require.LessOrEqual(t, n.Recent, n.Policy.MaxAttempts+1)
	require.GreaterOrEqual(t, n.Incarnation, m.Incarnation)
	if !n.State.Alive() {
		require.Equal(t, CauseNone, n.Cause)
		require.False(t, n.Again)
	}
	if n.Frozen {
		require.Contains(t, []State{Adopting, Starting, Running}, n.State)
		require.NotEqual(t, CauseUnhealthy, n.Cause, "%v in %+v", ev, m)
	}
	for _, e := range do {
		require.Less(t, e, numEffects)
		if e == DoLaunch { // never beside what may live (invariant I2), nor after a stop (I5)
			gone := !m.State.Alive() || m.State == Clearing && ev.Kind == Cleared || ev.Kind == LaunchFailed
			require.True(t, gone, "%v in %+v launches", ev, m)
			require.True(t, n.Up || m.State == Adopting, "%v in %+v launches what nobody wants", ev, m)
		}
	}
	return n
}

// TestOnlyAStopIsForGood: whatever happens by itself, a reboot brings back what
// somebody started.
func TestOnlyAStopIsForGood(t *testing.T) {
	for _, policy := range policies {
		walk(policy, 7, func(m Machine) {
			for k := range numEvents {
				for _, x := range exits {
					n, _ := Next(m, Event{Kind: k, Incarnation: m.Incarnation, Exit: x})
					if k > Kill && (k != Hold || m.State != Stopped) { // that is a start which has to wait
						require.Equal(t, m.Up, n.Up, "%v in %+v", k, m)
					}
				}
			}
		})
	}
}
