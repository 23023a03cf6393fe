package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) logsCommand() *cobra.Command {
	var following bool
	var count uint32
	var since, after, pattern string
	c := &cobra.Command{
		Use:   "logs NAME…",
		Short: "Show what services wrote, and with -f what they write",
		Long: `Show what services wrote, and with -f what they write.

On a terminal, control characters are shown as escapes, and a line of more than
64 KiB as several that end with … but for the last; elsewhere bytes come as they
were written. Lines of several services begin with the name. With --grep, or when
several services are followed, long lines are several everywhere.

With -f it goes on over a restart of the agent, behind the last line that it has
shown, and says so on stderr. Ctrl-c ends it. With -o jsonl each line has a position,
and --after shows what comes behind one.

Output is in the journal or in plain files; status tells. Files tell when the first
was made and the last was written, but not when each line was: --since works for a
time before the first line or after the last, and is refused between them. Of output
in the journal it holds exactly. Lines that journald did not keep, because there were
too many at once, are told on standard error.`,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		Example: `  gladsheim logs web -f
  gladsheim -o jsonl logs web --after file:48213
  gladsheim logs web db -n 100 --grep 'error|warn'`,
	}
	c.Flags().BoolVarP(&following, "follow", "f", false, "go on with new lines")
	c.Flags().Uint32VarP(&count, "lines", "n", statusLines, "how many past lines at most")
	c.Flags().StringVar(&since, "since", "", "no lines from before then: 10m, or 2026-11-22T03:41:10Z")
	c.Flags().StringVar(&after, "after", "", "what comes behind the line of this `position`, however much")
	c.MarkFlagsMutuallyExclusive("since", "after")
	c.Flags().StringVar(&pattern, "grep", "", "only lines that match this regular `expression` (RE2)")
	c.RunE = func(cmd *cobra.Command, names []string) error {
		req := &gladsheimv1.TailRequest{Follow: following, Grep: pattern, After: after}
		if after != "" && len(names) > 1 {
			return usage(errors.New("--after is a position in the log of one service"))
		}
		if since != "" {
			at, err := a.parseSince(since)
			if err != nil {
				return err
			}
			req.SinceUnixMs = at.UnixMilli()
		}
		if since == "" && after == "" || cmd.Flags().Changed("lines") {
			req.Lines = &count
		}
		if err := a.connect(); err != nil {
			return err
		}
		ctx, cancel := a.reading(cmd.Context(), following)
		defer cancel()
		if following {
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
		ServiceName: name, Lines: asked.Lines, SinceUnixMs: asked.GetSinceUnixMs(), Follow: asked.GetFollow(), Grep: asked.GetGrep(), After: asked.GetAfter(),
	}
	p := &printer{app: a, name: name, whole: !a.terminal && req.GetGrep() == "" && !(prefixed && req.GetFollow())}
	if prefixed {
		p.prefix = plain(name) + ": "
	}
	exact := true // nothing is left out where it is resumed
	return follow(ctx, a, req.GetFollow(),
		func(options ...grpc.CallOption) (grpc.ServerStreamingClient[gladsheimv1.LogLine], error) {
			if len(options) > 0 {
				exact = p.resume(req)
			}
			return a.client.Tail(ctx, req, options...)
		},
		func(l *gladsheimv1.LogLine) error { return alone(func() error { return p.show(l) }) },
		func() string {
			if !exact {
				return "going on with what is written from now on; what was written meanwhile is in: gladsheim logs " + plain(name)
			}
			return "going on behind the last line"
		})
}

// printer shows the lines of one service.
type printer struct {
	*app
	name   string
	prefix string
	whole  bool   // pieces of a line are put together
	amid   bool   // a piece was shown, and its line goes on
	began  bool   // something was shown
	shown  int    // bytes of the line that a piece was shown of
	skip   int    // of those, how many are told once more, since it was resumed
	last   string // position of the last line that was shown; empty before the first
}

// resume makes a request one for all that was not shown yet, and tells whether that
// can be said.
func (p *printer) resume(req *gladsheimv1.TailRequest) bool {
	if p.last == "" && (p.began || req.Lines != nil && req.GetLines() == 0) {
		none := uint32(0)
		req.Lines, req.SinceUnixMs = &none, 0
		return false
	}
	p.skip = p.shown
	if p.last != "" { // else there was nothing to be shown, and all that is there is new
		req.After, req.SinceUnixMs = p.last, 0
	}
	everything := uint32(math.MaxUint32)
	req.Lines = &everything
	return true
}

func (p *printer) show(l *gladsheimv1.LogLine) error {
	p.last, p.began = cmp.Or(l.GetPosition(), p.last), true
	if l.GetDropped() == 0 {
		again := min(p.skip, len(l.GetLine()))
		if p.skip -= again; again > 0 && again == len(l.GetLine()) && l.GetTruncated() {
			return nil
		}
		l.Line = l.GetLine()[again:]
		if p.shown += len(l.Line); !l.GetTruncated() {
			p.shown = 0
		}
	}
	if p.machine() {
		return p.printNamed(p.name, l)
	}
	text, end := string(l.GetLine()), "\n"
	if l.GetDropped() > 0 {
		_, err := fmt.Fprintf(p.err, "%sjournald: %s\n", p.prefix, plain(text))
		return err
	}
	if p.terminal {
		text = plain(text)
	}
	if !p.whole || !p.amid {
		text = p.prefix + text
	}
	switch p.amid = l.GetTruncated(); {
	case p.amid && p.whole:
		end = ""
	case p.amid && p.terminal:
		end = p.more() + "\n"
	}
	_, err := fmt.Fprint(p.out, text, end)
	return err
}

// more is the end of what goes on.
func (s style) more() string {
	if s.unicode {
		return "…"
	}
	return "..."
}
