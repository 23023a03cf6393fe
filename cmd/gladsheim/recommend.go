package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) recommendCommand() *cobra.Command {
	var since string
	c := &cobra.Command{
		Use:   "recommend NAME…",
		Short: "Tell which limits would fit what services used",
		Long: `Tell which limits would fit what services used, and what that goes by. Nothing is
changed.

It goes by the history of services whose definition has "usage_history": true, and says
how far it is to be trusted: a service that was looked at for less than an hour, or that
has run into a limit, may need more. Page cache that the kernel takes back first is no
need, and not counted; memory_max is the most that was held and 5 % more, memory_high
what it holds nearly always, unless it needs far more at times. cpu_percent is 10 % above
what its busiest second had in 95 of 100 samples, pids_max half above the peak. After a
change of the program, --since leaves out what was before.`,
		Example: `  gladsheim recommend web
  gladsheim recommend web --since 2h -o json`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, names []string) error {
			from := int64(0)
			if since != "" {
				at, err := a.parseSince(since)
				if err != nil {
					return err
				}
				from = at.UnixMilli()
			}
			return each(cmd.Context(), a, names, answers[*gladsheimv1.Recommendation]{
				ask: func(ctx context.Context, name string) (*gladsheimv1.Recommendation, error) {
					ctx, cancel := a.question(ctx)
					defer cancel()
					return a.client.Recommend(ctx, &gladsheimv1.RecommendRequest{ServiceName: name, SinceUnixMs: from})
				},
				show: a.showRecommendation,
			})
		},
	}
	c.Flags().StringVar(&since, "since", "", "by what was used since then alone: 2h, or 2026-11-22T03:41:10Z")
	return c
}

func (a *app) showRecommendation(r *gladsheimv1.Recommendation) error {
	step := time.Duration(r.GetStepMs()) * time.Millisecond
	fmt.Fprintf(a.out, "%s, by %s of %gs since %s\n", plain(r.GetServiceName()), plural(int(r.GetSamples()), "sample"), step.Seconds(), moment(fromMillis(r.GetSinceUnixMs())))
	fmt.Fprintf(a.out, "Confidence: %s\n", plain(and(word(r.GetConfidence(), "CONFIDENCE_"), in(r.GetDoubt()))))
	t := &table{style: a.style}
	t.add(noSign, "LIMIT", "NOW", "RECOMMENDED", "WHY")
	var pairs, lacking []string
	for _, l := range r.GetLimits() {
		now := limit(l.GetName(), l.Current)
		switch {
		case !l.GetEnforced():
			lacking = append(lacking, l.GetName())
		case now != l.GetValue() && !(now == "" && l.GetValue() == "max"):
			pairs = append(pairs, l.GetName()+"="+l.GetValue())
		}
		t.add(noSign, l.GetName(), now, l.GetValue(), l.GetWhy())
	}
	if err := t.write(a.out); err != nil {
		return err
	}
	if err := a.showEvidence(r.GetEvidence()); err != nil {
		return err
	}
	switch {
	case len(pairs) > 0:
		fmt.Fprintf(a.out, "To set it until the definition changes: gladsheim set %s %s\n", plain(r.GetServiceName()), plain(strings.Join(pairs, " ")))
	case len(lacking) == 0:
		fmt.Fprintln(a.out, "It is as recommended.")
	}
	if len(lacking) > 0 {
		fmt.Fprintf(a.out, "Not enforced by this host: %s\n", plain(strings.Join(lacking, ", ")))
	}
	return nil
}

func (a *app) showEvidence(e *gladsheimv1.UsageEvidence) error {
	t := &table{style: a.style}
	seen := func(what string, parts ...string) {
		var known []string
		for i := 0; i < len(parts); i += 2 {
			if parts[i+1] != "" {
				known = append(known, parts[i]+" "+parts[i+1])
			}
		}
		if len(known) > 0 {
			t.add(noSign, what, strings.Join(known, ", "))
		}
	}
	seen("memory held", "peak", maybe(e.HeldPeakBytes, bytesOf), "p95", maybe(e.HeldP95Bytes, bytesOf))
	seen("with all page cache", "peak", maybe(e.MemoryPeakBytes, bytesOf), "the kernel's of this instance", maybe(e.KernelPeakBytes, bytesOf))
	seen("CPU", "mean", maybe(e.CpuPercent, percent), "busiest second p95", maybe(e.CpuP95Percent, percent), "peak", maybe(e.CpuPeakPercent, percent),
		"throttled", maybe(e.ThrottledPercent, percent))
	seen("tasks", "peak", maybe(e.PidsPeak, number))
	seen("stalled", "memory", maybe(e.MemoryPressurePercent, percent), "CPU", maybe(e.CpuPressurePercent, percent), "disks", maybe(e.IoPressurePercent, percent))
	seen("OOM kills", "in all", maybe(e.OomKills, number))
	return t.write(a.out)
}
