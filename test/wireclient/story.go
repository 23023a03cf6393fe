package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/test/wireclient/oldpb"
)

const (
	mib = 1 << 20

	// beat is the interval asked of the health subscription, and slack what the
	// agent may be late with it on a busy host.
	beat  = 200 * time.Millisecond
	slack = 5 * time.Second

	// stranger is a well-formed name that no service has.
	stranger = "no-such-service-here"
)

// story is what the steps share.
type story struct {
	agent    oldpb.GladsheimServiceClient
	name     string
	memory   uint64
	cpu      float32
	patience time.Duration
	alive    func(pid int32) bool
	environ  func(pid int32) ([]byte, error) // as /proc has it; nil: it has it no more

	updates *updates
	running *oldpb.ServiceStatus  // the instance last seen running
	limits  *oldpb.ResourceLimits // as last answered
}

// tell goes through the story, and says a line for each step that went well.
func (s *story) tell(ctx context.Context, say func(string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.updates = subscribe(ctx, s.agent, s.name)
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"the service is stopped", s.isStopped},
		{"a stranger is NOT_FOUND in every call", s.strangerIsNotFound},
		{"the subscription begins with the present", s.firstUpdate},
		{"it starts with limits", s.startWithLimits},
		{"its status becomes RUNNING", s.becomesRunning},
		{"a second start is ALREADY_EXISTS", s.secondStartFails},
		{"the list has it, and counts right", s.listHasIt},
		{"the list filters by state", s.listFilters},
		{"its health is told", s.healthIsTold},
		{"the subscription goes on", s.updatesGoOn},
		{"its usage is measured", s.usageIsMeasured},
		{"its limits are those of the start", s.limitsAreThoseOfTheStart},
		{"limits are set in megabytes, and answered in both units", s.setLimitsInMegabytes},
		{"limits left out stay as they are", s.limitsLeftOutStay},
		{"it restarts as a new process, with its limits and environment", s.restarts},
		{"it stops, and nothing is left", s.stops},
		{"the subscription tells of the end", s.updatesTellOfTheEnd},
		{"what needs it running is FAILED_PRECONDITION", s.stoppedIsRefused},
		{"a restart starts it again", s.restartStarts},
		{"it is stopped by force", s.stopsByForce},
	} {
		if err := s.inTime(ctx, step.do); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		say("ok  " + step.what)
	}
	return nil
}

func (s *story) inTime(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	return do(ctx)
}

func (s *story) isStopped(ctx context.Context) error {
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	return s.wantDown(st)
}

func (s *story) strangerIsNotFound(ctx context.Context) error {
	a := s.agent
	_, start := a.StartService(ctx, &oldpb.StartServiceRequest{ServiceName: stranger})
	_, stop := a.StopService(ctx, &oldpb.StopServiceRequest{ServiceName: stranger})
	_, restart := a.RestartService(ctx, &oldpb.RestartServiceRequest{ServiceName: stranger})
	_, stat := a.GetServiceStatus(ctx, &oldpb.ServiceStatusRequest{ServiceName: stranger})
	_, health := a.GetServiceHealth(ctx, &oldpb.ServiceHealthRequest{ServiceName: stranger})
	_, usage := a.GetResourceUsage(ctx, &oldpb.ResourceUsageRequest{ServiceName: stranger})
	_, set := a.SetResourceLimits(ctx, &oldpb.ResourceLimitsRequest{
		ServiceName: stranger,
		Limits:      &oldpb.ResourceLimits{MaxMemoryBytes: s.memory},
	})
	_, get := a.GetResourceLimits(ctx, &oldpb.ServiceRequest{ServiceName: stranger})
	stream, subscribe := a.SubscribeServiceHealth(ctx, &oldpb.HealthSubscribeRequest{ServiceName: stranger})
	if subscribe == nil {
		_, subscribe = stream.Recv()
	}
	return errors.Join(
		refused("StartService", start, codes.NotFound, stranger),
		refused("StopService", stop, codes.NotFound, stranger),
		refused("RestartService", restart, codes.NotFound, stranger),
		refused("GetServiceStatus", stat, codes.NotFound, stranger),
		refused("GetServiceHealth", health, codes.NotFound, stranger),
		refused("GetResourceUsage", usage, codes.NotFound, stranger),
		refused("SetResourceLimits", set, codes.NotFound, stranger),
		refused("GetResourceLimits", get, codes.NotFound, stranger),
		refused("SubscribeServiceHealth", subscribe, codes.NotFound, stranger),
	)
}

