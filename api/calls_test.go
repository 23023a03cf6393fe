package api

import (
	"context"
	"errors"
	"math"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (f *fixture) gladsheim() gladsheimv1.GladsheimServiceClient {
	return gladsheimv1.NewGladsheimServiceClient(f.conn)
}

// lastCall is the options of the last call; its Actor has been checked and
// taken out.
func (f *fixture) lastCall(t *testing.T) any {
	t.Helper()
	calls := f.agent.Calls()
	require.NotEmpty(t, calls)
	return calls[len(calls)-1]
}

func TestStartService(t *testing.T) {
	f := newFixture(t)
	st, err := f.gladsheim().StartService(callContext(t), &gladsheimv1.StartServiceRequest{
		ServiceName: "db", EnvironmentVars: map[string]string{"A": "b"}, WorkingDirectory: "/srv", Args: []string{"-v"},
		ResourceLimits: &gladsheimv1.ResourceLimits{MaxMemoryMb: 1.5, MaxCpuPercent: 150},
	})
	require.NoError(t, err)
	require.Equal(t, "db", st.GetServiceName())
	require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, st.GetState())
	require.Equal(t, uint64(8), st.GetIncarnation())
	require.Equal(t, testTime.Unix(), st.GetStartTimeUnix())
	require.Equal(t, testTime.UnixMilli(), st.GetStartTimeUnixMs())

	got := f.lastCall(t).(service.StartOptions)
	want := service.StartOptions{Environment: map[string]string{"A": "b"}, WorkingDirectory: "/srv", Args: []string{"-v"}, Actor: got.Actor}
	want.Limits[service.MemoryMax] = service.Of(3 << 19)
	want.Limits[service.CPUMax] = service.Of(1_500_000)
	require.Equal(t, want, got)
	if Peer := (Peer{transport: unixSocket}); f.server.policy.self == 0 {
		require.Equal(t, Peer.String(), got.Actor)
	}

	_, err = f.gladsheim().StartService(callContext(t), &gladsheimv1.StartServiceRequest{ServiceName: "db"})
	refused(t, err, codes.AlreadyExists, service.ReasonAlreadyRunning)
	require.Contains(t, f.log.String(), "/gladsheim.v1.GladsheimService/StartService")
	require.Contains(t, f.log.String(), "outcome=AlreadyExists")
	require.Contains(t, f.log.String(), "service=db")
}

func TestStopService(t *testing.T) {
	f := newFixture(t)
	ms := uint32(1500)
	st, err := f.gladsheim().StopService(callContext(t), &gladsheimv1.StopServiceRequest{ServiceName: "web", Force: true, TimeoutMs: &ms})
	require.NoError(t, err)
	require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, st.GetState())
	require.Zero(t, st.GetProcessId())
	got := f.lastCall(t).(service.StopOptions)
	require.True(t, got.Force)
	require.Equal(t, 1500*time.Millisecond, *got.Timeout)

	_, err = f.gladsheim().StopService(callContext(t), &gladsheimv1.StopServiceRequest{ServiceName: "web"})
	refused(t, err, codes.FailedPrecondition, service.ReasonNotRunning)
	require.Nil(t, f.lastCall(t).(service.StopOptions).Timeout)

	tooLong := uint32(math.MaxUint32)
	_, err = f.gladsheim().StopService(callContext(t), &gladsheimv1.StopServiceRequest{ServiceName: "web", TimeoutMs: &tooLong})
	refused(t, err, codes.FailedPrecondition, service.ReasonNotRunning)
	require.Equal(t, time.Hour, *f.lastCall(t).(service.StopOptions).Timeout)
}

func TestRestartService(t *testing.T) {
	f := newFixture(t)
	zero := uint32(0)
	st, err := f.gladsheim().RestartService(callContext(t), &gladsheimv1.RestartServiceRequest{ServiceName: "web", ForceStop: true, StopTimeoutMs: &zero})
	require.NoError(t, err)
	require.Equal(t, uint64(8), st.GetIncarnation())
	got := f.lastCall(t).(service.StopOptions)
	require.True(t, got.Force)
	require.Zero(t, *got.Timeout, "0 is not absent")
}

