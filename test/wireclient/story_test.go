package main

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/test/wireclient/oldpb"
)

func TestTheStoryOfARightAgent(t *testing.T) {
	steps, err := tellTo(t, nil)
	require.NoError(t, err)
	require.Equal(t, 20, steps)
}

// One wrong answer is enough, whichever it is, and is found in the step it belongs to.
func TestTheStoryFindsEveryLie(t *testing.T) {
	for name, lie := range map[string]struct {
		found string
		tell  func(answer any)
	}{
		"no start time": {"it starts with limits", on(func(st *oldpb.ServiceStatus) { st.StartTimeUnix = 0 })},
		"a process that is not there": {"its status becomes RUNNING", on(func(st *oldpb.ServiceStatus) {
			if st.ProcessId != 0 {
				st.ProcessId += 1000
			}
		})},
		"a restart that was none": {"its status becomes RUNNING", on(func(st *oldpb.ServiceStatus) {
			if st.ProcessId != 0 {
				st.RestartCount++
			}
		})},
		"a name of its own": {"the service is stopped", on(func(st *oldpb.ServiceStatus) { st.ServiceName = "other" })},
		"a miscount":        {"the list has it, and counts right", on(func(l *oldpb.ServiceList) { l.StoppedCount++ })},
		"an empty list":     {"the list has it, and counts right", on(func(l *oldpb.ServiceList) { proto.Reset(l) })},
		"unasked resources": {"the list has it, and counts right", on(func(l *oldpb.ServiceList) {
			for _, st := range l.Services {
				st.ResourceUsage = &oldpb.ResourceUsage{}
			}
		})},
		"sick":            {"its health is told", on(func(h *oldpb.ServiceHealth) { h.ConsecutiveFailures = 1 })},
		"never checked":   {"its health is told", on(func(h *oldpb.ServiceHealth) { h.LastCheckUnix = 0 })},
		"wrong megabytes": {"its usage is measured", on(func(u *oldpb.ResourceUsage) { u.MemoryMb *= 1.048576 })},
		"wild CPU":        {"its usage is measured", on(func(u *oldpb.ResourceUsage) { u.CpuPercent = 1e6 })},
		"only megabytes":  {"its limits are those of the start", on(func(l *oldpb.ResourceLimits) { l.MaxMemoryBytes = 0 })},
		"only bytes":      {"its limits are those of the start", on(func(l *oldpb.ResourceLimits) { l.MaxMemoryMb = 0 })},
		"CPU as a share":  {"its limits are those of the start", on(func(l *oldpb.ResourceLimits) { l.MaxCpuPercent /= 100 })},
		"forgetful":       {"it restarts as a new process, with its limits and environment", on(func(r *oldpb.StartServiceRequest) { r.EnvironmentVars = nil })},
		"bare refusals":   {"a stranger is NOT_FOUND in every call", on(func(e *oldpb.GladsheimError) { e.Code = "" })},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tellTo(t, lie.tell)
			require.ErrorContains(t, err, lie.found+": ")
		})
	}
}

// on makes a lie about answers of one kind.
func on[T any](change func(T)) func(any) {
	return func(answer any) {
		if a, ok := answer.(T); ok {
			change(a)
		}
	}
}

// tellTo tells the story to an agent whose answers pass through lie.
func tellTo(t *testing.T, lie func(any)) (steps int, err error) {
	t.Helper()
	a := &agent{lie: lie, state: oldpb.ServiceState_SERVICE_STATE_STOPPED}
	server := grpc.NewServer(grpc.UnaryInterceptor(a.answer))
	oldpb.RegisterGladsheimServiceServer(server, a)
	wire := bufconn.Listen(1 << 16)
	go func() { _ = server.Serve(wire) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:agent",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return wire.DialContext(ctx) }))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })

	s := &story{
		agent:    oldpb.NewGladsheimServiceClient(conn),
		name:     "web",
		memory:   64 * mib,
		cpu:      20,
		patience: 10 * time.Second,
		environ:  a.environ,
		alive:    func(pid int32) bool { a.mu.Lock(); defer a.mu.Unlock(); return pid == a.pid },
	}
	err = s.tell(t.Context(), func(string) { steps++ })
	return steps, err
}

// agent is the least that answers rightly: it has one service and no processes.
type agent struct {
	oldpb.UnimplementedGladsheimServiceServer

	lie func(answer any)

	mu           sync.Mutex
	state        oldpb.ServiceState
	pid, lastPID int32
	started      int64
	stopped      int64
	memory       uint64
	cpu, warning float32
	environment  map[string]string // of the process
}

// environ is that of the process, as /proc would have it.
func (a *agent) environ(int32) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []byte
	for name, value := range a.environment {
		out = append(out, name+"="+value+"\x00"...)
	}
	return out, nil
}

// answer is the interceptor through which all but health updates pass.
func (a *agent) answer(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if named, ok := req.(interface{ GetServiceName() string }); ok && named.GetServiceName() != "web" {
		return nil, a.refuse(codes.NotFound, named.GetServiceName())
	}
	answer, err := handle(ctx, req)
	if err == nil && a.lie != nil {
		a.lie(answer)
	}
	return answer, err
}

func (a *agent) refuse(code codes.Code, service string) error {
	detail := &oldpb.GladsheimError{Code: code.String(), Message: "cannot do that", ServiceName: &service}
	if a.lie != nil {
		a.lie(detail)
	}
	st, err := status.New(code, detail.Message).WithDetails(detail)
	if err != nil {
		return err
	}
	return st.Err()
}

