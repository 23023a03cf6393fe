package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) limitsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "limits NAME…",
		Short: "Show what limits services have, as the kernel holds them",
		Long: `Show what limits services have, as the kernel holds them.

ASKED is what the definition or a request wants, HELD what was read back from the
kernel, and EFFECTIVE the tightest of it and of everything above it; SET BY is the cgroup
above that makes it tighter. ENFORCED says whether this host enforces such a limit, and
why not what was asked for. INSTEAD is there when the agent holds a service to something else for now, by the enforcement of its definition.
AT RESTART is there when a restart would ask for something else: the definition or the
defaults have changed.`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			head := a.headings(names)
			return each(cmd.Context(), a, names, answers[limitsOf]{
				ask: func(ctx context.Context, name string) (limitsOf, error) {
					ctx, cancel := a.question(ctx)
					defer cancel()
					l, err := a.client.GetResourceLimits(ctx, &gladsheimv1.ServiceRequest{ServiceName: name})
					return limitsOf{l, name}, err
				},
				show: func(l limitsOf) error {
					head(l.name)
					if err := a.limitTable(l.GetReports(), nil); err != nil {
						return err
					}
					for _, name := range l.GetFoughtOver() {
						fmt.Fprintf(a.out, "somebody fights over %s: it is not set back any more; see gladsheim doctor\n", plain(name))
					}
					return nil
				},
			})
		},
	}
}

// limitsOf is limits with the name of their service, which they do not say.
type limitsOf struct {
	*gladsheimv1.ResourceLimits
	name string
}

// headings is what says whose the next table is, if there are several.
func (a *app) headings(names []string) func(string) {
	var told bool
	return func(name string) {
		if len(names) < 2 {
			return
		}
		if told {
			fmt.Fprintln(a.out)
		}
		told = true
		fmt.Fprintf(a.out, "%s:\n", plain(name))
	}
}

// limitTable shows the reports; of those in only, if there are any.
func (a *app) limitTable(reports []*gladsheimv1.LimitReport, only map[string]bool) error {
	t := &table{style: a.style}
	differs := slices.ContainsFunc(reports, func(r *gladsheimv1.LimitReport) bool { return r.AtRestart != nil || r.AtRestartText != nil })
	shown := func(r *gladsheimv1.LimitReport) bool { return only == nil || only[r.GetName()] }
	throttled := slices.ContainsFunc(reports, func(r *gladsheimv1.LimitReport) bool { return shown(r) && r.Instead != nil })
	row := func(s sign, instead, restart string, cells ...string) {
		if throttled {
			cells = append(cells, instead)
		}
		if differs {
			cells = append(cells, restart)
		}
		t.add(s, cells...)
	}
	row(noSign, "INSTEAD", "AT RESTART", "LIMIT", "ASKED", "HELD", "EFFECTIVE", "SET BY", "ENFORCED")
	for _, r := range reports {
		if !shown(r) {
			continue
		}
		name, enforced := r.GetName(), "yes"
		s := noSign
		if !r.GetEnforced() {
			if enforced = "no"; r.Requested != nil || r.RequestedText != nil {
				s, enforced = signBad, "no: "+r.GetReason()
			}
		}
		row(s, limit(name, r.Instead), limit(name, r.AtRestart)+r.GetAtRestartText(), name, limit(name, r.Requested)+r.GetRequestedText(), limit(name, r.Applied)+r.GetAppliedText(),
			limit(name, r.Effective)+r.GetEffectiveText(), r.GetSetBy(), enforced) // one of each two is absent
	}
	return t.write(a.out)
}
