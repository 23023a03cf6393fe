package api

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// RollingRestart has each restart on record as a call of its own: who asked before it,
// and its outcome after it.
func (r *runtime) RollingRestart(req *gladsheimv1.RollingRestartRequest, ss grpc.ServerStreamingServer[gladsheimv1.RollingRestartProgress]) error {
	names, err := r.distinct(req.GetServiceNames())
	if err != nil {
		return err
	}
	ctx, caller := ss.Context(), peerOf(ss.Context())
	opts := service.RollingOptions{
		Stop: service.StopOptions{Force: req.GetForceStop(), Timeout: stopTimeout(req.StopTimeoutMs), Actor: caller.String()},
		Each: time.Duration(req.GetTimeoutMs()) * time.Millisecond,
	}
	var began time.Time
	return r.agent.RollingRestart(ctx, names, opts, func(p service.Rolling) error {
		const method = gladsheimv1.RuntimeService_RollingRestart_FullMethodName
		one := &gladsheimv1.RestartServiceRequest{ServiceName: p.Service.String()}
		switch p.Step {
		case service.RollingBegun:
			began = time.Now()
			r.log.LogAttrs(ctx, slog.LevelInfo, "call begun", about(caller, method, one)...)
		case service.RollingDone, service.RollingFailed:
			r.record(ctx, lifecycle, caller, method, began, toStatus(p.Err), one)
		}
		return ss.Send(toRolling(p))
	})
}

// distinct finds the services of a list in which each may be once.
func (s *Server) distinct(texts []string) ([]service.Name, error) {
	invalid := func(err error) error { return &service.Error{Op: "restart", Kind: service.Invalid, Err: err} }
	switch {
	case len(texts) == 0:
		return nil, invalid(errors.New("no service is named"))
	case len(texts) > maxWatched:
		return nil, invalid(fmt.Errorf("%d services are named; at most %d are allowed", len(texts), maxWatched))
	}
	names, named := make([]service.Name, len(texts)), map[service.Name]bool{}
	for i, text := range texts {
		st, err := s.find("restart", text)
		switch {
		case err != nil:
			return nil, err
		case named[st.Name]:
			return nil, invalid(fmt.Errorf("%s is named twice", st.Name))
		}
		names[i], named[st.Name] = st.Name, true
	}
	return names, nil
}

func toRolling(p service.Rolling) *gladsheimv1.RollingRestartProgress {
	out := &gladsheimv1.RollingRestartProgress{ServiceName: p.Service.String(), Step: gladsheimv1.RollingStep(p.Step)}
	if p.Status != nil {
		out.Status = toServiceStatus(withoutLines(p.Status))
	}
	if p.Err != nil {
		out.Error = toError(p.Err)
	}
	return out
}
