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
	var exits, crashes bool
	var count uint32
	var crash uint64
	c := &cobra.Command{
		Use:   "history NAME…",
		Short: "Show how services ended, latest first",
		Long: `Show how services ended, latest first: the exit record of each instance.

With --crashes the ways in which they failed: ends that are alike, by their
fingerprint, are one. With --crash RUN all that is known of one end: --crash 17 of
that of instance 17, which the column RUN tells.`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
	}
	c.Flags().BoolVar(&exits, "exits", true, "the exit records; this is the default")
	c.Flags().BoolVar(&crashes, "crashes", false, "the ways in which they failed")
	c.Flags().Uint64Var(&crash, "crash", 0, "everything about the end of this `RUN`")
	c.Flags().Uint32VarP(&count, "lines", "n", 0, "how many at most; 0 for all that are kept")
	c.MarkFlagsMutuallyExclusive("exits", "crashes", "crash")
	c.MarkFlagsMutuallyExclusive("lines", "crash")
	c.RunE = func(cmd *cobra.Command, names []string) error {
		switch {
		case crashes:
			return a.historyOfCrashes(cmd.Context(), names, int(count))
		case cmd.Flags().Changed("crash"):
			return a.reportCrashes(cmd.Context(), names, crash)
		}
		return a.historyOfExits(cmd.Context(), names, count)
	}
	return c
}

func (a *app) historyOfExits(ctx context.Context, names []string, count uint32) error {
	type named struct {
		*gladsheimv1.ExitHistory
		name string
	}
	return each(ctx, a, names, answers[named]{
		ask: func(ctx context.Context, name string) (named, error) {
			ctx, cancel := a.question(ctx)
			defer cancel()
			h, err := a.client.ListExits(ctx, &gladsheimv1.ListExitsRequest{ServiceName: name, Limit: count})
			return named{h, name}, err
		},
		show: func(h named) error { return a.showExits(h.name, h.GetExits()) },
	})
}

func (a *app) showExits(name string, exits []*gladsheimv1.ExitRecord) error {
	if len(exits) == 0 {
		_, err := fmt.Fprintf(a.out, "no end of %s is kept\n", plain(name))
		return err
	}
	t := &table{style: a.style, signed: true}
	t.add(noSign, "SERVICE", "RUN", "ENDED", "AFTER", "HOW", "VERDICT", "PEAK", "CPU TIME", "THROTTLED", "ASKED BY", "LEFT OVER", "FINGERPRINT")
	for _, x := range exits {
		ended := fromMillis(x.GetEndedUnixMs())
		t.add(signOfVerdict(x.GetVerdict()), name, number(x.GetIncarnation()), ago(a.now(), ended),
			span(ended.Sub(fromMillis(x.GetStartedUnixMs()))), how(x), verdictWord(x), maybe(x.MemoryPeakBytes, bytesOf),
			maybe(x.CpuTimeUsec, usecOf), maybe(x.ThrottledUsec, usecOf), x.GetRequestedBy(), leftOver(x), x.GetFingerprint())
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
