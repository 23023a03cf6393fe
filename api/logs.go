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
	"github.com/gladsheim/gladsheim/api/internal/tail"
	"github.com/gladsheim/gladsheim/logfile"
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

// Tail reads the files itself; a slow reader makes the reading slow, and nothing
// is held for it.
func (l *logs) Tail(req *gladsheimv1.TailRequest, ss grpc.ServerStreamingServer[gladsheimv1.LogLine]) error {
	st, err := l.find(req.GetServiceName())
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
	if want.Log, err = l.agent.LogFile(st.Name); err != nil {
		return err
	}
	ctx := ss.Context()
	if want.Follow {
		var cancel context.CancelFunc
		if ctx, cancel, err = l.whileRegistered(ctx, st.Name); err != nil {
			return err
		}
		defer cancel()
	}
	var sent error
	err = tail.Read(ctx, want, func(line tail.Line) error {
		sent = ss.Send(&gladsheimv1.LogLine{Line: line.Text, Truncated: line.Cut})
		return sent
	})
	switch {
	case ss.Context().Err() != nil || err == nil || sent != nil:
		return err
	case ctx.Err() != nil:
		return nil // the service was unregistered
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

// whileRegistered is a context that ends when the service is unregistered.
func (l *logs) whileRegistered(ctx context.Context, name service.Name) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithCancel(ctx)
	_, notices, err := l.agent.Watch(ctx)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	go func() {
		defer cancel()
		for range notices {
			// Asked anew each time: a notice may have been left out.
			if _, err := l.agent.Status(name); err != nil {
				return
			}
		}
	}()
	return ctx, cancel, nil
}