func TestGetServiceStatus(t *testing.T) {
	f := newFixture(t)
	st, err := f.gladsheim().GetServiceStatus(callContext(t), &gladsheimv1.ServiceStatusRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, int32(4321), st.GetProcessId())
	require.Equal(t, "scope", st.GetLaunch())
	require.Equal(t, "systemd", st.GetBackend())
	require.Equal(t, "running", st.GetPhase())
	require.Equal(t, float32(64), st.GetResourceUsage().GetMemoryMb())
	require.Equal(t, uint64(96<<20), st.GetResourceUsage().GetMemoryPeakBytes())
	require.Nil(t, st.GetResourceUsage().ThrottledUsec, "absent is not zero")
	require.Equal(t, gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY, st.GetHealthStatus().GetStatus())
	require.Equal(t, uint32(3), st.GetRestartsLeft())
	require.Equal(t, "worker \uFFFD", st.GetProcesses()[1].GetCommand())
	require.Equal(t, 128.0*(1<<20), st.GetLimits()[service.MemoryMax].GetEffective())
	require.Nil(t, st.ErrorMessage)

	// A host that does not answer leaves out what it would tell.
	f.agent.Before = func(_ context.Context, method string) error {
		if method == "Usage" || method == "Processes" || method == "Limits" {
			return errors.New("the host is ill")
		}
		return nil
	}
	st, err = f.gladsheim().GetServiceStatus(callContext(t), &gladsheimv1.ServiceStatusRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, int32(4321), st.GetProcessId())
	require.Nil(t, st.GetResourceUsage())
	require.Empty(t, st.GetProcesses())
	require.Empty(t, st.GetLimits())
}

func TestAStoppedServicesStatus(t *testing.T) {
	f := newFixture(t)
	f.agent.Change("mail", service.NoticeExit, "crash", "", func(st *service.Status) {
		st.Error = "it crashed 4 times"
		st.Applied[service.IOWeight] = service.LimitReport{Requested: service.Of(5)}
		st.Machine.Recent = 9
		st.LastExit = &service.ExitRecord{
			Incarnation: 7, Exit: service.Exit{Signal: syscall.SIGKILL}, Verdict: service.VerdictOwnOOM,
			Remains: service.Remains{OOM: service.OOMOwn, OOMLevel: "/gladsheim.slice/x", Leftovers: 2, Usage: service.Usage{
				Source: "cgroup", MemoryPeak: service.Of(9), CPUTime: time.Second,
			}},
			Started: testTime.Add(-time.Hour), Ended: testTime, LastLines: []string{"a\xff"}, Message: "killed at its limit",
		}
	})
	st, err := f.gladsheim().GetServiceStatus(callContext(t), &gladsheimv1.ServiceStatusRequest{ServiceName: "mail"})
	require.NoError(t, err)
	require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_CRASHED, st.GetState())
	require.Equal(t, "it crashed 4 times", st.GetErrorMessage())
	require.Equal(t, []string{"memory_max", "io_weight"}, st.GetUnenforcedLimits())
	require.Equal(t, uint32(0), st.GetRestartsLeft())
	require.NotNil(t, st.RestartsLeft)
	require.Nil(t, st.GetResourceUsage())
	require.Equal(t, testTime.Add(-time.Second).Unix(), st.GetStopTimeUnix())
	x := st.GetLastExit()
	require.Equal(t, int32(9), x.GetSignal())
	require.Nil(t, x.ExitCode)
	require.Nil(t, x.UnknownReason)
	require.Equal(t, gladsheimv1.Verdict_VERDICT_OWN_LIMIT_OOM, x.GetVerdict())
	require.Equal(t, uint64(9), x.GetMemoryPeakBytes())
	require.Equal(t, uint64(1_000_000), x.GetCpuTimeUsec())
	require.Nil(t, x.ThrottledUsec)
	require.Equal(t, [][]byte{[]byte("a\xff")}, x.GetLastLines())
}

