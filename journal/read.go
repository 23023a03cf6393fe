package journal

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

const (
	// MaxLine is the longest piece of a line that is given at once, in bytes.
	MaxLine = 64 << 10
	// MaxScan is how far back past lines are searched for, in bytes of text.
	MaxScan = 64 << 20
)

// Line is a line that a service wrote, without its end, or a piece of one;
// or, with Dropped, what journald says of those that it has not kept. Text is
// valid until the callback returns.
type Line struct {
	Text    []byte
	At      time.Time // when journald took it
	Cut     bool      // the line goes on in the next piece
	Dropped uint64    // messages
	Stream  string    // what the journal calls the stream
	Cursor  string    // behind which the next line is, for Request.After; empty amid a line
}

// Request says which lines.
type Request struct {
	Streams []service.Stream // those of the service; those without an ID are left out, unless they are Known when it is followed
	Lines   int              // how many past ones at most; math.MaxInt for all
	Since   time.Time        // none from before; the zero Time sets no bound
	Match   *regexp.Regexp   // only lines, or pieces, that match; nil for all
	Follow  bool             // go on with lines to come, until the context ends
	After   string           // only lines behind this cursor; empty for all
	// Service is whose streams to come are followed too, from their mark on, and Known
	// tells which are its own. Of Streams without an ID those of earlier agents count.
	Service service.Name
	Known   func() []service.Stream
}

// Read gives the lines to emit, in the order in which journald took them. It ends
// at the end that the journal had when Read began, or with Follow when ctx does,
// or with the first error of emit.
//
// journald ends a line at its LineMax (48 KiB), which is told as a cut, and at a NUL
// byte and where another process writes on, which is not. It keeps no blanks at the
// end of a line, and no lines that are empty then.
func (j Journal) Read(ctx context.Context, req Request, emit func(Line) error) error {
	r := &reading{Journal: j, req: req, emit: emit, marks: map[string]service.Stream{}}
	for _, s := range req.Streams {
		r.add(s, s.ID)
	}
	from, end, err := r.begin(ctx)
	if err != nil {
		return err
	}
	for _, e := range slices.Backward(r.held) {
		if err := r.give(&e); err != nil {
			return err
		}
	}
	switch {
	case req.Follow:
		return r.follow(ctx, from)
	case from == nil:
		return nil // that was all
	}
	return r.run(ctx, append(from, r.matches()...), func(e *entry) error {
		err := r.give(e)
		if err == nil && e.cursor == end {
			err = errEnough
		}
		return err
	})
}

type reading struct {
	Journal
	req   Request
	emit  func(Line) error
	ids   []string                  // of streams
	marks map[string]service.Stream // by id
	units []string
	held  []entry // the past lines, the latest first, if they are few
}

// maxHeld is how much text of past lines is held, in bytes. If they have more, they
// are read once more.
const maxHeld = 256 << 10

func (r *reading) add(s service.Stream, id string) {
	if id == "" {
		return
	}
	r.ids = append(r.ids, id)
	r.marks[id] = s
	if s.Unit != "" && (len(r.units) == 0 || r.units[len(r.units)-1] != s.Unit) {
		r.units = append(r.units, s.Unit)
	}
}

// dropped is the id of the message that tells of messages not kept
// (SD_MESSAGE_JOURNAL_DROPPED, sd-messages.h).
const dropped = "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e"

// matches selects what the service wrote, and what journald itself says of it.
func (r *reading) matches() []string {
	if len(r.ids) == 0 {
		return nil
	}
	out := []string{"_TRANSPORT=stdout"}
	for _, id := range r.ids {
		out = append(out, "_STREAM_ID="+id)
	}
	if len(r.units) > 0 {
		out = append(out, "+", "_TRANSPORT=driver", dropped)
		for _, unit := range r.units {
			out = append(out, "OBJECT_SYSTEMD_UNIT="+unit)
		}
	}
	return out
}