func (s *story) firstUpdate(ctx context.Context) error {
	return s.updates.reach(ctx, oldpb.HealthStatus_HEALTH_STATUS_UNKNOWN)
}

func (s *story) startWithLimits(ctx context.Context) error {
	before := time.Now()
	st, err := s.agent.StartService(ctx, &oldpb.StartServiceRequest{
		ServiceName:     s.name,
		EnvironmentVars: map[string]string{variable: "1"},
		ResourceLimits:  &oldpb.ResourceLimits{MaxMemoryBytes: s.memory, MaxCpuPercent: s.cpu},
	})
	if err != nil {
		return err
	}
	return errors.Join(
		want(st.GetServiceName() == s.name, "the answer is about %q", st.GetServiceName()),
		wantState(st, oldpb.ServiceState_SERVICE_STATE_STARTING, oldpb.ServiceState_SERVICE_STATE_RUNNING),
		wantTime("start_time_unix", st.GetStartTimeUnix(), before),
	)
}

func (s *story) becomesRunning(ctx context.Context) error {
	for {
		st, err := s.status(ctx)
		if err != nil {
			return err
		}
		if st.GetState() != oldpb.ServiceState_SERVICE_STATE_STARTING {
			s.running = st
			return s.wantUp(st)
		}
		if !pause(ctx) {
			return errors.New("it is still STARTING")
		}
	}
}

func (s *story) secondStartFails(ctx context.Context) error {
	_, err := s.agent.StartService(ctx, &oldpb.StartServiceRequest{ServiceName: s.name})
	return refused("StartService", err, codes.AlreadyExists, s.name)
}

func (s *story) listHasIt(ctx context.Context) error {
	full, st, err := s.list(ctx, &oldpb.ListServicesRequest{IncludeResources: true, IncludeHealth: true})
	if err != nil {
		return err
	}
	if st == nil {
		return errors.New("it is not listed")
	}
	bare, stBare, err := s.list(ctx, &oldpb.ListServicesRequest{})
	if err != nil {
		return err
	}
	if stBare == nil {
		return errors.New("it is not listed without resources and health")
	}
	return errors.Join(
		s.wantUp(st),
		s.wantSame(st),
		want(st.ResourceUsage != nil, "include_resources gives no resource_usage"),
		want(st.HealthStatus != nil, "include_health gives no health_status"),
		want(stBare.ResourceUsage == nil, "resource_usage is there without include_resources"),
		want(stBare.HealthStatus == nil, "health_status is there without include_health"),
		want(len(full.GetServices()) == len(bare.GetServices()),
			"%d services with resources and health, %d without", len(full.GetServices()), len(bare.GetServices())),
	)
}

func (s *story) listFilters(ctx context.Context) error {
	up, st, err := s.list(ctx, filter(oldpb.ServiceState_SERVICE_STATE_RUNNING))
	if err != nil {
		return err
	}
	_, stDown, err := s.list(ctx, filter(oldpb.ServiceState_SERVICE_STATE_STOPPED, oldpb.ServiceState_SERVICE_STATE_CRASHED))
	if err != nil {
		return err
	}
	return errors.Join(
		want(st != nil, "it is not among the RUNNING"),
		want(stDown == nil, "it is among the STOPPED and CRASHED"),
		want(up.GetRunningCount() == up.GetTotalCount(), "running_count is %d of %d RUNNING", up.GetRunningCount(), up.GetTotalCount()),
	)
}

