package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/client"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) depsCommand() *cobra.Command {
	req := &gladsheimv1.GetDependenciesRequest{}
	c := &cobra.Command{
		Use:               "deps [NAME…]",
		Short:             "Show what services require of each other, and how that stands",
		Args:              anyNames,
		ValidArgsFunction: a.completeNames,
	}
	c.Flags().BoolVar(&req.Reverse, "reverse", false, "who names a service, instead of whom it names")
	c.RunE = func(cmd *cobra.Command, names []string) error {
		req.ServiceNames = names
		if err := a.connect(); err != nil {
			return err
		}
		ctx, cancel := a.question(cmd.Context())
		defer cancel()
		graph, err := a.client.GetDependencies(ctx, req)
		if err != nil {
			return err
		}
		return a.present(graph, func() error { return a.showDeps(graph, names, req.GetReverse()) })
	}
	return c
}

// branch is one service that is named by the one above it in a tree, or names it.
type branch struct {
	name string
	how  *gladsheimv1.Dependency
}

// showDeps draws a tree for each of names or, without one, for each service at the top.
func (a *app) showDeps(graph *gladsheimv1.DependencyGraph, names []string, reverse bool) error {
	nodes, branches, below := map[string]*gladsheimv1.DependencyNode{}, map[string][]branch{}, map[string]bool{}
	for _, n := range graph.GetServices() {
		nodes[n.GetServiceName()] = n
		for _, d := range n.GetDependencies() {
			from, to := n.GetServiceName(), d.GetServiceName()
			if reverse {
				from, to = to, from
			}
			branches[from] = append(branches[from], branch{to, d})
			below[to] = true
		}
	}
	if len(names) == 0 {
		for _, n := range graph.GetServices() {
			if !below[n.GetServiceName()] && len(branches[n.GetServiceName()]) > 0 {
				names = append(names, n.GetServiceName())
			}
		}
	}
	s := &sheet{style: a.style}
	drawn := map[string]bool{}
	var draw func(indent string, of string)
	draw = func(indent, of string) {
		if drawn[of] && len(branches[of]) > 0 {
			fmt.Fprintf(s, "%s└─ (as above)\n", indent)
			return
		}
		drawn[of] = true
		for i, b := range branches[of] {
			mark, next := "├─ ", "│  "
			if i == len(branches[of])-1 {
				mark, next = "└─ ", "   "
			}
			fmt.Fprintf(s, "%s%s%s %s\n", indent, mark, link(b.how), a.standing(b.name, nodes[b.name]))
			draw(indent+next, b.name)
		}
	}
	for _, name := range names {
		fmt.Fprintln(s, a.standing(name, nodes[name]))
		draw("", name)
	}
	if len(names) == 0 {
		fmt.Fprintln(s, "no service names another")
	}
	_, err := fmt.Fprint(a.out, s.String())
	return err
}

// standing is a service and how it stands.
func (a *app) standing(name string, n *gladsheimv1.DependencyNode) string {
	if n == nil || n.State == nil {
		return plain(name) + ": not registered"
	}
	text := fmt.Sprintf("%s %s: %s", a.show(signOf(n.GetState())), plain(name), stateWord(n.GetState()))
	if n.GetWaitingFor() != "" {
		text += ", " + plain(n.GetWaitingFor())
	}
	return text
}

// link is what one says of another, and whether that is so.
func link(d *gladsheimv1.Dependency) string {
	word := func(s, prefix string) string { return strings.ToLower(strings.TrimPrefix(s, prefix)) }
	text := word(d.GetKind().String(), "DEPENDENCY_KIND_")
	if d.GetKind() == gladsheimv1.DependencyKind_DEPENDENCY_KIND_AFTER {
		return text
	}
	text += " " + word(d.GetCondition().String(), "DEPENDENCY_CONDITION_")
	if !d.GetFulfilled() {
		text += " (not yet)"
	}
	return text
}

