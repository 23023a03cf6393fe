package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) historyOfCrashes(ctx context.Context, names []string, count int) error {
	type named struct {
		*gladsheimv1.CrashHistory
		name string
	}
	return each(ctx, a, names, answers[named]{
		ask: func(ctx context.Context, name string) (named, error) {
			ctx, cancel := a.question(ctx)
			defer cancel()
			h, err := a.client.ListCrashes(ctx, &gladsheimv1.ListCrashesRequest{ServiceName: name})
			if err == nil && count > 0 {
				h.Crashes = h.Crashes[:min(count, len(h.Crashes))]
			}
			return named{h, name}, err
		},
		show: func(h named) error { return a.showCrashes(h.name, h.GetCrashes()) },
	})
}

func (a *app) showCrashes(name string, crashes []*gladsheimv1.Crash) error {
	if len(crashes) == 0 {
		_, err := fmt.Fprintf(a.out, "no failure of %s is kept\n", plain(name))
		return err
	}
	t := &table{style: a.style}
	t.add(noSign, "SERVICE", "FINGERPRINT", "COUNT", "FIRST", "LAST", "HOW", "VERDICT", "RUNS")
	for _, c := range crashes {
		var runs []string
		for _, run := range c.GetIncarnations() {
			runs = append(runs, number(run))
		}
		t.add(noSign, name, c.GetFingerprint(), number(c.GetCount()), ago(a.now(), fromMillis(c.GetFirstUnixMs())), ago(a.now(), fromMillis(c.GetLastUnixMs())),
			how(c.GetLatest()), verdictWord(c.GetLatest()), strings.Join(runs, " "))
	}
	if err := t.write(a.out); err != nil {
		return err
	}
	s := &sheet{style: a.style}
	for _, c := range crashes {
		if lines := c.GetLatest().GetLastLines(); len(lines) > 0 {
			fmt.Fprintf(s, "\n%s, the last lines of run %d:\n", plain(c.GetFingerprint()), c.GetLatest().GetIncarnation())
			s.lines(lines)
		}
	}
	_, err := fmt.Fprint(a.out, s.String())
	return err
}

// lines adds lines of output.
func (s *sheet) lines(lines [][]byte) {
	for _, line := range lines {
		fmt.Fprintf(s, "  %s\n", plain(string(line)))
	}
}

func (a *app) reportCrashes(ctx context.Context, names []string, run uint64) error {
	type named struct {
		*gladsheimv1.ExitRecord
		name string
	}
	return each(ctx, a, names, answers[named]{
		ask: func(ctx context.Context, name string) (named, error) {
			ctx, cancel := a.question(ctx)
			defer cancel()
			h, err := a.client.ListExits(ctx, &gladsheimv1.ListExitsRequest{ServiceName: name})
			if err != nil {
				return named{}, err
			}
			at := slices.IndexFunc(h.GetExits(), func(x *gladsheimv1.ExitRecord) bool { return x.GetIncarnation() == run })
			if at < 0 {
				return named{}, &failure{exitFailure, fmt.Errorf("cannot report run %d of %s: no such end is kept; gladsheim history %[2]s tells which are", run, name)}
			}
			return named{h.GetExits()[at], name}, nil
		},
		show: func(x named) error { return a.showCrash(x.name, x.ExitRecord) },
	})
}

// showCrash tells all that is known of an end.
func (a *app) showCrash(name string, x *gladsheimv1.ExitRecord) error {
	s := &sheet{style: a.style}
	began, end := fromMillis(x.GetStartedUnixMs()), fromMillis(x.GetEndedUnixMs())
	fmt.Fprintf(s, "%s %s, run %d\n", a.show(signOfVerdict(x.GetVerdict())), plain(name), x.GetIncarnation())
	s.line("Ended", fmt.Sprintf("%s; %s", moment(end), ago(a.now(), end)))
	if x.GetStartedUnixMs() != 0 {
		s.line("Started", fmt.Sprintf("%s; it ran for %s", moment(began), span(end.Sub(began))))
	}
	s.line("How", ended(x))
	s.line("Message", x.GetMessage())
	s.line("Asked by", x.GetRequestedBy())
	s.line("Fingerprint", x.GetFingerprint())
	if x.GetSeen() > 0 {
		s.line("Seen", fmt.Sprintf("%s, first %s", plural(int(x.GetSeen()), "time"), ago(a.now(), fromMillis(x.GetFirstSeenUnixMs()))))
	}
	s.line("Memory", labelled("peak", maybe(x.MemoryPeakBytes, bytesOf)))
	s.line("CPU", list(maybe(x.CpuTimeUsec, usecOf), labelled("throttled", maybe(x.ThrottledUsec, usecOf))))
	s.line("Tasks", labelled("peak", maybe(x.PidsPeak, number)))
	s.line("Limits hit", list(append(x.GetViolations(), labelled("out of memory at", x.GetOomLevel()))...))
	s.line("Left over", leftOver(x))
	s.line("Then", x.GetDecision())
	if len(x.GetLastLines()) > 0 {
		fmt.Fprintln(s, "Its last lines:")
		s.lines(x.GetLastLines())
	}
	_, err := fmt.Fprint(a.out, s.String())
	return err
}