func TestListServices(t *testing.T) {
	f := newFixture(t)
	all, err := f.gladsheim().ListServices(callContext(t), &gladsheimv1.ListServicesRequest{})
	require.NoError(t, err)
	require.Equal(t, []string{"db", "mail", "web"}, names(all))
	require.Nil(t, all.GetServices()[2].GetResourceUsage())
	require.Nil(t, all.GetServices()[2].GetHealthStatus())
	require.Empty(t, all.GetServices()[2].GetProcesses())

	some, err := f.gladsheim().ListServices(callContext(t), &gladsheimv1.ListServicesRequest{
		FilterStates:     []gladsheimv1.ServiceState{gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, gladsheimv1.ServiceState_SERVICE_STATE_CRASHED},
		IncludeResources: true, IncludeHealth: true, IncludeDetails: true,
	})
	require.NoError(t, err)
	require.Equal(t, []string{"mail", "web"}, names(some))
	web := some.GetServices()[1]
	require.NotNil(t, web.GetResourceUsage())
	require.NotNil(t, web.GetHealthStatus())
	require.Len(t, web.GetProcesses(), 2)
	require.NotEmpty(t, web.GetLimits())
	measured, err := f.gladsheim().ListServices(callContext(t), &gladsheimv1.ListServicesRequest{IncludeResources: true})
	require.NoError(t, err)
	require.NotEmpty(t, measured.GetServices()[2].GetLimits())
	require.Empty(t, measured.GetServices()[2].GetProcesses())
	require.Empty(t, measured.GetServices()[0].GetLimits(), "it does not run")
	counts := func(l *gladsheimv1.ServiceList) []uint32 { // of what is listed
		return []uint32{l.GetTotalCount(), l.GetRunningCount(), l.GetStoppedCount(), l.GetCrashedCount()}
	}
	require.Equal(t, []uint32{3, 1, 1, 1}, counts(all))
	require.Equal(t, []uint32{2, 1, 0, 1}, counts(some))
	_, err = f.gladsheim().ListServices(callContext(t), &gladsheimv1.ListServicesRequest{FilterStates: []gladsheimv1.ServiceState{77}})
	refused(t, err, codes.InvalidArgument, "INVALID")
}

func names(list *gladsheimv1.ServiceList) []string {
	var out []string
	for _, s := range list.GetServices() {
		out = append(out, s.GetServiceName())
	}
	return out
}

