// Package tail reads the end of a log that another process writes, and what
// follows it: through cuts of its front, truncation and a new file of its name,
// woken by inotify(7) and never by a clock. It holds one block of the log at a
// time, however long the log, its lines or the wait.
package tail

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"regexp"
	"time"

	"github.com/gladsheim/gladsheim/logfile"
)

const (
	// MaxLine is the longest piece of a line that is given at once, in bytes.
	MaxLine = 64 << 10
	// MaxScan is how far from its end a log is searched for past lines, in bytes.
	MaxScan = 64 << 20
)

// Line is a line of a log without its end, or a piece of one that is longer
// than MaxLine. Text is valid until the callback returns.
type Line struct {
	Text []byte
	Cut  bool  // the line goes on in the next piece
	End  int64 // where in the log the next line begins; 0 amid a line
}

// Request says which lines.
type Request struct {
	Log    *logfile.File  // need not be there yet
	Lines  int            // how many past ones at most
	Since  time.Time      // no past ones from before; the zero Time sets no bound
	Match  *regexp.Regexp // only lines, or pieces, that match; nil for all
	Follow bool           // go on with lines to come, until the context ends
	From   int64          // where in the log to begin at the earliest, as is told by Line.End
	Upto   int64          // where to end, unless following; 0 for the end
	// Resumed is whether what comes from From on must be there: a log that no longer
	// holds it is logfile.ErrRemoved, and one that ends before is ErrOther.
	Resumed bool
}

// ErrUndated says that a log has lines from before and after Request.Since, and
// does not tell which: it knows when it was made and last written, no more.
var ErrUndated = errors.New("a plain file does not tell when each of its lines was written")

// ErrOther says that a log ends before where it is to be read from.
var ErrOther = errors.New("the log was emptied or replaced since")

// Read gives the lines to emit, oldest first. It ends at the end that the log
// had when Read began, or with Follow when ctx does, or with the first error of
// emit. A last line without an end is given unless more of it may follow.
func Read(ctx context.Context, req Request, emit func(Line) error) error {
	r := &reader{req: req, emit: emit}
	defer r.close()
	if req.Follow {
		// Before the file is opened, or its coming could be missed.
		w, err := newWatch(ctx, req.Log.Path())
		if err != nil {
			return err
		}
		defer w.close()
		r.watch = w
	}
	if err := r.open(); err != nil {
		return err
	}
	if err := r.skip(ctx); err != nil {
		return err
	}
	for {
		if err := r.drain(ctx); err != nil {
			return err
		}
		if r.watch == nil {
			return r.finish()
		}
		if err := r.watch.wait(ctx); err != nil {
			return err
		}
		if err := r.reopen(ctx); err != nil {
			return err
		}
	}
}

type reader struct {
	req  Request
	emit func(Line) error

	watch  *watch          // nil unless following
	stream *logfile.Stream // nil before the first open
	offset int64           // of the next byte to read
	end    int64           // where to stop unless following
	block  [MaxLine]byte
	held   []byte // what was read of a line whose end was not
}

// open opens the log, which begins where its live file does.
func (r *reader) open() error {
	s, err := r.req.Log.Open()
	if err != nil {
		return err
	}
	if r.watch != nil && s.Live() != nil {
		if err := r.watch.turn(s.Live()); err != nil { // before it is first read
			s.Close()
			return err
		}
	}
	r.close()
	r.stream, r.offset, r.held = s, s.Start(), r.held[:0]
	return nil
}

func (r *reader) close() {
	if r.stream != nil {
		r.stream.Close()
	}
}

// skip goes to where the past lines begin.
func (r *reader) skip(ctx context.Context) error {
	var err error
	if r.end, err = r.stream.End(); err != nil {
		return err
	}
	if r.req.Upto > 0 {
		r.end = min(r.end, r.req.Upto)
	}
	switch {
	case r.req.Resumed && r.req.From < r.stream.Oldest():
		return logfile.ErrRemoved
	case r.req.Resumed && r.req.From > r.end:
		return ErrOther
	}
	oldest, lines := max(r.stream.Oldest(), r.req.From), r.req.Lines
	if oldest >= r.end {
		r.offset = r.end
		return nil
	}
	if live := r.stream.Live(); !r.req.Since.IsZero() && oldest < r.end {
		if live == nil {
			return ErrUndated
		}
		info, err := live.Stat()
		switch {
		case err != nil:
			return err
		case info.ModTime().Before(r.req.Since):
			lines = 0
		case r.stream.Made().Before(r.req.Since):
			return ErrUndated
		}
	}
	if r.req.Resumed && lines == math.MaxInt {
		r.offset = r.req.From
		return nil
	}
	if oldest > r.stream.Oldest() {
		oldest-- // with the end of the line before, or the first would be taken for the rest of one
	}
	r.offset, err = startOf(ctx, r.stream, oldest, r.end, lines, r.req.Match)
	r.offset = max(r.offset, r.req.From)
	return err
}

// reopen turns to the file that has the name now, after the last of the one
// that had it, and to the start of one that was truncated.
func (r *reader) reopen(ctx context.Context) error {
	live := r.stream.Live()
	if live == nil {
		if err := r.finish(); err != nil {
			return err
		}
		return r.open()
	}
	ours, err := live.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(r.req.Log.Path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // moved away, and not made anew yet: more may come in ours
	case err != nil:
		return err
	case !os.SameFile(named, ours):
		if err := r.drain(ctx); err != nil {
			return err
		}
		if err := r.finish(); err != nil {
			return err
		}
		return r.open()
	}
	end, err := r.stream.End()
	if err == nil && end < r.offset {
		r.offset = r.stream.Start()
		err = r.finish()
	}
	return err
}

// drain gives every whole line up to the present end of the log when following,
// which may go on for as long as somebody writes; else up to r.end.
func (r *reader) drain(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		room := int64(len(r.block))
		if r.watch == nil {
			room = min(room, r.end-r.offset)
		}
		if room <= 0 {
			return nil
		}
		n, err := r.stream.ReadAt(r.block[:room], r.offset)
		r.offset += int64(n)
		if err := r.take(r.block[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take cuts data into lines, and lines into pieces.
func (r *reader) take(data []byte) error {
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		room := MaxLine - len(r.held)
		switch {
		case end >= 0 && end <= room:
			line := data[:end]
			if len(r.held) > 0 {
				line = append(r.held, line...)
			}
			data = data[end+1:]
			if err := r.give(Line{Text: line, End: r.offset - int64(len(data))}); err != nil {
				return err
			}
			r.held = r.held[:0]
		case len(data) > room:
			if err := r.give(Line{Text: append(r.held, data[:room]...), Cut: true}); err != nil {
				return err
			}
			r.held, data = r.held[:0], data[room:]
		default:
			r.held, data = append(r.held, data...), nil
		}
	}
	return nil
}

// finish gives what is held of a line that will not go on.
func (r *reader) finish() error {
	if len(r.held) == 0 {
		return nil
	}
	line := r.held
	r.held = r.held[:0]
	return r.give(Line{Text: line})
}

func (r *reader) give(l Line) error {
	if r.req.Match != nil && !r.req.Match.Match(l.Text) {
		return nil
	}
	return r.emit(l)
}