// healthIsTold wants a service that is checked to be found healthy in time, and one
// that is not to have no verdict.
func (s *story) healthIsTold(ctx context.Context) error {
	for {
		h, err := s.agent.GetServiceHealth(ctx, &oldpb.ServiceHealthRequest{ServiceName: s.name})
		if err != nil {
			return err
		}
		if h.GetCheckStrategy() == "" {
			return s.wantHealth(h, oldpb.HealthStatus_HEALTH_STATUS_UNKNOWN)
		}
		if h.GetStatus() == oldpb.HealthStatus_HEALTH_STATUS_HEALTHY {
			now := time.Now().Unix()
			return errors.Join(
				s.wantHealth(h, oldpb.HealthStatus_HEALTH_STATUS_HEALTHY),
				want(h.GetLastCheckUnix() >= s.running.GetStartTimeUnix() && h.GetLastCheckUnix() <= now+1,
					"last_check_unix is %d, started %d, now %d", h.GetLastCheckUnix(), s.running.GetStartTimeUnix(), now),
				want(h.GetConsecutiveFailures() == 0, "%d consecutive_failures though HEALTHY", h.GetConsecutiveFailures()),
			)
		}
		if !pause(ctx) {
			return fmt.Errorf("it is still %s: %s", h.GetStatus(), h.GetMessage())
		}
	}
}

// updatesGoOn wants the subscription to arrive at the verdict of GetServiceHealth,
// and to keep its interval.
func (s *story) updatesGoOn(ctx context.Context) error {
	h, err := s.agent.GetServiceHealth(ctx, &oldpb.ServiceHealthRequest{ServiceName: s.name})
	if err != nil {
		return err
	}
	if err := s.updates.reach(ctx, h.GetStatus()); err != nil {
		return err
	}
	const beats = 3
	began := time.Now()
	if err := s.updates.more(ctx, beats); err != nil {
		return err
	}
	took := time.Since(began)
	return want(took < beats*beat+slack, "%d updates took %v at an interval of %v", beats, took, beat)
}

func (s *story) usageIsMeasured(ctx context.Context) error {
	before := time.Now()
	u, err := s.agent.GetResourceUsage(ctx, &oldpb.ResourceUsageRequest{ServiceName: s.name})
	if err != nil {
		return err
	}
	most := 100 * float32(runtime.NumCPU())
	return errors.Join(
		want(u.GetMemoryBytes() > 0, "memory_bytes is 0"),
		want(sameMB(u.GetMemoryMb(), u.GetMemoryBytes()), "memory_mb is %v for %d bytes", u.GetMemoryMb(), u.GetMemoryBytes()),
		want(u.GetCpuPercent() >= 0 && u.GetCpuPercent() <= 1.05*most, "cpu_percent is %v of %v", u.GetCpuPercent(), most),
		wantTime("measured_at_unix", u.GetMeasuredAtUnix(), before),
	)
}

func (s *story) limitsAreThoseOfTheStart(ctx context.Context) error {
	l, err := s.agent.GetResourceLimits(ctx, &oldpb.ServiceRequest{ServiceName: s.name})
	if err != nil {
		return err
	}
	s.limits = l
	return errors.Join(
		wantMemory(l, s.memory),
		want(near(l.GetMaxCpuPercent(), s.cpu), "max_cpu_percent is %v, want %v", l.GetMaxCpuPercent(), s.cpu),
	)
}

func (s *story) setLimitsInMegabytes(ctx context.Context) error {
	more := s.memory + 16*mib
	l, err := s.set(ctx, &oldpb.ResourceLimits{MaxMemoryMb: float32(more / mib)})
	if err != nil {
		return err
	}
	return errors.Join(
		wantMemory(l, more),
		want(l.GetMaxCpuPercent() == s.limits.GetMaxCpuPercent(),
			"max_cpu_percent went from %v to %v", s.limits.GetMaxCpuPercent(), l.GetMaxCpuPercent()),
		s.limitsAreNow(ctx, l),
	)
}

