package api

import (
	"context"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// runtime serves what acts on instances, and remembers them.
type runtime struct {
	gladsheimv1.UnsafeRuntimeServiceServer
	*Server
}

func (r *runtime) Kill(ctx context.Context, req *gladsheimv1.KillRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := r.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	return r.stop(ctx, st, true, nil, req)
}

func (r *runtime) Signal(ctx context.Context, req *gladsheimv1.SignalRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := r.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	sig, err := service.ParseSignal(req.GetSignal())
	if err != nil {
		return nil, &service.Error{Op: "signal", Service: st.Name, Kind: service.Invalid, Err: err}
	}
	return answer(r.agent.Signal(ctx, st.Name, sig, peerOf(ctx).String()))
}

func (r *runtime) Freeze(ctx context.Context, req *gladsheimv1.FreezeRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := r.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	return answer(r.agent.Freeze(ctx, st.Name, peerOf(ctx).String()))
}

func (r *runtime) Thaw(ctx context.Context, req *gladsheimv1.ThawRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := r.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	return answer(r.agent.Thaw(ctx, st.Name, peerOf(ctx).String()))
}

func (r *runtime) ListExits(_ context.Context, req *gladsheimv1.ListExitsRequest) (*gladsheimv1.ExitHistory, error) {
	st, err := r.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	records, err := r.agent.Exits(st.Name, int(req.GetLimit()))
	if err != nil {
		return nil, err
	}
	out := &gladsheimv1.ExitHistory{}
	for i := range records {
		out.Exits = append(out.Exits, toExit(&records[i]))
	}
	return out, nil
}
