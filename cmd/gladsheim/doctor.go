package main

import (
	"fmt"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps the host from serving well; exit with 1 if something does",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			ctx, cancel := a.question(cmd.Context())
			defer cancel()
			report, err := a.client.Doctor(ctx, &gladsheimv1.DoctorRequest{})
			if err != nil {
				return err
			}
			if err := a.present(report, func() error { return a.showFindings(report.GetFindings()) }); err != nil {
				return err
			}
			for _, f := range report.GetFindings() {
				if f.GetLevel() == gladsheimv1.Finding_LEVEL_PROBLEM {
					return worstOf(exitFailure)
				}
			}
			return nil
		},
	}
}

func (a *app) showFindings(findings []*gladsheimv1.Finding) error {
	counts := map[gladsheimv1.Finding_Level]int{}
	for _, f := range findings {
		counts[f.GetLevel()]++
		s := map[gladsheimv1.Finding_Level]sign{
			gladsheimv1.Finding_LEVEL_OK: signGood, gladsheimv1.Finding_LEVEL_WARNING: signWarning, gladsheimv1.Finding_LEVEL_PROBLEM: signBad,
		}[f.GetLevel()]
		// A symbol alone would not do: see the word.
		level := ""
		if f.GetLevel() != gladsheimv1.Finding_LEVEL_OK {
			level = word(f.GetLevel(), "LEVEL_") + ": "
		}
		fmt.Fprintf(a.out, "%s %s%s\n", a.show(s), level, plain(f.GetTitle()))
		if d := f.GetDetail(); d != "" {
			fmt.Fprintf(a.out, "    %s\n", oneLine(d))
		}
		if fix := f.GetFix(); fix != "" {
			fmt.Fprintf(a.out, "    fix: %s\n", plain(fix))
		}
	}
	_, err := fmt.Fprintf(a.out, "%s, %s\n", plural(counts[gladsheimv1.Finding_LEVEL_PROBLEM], "problem"), plural(counts[gladsheimv1.Finding_LEVEL_WARNING], "warning"))
	return err
}
