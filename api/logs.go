package api

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"time"

	"google.golang.org/grpc"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/journal"
	"github.com/gladsheim/gladsheim/logfile"
	"github.com/gladsheim/gladsheim/logfile/tail"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

const (
	defaultLines = 10
	maxPattern   = 1 << 10 // bytes of a regular expression
)

// logs serves what services write.
type logs struct {
	gladsheimv1.UnsafeLogServiceServer
	*Server
}

// Tail reads by itself; a slow reader makes the reading slow, and nothing is held
// for it.
func (l *logs) Tail(req *gladsheimv1.TailRequest, ss grpc.ServerStreamingServer[gladsheimv1.LogLine]) error {
	st, err := l.find("read the log of", req.GetServiceName())
	if err != nil {
		return err
	}
	want := tail.Request{Lines: defaultLines, Follow: req.GetFollow()}
	if req.GetSinceUnixMs() != 0 {
		want.Lines, want.Since = math.MaxInt, time.UnixMilli(req.GetSinceUnixMs())
	}
	if req.Lines != nil {
		want.Lines = int(req.GetLines())
	}
	if want.Match, err = pattern(req.GetGrep()); err != nil {
		return err
	}
	after, err := resumedAt(req)
	if err != nil {
		return err
	}
	if after != nil && req.Lines == nil || req.GetLines() == math.MaxUint32 {
		want.Lines = math.MaxInt
	}
	log, err := l.agent.LogFile(st.Name)
	if err != nil {
		return err
	}
	ctx := ss.Context()
	outputs, err := l.agent.FindOutputs(ctx, st.Name)
	if err != nil {
		return err
	}
	parts := partsOf(outputs)
	if after != nil {
		if parts = behind(*after, parts); len(parts) == 0 {
			return &service.Error{Op: "read the log of", Service: st.Name, Kind: service.Conflict, Err: errNoSuchPosition}
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if want.Follow {
		if err := l.whileRegistered(ctx, cancel, st.Name, outputs); err != nil {
			return err
		}
	}
	var sent error
	r := past{journal: journal.Host(), name: st.Name, file: log, parts: parts, want: want, known: func() []service.Stream { return streamsOf(l.agent.Outputs(st.Name)) }}
	err = r.read(ctx, func(line *gladsheimv1.LogLine) error {
		sent = ss.Send(line)
		return sent
	})
	switch {
	case ss.Context().Err() != nil || err == nil || sent != nil:
		return err
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), errUnregistered):
		return nil
	case ctx.Err() != nil:
		return &service.Error{Op: "read the log of", Service: st.Name, Kind: service.Conflict, Err: context.Cause(ctx)}
	case errors.Is(err, tail.ErrOther):
		return &service.Error{Op: "read the log of", Service: st.Name, Kind: service.Conflict, Err: errNoSuchPosition}
	case errors.Is(err, tail.ErrUndated):
		return &service.Error{Op: "read the log of", Service: st.Name, Kind: service.Conflict,
			Err: fmt.Errorf("%w; ask for a number of lines, or since before its first", err)}
	case errors.Is(err, logfile.ErrRemoved):
		return &service.Error{Op: "read the log of", Service: st.Name, Kind: service.Exhausted,
			Err: fmt.Errorf("%w (log_rotate.total); read faster, or keep more", err)}
	}
	return &service.Error{Op: "read the log of", Service: st.Name, Kind: service.HostUnavailable, Err: err}
}

// pattern compiles an RE2 expression, nil for none.
func pattern(text string) (*regexp.Regexp, error) {
	if text == "" {
		return nil, nil
	}
	var err error
	if len(text) > maxPattern {
		err = errors.New("is too long")
	} else if re, compileErr := regexp.Compile(text); compileErr == nil {
		return re, nil
	} else {
		err = compileErr
	}
	return nil, &service.Error{Op: "read request", Kind: service.Invalid, Faults: []service.Fault{{Field: "grep", Message: err.Error()}}}
}

// resumedAt is the position behind which to begin, nil for none.
func resumedAt(req *gladsheimv1.TailRequest) (*position, error) {
	if req.GetAfter() == "" {
		return nil, nil
	}
	p, ok := parsePosition(req.GetAfter())
	if !ok {
		return nil, &service.Error{Op: "read request", Kind: service.Invalid,
			Faults: []service.Fault{{Field: "after", Message: "is no position that came with a line"}}}
	}
	return &p, nil
}

var (
	errNoSuchPosition = errors.New("the position to resume at is not in it: it is another service's, or the log was emptied or replaced since; ask for a number of lines")

	errUnregistered = errors.New("the service was unregistered")
	errElsewhere    = errors.New("its output goes elsewhere as of its latest start, from the log file to the journal or back; ask anew")
)

// whileRegistered cancels a context when the service is unregistered, or its output
// goes elsewhere than into the last of outputs.
func (l *logs) whileRegistered(ctx context.Context, cancel context.CancelCauseFunc, name service.Name, outputs []service.Output) error {
	_, notices, err := l.agent.Watch(ctx)
	if err != nil {
		return err
	}
	go func() {
		for range notices {
			// Asked anew each time: a notice may have been left out.
			if _, err := l.agent.Status(name); err != nil {
				cancel(errUnregistered)
			} else if intoJournal(l.agent.Outputs(name)) != intoJournal(outputs) {
				cancel(errElsewhere)
			}
		}
	}()
	return nil
}
