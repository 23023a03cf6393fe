package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

const (
	// maxStopTimeout is the longest stop timeout of a call; a definition's has
	// the same bound.
	maxStopTimeout = time.Hour
	// lifecycleMargin is what a lifecycle call of a caller without a deadline
	// may take beyond the timeouts of the definition.
	lifecycleMargin = 30 * time.Second
)

// gladsheim serves the ten calls of the first contract.
type gladsheim struct {
	gladsheimv1.UnsafeGladsheimServiceServer
	*Server
}

func (g *gladsheim) StartService(ctx context.Context, req *gladsheimv1.StartServiceRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := g.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	limits, warnings, err := fromLimits(req.GetResourceLimits(), st.Spec)
	if err != nil {
		return nil, err
	}
	ctx, cancel := patient(ctx, st.Spec.Ready.Timeout)
	defer cancel()
	return answer(g.agent.Start(ctx, st.Name, service.StartOptions{
		Environment:      req.GetEnvironmentVars(),
		WorkingDirectory: req.GetWorkingDirectory(),
		Args:             req.GetArgs(),
		Limits:           limits,
		Warnings:         warnings,
		Actor:            peerOf(ctx).String(),
	}))
}

func (g *gladsheim) StopService(ctx context.Context, req *gladsheimv1.StopServiceRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := g.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	timeout, err := stopTimeout("timeout_ms", req.TimeoutMs)
	if err != nil {
		return nil, err
	}
	return g.stop(ctx, st, req.GetForce(), timeout)
}

func (g *gladsheim) RestartService(ctx context.Context, req *gladsheimv1.RestartServiceRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := g.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	timeout, err := stopTimeout("stop_timeout_ms", req.StopTimeoutMs)
	if err != nil {
		return nil, err
	}
	ctx, cancel := patient(ctx, stopLength(st.Spec, timeout)+st.Spec.Ready.Timeout)
	defer cancel()
	return answer(g.agent.Restart(ctx, st.Name, service.StopOptions{
		Force: req.GetForceStop(), Timeout: timeout, Actor: peerOf(ctx).String(),
	}))
}

func (g *gladsheim) GetServiceStatus(ctx context.Context, req *gladsheimv1.ServiceStatusRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := g.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	out := toServiceStatus(st)
	g.measure(ctx, st, out)
	g.detail(ctx, st, out)
	return out, nil
}

func (g *gladsheim) ListServices(ctx context.Context, req *gladsheimv1.ListServicesRequest) (*gladsheimv1.ServiceList, error) {
	for _, s := range req.GetFilterStates() {
		if _, known := gladsheimv1.ServiceState_name[int32(s)]; !known {
			return nil, &service.Error{Op: "list services", Kind: service.Invalid, Err: fmt.Errorf("%d is no state", s)}
		}
	}
	out := &gladsheimv1.ServiceList{}
	for _, st := range g.agent.List() {
		state := toState(st.Machine)
		if filter := req.GetFilterStates(); len(filter) > 0 && !slices.Contains(filter, state) {
			continue
		}
		count(out, state)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		one := toServiceStatus(st)
		if !req.GetIncludeHealth() {
			one.HealthStatus = nil
		}
		if req.GetIncludeResources() {
			g.measure(ctx, st, one)
		}
		if req.GetIncludeDetails() {
			g.detail(ctx, st, one)
		}
		out.Services = append(out.Services, one)
	}
	return out, nil
}

// count counts a listed service in out.
func count(out *gladsheimv1.ServiceList, state gladsheimv1.ServiceState) {
	out.TotalCount++
	switch state {
	case gladsheimv1.ServiceState_SERVICE_STATE_RUNNING:
		out.RunningCount++
	case gladsheimv1.ServiceState_SERVICE_STATE_STOPPED:
		out.StoppedCount++
	case gladsheimv1.ServiceState_SERVICE_STATE_CRASHED:
		out.CrashedCount++
	}
}

func (g *gladsheim) GetServiceHealth(ctx context.Context, req *gladsheimv1.ServiceHealthRequest) (*gladsheimv1.ServiceHealth, error) {
	st, err := g.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	now := *st
	if now.Health, err = g.agent.CheckHealth(ctx, st.Name); err != nil {
		return nil, err
	}
	return toHealth(&now), nil
}

func (g *gladsheim) GetResourceUsage(ctx context.Context, req *gladsheimv1.ResourceUsageRequest) (*gladsheimv1.ResourceUsage, error) {
	st, err := g.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	usage, measured, err := g.agent.Usage(ctx, st.Name)
	if err != nil {
		return nil, err
	}
	return toUsage(usage, measured), nil
}

