package api

import (
	"context"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/journal"
	"github.com/gladsheim/gladsheim/logfile"
	"github.com/gladsheim/gladsheim/logfile/tail"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// part is a stretch of the output of a service: in the journal, or in its log file.
type part struct {
	streams    []service.Stream // of the journal; none: of the file
	from, upto int64            // of the file; upto 0 for its end
	until      time.Time        // no line of it is later; zero if nobody knows
	resumed    bool             // what begins at from must be there
	after      string           // cursor of the journal behind which it begins; empty for all of it
}

// partsOf puts the outputs of a service in order. Those into the file are what is in
// it between those into the journal.
func partsOf(outputs []service.Output) (parts []part) {
	from := int64(0) // of what comes next in the file
	for _, o := range outputs {
		if o.LogFrom < from { // the file was lost, and another begun
			parts, from = slices.DeleteFunc(parts, func(p part) bool { return len(p.streams) == 0 }), o.LogFrom
		}
		if o.Stream.IsZero() {
			continue
		}
		if o.LogFrom > from {
			parts = append(parts, part{from: from, upto: o.LogFrom, until: o.Began})
			from = o.LogFrom
		}
		last := len(parts) - 1
		if last < 0 || len(parts[last].streams) == 0 {
			parts = append(parts, part{})
			last++
		}
		parts[last].streams = append(parts[last].streams, o.Stream)
	}
	if !intoJournal(outputs) {
		parts = append(parts, part{from: from})
	}
	return parts
}

// position says where a line ends: an offset of the file, or a cursor of the journal
// and the stream it is of.
type position struct {
	offset         int64
	stream, cursor string
}

const inFile, inJournal = "file:", "journal:"

func (p position) String() string {
	switch {
	case p.cursor != "":
		return inJournal + p.stream + ":" + p.cursor
	case p.offset > 0:
		return inFile + strconv.FormatInt(p.offset, 10)
	}
	return ""
}

// parsePosition reads what String made, false for anything else.
func parsePosition(text string) (p position, ok bool) {
	if rest, file := strings.CutPrefix(text, inFile); file {
		offset, err := strconv.ParseInt(rest, 10, 64)
		return position{offset: offset}, err == nil && offset > 0
	}
	rest, _ := strings.CutPrefix(text, inJournal)
	p.stream, p.cursor, _ = strings.Cut(rest, ":")
	return p, rest != text && p.stream != "" && p.cursor != ""
}

// behind is what of an output comes behind a position; none if that is in no part.
func behind(p position, parts []part) []part {
	at := slices.IndexFunc(parts, func(of part) bool {
		if p.cursor != "" {
			return slices.ContainsFunc(of.streams, func(s service.Stream) bool { return s.ID == p.stream })
		}
		return len(of.streams) == 0 && of.from <= p.offset && (of.upto == 0 || p.offset <= of.upto)
	})
	if at < 0 {
		return nil
	}
	rest := slices.Clone(parts[at:])
	if rest[0].after = p.cursor; p.cursor == "" {
		rest[0].from, rest[0].resumed = p.offset, true
	}
	return rest
}

// intoJournal tells whether the latest output goes into the journal.
func intoJournal(outputs []service.Output) bool {
	return len(outputs) > 0 && !outputs[len(outputs)-1].Stream.IsZero()
}

func streamsOf(outputs []service.Output) (streams []service.Stream) {
	for _, o := range outputs {
		if !o.Stream.IsZero() {
			streams = append(streams, o.Stream)
		}
	}
	return streams
}

// past reads the parts of an output one after the other, and follows the last.
type past struct {
	journal journal.Journal
	name    service.Name
	file    *logfile.File
	parts   []part
	want    tail.Request // Log, From and Upto are of a part
	known   func() []service.Stream
}

func (p past) read(ctx context.Context, send func(*gladsheimv1.LogLine) error) error {
	lines, err := p.share(ctx)
	if err != nil {
		return err
	}
	for i, n := range lines {
		last := i == len(lines)-1
		if n == 0 && !(last && p.want.Follow) {
			continue
		}
		if err := p.readPart(ctx, p.parts[i], n, last && p.want.Follow, send); err != nil {
			return err
		}
	}
	return nil
}

// share tells how many of the lines are to come from each part. It counts the lines
// of a part only if there are others before it.
func (p past) share(ctx context.Context) ([]int, error) {
	lines := make([]int, len(p.parts))
	left := p.want.Lines
	for i, of := range slices.Backward(p.parts) {
		if left == 0 || !of.until.IsZero() && of.until.Before(p.want.Since) {
			break
		}
		lines[i] = left
		if i == 0 || left == math.MaxInt {
			continue
		}
		err := p.readPart(ctx, of, left, false, func(l *gladsheimv1.LogLine) error {
			if !l.GetTruncated() && l.GetDropped() == 0 {
				left--
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		left = max(0, left)
	}
	return lines, nil
}

func (p past) readPart(ctx context.Context, of part, lines int, follow bool, send func(*gladsheimv1.LogLine) error) error {
	if len(of.streams) == 0 {
		want := p.want
		want.Log, want.From, want.Upto, want.Lines, want.Follow, want.Resumed = p.file, of.from, of.upto, lines, follow, of.resumed
		return tail.Read(ctx, want, func(l tail.Line) error {
			return send(&gladsheimv1.LogLine{Line: l.Text, Truncated: l.Cut, Position: position{offset: l.End}.String()})
		})
	}
	return p.journal.Read(ctx, journal.Request{
		Streams: of.streams, Lines: lines, Since: p.want.Since, Match: p.want.Match, Follow: follow, Service: p.name, Known: p.known, After: of.after,
	}, func(l journal.Line) error {
		line := &gladsheimv1.LogLine{
			Line: l.Text, Truncated: l.Cut, AtUnixMs: proto.Int64(l.At.UnixMilli()), Position: position{stream: l.Stream, cursor: l.Cursor}.String(),
		}
		if l.Dropped > 0 {
			line.Dropped = proto.Uint64(l.Dropped)
		}
		return send(line)
	})
}