// begin holds the past lines, if they are few, and finds from where to go on, as
// arguments of journalctl, and up to where if not following; none of either if there
// is nothing to go on with.
func (r *reading) begin(ctx context.Context) (from []string, end string, err error) {
	if len(r.ids) == 0 {
		return nil, "", nil
	}
	back := []string{} // how far
	if !r.req.Since.IsZero() {
		back = []string{fmt.Sprintf("--since=@%d", r.req.Since.Unix())}
	}
	since := back
	if r.req.After != "" { // not with --reverse, where it means before
		since = []string{"--after-cursor=" + r.req.After}
	}
	all := r.req.Lines == math.MaxInt
	var first string
	size := 0
	b := backwards{wanted: r.req.Lines, match: r.req.Match}
	err = r.run(ctx, append(append(back, "--reverse"), r.matches()...), func(e *entry) error {
		if e.cursor == r.req.After {
			return errEnough
		}
		if end == "" {
			end = e.cursor
		}
		switch {
		case all || e.at.Before(r.req.Since):
			return errEnough
		case r.isMark(e):
			return nil
		case !b.takes(e):
			return errEnough
		}
		first = e.cursor
		if size += len(e.message); size <= maxHeld {
			kept := *e
			kept.message = bytes.Clone(e.message)
			r.held = append(r.held, kept)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, "", err
	case end == "" && r.req.Follow: // there is nothing yet
		return since, "", nil
	case end == "":
		return nil, "", nil
	case all:
		return since, end, nil
	case size > maxHeld:
		r.held = nil
		return []string{"--cursor=" + first}, end, nil
	case r.req.Follow:
		return []string{"--after-cursor=" + end}, "", nil
	}
	return nil, "", nil
}

// backwards counts lines from the last one on.
type backwards struct {
	wanted  int
	match   *regexp.Regexp
	scanned int
	last    string // stream of the entry before, which came later
}

// takes tells whether an entry is still wanted. The pieces of a line are one.
func (b *backwards) takes(e *entry) bool {
	begins := e.cut() && e.stream == b.last && b.match == nil // of a line whose end was taken
	if b.wanted <= 0 && !begins || b.scanned > MaxScan {
		return false
	}
	b.scanned += len(e.message)
	if e.dropped == 0 && !begins && (b.match == nil || b.match.Match(e.message)) {
		b.wanted--
	}
	b.last = e.stream
	return true
}

// cut tells whether the line goes on. One that journald ended because another process
// wrote next may go on or not: often that writes no more than its end.
func (e *entry) cut() bool { return e.broken == "line-max" }

func (r *reading) isMark(e *entry) bool { return e.stream != "" && e.markOf(r.marks[e.stream]) }

func (r *reading) give(e *entry) error {
	if e.at.Before(r.req.Since) || r.isMark(e) {
		return nil
	}
	for text := e.message; ; text = text[MaxLine:] {
		piece := text[:min(len(text), MaxLine)]
		last := len(piece) == len(text)
		if e.dropped > 0 || r.req.Match == nil || r.req.Match.Match(piece) {
			l := Line{Text: piece, At: e.at, Cut: !last || e.cut(), Dropped: e.dropped, Stream: e.stream}
			if !l.Cut && e.dropped == 0 {
				l.Cursor = e.cursor
			}
			if err := r.emit(l); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}

// follow goes on for ever. A stream that is not known by its ID yet is told by its mark, from which on its lines are taken as well.
func (r *reading) follow(ctx context.Context, from []string) error {
	for {
		args := append([]string{"--follow", "--no-tail"}, from...)
		args = append(args, r.matches()...)
		if len(r.ids) > 0 {
			args = append(args, "+")
		}
		args = append(args, "_TRANSPORT=stdout", "SYSLOG_IDENTIFIER="+r.req.Service.String(), "_PID="+strconv.Itoa(os.Getpid()))
		for _, s := range r.req.Streams {
			if s.ID == "" && s.PID != os.Getpid() {
				args = append(args, "_PID="+strconv.Itoa(s.PID))
			}
		}
		joined := false
		err := r.run(ctx, args, func(e *entry) error {
			if e.dropped > 0 || r.marks[e.stream].Mark != "" {
				return r.give(e)
			}
			for _, s := range r.req.Known() {
				if e.markOf(s) {
					r.add(s, e.stream)
					from, joined = []string{"--after-cursor=" + e.cursor}, true
					return errEnough
				}
			}
			return nil
		})
		if err != nil || !joined {
			return err
		}
	}
}