func (a *agent) StartService(_ context.Context, req *oldpb.StartServiceRequest) (*oldpb.ServiceStatus, error) {
	if a.pid != 0 {
		return nil, a.refuse(codes.AlreadyExists, req.GetServiceName())
	}
	a.limit(req.GetResourceLimits())
	a.warning, a.environment = 80, req.GetEnvironmentVars()
	return a.launch(), nil
}

func (a *agent) StopService(_ context.Context, req *oldpb.StopServiceRequest) (*oldpb.ServiceStatus, error) {
	if a.pid == 0 {
		return nil, a.refuse(codes.FailedPrecondition, req.GetServiceName())
	}
	a.state, a.pid, a.stopped = oldpb.ServiceState_SERVICE_STATE_STOPPED, 0, time.Now().Unix()
	return a.status(), nil
}

func (a *agent) RestartService(context.Context, *oldpb.RestartServiceRequest) (*oldpb.ServiceStatus, error) {
	again := &oldpb.StartServiceRequest{EnvironmentVars: a.environment}
	if a.lie != nil {
		a.lie(again)
	}
	a.environment = again.EnvironmentVars
	return a.launch(), nil
}

func (a *agent) GetServiceStatus(context.Context, *oldpb.ServiceStatusRequest) (*oldpb.ServiceStatus, error) {
	return a.status(), nil
}

func (a *agent) ListServices(_ context.Context, req *oldpb.ListServicesRequest) (*oldpb.ServiceList, error) {
	st, list := a.status(), &oldpb.ServiceList{}
	if req.GetIncludeHealth() {
		st.HealthStatus = a.health()
	}
	if req.GetIncludeResources() {
		st.ResourceUsage = &oldpb.ResourceUsage{}
	}
	if filter := req.GetFilterStates(); len(filter) > 0 && !slices.Contains(filter, st.State) {
		return list, nil
	}
	list.Services, list.TotalCount = []*oldpb.ServiceStatus{st}, 1
	if a.pid != 0 {
		list.RunningCount = 1
	} else {
		list.StoppedCount = 1
	}
	return list, nil
}

func (a *agent) GetServiceHealth(context.Context, *oldpb.ServiceHealthRequest) (*oldpb.ServiceHealth, error) {
	return a.health(), nil
}

func (a *agent) SubscribeServiceHealth(req *oldpb.HealthSubscribeRequest, stream grpc.ServerStreamingServer[oldpb.HealthUpdate]) error {
	if req.GetServiceName() != "web" {
		return a.refuse(codes.NotFound, req.GetServiceName())
	}
	var last *oldpb.ServiceHealth
	for {
		a.mu.Lock()
		h := a.health()
		a.mu.Unlock()
		update := &oldpb.HealthUpdate{
			Health:         h,
			UpdateTimeUnix: time.Now().Unix(),
			StateChanged:   last != nil && last.Status != h.Status,
		}
		if err := stream.Send(update); err != nil {
			return err
		}
		last = h
		select {
		case <-stream.Context().Done():
			return nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (a *agent) GetResourceUsage(_ context.Context, req *oldpb.ResourceUsageRequest) (*oldpb.ResourceUsage, error) {
	if a.pid == 0 {
		return nil, a.refuse(codes.FailedPrecondition, req.GetServiceName())
	}
	return &oldpb.ResourceUsage{MemoryBytes: 3 * mib, MemoryMb: 3, CpuPercent: 5, MeasuredAtUnix: time.Now().Unix()}, nil
}

func (a *agent) SetResourceLimits(_ context.Context, req *oldpb.ResourceLimitsRequest) (*oldpb.ResourceLimits, error) {
	a.limit(req.GetLimits())
	return a.limits(), nil
}

func (a *agent) GetResourceLimits(context.Context, *oldpb.ServiceRequest) (*oldpb.ResourceLimits, error) {
	return a.limits(), nil
}

func (a *agent) launch() *oldpb.ServiceStatus {
	a.lastPID++
	a.state, a.pid, a.started, a.stopped = oldpb.ServiceState_SERVICE_STATE_RUNNING, a.lastPID, time.Now().Unix(), 0
	return a.status()
}

func (a *agent) status() *oldpb.ServiceStatus {
	return &oldpb.ServiceStatus{ServiceName: "web", State: a.state, ProcessId: a.pid, StartTimeUnix: a.started, StopTimeUnix: a.stopped}
}

func (a *agent) health() *oldpb.ServiceHealth {
	if a.pid == 0 {
		return &oldpb.ServiceHealth{ServiceName: "web", CheckStrategy: "process"}
	}
	return &oldpb.ServiceHealth{
		ServiceName:   "web",
		CheckStrategy: "process",
		Status:        oldpb.HealthStatus_HEALTH_STATUS_HEALTHY,
		LastCheckUnix: time.Now().Unix(),
	}
}

func (a *agent) limit(l *oldpb.ResourceLimits) {
	switch {
	case l.GetMaxMemoryBytes() > 0:
		a.memory = l.GetMaxMemoryBytes()
	case l.GetMaxMemoryMb() > 0:
		a.memory = uint64(l.GetMaxMemoryMb() * mib)
	}
	if l.GetMaxCpuPercent() > 0 {
		a.cpu = l.GetMaxCpuPercent()
	}
	if l.GetMemoryWarningPercent() > 0 {
		a.warning = l.GetMemoryWarningPercent()
	}
}

func (a *agent) limits() *oldpb.ResourceLimits {
	return &oldpb.ResourceLimits{
		MaxMemoryBytes:       a.memory,
		MaxMemoryMb:          float32(a.memory) / mib,
		MaxCpuPercent:        a.cpu,
		MemoryWarningPercent: proto.Float32(a.warning),
	}
}
