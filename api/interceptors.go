package api

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/failpoint"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// ReasonAgentLeaving is the reason of a stream that ends because the agent
// leaves.
const ReasonAgentLeaving service.Reason = "AGENT_LEAVING"

var errPanic = &service.Error{Op: "answer", Kind: service.Internal, Err: errors.New("the agent has a defect and restarts; services go on")}

// unary is what every call passes: who may, how long, tell who asks for a change,
// run it, tell what came of it.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	began := time.Now()
	caller := peerOf(ctx)
	if err := passed(info.FullMethod, failpoint.S0Received, failpoint.T0Received); err != nil {
		return nil, toStatus(err)
	}
	m, err := s.admit(caller, info.FullMethod)
	var resp any
	if err == nil {
		if err := passed(info.FullMethod, failpoint.S1Authorised, failpoint.T1Authorised); err != nil {
			return nil, toStatus(err)
		}
		if _, set := ctx.Deadline(); !set && m.patience > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, m.patience)
			defer cancel()
		}
		if m.change { // if we are killed during it, this tells who asked
			s.log.LogAttrs(ctx, slog.LevelInfo, "call begun", about(caller, info.FullMethod, req)...)
		}
		resp, err = s.guard(info.FullMethod, func() (any, error) { return handler(ctx, req) })
	}
	err = toStatus(err)
	s.record(ctx, m, caller, info.FullMethod, began, err, req, resp)
	if err != nil {
		return nil, err
	}
	return resp, toStatus(passed(info.FullMethod, failpoint.S12Replied, failpoint.T9Replied))
}

// passed marks a step of a start or of a stop, in a call that asks for the one or
// the other.
func passed(fullMethod string, start, stop failpoint.Point) error {
	if !failpoint.Enabled {
		return nil
	}
	switch fullMethod {
	case gladsheimv1.GladsheimService_StartService_FullMethodName:
		return failpoint.Hit(start)
	case gladsheimv1.GladsheimService_StopService_FullMethodName, gladsheimv1.RuntimeService_Kill_FullMethodName:
		return failpoint.Hit(stop)
	}
	return nil
}

// stream is unary for streams. It ends them when the server stops.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	began := time.Now()
	caller := peerOf(ss.Context())
	m, err := s.admit(caller, info.FullMethod)
	if err == nil {
		err = s.runStream(caller, info.FullMethod, ss, func(ss grpc.ServerStream) error {
			_, err := s.guard(info.FullMethod, func() (any, error) { return nil, handler(srv, ss) })
			return err
		})
	}
	err = toStatus(err)
	s.record(ss.Context(), m, caller, info.FullMethod, began, err)
	return err
}

// patrol is how long a stream may go on after its caller was no longer admitted.
const patrol = 10 * time.Second

func (s *Server) runStream(caller Peer, fullMethod string, ss grpc.ServerStream, run func(grpc.ServerStream) error) error {
	give, ok, _ := s.streams.take(caller.account(), !s.policy.owns(caller))
	if !ok {
		return &service.Error{Op: "open a stream", Kind: service.Exhausted, Err: errors.New("too many are open; end some first")}
	}
	defer give()
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.leaving, func() { cancel(nil) })()
	s.watchOver(ctx, caller, fullMethod, cancel)
	err := run(&boundStream{ServerStream: ss, ctx: ctx})
	if withdrawn, ok := errors.AsType[*service.Error](context.Cause(ctx)); ok {
		return withdrawn
	}
	if s.leaving.Err() != nil && ss.Context().Err() == nil {
		return &service.Error{Op: "go on", Kind: service.HostUnavailable, Reason: ReasonAgentLeaving, Err: errors.New("the agent leaves; try again when it is back")}
	}
	return err
}

