// Package tail reads the end of a file that another process writes, and what
// follows it: by name, through truncation and rotation, woken by inotify(7) and
// never by a clock. It holds one block of the file at a time, however long the
// file, its lines or the wait.
package tail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxLine is the longest piece of a line that is given at once, in bytes.
	MaxLine = 64 << 10
	// MaxScan is how far from its end a file is searched for past lines, in
	// bytes.
	MaxScan = 64 << 20
)

// Line is a line of a file without its end, or a piece of one that is longer
// than MaxLine. Text is valid until the callback returns.
type Line struct {
	Text []byte
	Cut  bool // the line goes on in the next piece
}

// Request says which lines.
type Request struct {
	Path   string         // need not exist yet
	Lines  int            // how many past ones at most
	Since  time.Time      // no past ones from before; the zero Time sets no bound
	Match  *regexp.Regexp // only lines, or pieces, that match; nil for all
	Follow bool           // go on with lines to come, until the context ends
}

// ErrUndated says that a file has lines from before and after Request.Since, and
// does not tell which: it knows when it was made and last written, no more.
var ErrUndated = errors.New("the file does not tell when each of its lines was written")

// Read gives the lines to emit, oldest first. It ends at the end that the file
// had when Read began, or with Follow when ctx does, or with the first error of
// emit. A last line without an end is given unless more of it may follow.
func Read(ctx context.Context, req Request, emit func(Line) error) error {
	r := &reader{req: req, emit: emit}
	defer r.close()
	if req.Follow {
		// Before the file is opened, or its coming could be missed.
		w, err := newWatch(ctx, req.Path)
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

	watch  *watch   // nil unless following
	file   *os.File // nil while there is none
	offset int64    // of the next byte to read
	end    int64    // where to stop unless following
	block  [MaxLine]byte
	held   []byte // what was read of a line whose end was not
}

// open opens the file if it is there. It may be anything a service's owner put
// in its place: only a regular file is read.
func (r *reader) open() error {
	f, err := os.OpenFile(r.req.Path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", r.req.Path)
	}
	if err == nil && r.watch != nil {
		err = r.watch.turn(f) // before it is first read
	}
	if err != nil {
		f.Close()
		return err
	}
	r.file, r.offset, r.held = f, 0, r.held[:0]
	return nil
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// skip goes to where the past lines begin.
func (r *reader) skip(ctx context.Context) error {
	if r.file == nil {
		return nil
	}
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	r.end = info.Size()
	lines := r.req.Lines
	if info.ModTime().Before(r.req.Since) {
		lines = 0
	} else if !r.req.Since.IsZero() && made(r.file).Before(r.req.Since) {
		return ErrUndated
	}
	r.offset, err = startOf(ctx, r.file, r.end, lines, r.req.Match)
	return err
}

// made tells when a file was made; long ago if its file system does not tell.
func made(f *os.File) time.Time {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st)
	if err != nil || st.Mask&unix.STATX_BTIME == 0 {
		return time.Time{}
	}
	return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
}

// reopen turns to the file that has the name now, after the last of the one
// that had it, and to the start of one that was truncated.
func (r *reader) reopen(ctx context.Context) error {
	if r.file == nil {
		return r.open()
	}
	ours, err := r.file.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(r.req.Path)
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
		r.close()
		return r.open()
	case ours.Size() < r.offset:
		r.offset = 0
		return r.finish()
	}
	return nil
}

// drain gives every whole line up to the present end of the file when following,
// which may go on for as long as somebody writes; else up to r.end.
func (r *reader) drain(ctx context.Context) error {
	for r.file != nil {
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
		n, err := r.file.ReadAt(r.block[:room], r.offset)
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
	return nil
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
			if err := r.give(line, false); err != nil {
				return err
			}
			r.held, data = r.held[:0], data[end+1:]
		case len(data) > room:
			if err := r.give(append(r.held, data[:room]...), true); err != nil {
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
	return r.give(line, false)
}

func (r *reader) give(text []byte, cut bool) error {
	if r.req.Match != nil && !r.req.Match.Match(text) {
		return nil
	}
	return r.emit(Line{Text: text, Cut: cut})
}
