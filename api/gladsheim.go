package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/failpoint"
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
	if err := failpoint.Hit(failpoint.S3Audited); err != nil {
		return nil, err
	}
	st, err := g.find("start", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	limits, warnings, err := fromLimits(req.GetResourceLimits(), st.Spec)
	if err != nil {
		return nil, err
	}
	request, err := toRequest(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := patient(ctx, g.startTime(st))
	defer cancel()
	return answer(g.agent.Start(ctx, st.Name, service.StartOptions{
		Environment:      req.GetEnvironmentVars(),
		WorkingDirectory: req.GetWorkingDirectory(),
		Args:             req.GetArgs(),
		Limits:           limits,
		Warnings:         warnings,
		Actor:            peerOf(ctx).String(),
		Request:          request,
	}))
}

func (g *gladsheim) StopService(ctx context.Context, req *gladsheimv1.StopServiceRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := g.find("stop", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	return g.stop(ctx, st, req.GetForce(), stopTimeout(req.TimeoutMs), req)
}

func (g *gladsheim) RestartService(ctx context.Context, req *gladsheimv1.RestartServiceRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := g.find("restart", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	request, err := toRequest(req)
	if err != nil {
		return nil, err
	}
	timeout := stopTimeout(req.StopTimeoutMs)
	ctx, cancel := patient(ctx, st.Spec.StopTime(timeout)+g.stopTime(st)+g.startTime(st)-st.Spec.StopTime(nil))
	defer cancel()
	return answer(g.agent.Restart(ctx, st.Name, service.StopOptions{
		Force: req.GetForceStop(), Timeout: timeout, Actor: peerOf(ctx).String(), Request: request,
	}))
}

func (g *gladsheim) GetServiceStatus(ctx context.Context, req *gladsheimv1.ServiceStatusRequest) (*gladsheimv1.ServiceStatus, error) {
	st, err := g.find("show", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	out := toServiceStatus(st)
	g.look(ctx, st, out)
	g.measure(ctx, st, out)
	g.detail(ctx, st, out)
	return out, nil
}

func (g *gladsheim) ListServices(ctx context.Context, req *gladsheimv1.ListServicesRequest) (*gladsheimv1.ServiceList, error) {
	var states []service.Public
	for _, s := range req.GetFilterStates() {
		if _, known := gladsheimv1.ServiceState_name[int32(s)]; !known {
			return nil, &service.Error{Op: "list services", Kind: service.Invalid, Err: fmt.Errorf("%d is no state", s)}
		}
		states = append(states, service.Public(s))
	}
	listed := g.agent.List(states...)
	out := &gladsheimv1.ServiceList{}
	room := maxSend - len(listed)*maxBrief
	for _, st := range listed {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		one := g.entry(ctx, st, req)
		size := proto.Size(one)
		if size > room {
			one = brief(one)
		} else {
			room -= size
		}
		count(out, one.GetState())
		out.Services = append(out.Services, one)
	}
	return out, nil
}

// entry is a service in a list.
func (g *gladsheim) entry(ctx context.Context, st *service.Status, req *gladsheimv1.ListServicesRequest) *gladsheimv1.ServiceStatus {
	one := toServiceStatus(withoutLines(st))
	if req.GetIncludeHealth() {
		g.look(ctx, st, one)
	} else {
		one.HealthStatus = nil
	}
	if req.GetIncludeResources() && st.PID() != 0 {
		g.measure(ctx, st, one)
		one.Limits = toReports(st.Applied)
	}
	if req.GetIncludeDetails() {
		g.detail(ctx, st, one)
	}
	return one
}

// withoutLines is st without the last lines of its last exit.
func withoutLines(st *service.Status) *service.Status {
	if st.LastExit == nil {
		return st
	}
	out, exit := *st, *st.LastExit
	exit.LastLines = nil
	out.LastExit = &exit
	return &out
}

// maxBrief is more than a brief entry takes in a list, in bytes.
const maxBrief = 256

// brief is what is left of an entry when the list would become too large.
func brief(st *gladsheimv1.ServiceStatus) *gladsheimv1.ServiceStatus {
	return &gladsheimv1.ServiceStatus{
		ServiceName: st.ServiceName, State: st.State, ProcessId: st.ProcessId, StartTimeUnix: st.StartTimeUnix, StopTimeUnix: st.StopTimeUnix,
		RestartCount: st.RestartCount, Incarnation: st.Incarnation, Phase: st.Phase, StartTimeUnixMs: st.StartTimeUnixMs, Enforcements: st.Enforcements,
	}
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
	st, err := g.find("tell the health of", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	if st, err = g.looked(ctx, st); err != nil {
		return nil, err
	}
	return toHealth(st), nil
}

func (g *gladsheim) GetResourceUsage(ctx context.Context, req *gladsheimv1.ResourceUsageRequest) (*gladsheimv1.ResourceUsage, error) {
	st, err := g.find("measure", req.GetServiceName())
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
	st, err := g.find("set limits of", req.GetServiceName())
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
	applied, err := g.agent.SetLimits(ctx, st.Name, limits, warnings, req.GetForce(), peerOf(ctx).String())
	if err != nil {
		return nil, err
	}
	if st, err = g.agent.Status(st.Name); err != nil {
		return nil, err
	}
	return toLimits(applied, st), nil
}

func (g *gladsheim) GetResourceLimits(ctx context.Context, req *gladsheimv1.ServiceRequest) (*gladsheimv1.ResourceLimits, error) {
	st, err := g.find("read limits of", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	applied, err := g.agent.Limits(ctx, st.Name)
	if err != nil {
		return nil, err
	}
	return toLimits(applied, st), nil
}

// find reads a name and finds its service; op is what is asked of it.
func (s *Server) find(op, text string) (*service.Status, error) {
	name, err := service.ParseName(text)
	if err != nil {
		return nil, err
	}
	st, err := s.agent.Status(name)
	if err == nil && st.Spec == nil {
		err = &service.Error{Service: name, Kind: service.NotFound, Reason: service.ReasonServiceNotFound, Err: errors.New("its definition is not there yet")}
	}
	if err != nil {
		return nil, inAnswerTo(op, err)
	}
	return st, nil
}

// inAnswerTo is err as an answer to what was asked, if there is no such service.
func inAnswerTo(op string, err error) error {
	e, ok := errors.AsType[*service.Error](err)
	if !ok || e.Kind != service.NotFound {
		return err
	}
	told := *e
	told.Op = op
	return &told
}

func (s *Server) stop(ctx context.Context, st *service.Status, force bool, timeout *time.Duration, req identified) (*gladsheimv1.ServiceStatus, error) {
	request, err := toRequest(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := patient(ctx, st.Spec.StopTime(timeout)+s.stopTime(st))
	defer cancel()
	return answer(s.agent.Stop(ctx, st.Name, service.StopOptions{
		Force: force, Timeout: timeout, Actor: peerOf(ctx).String(), Request: request,
	}))
}

// looked is st with how the service is at this moment.
func (s *Server) looked(ctx context.Context, st *service.Status) (*service.Status, error) {
	now := *st
	var err error
	now.Health, err = s.agent.CheckHealth(ctx, st.Name)
	return &now, err
}

// look fills in how a service is now; what was known of it, when that can not be
// told.
func (s *Server) look(ctx context.Context, st *service.Status, out *gladsheimv1.ServiceStatus) {
	now, err := s.looked(ctx, st)
	if err != nil {
		s.log.Debug("status without a look at its health", "service", st.Name.String(), "error", err)
		return
	}
	out.HealthStatus = toHealth(now)
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
func stopTimeout(ms *uint32) *time.Duration {
	if ms == nil {
		return nil
	}
	d := min(time.Duration(*ms)*time.Millisecond, maxStopTimeout)
	return &d
}

// patient gives a lifecycle call whose caller set no deadline the time that the
// definition allows, and a margin for the host.
func patient(ctx context.Context, length time.Duration) (context.Context, context.CancelFunc) {
	if _, set := ctx.Deadline(); set {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, length+lifecycleMargin)
}
