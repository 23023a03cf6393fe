package main

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) historyCommand() *cobra.Command {
	var exits bool
	var count uint32
	c := &cobra.Command{
		Use:               "history NAME…",
		Short:             "Show how services ended, latest first",
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
	}
	c.Flags().BoolVar(&exits, "exits", true, "the exit records, which are all the history there is")
	c.Flags().Uint32VarP(&count, "lines", "n", 0, "how many at most; 0 for all that are kept")
	c.RunE = func(cmd *cobra.Command, names []string) error {
		type named struct {
			*gladsheimv1.ExitHistory
			name string
		}
		return each(cmd.Context(), a, names, answers[named]{
			ask: func(ctx context.Context, name string) (named, error) {
				ctx, cancel := a.question(ctx)
				defer cancel()
				h, err := a.client.ListExits(ctx, &gladsheimv1.ListExitsRequest{ServiceName: name, Limit: count})
				return named{h, name}, err
			},
			show: func(h named) error { return a.showExits(h.name, h.GetExits()) },
		})
	}
	return c
}

func (a *app) showExits(name string, exits []*gladsheimv1.ExitRecord) error {
	if len(exits) == 0 {
		_, err := fmt.Fprintf(a.out, "no end of %s is kept\n", plain(name))
		return err
	}
	t := &table{style: a.style, signed: true}
	t.add(noSign, "SERVICE", "RUN", "ENDED", "AFTER", "HOW", "VERDICT", "PEAK", "CPU TIME", "THROTTLED", "ASKED BY", "LEFT OVER")
	for _, x := range exits {
		ended := fromMillis(x.GetEndedUnixMs())
		t.add(signOfVerdict(x.GetVerdict()), name, number(x.GetIncarnation()), ago(a.now(), ended),
			span(ended.Sub(fromMillis(x.GetStartedUnixMs()))), how(x), verdictWord(x), maybe(x.MemoryPeakBytes, bytesOf),
			maybe(x.CpuTimeUsec, usecOf), maybe(x.ThrottledUsec, usecOf), x.GetRequestedBy(), leftOver(x))
	}
	return t.write(a.out)
}

// how an instance ended: a code, a signal, or unknown with the reason.
func how(x *gladsheimv1.ExitRecord) string {
	switch {
	case x.UnknownReason != nil:
		return "unknown (" + x.GetUnknownReason() + ")"
	case x.Signal != nil:
		text := service.SignalName(syscall.Signal(x.GetSignal()))
		if x.GetCoreDumped() {
			text += ", core dumped"
		}
		return text
	case x.ExitCode != nil:
		return fmt.Sprintf("exit code %d", x.GetExitCode())
	}
	return "never ran"
}

// verdictWord is why it ended, "" when nobody judged.
func verdictWord(x *gladsheimv1.ExitRecord) string {
	if x.GetVerdict() == gladsheimv1.Verdict_VERDICT_UNSPECIFIED {
		return ""
	}
	return strings.NewReplacer("oom", "OOM", "own limit", "own-limit").Replace(word(x.GetVerdict(), "VERDICT_"))
}

// ended is how and why in one.
func ended(x *gladsheimv1.ExitRecord) string {
	if verdict := verdictWord(x); verdict != "" {
		return how(x) + " (" + verdict + ")"
	}
	return how(x)
}

func leftOver(x *gladsheimv1.ExitRecord) string {
	var parts []string
	if n := x.GetLeftoversKilled(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d killed", n))
	}
	if x.GetKilledAfterTimeout() {
		parts = append(parts, "outlived its stop timeout")
	}
	return strings.Join(parts, ", ")
}

func signOfVerdict(v gladsheimv1.Verdict) sign {
	switch v {
	case gladsheimv1.Verdict_VERDICT_CLEAN, gladsheimv1.Verdict_VERDICT_STOPPED:
		return signOff
	case gladsheimv1.Verdict_VERDICT_UNSPECIFIED:
		return signBusy
	}
	return signBad
}
