package api

import (
	"context"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/internal/tail"
	"github.com/gladsheim/gladsheim/journal"
	"github.com/gladsheim/gladsheim/logfile"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// part is a stretch of the output of a service: in the journal, or in its log file.
type part struct {
	streams    []service.Stream // of the journal; none: of the file
	from, upto int64            // of the file; upto 0 for its end
	until      time.Time        // no line of it is later; zero if nobody knows
}

// partsOf puts the outputs of a service in order. Those into the file are what is in
// it between those into the journal.
func partsOf(outputs []service.Output) (parts []part) {
	from := int64(0) // of what comes next in the file
	for _, o := range outputs {
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
		want.Log, want.From, want.Upto, want.Lines, want.Follow = p.file, of.from, of.upto, lines, follow
		return tail.Read(ctx, want, func(l tail.Line) error {
			return send(&gladsheimv1.LogLine{Line: l.Text, Truncated: l.Cut})
		})
	}
	return p.journal.Read(ctx, journal.Request{
		Streams: of.streams, Lines: lines, Since: p.want.Since, Match: p.want.Match, Follow: follow, Service: p.name, Known: p.known,
	}, func(l journal.Line) error {
		line := &gladsheimv1.LogLine{Line: l.Text, Truncated: l.Cut, AtUnixMs: proto.Int64(l.At.UnixMilli())}
		if l.Dropped > 0 {
			line.Dropped = proto.Uint64(l.Dropped)
		}
		return send(line)
	})
}