// watchOver cancels a stream, with the refusal as the cause, when its caller would not be
// admitted any more. Who owns the host always is, and need not be looked at.
func (s *Server) watchOver(ctx context.Context, caller Peer, fullMethod string, cancel context.CancelCauseFunc) {
	if s.policy.owns(caller) {
		return
	}
	go func() {
		tick := time.NewTicker(s.patrol)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if _, err := s.admit(caller, fullMethod); err != nil {
					cancel(err)
				}
			}
		}
	}()
}

// boundStream is a stream with a context of its own, after the end of which it sends
// nothing more.
type boundStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (b *boundStream) Context() context.Context { return b.ctx }

func (b *boundStream) SendMsg(m any) error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	return b.ServerStream.SendMsg(m)
}

// admit decides whether caller may call a method.
func (s *Server) admit(caller Peer, fullMethod string) (method, error) {
	m, known := methods[fullMethod]
	switch {
	case caller.transport == noTransport:
		return m, &service.Error{Op: "answer", Kind: service.Unauthenticated, Err: errors.New("the kernel does not tell who calls")}
	case !s.policy.admits(caller):
		return m, &service.Error{Op: "answer", Kind: service.Denied, Err: errors.New(caller.String() + " is neither root nor a member of the group " + Group)}
	case !known:
		return m, &service.Error{Op: "answer", Kind: service.Denied, Err: errors.New("this method is open to nobody")}
	case m.local && caller.transport != unixSocket:
		return m, &service.Error{Op: "answer", Kind: service.Denied, Err: errors.New("this method is served on the agent's socket only")}
	}
	return m, nil
}

// guard runs a handler. A panic is logged and ends the process.
func (s *Server) guard(fullMethod string, run func() (any, error)) (resp any, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("a handler panicked; the agent ends so that it restarts clean", "method", fullMethod, "panic", r, "stack", string(debug.Stack()))
			s.crash()
			err = errPanic
		}
	}()
	return run()
}

// record logs the outcome: what a caller changed or was refused, and what is our own defect.
func (s *Server) record(ctx context.Context, m method, caller Peer, fullMethod string, began time.Time, err error, messages ...any) {
	outcome := status.Convert(err)
	level := slog.LevelInfo
	switch outcome.Code() {
	case codes.Internal, codes.Unknown:
		level = slog.LevelError
	case codes.PermissionDenied, codes.Unauthenticated:
		level = slog.LevelWarn
	default:
		if !m.change {
			return
		}
	}
	if err == nil && !m.change {
		return
	}
	attrs := append(about(caller, fullMethod, messages...), slog.String("outcome", outcome.Code().String()), slog.Duration("took", time.Since(began)))
	if err != nil {
		attrs = append(attrs, slog.String("error", outcome.Message()))
	}
	s.log.LogAttrs(ctx, level, "call", attrs...)
}

// about says who calls what, and of the messages of the call which service they are
// about and which request: what a caller sent is not logged as it came, but only if
// it is valid.
func about(caller Peer, fullMethod string, messages ...any) []slog.Attr {
	attrs := []slog.Attr{
		slog.String("method", fullMethod), slog.String("actor", caller.String()), slog.Int("pid", int(caller.PID)),
	}
	if name := serviceOf(messages...); name != "" {
		attrs = append(attrs, slog.String("service", name))
	}
	for _, m := range messages {
		if req, ok := m.(identified); ok {
			if id, valid := requestID(req); valid && id != "" {
				attrs = append(attrs, slog.String("request_id", id))
			}
		}
	}
	return attrs
}

// serviceOf finds the valid name a call was about, "" when there is none.
func serviceOf(messages ...any) string {
	for _, m := range messages {
		if changed, ok := m.(interface {
			GetChange() *gladsheimv1.DefinitionChange
		}); ok {
			m = changed.GetChange()
		}
		if about, ok := m.(interface{ GetServiceName() string }); ok {
			if name, err := service.ParseName(about.GetServiceName()); err == nil {
				return name.String()
			}
		}
	}
	return ""
}