func (g *gladsheim) SetResourceLimits(ctx context.Context, req *gladsheimv1.ResourceLimitsRequest) (*gladsheimv1.ResourceLimits, error) {
	st, err := g.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	limits, warnings, err := fromLimits(req.GetLimits(), st.Spec)
	if err != nil {
		return nil, err
	}
	if limits == (service.Limits{}) && warnings == (service.Warnings{}) { // asks for nothing, so nothing changes
		applied, err := g.agent.Limits(ctx, st.Name)
		if err != nil {
			return nil, err
		}
		return toLimits(applied, st), nil
	}
	applied, err := g.agent.SetLimits(ctx, st.Name, limits, warnings, peerOf(ctx).String())
	if err != nil {
		return nil, err
	}
	if st, err = g.agent.Status(st.Name); err != nil {
		return nil, err
	}
	return toLimits(applied, st), nil
}

func (g *gladsheim) GetResourceLimits(ctx context.Context, req *gladsheimv1.ServiceRequest) (*gladsheimv1.ResourceLimits, error) {
	st, err := g.find(req.GetServiceName())
	if err != nil {
		return nil, err
	}
	applied, err := g.agent.Limits(ctx, st.Name)
	if err != nil {
		return nil, err
	}
	return toLimits(applied, st), nil
}

// find reads a name and finds its service.
func (s *Server) find(text string) (*service.Status, error) {
	name, err := service.ParseName(text)
	if err != nil {
		return nil, err
	}
	st, err := s.agent.Status(name)
	if err == nil && st.Spec == nil {
		return nil, &service.Error{Op: "find", Service: name, Kind: service.NotFound, Reason: service.ReasonServiceNotFound, Err: errors.New("its definition is not there yet")}
	}
	return st, err
}

func (s *Server) stop(ctx context.Context, st *service.Status, force bool, timeout *time.Duration) (*gladsheimv1.ServiceStatus, error) {
	ctx, cancel := patient(ctx, stopLength(st.Spec, timeout))
	defer cancel()
	return answer(s.agent.Stop(ctx, st.Name, service.StopOptions{
		Force: force, Timeout: timeout, Actor: peerOf(ctx).String(),
	}))
}

// measure fills in what a service uses now. What can not be measured is left
// out: a status must be had of a broken host as well.
func (s *Server) measure(ctx context.Context, st *service.Status, out *gladsheimv1.ServiceStatus) {
	if st.PID() == 0 {
		return
	}
	usage, measured, err := s.agent.Usage(ctx, st.Name)
	if err != nil {
		s.log.Debug("status without usage", "service", st.Name.String(), "error", err)
		return
	}
	out.ResourceUsage = toUsage(usage, measured)
}

// detail fills in processes and limits, as measure does usage.
func (s *Server) detail(ctx context.Context, st *service.Status, out *gladsheimv1.ServiceStatus) {
	if st.Machine.State.Alive() {
		processes, err := s.agent.Processes(ctx, st.Name)
		if err != nil {
			s.log.Debug("status without processes", "service", st.Name.String(), "error", err)
		}
		out.Processes = toProcesses(processes[:min(len(processes), maxProcesses)])
	}
	applied, err := s.agent.Limits(ctx, st.Name)
	if err != nil {
		s.log.Debug("status without limits", "service", st.Name.String(), "error", err)
		return
	}
	out.Limits = toReports(applied)
}

func answer(st *service.Status, err error) (*gladsheimv1.ServiceStatus, error) {
	if err != nil {
		return nil, err
	}
	return toServiceStatus(st), nil
}

// stopTimeout reads an optional stop timeout.
func stopTimeout(field string, ms *uint32) (*time.Duration, error) {
	if ms == nil {
		return nil, nil
	}
	d := time.Duration(*ms) * time.Millisecond
	if d > maxStopTimeout {
		return nil, &service.Error{Op: "read request", Kind: service.Invalid, Faults: []service.Fault{
			{Field: field, Message: fmt.Sprintf("is %v; at most %v is allowed", d, maxStopTimeout)},
		}}
	}
	return &d, nil
}

func stopLength(spec *service.Spec, timeout *time.Duration) time.Duration {
	if timeout != nil {
		return *timeout
	}
	return spec.Stop.Timeout
}

// patient gives a lifecycle call whose caller set no deadline the time that the
// definition allows, and a margin for the host.
func patient(ctx context.Context, length time.Duration) (context.Context, context.CancelFunc) {
	if _, set := ctx.Deadline(); set {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, length+lifecycleMargin)
}