func (s *story) limitsLeftOutStay(ctx context.Context) error {
	before := proto.CloneOf(s.limits)

	same, err := s.set(ctx, &oldpb.ResourceLimits{})
	if err != nil {
		return err
	}
	if err := wantEqual(same, before); err != nil {
		return fmt.Errorf("setting nothing: %w", err)
	}

	before.MemoryWarningPercent = proto.Float32(70)
	warned, err := s.set(ctx, &oldpb.ResourceLimits{MemoryWarningPercent: proto.Float32(70)})
	if err != nil {
		return err
	}
	if err := wantEqual(warned, before); err != nil {
		return fmt.Errorf("setting memory_warning_percent: %w", err)
	}

	// A whole number, so that no rounding stands in the way of equality.
	before.MaxCpuPercent = float32(math.Floor(float64(s.cpu))) - 1
	slower, err := s.set(ctx, &oldpb.ResourceLimits{MaxCpuPercent: before.MaxCpuPercent})
	if err != nil {
		return err
	}
	if err := wantEqual(slower, before); err != nil {
		return fmt.Errorf("setting max_cpu_percent: %w", err)
	}
	return s.limitsAreNow(ctx, before)
}

func (s *story) restarts(ctx context.Context) error {
	before, began := s.running, time.Now()
	st, err := s.agent.RestartService(ctx, &oldpb.RestartServiceRequest{ServiceName: s.name, StopTimeoutMs: proto.Uint32(5000)})
	if err != nil {
		return err
	}
	s.running = st
	return errors.Join(
		s.wantUp(st),
		wantTime("start_time_unix", st.GetStartTimeUnix(), began),
		want(st.GetProcessId() != before.GetProcessId(), "it is still process %d", st.GetProcessId()),
		want(!s.alive(before.GetProcessId()), "the former process %d is still there", before.GetProcessId()),
		s.limitsAreNow(ctx, s.limits),
		want(s.environ == nil || s.shows(st), "its environment lacks what it was started with"),
	)
}

// variable is what the start puts into the environment.
const variable = "WIRECLIENT"

// shows tells whether the environment of the main process has the variable.
func (s *story) shows(st *oldpb.ServiceStatus) bool {
	environ, err := s.environ(st.GetProcessId())
	return err == nil && bytes.Contains(environ, []byte(variable+"=1\x00"))
}

func (s *story) stops(ctx context.Context) error {
	return s.stop(ctx, &oldpb.StopServiceRequest{ServiceName: s.name, TimeoutMs: proto.Uint32(5000)})
}

func (s *story) updatesTellOfTheEnd(ctx context.Context) error {
	return s.updates.reach(ctx, oldpb.HealthStatus_HEALTH_STATUS_UNKNOWN)
}

func (s *story) stoppedIsRefused(ctx context.Context) error {
	_, stop := s.agent.StopService(ctx, &oldpb.StopServiceRequest{ServiceName: s.name})
	_, usage := s.agent.GetResourceUsage(ctx, &oldpb.ResourceUsageRequest{ServiceName: s.name})
	_, st, err := s.list(ctx, filter(oldpb.ServiceState_SERVICE_STATE_STOPPED))
	if err != nil {
		return err
	}
	return errors.Join(
		refused("StopService", stop, codes.FailedPrecondition, s.name),
		refused("GetResourceUsage", usage, codes.FailedPrecondition, s.name),
		want(st != nil, "it is not among the STOPPED"),
	)
}

func (s *story) restartStarts(ctx context.Context) error {
	st, err := s.agent.RestartService(ctx, &oldpb.RestartServiceRequest{ServiceName: s.name})
	if err != nil {
		return err
	}
	s.running = st
	return s.wantUp(st)
}

func (s *story) stopsByForce(ctx context.Context) error {
	return s.stop(ctx, &oldpb.StopServiceRequest{ServiceName: s.name, Force: true})
}

// status asks for the status, which must be of the service.
func (s *story) status(ctx context.Context) (*oldpb.ServiceStatus, error) {
	st, err := s.agent.GetServiceStatus(ctx, &oldpb.ServiceStatusRequest{ServiceName: s.name})
	if err != nil {
		return nil, err
	}
	return st, want(st.GetServiceName() == s.name, "the status is that of %q", st.GetServiceName())
}

