package service

import (
	"maps"
	"slices"
	"strings"
)

// Graph is what services say of each other.
type Graph map[Name][]Edge

// Add adds a service with what it says of others.
func (g Graph) Add(s *Spec) { g[s.Name] = s.Edges() }

// names are the services in order.
func (g Graph) names() []Name { return slices.SortedFunc(maps.Keys(g), Name.Compare) }

// Unknown are the edges to what is not in the graph and not known otherwise, in the
// order of their services.
func (g Graph) Unknown(known func(Name) bool) (edges []Edge) {
	for _, name := range g.names() {
		for _, e := range g[name] {
			if _, here := g[e.Service]; !here && !known(e.Service) {
				edges = append(edges, e)
			}
		}
	}
	return edges
}

// Cycles are the services that come before themselves, each with the shortest way back
// to itself, in the order of their names.
func (g Graph) Cycles() (ways [][]Edge) {
	circle := g.circles()
	for _, name := range g.names() {
		if circle[name] == 0 {
			continue
		}
		if way := g.wayBack(name, circle); way != nil {
			ways = append(ways, way)
		}
	}
	return ways
}

// circles numbers the services by what they can reach and are reached by (Tarjan); those
// that are alone have no number.
func (g Graph) circles() map[Name]int {
	var (
		index, low = map[Name]int{}, map[Name]int{}
		open       []Name
		isOpen     = map[Name]bool{}
		circle     = map[Name]int{}
		visit      func(Name)
	)
	visit = func(n Name) {
		index[n] = len(index) + 1
		low[n] = index[n]
		open, isOpen[n] = append(open, n), true
		for _, e := range g[n] {
			switch _, here := g[e.Service]; {
			case !here:
			case index[e.Service] == 0:
				visit(e.Service)
				low[n] = min(low[n], low[e.Service])
			case isOpen[e.Service]:
				low[n] = min(low[n], index[e.Service])
			}
		}
		if low[n] != index[n] {
			return
		}
		at := slices.Index(open, n)
		members := open[at:]
		for _, m := range members {
			isOpen[m] = false
			if len(members) > 1 || slices.ContainsFunc(g[m], func(e Edge) bool { return e.Service == m }) {
				circle[m] = index[n]
			}
		}
		open = open[:at]
	}
	for _, name := range g.names() {
		if index[name] == 0 {
			visit(name)
		}
	}
	return circle
}

// wayBack is the shortest way from a service back to itself.
func (g Graph) wayBack(name Name, circle map[Name]int) []Edge {
	came := map[Name]Edge{}
	for queue := []Name{name}; len(queue) > 0; queue = queue[1:] {
		for _, e := range g[queue[0]] {
			if circle[e.Service] != circle[name] {
				continue
			}
			if _, seen := came[e.Service]; seen {
				continue
			}
			came[e.Service] = e
			if e.Service != name {
				queue = append(queue, e.Service)
				continue
			}
			way := []Edge{e}
			for way[0].From != name {
				way = slices.Insert(way, 0, came[way[0].From])
			}
			return way
		}
	}
	return nil
}

// Ranks say in which order services come up: each after all that it names, those of one
// rank at once. They end in the reverse order.
func (g Graph) Ranks() map[Name]int {
	ranks := map[Name]int{}
	var rank func(Name) int
	rank = func(n Name) int {
		if r, known := ranks[n]; known {
			return r
		}
		ranks[n] = 0 // of what is in a circle as well, which ends there
		r := 0
		for _, e := range g[n] {
			r = max(r, rank(e.Service)+1)
		}
		ranks[n] = r
		return r
	}
	for _, name := range g.names() {
		rank(name)
	}
	return ranks
}

// Above are a service and all that it names, directly or not.
func (g Graph) Above(name Name) map[Name]bool {
	seen := map[Name]bool{}
	var visit func(Name)
	visit = func(n Name) {
		if seen[n] {
			return
		}
		seen[n] = true
		for _, e := range g[n] {
			visit(e.Service)
		}
	}
	visit(name)
	return seen
}

// Naming are the edges that lead to a service, in the order of theirs.
func (g Graph) Naming(name Name) (edges []Edge) {
	for _, from := range g.names() {
		for _, e := range g[from] {
			if e.Service == name {
				edges = append(edges, e)
			}
		}
	}
	return edges
}

// Compare orders names as texts.
func (n Name) Compare(o Name) int { return strings.Compare(n.text, o.text) }

// Below are a service and all that name it, directly or not.
func (g Graph) Below(name Name) map[Name]bool {
	reverse := Graph{}
	for from, edges := range g {
		for _, e := range edges {
			reverse[e.Service] = append(reverse[e.Service], Edge{From: e.Service, Need: Need{Service: from}})
		}
	}
	return reverse.Above(name)
}
