package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

const defaultEvents = 20

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	var count uint32
	var since string
	c := &cobra.Command{
		Use:               "events [NAME…]",
		Short:             "Show what happened, and with -f what happens",
		Args:              anyNames,
		ValidArgsFunction: a.completeNames,
		Example: `  gladsheim events -f
  gladsheim events web --since 10m`,
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens")
	c.Flags().Uint32VarP(&count, "lines", "n", defaultEvents, "how many past events at most")
	c.Flags().StringVar(&since, "since", "", "past events since then: 10m, or 2026-11-22T03:41:10Z")
	c.MarkFlagsMutuallyExclusive("lines", "since")
	c.RunE = func(cmd *cobra.Command, names []string) error {
		req := &gladsheimv1.WatchRequest{ServiceNames: names, BacklogOnly: !follow}
		if since == "" {
			req.BacklogCount = &count
		} else {
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
		ctx, cancel := a.reading(cmd.Context(), follow)
		defer cancel()
		stream, err := a.client.Watch(ctx, req)
		if err != nil {
			return err
		}
		return receive(stream.Recv, a.showEvent)
	}
	return c
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
		if text != "" {
			text += ": "
		}
		text += d
	}
	return and(text, in(labelled("by", e.GetActor())))
}

// showEvent shows one message of a watch: programs get every one.
func (a *app) showEvent(ev *gladsheimv1.WatchEvent) error {
	if a.machine() {
		return a.printLine(ev)
	}
	at := clock(fromMillis(ev.GetTimeUnixMs()))
	if gap := ev.GetGap(); gap != nil {
		text := fmt.Sprintf("events %d to %d are missing here", gap.GetFromSequence(), gap.GetToSequence())
		if gap.GetFromSequence() == 0 {
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