// list asks for a list that must be right in itself, and finds the service in it.
func (s *story) list(ctx context.Context, req *oldpb.ListServicesRequest) (*oldpb.ServiceList, *oldpb.ServiceStatus, error) {
	l, err := s.agent.ListServices(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	var ours *oldpb.ServiceStatus
	counts := make(map[oldpb.ServiceState]uint32)
	names := make(map[string]bool)
	var faults []error
	for _, st := range l.GetServices() {
		if st.GetServiceName() == s.name {
			ours = st
		}
		counts[st.GetState()]++
		faults = append(faults,
			want(!names[st.GetServiceName()], "%s is listed twice", st.GetServiceName()),
			want(len(req.GetFilterStates()) == 0 || slices.Contains(req.GetFilterStates(), st.GetState()),
				"%s is %s, which was not asked for", st.GetServiceName(), st.GetState()))
		names[st.GetServiceName()] = true
	}
	faults = append(faults,
		want(int(l.GetTotalCount()) == len(l.GetServices()), "total_count is %d of %d services", l.GetTotalCount(), len(l.GetServices())),
		want(l.GetRunningCount() == counts[oldpb.ServiceState_SERVICE_STATE_RUNNING], "running_count is %d", l.GetRunningCount()),
		want(l.GetStoppedCount() == counts[oldpb.ServiceState_SERVICE_STATE_STOPPED], "stopped_count is %d", l.GetStoppedCount()),
		want(l.GetCrashedCount() == counts[oldpb.ServiceState_SERVICE_STATE_CRASHED], "crashed_count is %d", l.GetCrashedCount()),
	)
	return l, ours, errors.Join(faults...)
}

func filter(states ...oldpb.ServiceState) *oldpb.ListServicesRequest {
	return &oldpb.ListServicesRequest{FilterStates: states}
}

// set changes limits, and remembers the answer.
func (s *story) set(ctx context.Context, l *oldpb.ResourceLimits) (*oldpb.ResourceLimits, error) {
	answer, err := s.agent.SetResourceLimits(ctx, &oldpb.ResourceLimitsRequest{ServiceName: s.name, Limits: l})
	if err == nil {
		s.limits = answer
	}
	return answer, err
}

func (s *story) limitsAreNow(ctx context.Context, l *oldpb.ResourceLimits) error {
	now, err := s.agent.GetResourceLimits(ctx, &oldpb.ServiceRequest{ServiceName: s.name})
	if err != nil {
		return err
	}
	return wantEqual(now, l)
}

// stop ends the running instance, and looks twice that nothing is left.
func (s *story) stop(ctx context.Context, req *oldpb.StopServiceRequest) error {
	began := time.Now()
	st, err := s.agent.StopService(ctx, req)
	if err != nil {
		return err
	}
	later, err := s.status(ctx)
	if err != nil {
		return err
	}
	return errors.Join(
		s.wantDown(st),
		s.wantDown(later),
		wantTime("stop_time_unix", st.GetStopTimeUnix(), began),
		want(st.GetStopTimeUnix() >= st.GetStartTimeUnix(), "it stopped at %d, before it started at %d", st.GetStopTimeUnix(), st.GetStartTimeUnix()),
		want(!s.alive(s.running.GetProcessId()), "process %d is still there", s.running.GetProcessId()),
	)
}

func (s *story) wantUp(st *oldpb.ServiceStatus) error {
	now := time.Now().Unix()
	return errors.Join(
		want(st.GetServiceName() == s.name, "the status is that of %q", st.GetServiceName()),
		wantState(st, oldpb.ServiceState_SERVICE_STATE_RUNNING),
		want(st.GetProcessId() > 0 && s.alive(st.GetProcessId()), "there is no process %d", st.GetProcessId()),
		want(st.GetStartTimeUnix() > now-3600 && st.GetStartTimeUnix() <= now+1, "start_time_unix is %d, now %d", st.GetStartTimeUnix(), now),
		want(st.GetStopTimeUnix() == 0, "stop_time_unix is %d though it runs", st.GetStopTimeUnix()),
		want(st.GetRestartCount() == 0, "restart_count is %d though nothing failed", st.GetRestartCount()),
		want(st.ErrorMessage == nil, "error_message is %q", st.GetErrorMessage()),
	)
}

func (s *story) wantDown(st *oldpb.ServiceStatus) error {
	return errors.Join(
		want(st.GetServiceName() == s.name, "the status is that of %q", st.GetServiceName()),
		wantState(st, oldpb.ServiceState_SERVICE_STATE_STOPPED),
		want(st.GetProcessId() == 0, "process_id is %d though it is stopped", st.GetProcessId()),
		want(st.ErrorMessage == nil, "error_message is %q", st.GetErrorMessage()),
	)
}

// wantSame wants st to be of the instance that is running.
func (s *story) wantSame(st *oldpb.ServiceStatus) error {
	return errors.Join(
		want(st.GetProcessId() == s.running.GetProcessId(), "process_id is %d, was %d", st.GetProcessId(), s.running.GetProcessId()),
		want(st.GetStartTimeUnix() == s.running.GetStartTimeUnix(), "start_time_unix is %d, was %d", st.GetStartTimeUnix(), s.running.GetStartTimeUnix()),
	)
}

func (s *story) wantHealth(h *oldpb.ServiceHealth, status oldpb.HealthStatus) error {
	return errors.Join(
		want(h.GetServiceName() == s.name, "the health is that of %q", h.GetServiceName()),
		want(h.GetStatus() == status, "the health is %s, want %s: %s", h.GetStatus(), status, h.GetMessage()),
	)
}

func wantState(st *oldpb.ServiceStatus, states ...oldpb.ServiceState) error {
	return want(slices.Contains(states, st.GetState()), "the state is %s, want %s: %s", st.GetState(), states, st.GetErrorMessage())
}

// wantTime wants a time between since and now, give or take the second that falls
// to rounding.
func wantTime(field string, unix int64, since time.Time) error {
	now := time.Now().Unix()
	return want(unix >= since.Unix()-1 && unix <= now+1, "%s is %d, not between %d and %d", field, unix, since.Unix(), now)
}

func wantMemory(l *oldpb.ResourceLimits, bytes uint64) error {
	return errors.Join(
		want(l.GetMaxMemoryBytes() == bytes, "max_memory_bytes is %d, want %d", l.GetMaxMemoryBytes(), bytes),
		want(sameMB(l.GetMaxMemoryMb(), bytes), "max_memory_mb is %v for %d bytes", l.GetMaxMemoryMb(), bytes),
	)
}

// wantEqual compares what an old client can see: fields it does not know are left
// out, for they tell of the kernel and may change by themselves.
func wantEqual(got, wanted *oldpb.ResourceLimits) error {
	got, wanted = proto.CloneOf(got), proto.CloneOf(wanted)
	got.ProtoReflect().SetUnknown(nil)
	wanted.ProtoReflect().SetUnknown(nil)
	return want(proto.Equal(got, wanted), "the limits are {%v}, want {%v}", got, wanted)
}

func sameMB(mb float32, bytes uint64) bool {
	return near(mb, float32(float64(bytes)/mib))
}

// near allows for the rounding of a float, and of a CPU limit to whole microseconds.
func near(a, b float32) bool {
	return math.Abs(float64(a)-float64(b)) <= 1e-3*math.Abs(float64(b))
}

// refused wants err to be a refusal with code, and with a GladsheimError that names
// the service.
func refused(call string, err error, code codes.Code, service string) error {
	if status.Code(err) != code {
		return fmt.Errorf("%s answers %s (%v), want %s", call, status.Code(err), err, code)
	}
	for _, d := range status.Convert(err).Details() {
		if e, ok := d.(*oldpb.GladsheimError); ok {
			return errors.Join(
				want(e.GetCode() != "", "%s: the GladsheimError has no code", call),
				want(e.GetMessage() != "", "%s: the GladsheimError has no message", call),
				want(e.GetServiceName() == service, "%s: the GladsheimError is about %q, want %q", call, e.GetServiceName(), service),
			)
		}
	}
	return fmt.Errorf("%s: the %s has no GladsheimError", call, code)
}

// pause waits a little before the next look, and tells whether there is time for it.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}

// want is the error of something that does not hold.
func want(holds bool, format string, args ...any) error {
	if holds {
		return nil
	}
	return fmt.Errorf(format, args...)
}
