package agent

import (
	"context"
	"errors"
	"math"
	"regexp"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/journal"
	"github.com/gladsheim/gladsheim/logfile"
	"github.com/gladsheim/gladsheim/logfile/tail"
)

const (
	// maxReadyLine is as much of a line as is looked at for readiness, in bytes.
	maxReadyLine = 16 << 10
	// lineRetry is the pause after an output could not be read.
	lineRetry = time.Second
)

var errLine = errors.New("that is the line")

// awaitLine returns nil once a line of the output of an incarnation matches what its
// definition waits for, or why not when ctx ends. What was written while no agent was
// there counts, what an earlier incarnation wrote does not.
func (a *Agent) awaitLine(ctx context.Context, spec *service.Spec, incarnation uint64, logFrom int64) error {
	pattern, err := regexp.Compile(spec.Ready.Pattern)
	if err != nil {
		return err
	}
	why := errors.New("no line of its output matched")
	for {
		err := a.lookForLine(ctx, spec.Name, incarnation, logFrom, pattern, true)
		switch {
		case errors.Is(err, errLine):
			return nil
		case ctx.Err() != nil:
			return why
		case errors.Is(err, logfile.ErrRemoved), errors.Is(err, tail.ErrOther): // cut or emptied under us
			continue
		case err != nil: // else whoever read it for us was ended
			if err.Error() != why.Error() {
				a.cfg.Log.Warn("cannot look whether a service is ready; trying again", "service", spec.Name.String(), "error", err)
			}
			why = err
			// The host may have no inotify(7) left: what is there already can be read all the same.
			if errors.Is(a.lookForLine(ctx, spec.Name, incarnation, logFrom, pattern, false), errLine) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return why
		case <-time.After(lineRetry):
		}
	}
}

// lookForLine reads the output of an incarnation from its first line on until one
// matches, which is errLine; to follow it goes on until ctx ends.
func (a *Agent) lookForLine(ctx context.Context, name service.Name, incarnation uint64, logFrom int64, pattern *regexp.Regexp, follow bool) error {
	goesOn := false
	look := func(text []byte, cut bool) error {
		begins := !goesOn
		if goesOn = cut; begins && pattern.Match(text[:min(len(text), maxReadyLine)]) {
			return errLine
		}
		return nil
	}
	if stream := a.streamOf(name, incarnation); !stream.IsZero() {
		only := []service.Stream{stream}
		return a.cfg.Journal.Read(ctx, journal.Request{
			Streams: only, Lines: math.MaxInt, Follow: follow, Service: name, Known: func() []service.Stream { return only },
		}, func(l journal.Line) error {
			if l.Dropped > 0 {
				return nil // that is journald's word
			}
			return look(l.Text, l.Cut)
		})
	}
	log := a.cfg.Logs.File(a.logPath(name))
	from, err := beginning(log, logFrom)
	if err != nil {
		return err
	}
	return tail.Read(ctx, tail.Request{Log: log, Lines: math.MaxInt, From: from, Resumed: true, Follow: follow},
		func(l tail.Line) error { return look(l.Text, l.Cut) })
}

// beginning is where what was written from an offset of a log on begins, as far as it
// is still there. A log that ends before was emptied since, and all of it is later.
func beginning(log *logfile.File, from int64) (int64, error) {
	stream, err := log.Open()
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	end, err := stream.End()
	if err != nil {
		return 0, err
	}
	if from > end {
		from = 0
	}
	return max(from, stream.Oldest()), nil
}
