package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

const defaultEvents = 20

func (a *app) eventsCommand() *cobra.Command {
	var following bool
	var count uint32
	var after uint64
	var since string
	c := &cobra.Command{
		Use:   "events [NAME…]",
		Short: "Show what happened, and with -f what happens",
		Long: `Show what happened, and with -f what happens.

With -f it goes on over a restart of the agent, without loss or repetition, and
says on stderr that it waited; ctrl-c ends it. --after shows what happened after
an event, by the sequence that -o jsonl shows. What is no longer kept, or was
before the host was booted, is told on stderr, with -o jsonl as a gap.`,
		Args:              anyNames,
		ValidArgsFunction: a.completeNames,
		Example: `  gladsheim events -f
  gladsheim events web --since 10m
  gladsheim -o jsonl events --after 4711 -f`,
	}
	c.Flags().BoolVarP(&following, "follow", "f", false, "go on with what happens")
	c.Flags().Uint32VarP(&count, "lines", "n", defaultEvents, "how many past events at most")
	c.Flags().StringVar(&since, "since", "", "past events since then: 10m, or 2026-11-22T03:41:10Z")
	c.Flags().Uint64Var(&after, "after", 0, "what happened after the event of this `sequence`, however much")
	c.MarkFlagsMutuallyExclusive("lines", "since", "after")
	c.RunE = func(cmd *cobra.Command, names []string) error {
		req := &gladsheimv1.WatchRequest{ServiceNames: names, BacklogOnly: !following}
		switch {
		case cmd.Flags().Changed("after"):
			req.AfterSequence = &after
		case since == "":
			req.BacklogCount = &count
		default:
			at, err := a.parseSince(since)
			if err != nil {
				return err
			}
			ms := at.UnixMilli()
			req.BacklogSinceUnixMs = &ms
		}
		if err := a.connect(); err != nil {
			return err
		}
		ctx, cancel := a.reading(cmd.Context(), following)
		defer cancel()
		return a.watch(ctx, req, following)
	}
	return c
}

// watch shows what a watch tells, and resumes it after the last that was shown.
func (a *app) watch(ctx context.Context, req *gladsheimv1.WatchRequest, on bool) error {
	return follow(ctx, a, on,
		func(options ...grpc.CallOption) (grpc.ServerStreamingClient[gladsheimv1.WatchEvent], error) {
			return a.client.Watch(ctx, req, options...)
		},
		func(e *gladsheimv1.WatchEvent) error {
			before, sequence := req.AfterSequence, e.GetSequence()
			req.AfterSequence, req.BacklogCount, req.BacklogSinceUnixMs = &sequence, nil, nil
			return a.showEvent(e, before)
		},
		func() string {
			if req.AfterSequence == nil {
				return "going on"
			}
			return fmt.Sprintf("going on after event %d", req.GetAfterSequence())
		})
}

// parseSince reads a time, or how long ago it was.
func (a *app) parseSince(text string) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return a.now().Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, usage(fmt.Errorf("cannot tell when %q is; write how long ago, such as 10m, or a time such as 2026-11-22T03:41:10Z", text))
	}
	return at, nil
}

// story is all of an event but when, what and to whom.
func story(e *gladsheimv1.Event) string {
	text := other(e.GetReason(), e.GetKind())
	if d := e.GetDetail(); d != "" {
		rest, said := strings.CutPrefix(d, text)
		switch {
		case said && (strings.HasPrefix(rest, " ") || strings.HasPrefix(rest, ":")):
			text = ""
		case text != "":
			text += ": "
		}
		text += d
	}
	return and(text, in(labelled("by", e.GetActor())))
}

// showEvent shows one message of a watch: programs get every one. after is that
// which was shown, or asked after, before it; nil for none.
func (a *app) showEvent(ev *gladsheimv1.WatchEvent, after *uint64) error {
	if a.machine() {
		return a.printLine(ev)
	}
	at := clock(fromMillis(ev.GetTimeUnixMs()))
	if gap := ev.GetGap(); gap != nil {
		text := fmt.Sprintf("events %d to %d are missing here: they are no longer kept, or the host was booted in between", gap.GetFromSequence(), gap.GetToSequence())
		switch {
		case gap.GetFromSequence() == 0 && after != nil:
			text = fmt.Sprintf("there was no event %d: it is another host's, or what was kept is lost; the latest here is %d, and -n shows those up to it",
				*after, gap.GetToSequence())
		case gap.GetFromSequence() == 0:
			text = "earlier events are not kept"
		}
		_, err := fmt.Fprintln(a.err, "gladsheim:", text)
		return err
	}
	e := ev.GetEvent()
	if e == nil {
		return nil
	}
	name := e.GetServiceName()
	if name == "" {
		name = "-"
	}
	// No table: it could only be aligned when the last event is known.
	line := fmt.Sprintf("%s  %-16s  %-14s  %s", at, plain(name), plain(e.GetKind()), plain(story(e)))
	_, err := fmt.Fprintln(a.out, strings.TrimRight(line, " "))
	return err
}
