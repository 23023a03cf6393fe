package api

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (r *runtime) GetDependencies(_ context.Context, req *gladsheimv1.GetDependenciesRequest) (*gladsheimv1.DependencyGraph, error) {
	all, graph := r.known()
	told := map[service.Name]bool{}
	for _, text := range req.GetServiceNames() {
		st, err := r.find("tell the dependencies of", text)
		if err != nil {
			return nil, err
		}
		if req.GetReverse() {
			maps.Copy(told, graph.Below(st.Name))
		} else {
			maps.Copy(told, graph.Above(st.Name))
		}
	}
	if len(req.GetServiceNames()) == 0 {
		for name := range graph {
			maps.Copy(told, graph.Above(name))
		}
	}
	ranks := graph.Ranks()
	out := &gladsheimv1.DependencyGraph{}
	for _, name := range slices.SortedFunc(maps.Keys(told), service.Name.Compare) {
		node := &gladsheimv1.DependencyNode{ServiceName: name.String(), Rank: uint32(max(0, ranks[name]))}
		if st := all[name]; st != nil {
			node.State, node.Phase, node.WaitingFor = toState(st.Machine).Enum(), st.Machine.State.String(), utf8(st.WaitsFor)
		}
		for _, e := range graph[name] {
			node.Dependencies = append(node.Dependencies, toDependency(e, all[e.Service]))
		}
		out.Services = append(out.Services, node)
	}
	return out, nil
}

// known are all services, and what their definitions say of each other.
func (s *Server) known() (map[service.Name]*service.Status, service.Graph) {
	all, graph := map[service.Name]*service.Status{}, service.Graph{}
	for _, st := range s.agent.List() {
		if all[st.Name] = st; st.Spec != nil {
			graph.Add(st.Spec)
		}
	}
	return all, graph
}

// toDependency needs no tables: relations and conditions have the numbers of the wire
// less one, and a test holds the two together.
func toDependency(e service.Edge, st *service.Status) *gladsheimv1.Dependency {
	out := &gladsheimv1.Dependency{ServiceName: e.Service.String(), Kind: gladsheimv1.DependencyKind(e.Relation) + 1}
	if e.Relation == service.After {
		out.Fulfilled = st == nil || !st.OnItsWay()
		return out
	}
	out.Condition = gladsheimv1.DependencyCondition(e.Condition) + 1
	out.Fulfilled = st != nil && st.Fulfils(e.Condition)
	return out
}

// startTime is how long the start of a service may take by the definitions, with what it
// names started before it, one after the other, and one that still ends waited for.
func (s *Server) startTime(st *service.Status) time.Duration {
	each := func(spec *service.Spec) time.Duration { return spec.StopTime(nil) + spec.StartTime() }
	if len(st.Spec.Edges()) == 0 {
		return each(st.Spec)
	}
	var sum time.Duration
	all, graph := s.known()
	for name := range graph.Above(st.Name) {
		if above := all[name]; above != nil && above.Spec != nil {
			sum += each(above.Spec)
		}
	}
	return sum
}

// stopTime is how long the end of those may take that end with a service, before it does.
func (s *Server) stopTime(st *service.Status) time.Duration {
	var sum time.Duration
	all, graph := s.known()
	for name := range graph.Below(st.Name) {
		if name != st.Name && all[name] != nil && len(all[name].Spec.Binds) > 0 {
			sum += all[name].Spec.StopTime(nil)
		}
	}
	return sum
}
