package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) limitsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "limits NAME…",
		Short: "Show what limits services have, as the kernel holds them",
		Long: `Show what limits services have, as the kernel holds them.

ASKED is what the definition or a request wants, HELD what was read back from the
kernel, and EFFECTIVE the tightest of it and of everything above it.`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			var told bool
			// The answer does not say whose limits it holds.
			type named struct {
				*gladsheimv1.ResourceLimits
				name string
			}
			return each(cmd.Context(), a, names, answers[named]{
				ask: func(ctx context.Context, name string) (named, error) {
					ctx, cancel := a.question(ctx)
					defer cancel()
					l, err := a.client.GetResourceLimits(ctx, &gladsheimv1.ServiceRequest{ServiceName: name})
					return named{l, name}, err
				},
				show: func(l named) error {
					if len(names) > 1 {
						if told {
							fmt.Fprintln(a.out)
						}
						told = true
						fmt.Fprintf(a.out, "%s:\n", plain(l.name))
					}
					return a.limitTable(l.GetReports(), nil)
				},
			})
		},
	}
}

// limitTable shows the reports; of those in only, if there are any.
func (a *app) limitTable(reports []*gladsheimv1.LimitReport, only map[string]bool) error {
	t := &table{style: a.style}
	t.add(noSign, "LIMIT", "ASKED", "HELD", "EFFECTIVE", "SET BY", "ENFORCED")
	for _, r := range reports {
		if only != nil && !only[r.GetName()] {
			continue
		}
		name, enforced := r.GetName(), "yes"
		s := noSign
		if !r.GetEnforced() {
			if enforced = "no"; r.Requested != nil {
				s, enforced = signBad, "no: "+r.GetReason()
			}
		}
		t.add(s, name, limit(name, r.Requested), limit(name, r.Applied), limit(name, r.Effective), r.GetSetBy(), enforced)
	}
	return t.write(a.out)
}
