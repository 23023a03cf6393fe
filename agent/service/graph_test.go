package service

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// graphOf reads "a requires b".
func graphOf(lines ...string) Graph {
	g := Graph{}
	for _, line := range lines {
		var from, relation, to string
		n, _ := fmt.Sscan(line, &from, &relation, &to)
		name := MustName(from)
		if _, there := g[name]; !there {
			g[name] = nil
		}
		if n == 3 {
			r := Relation(slices.Index(relationNames[:], relation))
			g[name] = append(g[name], Edge{name, r, len(g[name]), Need{Service: MustName(to)}})
		}
	}
	return g
}

func TestCycles(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  []string // ways
	}{
		{[]string{"a requires b", "b"}, nil},
		{[]string{"a requires b", "b after c", "c binds a", "d requires a"}, []string{"abc", "bca", "cab"}},
		{[]string{"a requires a"}, []string{"a"}},
		{[]string{"a requires b", "b requires c", "c requires a", "b after a"}, []string{"ab", "ba", "cab"}},
		{[]string{"a requires b", "b requires a", "c requires d", "d requires c", "a after c"}, []string{"ab", "ba", "cd", "dc"}},
	} {
		var got []string
		for _, way := range graphOf(c.lines...).Cycles() {
			text := ""
			for i, e := range way {
				text += e.From.String()
				require.Equal(t, way[(i+1)%len(way)].From, e.Service, "%v", way)
			}
			got = append(got, text)
		}
		require.Equal(t, c.want, got, "%v", c.lines)
	}
}

func TestUnknown(t *testing.T) {
	g := graphOf("a requires b", "a after c", "b requires d")
	d := MustName("d")
	var got []string
	for _, e := range g.Unknown(func(n Name) bool { return n == d }) {
		got = append(got, e.From.String()+" "+e.Field()+" "+e.Service.String())
	}
	require.Equal(t, []string{"a after[1] c"}, got)
	require.Len(t, g.Naming(d), 1)
	require.Len(t, g.Above(MustName("a")), 4)
}

// TestRanksAreAnOrder: what a service names comes before it, and in the reverse order it
// ends after it; a circle is found exactly where there is no such order.
func TestRanksAreAnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "services")
		g := Graph{}
		reaches := make([][]bool, n)
		name := func(i int) Name { return MustName(fmt.Sprintf("s%d", i)) }
		for i := range n {
			g[name(i)], reaches[i] = nil, make([]bool, n)
		}
		for range rapid.IntRange(0, 20).Draw(t, "edges") {
			from, to := rapid.IntRange(0, n-1).Draw(t, "from"), rapid.IntRange(0, n-1).Draw(t, "to")
			relation := Relation(rapid.IntRange(0, int(numRelations)-1).Draw(t, "relation"))
			g[name(from)] = append(g[name(from)], Edge{name(from), relation, len(g[name(from)]), Need{Service: name(to)}})
			reaches[from][to] = true
		}
		for k := range n {
			for i := range n {
				for j := range n {
					reaches[i][j] = reaches[i][j] || reaches[i][k] && reaches[k][j]
				}
			}
		}
		inCircle := map[Name]bool{}
		for _, way := range g.Cycles() {
			inCircle[way[0].From] = true
		}
		for i := range n {
			require.Equal(t, reaches[i][i], inCircle[name(i)], "%v", g)
		}
		if len(inCircle) > 0 {
			g.Ranks() // ends
			return
		}
		ranks := g.Ranks()
		starts := slices.SortedFunc(slices.Values(g.names()), func(a, b Name) int { return ranks[a] - ranks[b] })
		stops := slices.Clone(starts)
		slices.Reverse(stops)
		for _, edges := range g {
			for _, e := range edges {
				require.Less(t, slices.Index(starts, e.Service), slices.Index(starts, e.From))
				require.Less(t, slices.Index(stops, e.From), slices.Index(stops, e.Service))
			}
		}
	})
}

// TestAWaitIsNoFailure walks the ways of one that requires what is not there.
func TestAWaitIsNoFailure(t *testing.T) {
	m := Machine{Policy: RestartPolicy{MaxAttempts: 1}}
	do := func(evs ...Event) []Effect {
		var effects []Effect
		for _, ev := range evs {
			ev.Incarnation = m.Incarnation
			if ev.Kind <= Kill {
				ev.Incarnation = 0
			}
			m, effects = Next(m, ev)
		}
		return effects
	}
	require.Equal(t, []Effect{Disarm, DoNeed}, do(Event{Kind: Start, Lacking: true}))
	require.Equal(t, PublicStarting, m.Public())
	require.Zero(t, m.Incarnation)
	require.Equal(t, []Effect{Disarm, DoLaunch}, do(Event{Kind: Met}))
	for range 5 { // it ends when what it requires has, which may be back by the time that it is cleared
		do(Event{Kind: Launched}, Event{Kind: Ready}, Event{Kind: Exited, Exit: Exit{Code: 1}, Lacking: true}, Event{Kind: Cleared, Exit: Exit{Code: 1}})
		require.Equal(t, Waiting, m.State)
		require.Equal(t, PublicRestarting, m.Public())
		require.Zero(t, m.Failures)
		require.Equal(t, []Effect{Disarm, ArmBackoff}, do(Event{Kind: Met}))
		do(Event{Kind: BackoffOver, Lacking: true})
		require.Equal(t, Waiting, m.State, "it went again")
		do(Event{Kind: Met}, Event{Kind: BackoffOver})
		require.Equal(t, Launching, m.State)
	}
	do(Event{Kind: Launched}, Event{Kind: Unbound}, Event{Kind: Exited}, Event{Kind: Cleared})
	require.Equal(t, Waiting, m.State)
	require.True(t, m.Up)
	do(Event{Kind: Start, Lacking: true}, Event{Kind: Unmet})
	require.Equal(t, Waiting, m.State, "a start that comes to nothing ends no wait that was before")
	do(Event{Kind: Stop}, Event{Kind: Start, Lacking: true}, Event{Kind: Unmet})
	require.Equal(t, Stopped, m.State)
	do(Event{Kind: Start, Lacking: true}, Event{Kind: Unmet, Lacking: true})
	require.Equal(t, Waiting, m.State)
	do(Event{Kind: Stop})
	require.Equal(t, Stopped, m.State)
	require.False(t, m.Up)

	// It may end a moment before what it requires is known to have.
	early := Machine{State: Clearing, Failed: true, Policy: RestartPolicy{MaxAttempts: 3}}
	early, _ = Next(early, Event{Kind: Cleared, Exit: Exit{Code: 1}})
	require.Equal(t, []int{1, 1}, []int{early.Failures, early.Recent})
	early, _ = Next(early, Event{Kind: BackoffOver, Lacking: true})
	require.Equal(t, Waiting, early.State)
	require.Equal(t, []int{0, 0}, []int{early.Failures, early.Recent})

	never := Machine{State: Clearing, Policy: RestartPolicy{When: RestartNever}, Failed: true, Excused: true}
	never, _ = Next(never, Event{Kind: Cleared, Exit: Exit{Code: 1}, Lacking: true})
	require.Equal(t, Crashed, never.State)
}
