package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var count uint32
	var since, pattern string
	c := &cobra.Command{
		Use:   "logs NAME…",
		Short: "Show what services wrote, and with -f what they write",
		Long: `Show what services wrote, and with -f what they write.

On a terminal, control characters are shown as escapes; elsewhere bytes come as
they were written. Lines of several services begin with the name.

Output is in the journal or in plain files; status tells. Files tell when the first
was made and the last was written, but not when each line was: --since works for a
time before the first line or after the last, and is refused between them. Of output
in the journal it holds exactly. Lines that journald did not keep, because there were
too many at once, are told on standard error.`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		Example: `  gladsheim logs web -f
  gladsheim logs web db -n 100 --grep 'error|warn'`,
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines")
	c.Flags().Uint32VarP(&count, "lines", "n", statusLines, "how many past lines at most")
	c.Flags().StringVar(&since, "since", "", "no lines from before then: 10m, or 2026-11-22T03:41:10Z")
	c.Flags().StringVar(&pattern, "grep", "", "only lines that match this regular `expression` (RE2)")
	c.RunE = func(cmd *cobra.Command, names []string) error {
		req := &gladsheimv1.TailRequest{Follow: follow, Grep: pattern}
		if since != "" {
			at, err := a.parseSince(since)
			if err != nil {
				return err
			}
			req.SinceUnixMs = at.UnixMilli()
		}
		if since == "" || cmd.Flags().Changed("lines") {
			req.Lines = &count
		}
		if err := a.connect(); err != nil {
			return err
		}
		ctx, cancel := a.reading(cmd.Context(), follow)
		defer cancel()
		if follow {
			return a.followAll(ctx, names, req)
		}
		worst := exitOK
		for _, name := range names {
			if err := a.tail(ctx, name, len(names) > 1, req, func(f func() error) error { return f() }); err != nil {
				if cmd.Context().Err() != nil {
					return err
				}
				a.complain(err)
				worst = max(worst, a.code(err))
			}
		}
		return worstOf(worst)
	}
	return c
}

// followAll shows several logs at once, a whole line at a time. The first that
// fails ends all.
func (a *app) followAll(ctx context.Context, names []string, req *gladsheimv1.TailRequest) error {
	group, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	for _, name := range names {
		group.Go(func() error {
			return a.tail(ctx, name, len(names) > 1, req, func(f func() error) error {
				mu.Lock()
				defer mu.Unlock()
				return f()
			})
		})
	}
	return group.Wait()
}

func (a *app) tail(ctx context.Context, name string, prefixed bool, asked *gladsheimv1.TailRequest, alone func(func() error) error) error {
	req := &gladsheimv1.TailRequest{
		ServiceName: name, Lines: asked.Lines, SinceUnixMs: asked.GetSinceUnixMs(), Follow: asked.GetFollow(), Grep: asked.GetGrep(),
	}
	stream, err := a.client.Tail(ctx, req)
	if err != nil {
		return err
	}
	prefix := ""
	if prefixed {
		prefix = plain(name) + ": "
	}
	return receive(stream.Recv, func(l *gladsheimv1.LogLine) error {
		return alone(func() error { return a.showLine(prefix, l) })
	})
}

func (a *app) showLine(prefix string, l *gladsheimv1.LogLine) error {
	if a.machine() {
		return a.printLine(l)
	}
	text := string(l.GetLine())
	if l.GetDropped() > 0 {
		_, err := fmt.Fprintf(a.err, "%sjournald: %s\n", prefix, plain(text))
		return err
	}
	if a.terminal {
		text = plain(text)
	}
	_, err := fmt.Fprintf(a.out, "%s%s\n", prefix, text)
	return err
}
