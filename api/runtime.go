package api

import (
	"context"
	"slices"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// runtime serves what acts on instances, and remembers them.
type runtime struct {
	gladsheimv1.UnsafeRuntimeServiceServer
	*Server
}

func (r *runtime) Kill(ctx context.Context, req *gladsheimv1.KillRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := r.find("kill", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	return r.stop(ctx, st, true, nil, req)
}

func (r *runtime) Signal(ctx context.Context, req *gladsheimv1.SignalRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := r.find("signal", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	sig, err := service.ParseSignal(req.GetSignal())
	if err != nil {
		return nil, &service.Error{Op: "signal", Service: st.Name, Kind: service.Invalid, Err: err}
	}
	return answer(r.agent.Signal(ctx, st.Name, sig, peerOf(ctx).String()))
}

func (r *runtime) Reload(ctx context.Context, req *gladsheimv1.ReloadRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := r.find("reload", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	return answer(r.agent.ReloadService(ctx, st.Name, peerOf(ctx).String()))
}

func (r *runtime) Freeze(ctx context.Context, req *gladsheimv1.FreezeRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := r.find("freeze", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	return answer(r.agent.Freeze(ctx, st.Name, peerOf(ctx).String()))
}

func (r *runtime) Thaw(ctx context.Context, req *gladsheimv1.ThawRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := r.find("thaw", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	return answer(r.agent.Thaw(ctx, st.Name, peerOf(ctx).String()))
}

func (r *runtime) ListExits(_ context.Context, req *gladsheimv1.ListExitsRequest) (*gladsheimv1.ExitHistory, error) {
	st, err := r.find("list the exits of", req.GetServiceName())
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

func (r *runtime) CheckNow(ctx context.Context, req *gladsheimv1.CheckNowRequest) (*gladsheimv1.ServiceHealth, error) {
	st, err := r.find("check", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	now := *st
	if now.Health, err = r.agent.CheckNow(ctx, st.Name); err != nil {
		return nil, err
	}
	return toHealth(&now), nil
}

func (r *runtime) ListChecks(_ context.Context, req *gladsheimv1.ListChecksRequest) (*gladsheimv1.CheckHistory, error) {
	st, err := r.find("list the checks of", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	checks, err := r.agent.Checks(st.Name)
	if err != nil {
		return nil, err
	}
	out := &gladsheimv1.CheckHistory{ServiceName: st.Name.String()}
	for _, c := range slices.Backward(checks) {
		out.Checks = append(out.Checks, &gladsheimv1.HealthCheck{
			BeganUnixMs: millis(c.At), TookUs: uint64(c.Took.Microseconds()), Failed: c.Failed,
			Status: gladsheimv1.HealthStatus(c.Status), Message: clip(c.Message, maxText),
		})
	}
	return out, nil
}