func TestGetServiceHealth(t *testing.T) {
	f := newFixture(t)
	h, err := f.gladsheim().GetServiceHealth(callContext(t), &gladsheimv1.ServiceHealthRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.True(t, proto.Equal(&gladsheimv1.ServiceHealth{
		ServiceName: "web", Status: gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY, Message: "200 OK",
		LastCheckUnix: testTime.Unix() - 1, NextCheckUnix: testTime.Unix() + 4, CheckStrategy: "process", Threshold: 3,
		SuccessThreshold: 1, LastCheckUnixMs: testTime.UnixMilli() - 1000, NextCheckUnixMs: testTime.UnixMilli() + 4000,
	}, h), "%v", h)
}

func TestGetResourceUsage(t *testing.T) {
	f := newFixture(t)
	u, err := f.gladsheim().GetResourceUsage(callContext(t), &gladsheimv1.ResourceUsageRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, uint64(64<<20), u.GetMemoryBytes())
	require.Equal(t, testTime.Unix(), u.GetMeasuredAtUnix())
	require.Equal(t, uint64(3_000_000), u.GetCpuTimeUsec())
	_, err = f.gladsheim().GetResourceUsage(callContext(t), &gladsheimv1.ResourceUsageRequest{ServiceName: "db"})
	refused(t, err, codes.FailedPrecondition, service.ReasonNotRunning)
}

func TestLimits(t *testing.T) {
	f := newFixture(t)
	have, err := f.gladsheim().GetResourceLimits(callContext(t), &gladsheimv1.ServiceRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, uint64(256<<20), have.GetMaxMemoryBytes())
	require.Equal(t, float32(256), have.GetMaxMemoryMb())
	require.Equal(t, float32(80), have.GetMemoryWarningPercent())
	require.Nil(t, have.PidsMax)
	require.Len(t, have.GetReports(), int(service.NumResources))
	require.Equal(t, "/gladsheim.slice", have.GetReports()[service.MemoryMax].GetSetBy())
	require.NotEmpty(t, have.GetReports()[service.IOWeight].GetReason())

	// A request for nothing changes nothing.
	same, err := f.gladsheim().SetResourceLimits(callContext(t), &gladsheimv1.ResourceLimitsRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.True(t, proto.Equal(have, same))
	require.Empty(t, f.agent.Calls())

	// What a client got it may send back.
	have.Reports, have.MaxCpuPercent = nil, float32(math.Inf(1))
	pids, weight := uint64(math.MaxUint64), uint32(5)
	have.PidsMax, have.IoWeight, have.MaxMemoryBytes, have.MaxMemoryMb = &pids, &weight, 1<<30, 77
	now, err := f.gladsheim().SetResourceLimits(callContext(t), &gladsheimv1.ResourceLimitsRequest{ServiceName: "web", Limits: have})
	require.NoError(t, err)
	var want service.Limits
	want[service.MemoryMax], want[service.CPUMax] = service.Of(1<<30), service.Of(service.Unlimited)
	want[service.PidsMax], want[service.IOWeight] = service.Of(service.Unlimited), service.Of(5)
	require.Equal(t, want, f.lastCall(t))
	require.Equal(t, float32(1024), now.GetMaxMemoryMb())
	require.True(t, math.IsInf(float64(now.GetMaxCpuPercent()), 1))
	require.True(t, math.IsInf(now.GetReports()[service.PidsMax].GetEffective(), 1))
	require.Equal(t, uint64(math.MaxUint64), now.GetPidsMax())

	low, burst, idle := uint64(8<<20), float32(2.5), true
	kept := &gladsheimv1.ResourceLimits{MemoryLowBytes: &low, MemoryMinBytes: &pids, CpuBurstPercent: &burst, CpuIdle: &idle}
	now, err = f.gladsheim().SetResourceLimits(callContext(t), &gladsheimv1.ResourceLimitsRequest{ServiceName: "web", Limits: kept})
	require.NoError(t, err)
	want = service.Limits{
		service.MemoryLow: service.Of(8 << 20), service.MemoryMin: service.Of(service.Unlimited),
		service.CPUBurst: service.Of(25_000), service.CPUIdle: service.Of(1),
	}
	require.Equal(t, want, f.lastCall(t))
	require.Equal(t, low, now.GetMemoryLowBytes())
	require.Equal(t, uint64(math.MaxUint64), now.GetMemoryMinBytes())
	require.Equal(t, burst, now.GetCpuBurstPercent())
	require.True(t, now.GetCpuIdle())
	require.InDelta(t, 2.5, now.GetReports()[service.CPUBurst].GetEffective(), 0)
	require.InDelta(t, 1, now.GetReports()[service.CPUIdle].GetEffective(), 0)
}

func TestBadLimits(t *testing.T) {
	f := newFixture(t)
	f32 := func(v float32) *float32 { return &v }
	u64 := func(v uint64) *uint64 { return &v }
	u32 := func(v uint32) *uint32 { return &v }
	yes := true
	for field, limits := range map[string]*gladsheimv1.ResourceLimits{
		"max_memory_bytes":       {MaxMemoryBytes: 1},
		"max_memory_mb":          {MaxMemoryMb: float32(math.NaN())},
		"max_memory_mb ":         {MaxMemoryMb: -5},
		"max_memory_mb  ":        {MaxMemoryMb: math.MaxFloat32},
		"max_cpu_percent":        {MaxCpuPercent: -5},
		"max_cpu_percent ":       {MaxCpuPercent: float32(math.NaN())},
		"max_cpu_percent  ":      {MaxCpuPercent: 0.001},
		"memory_high_bytes":      {MemoryHighBytes: u64(0)},
		"memory_swap_max_bytes":  {MemorySwapMaxBytes: u64(1 << 60)},
		"pids_max":               {PidsMax: u64(0)},
		"cpu_weight":             {CpuWeight: u32(10001)},
		"io_weight":              {IoWeight: u32(0)},
		"nofile":                 {Nofile: u64(1)},
		"memory_low_bytes":       {MemoryLowBytes: u64(1 << 60)},
		"memory_min_bytes":       {MemoryMinBytes: u64(1 << 60)},
		"cpu_burst_percent":      {CpuBurstPercent: f32(-1)},
		"memory_warning_percent": {MaxMemoryMb: 9, MemoryWarningPercent: f32(101)},
		"cpu_warning_percent":    {MaxMemoryMb: 9, CpuWarningPercent: f32(-1)},
		"best_effort":            {MaxMemoryMb: 9, BestEffort: &yes},
	} {
		t.Run(field, func(t *testing.T) {
			_, err := f.gladsheim().SetResourceLimits(callContext(t), &gladsheimv1.ResourceLimitsRequest{ServiceName: "web", Limits: limits})
			s := refused(t, err, codes.InvalidArgument, "INVALID")
			require.Contains(t, s.Message(), "cannot set limits of web: ")
			_, err = f.gladsheim().StartService(callContext(t), &gladsheimv1.StartServiceRequest{ServiceName: "db", ResourceLimits: limits})
			refused(t, err, codes.InvalidArgument, "INVALID")
		})
	}
	require.Empty(t, f.agent.Calls(), "nothing wrong gets past the border")
}