// waves are services in the order in which they are stopped: those of one wave at once,
// each before all that it names.
func (a *app) waves(ctx context.Context, names []string) ([][]string, error) {
	if len(names) < 2 {
		return [][]string{names}, nil
	}
	graph, err := a.dependencies(ctx)
	if err != nil {
		return nil, err
	}
	ranks := map[string]uint32{}
	for _, n := range graph.GetServices() {
		ranks[n.GetServiceName()] = n.GetRank()
	}
	of := map[uint32][]string{}
	for _, name := range names {
		of[ranks[name]] = append(of[ranks[name]], name)
	}
	var waves [][]string
	for _, rank := range slices.Backward(slices.Sorted(maps.Keys(of))) {
		waves = append(waves, of[rank])
	}
	return waves, nil
}

// dependencies are what all services say of each other, nothing if the agent is an earlier
// one that does not know.
func (a *app) dependencies(ctx context.Context) (*gladsheimv1.DependencyGraph, error) {
	if err := a.connect(); err != nil {
		return nil, err
	}
	ctx, cancel := a.question(ctx)
	defer cancel()
	graph, err := a.client.GetDependencies(ctx, &gladsheimv1.GetDependenciesRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil, nil
	}
	return graph, err
}

// inWaves is each for services that are stopped.
func (a *app) inWaves(ctx context.Context, names []string, verb answers[*gladsheimv1.ServiceStatus]) error {
	waves, err := a.waves(ctx, names)
	if err != nil {
		return err
	}
	worst := exitOK
	for _, wave := range waves {
		err := each(ctx, a, wave, verb)
		if f, told := errors.AsType[*failure](err); err != nil && (!told || f.err != nil || ctx.Err() != nil) {
			return err
		} else if told {
			worst = max(worst, f.code)
		}
	}
	return worstOf(worst)
}

// footings tell of each of names which others of them its start needs to be ready, also by
// way of those that are started for it, and whether it can not be without them. One that
// is to be started alone is none: it may wait for this one itself.
func footings(graph *gladsheimv1.DependencyGraph, names []string) map[string]map[string]bool {
	nodes := map[string]*gladsheimv1.DependencyNode{}
	for _, n := range graph.GetServices() {
		nodes[n.GetServiceName()] = n
	}
	out := map[string]map[string]bool{}
	for _, name := range names {
		needs, seen := map[string]bool{}, map[string]bool{name: true}
		var visit func(of string)
		visit = func(of string) {
			for _, d := range nodes[of].GetDependencies() {
				other, required := d.GetServiceName(), d.GetKind() != gladsheimv1.DependencyKind_DEPENDENCY_KIND_AFTER
				switch {
				case slices.Contains(names, other):
					if other != name && d.GetCondition() != gladsheimv1.DependencyCondition_DEPENDENCY_CONDITION_STARTED {
						needs[other] = needs[other] || required
					}
				case required && !seen[other]:
					seen[other] = true
					visit(other)
				}
			}
		}
		visit(name)
		out[name] = needs
	}
	return out
}

// inOrder is each for services that are started: each is asked for when those of them have
// answered that it needs, and not at all when one that it requires is not ready.
func (a *app) inOrder(ctx context.Context, names []string, verb answers[*gladsheimv1.ServiceStatus]) error {
	if len(names) < 2 {
		return each(ctx, a, names, verb)
	}
	graph, err := a.dependencies(ctx)
	if err != nil {
		return err
	}
	needs := footings(graph, names)
	type answer struct {
		came chan struct{}
		err  error
	}
	var order []string
	heard := map[string]*answer{}
	var visit func(string)
	visit = func(name string) {
		if heard[name] != nil {
			return
		}
		heard[name] = &answer{came: make(chan struct{})}
		for _, other := range slices.Sorted(maps.Keys(needs[name])) {
			visit(other)
		}
		order = append(order, name)
	}
	for _, name := range names {
		visit(name)
	}
	ask := verb.ask
	verb.ask = func(ctx context.Context, name string) (st *gladsheimv1.ServiceStatus, err error) {
		own := heard[name]
		defer func() { own.err = err; close(own.came) }()
		for _, other := range slices.Sorted(maps.Keys(needs[name])) {
			<-heard[other].came
			if err := heard[other].err; needs[name][other] && err != nil && client.KindOf(err) != service.AlreadyRunning {
				return nil, &failure{exitFailure, fmt.Errorf("cannot start %s: it requires %s, which is not ready", name, other)}
			}
		}
		return ask(ctx, name)
	}
	return each(ctx, a, order, verb)
}
