package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// sparks is how many columns a sparkline has, at most.
const sparks = 60

// usageHistory shows what services used since then, "" for all that is remembered.
// Programs get every sample.
func (a *app) usageHistory(ctx context.Context, names []string, since string) error {
	if len(names) == 0 {
		return usage(errors.New("cannot tell whose history to show; name a service"))
	}
	from := int64(0)
	if since != "" {
		at, err := a.parseSince(since)
		if err != nil {
			return err
		}
		from = at.UnixMilli()
	}
	return each(ctx, a, names, answers[*gladsheimv1.UsageHistory]{
		ask: func(ctx context.Context, name string) (*gladsheimv1.UsageHistory, error) {
			ctx, cancel := a.question(ctx)
			defer cancel()
			return a.client.GetUsageHistory(ctx, &gladsheimv1.GetUsageHistoryRequest{ServiceName: name, SinceUnixMs: from})
		},
		show: func(h *gladsheimv1.UsageHistory) error { return a.showHistory(a.out, h) },
	})
}

func (a *app) showHistory(out io.Writer, h *gladsheimv1.UsageHistory) error {
	name, samples := plain(h.GetServiceName()), h.GetSamples()
	if len(samples) == 0 {
		_, err := fmt.Fprintf(out, "%s was not looked at in that time\n", name)
		return err
	}
	first, last := samples[0], samples[len(samples)-1]
	began, over := fromMillis(first.GetBeganUnixMs()), endOf(last)
	fmt.Fprintf(out, "%s, %s of %gs, from %s to %s\n", name, plural(len(samples), "sample"), length(last).Seconds(), moment(began), clock(over))
	t := &table{style: a.style}
	for _, row := range []struct {
		title  string
		value  func(*gladsheimv1.UsageSample) *float64
		format func(float64) string
	}{
		{"MEMORY", func(s *gladsheimv1.UsageSample) *float64 { return float(s.MemoryPeakBytes) }, size},
		{"HELD", func(s *gladsheimv1.UsageSample) *float64 { return float(s.MemoryHeldBytes) }, size},
		{"CPU", func(s *gladsheimv1.UsageSample) *float64 { return s.CpuPercent }, percent},
		{"THROTTLED", func(s *gladsheimv1.UsageSample) *float64 { return s.ThrottledPercent }, percent},
		{"TASKS", func(s *gladsheimv1.UsageSample) *float64 { return float(s.PidsPeak) }, whole},
	} {
		columns := spread(samples, began, over, row.value)
		known := slices.DeleteFunc(slices.Clone(columns), func(v *float64) bool { return v == nil })
		if len(known) == 0 {
			continue
		}
		most, least := 0.0, *known[0]
		for _, v := range known {
			most, least = max(most, *v), min(least, *v)
		}
		t.add(noSign, row.title, a.spark(columns, most), "now "+maybe(row.value(last), row.format), "least "+row.format(least), "most "+row.format(most))
	}
	return t.write(out)
}

func length(s *gladsheimv1.UsageSample) time.Duration {
	return time.Duration(s.GetStepMs()) * time.Millisecond
}

func endOf(s *gladsheimv1.UsageSample) time.Time {
	return fromMillis(s.GetBeganUnixMs()).Add(length(s))
}

func float[T int32 | uint32 | uint64](v *T) *float64 {
	if v == nil {
		return nil
	}
	f := float64(*v)
	return &f
}

// spread lays samples out over the columns of a sparkline by their times: the most of
// those in one column, nil where there is none.
func spread(samples []*gladsheimv1.UsageSample, began, over time.Time, value func(*gladsheimv1.UsageSample) *float64) []*float64 {
	whole, step := over.Sub(began), length(samples[len(samples)-1])
	columns := make([]*float64, max(1, min(sparks, int(whole/max(step, 1)))))
	for _, s := range samples {
		v := value(s)
		at := int(float64(len(columns)) * float64(fromMillis(s.GetBeganUnixMs()).Sub(began)) / float64(max(whole, 1)))
		at = min(max(at, 0), len(columns)-1)
		if v != nil && (columns[at] == nil || *v > *columns[at]) {
			columns[at] = v
		}
	}
	return columns
}

// spark draws columns against the most there is. A blank is a time of which nothing is
// known.
func (a *app) spark(columns []*float64, most float64) string {
	marks := []rune("_.-:=+*#")
	if a.unicode {
		marks = []rune("▁▂▃▄▅▆▇█")
	}
	var b strings.Builder
	for _, v := range columns {
		switch {
		case v == nil:
			b.WriteByte(' ')
		case most == 0:
			b.WriteRune(marks[0])
		default:
			b.WriteRune(marks[min(int(*v/most*float64(len(marks))), len(marks)-1)])
		}
	}
	return "|" + b.String() + "|"
}

// watchUsage shows what services use, until it is interrupted.
func (a *app) watchUsage(ctx context.Context, names []string, interval time.Duration) error {
	if interval < time.Second || interval > time.Hour {
		return usage(fmt.Errorf("cannot look every %v: --interval is 1s to 1h", interval))
	}
	if err := a.connect(); err != nil {
		return err
	}
	req := &gladsheimv1.WatchUsageRequest{ServiceNames: names, IntervalMs: uint32(interval.Milliseconds())}
	const columns = "%-8s  %-16s  %7s  %10s  %10s  %7s  %6s  %9s"
	if !a.machine() {
		fmt.Fprintf(a.out, columns+"\n", "TIME", "SERVICE", "CPU", "MEMORY", "HELD", "TASKS", "STALL", "THROTTLED")
	}
	return follow(ctx, a, true,
		func(options ...grpc.CallOption) (grpc.ServerStreamingClient[gladsheimv1.UsageUpdate], error) {
			return a.client.WatchUsage(ctx, req, options...)
		},
		func(u *gladsheimv1.UsageUpdate) error {
			if a.machine() {
				return a.printLine(u)
			}
			s := u.GetUsage()
			dash := func(text string) string { return cmp.Or(text, "-") }
			_, err := fmt.Fprintf(a.out, columns+"\n", clock(endOf(s)), plain(u.GetServiceName()), dash(maybe(s.CpuPercent, percent)),
				dash(maybe(s.MemoryBytes, bytesOf)), dash(maybe(s.MemoryHeldBytes, bytesOf)), dash(maybe(s.Pids, number)),
				dash(maybe(s.MemoryPressurePercent, percent)), dash(maybe(s.ThrottledPercent, percent)))
			return err
		},
		func() string { return "going on" })
}
