package api

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func TestRuntime(t *testing.T) {
	f := newFixture(t)
	c := gladsheimv1.NewRuntimeServiceClient(f.conn)
	_, err := c.Signal(callContext(t), &gladsheimv1.SignalRequest{ServiceName: "web", Signal: "HUP"})
	require.NoError(t, err)
	require.Equal(t, syscall.SIGHUP, f.lastCall(t))
	_, err = c.Signal(callContext(t), &gladsheimv1.SignalRequest{ServiceName: "web", Signal: "nonsense"})
	refused(t, err, codes.InvalidArgument, "INVALID")
	_, err = c.Signal(callContext(t), &gladsheimv1.SignalRequest{ServiceName: "db", Signal: "1"})
	refused(t, err, codes.FailedPrecondition, service.ReasonNotRunning)

	st, err := c.Freeze(callContext(t), &gladsheimv1.FreezeRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.True(t, st.GetFrozen())
	require.Equal(t, st.GetCgroup(), st.GetFrozenBy())
	require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, st.GetState(), "as far as the contract knows")
	st, err = c.Thaw(callContext(t), &gladsheimv1.ThawRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.False(t, st.GetFrozen())
	for _, name := range []string{"db", "nobody"} {
		_, err = c.Freeze(callContext(t), &gladsheimv1.FreezeRequest{ServiceName: name})
		require.Error(t, err)
		_, err = c.Thaw(callContext(t), &gladsheimv1.ThawRequest{ServiceName: name})
		require.Error(t, err)
	}

	since := time.UnixMilli(1_700_000_000_000)
	f.agent.Change("web", service.NoticeHung, "stopped", "all threads are stopped (SIGSTOP)", func(s *service.Status) {
		s.Hung = service.Hang{Since: since, Why: "all threads are stopped (SIGSTOP)"}
	})
	st, err = gladsheimv1.NewGladsheimServiceClient(f.conn).GetServiceStatus(callContext(t), &gladsheimv1.ServiceStatusRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, since.UnixMilli(), st.GetHung().GetSinceUnixMs())
	require.Equal(t, "all threads are stopped (SIGSTOP)", st.GetHung().GetWhy())
	require.Contains(t, st.GetHealthStatus().GetMessage(), "it hangs: all threads are stopped (SIGSTOP)")

	st, err = c.Kill(callContext(t), &gladsheimv1.KillRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, st.GetState())
	require.True(t, f.lastCall(t).(service.StopOptions).Force)

	s := f.put("old", service.Stopped)
	for i := range 4 {
		s.Exits = append(s.Exits, service.ExitRecord{Incarnation: uint64(9 - i), Exit: service.Exit{Code: i}, Verdict: service.VerdictCrash})
	}
	for limit, want := range map[uint32]int{0: 4, 2: 2, 99: 4} {
		h, err := c.ListExits(callContext(t), &gladsheimv1.ListExitsRequest{ServiceName: "old", Limit: limit})
		require.NoError(t, err)
		require.Len(t, h.GetExits(), want)
		require.Equal(t, uint64(9), h.GetExits()[0].GetIncarnation())
	}
}

func TestCatalog(t *testing.T) {
	f := newFixture(t)
	c := gladsheimv1.NewCatalogServiceClient(f.conn)
	document := []byte(`{"name":"new","exec":["/bin/new"]}`)
	r, err := c.Register(callContext(t), &gladsheimv1.RegisterRequest{Definition: document, File: "new.json"})
	require.NoError(t, err)
	require.Equal(t, gladsheimv1.DefinitionChange_ACTION_ADDED, r.GetChange().GetAction())
	require.Equal(t, string(document), r.GetDefinition().GetJson())
	require.Equal(t, "api", r.GetDefinition().GetSource())
	require.Equal(t, uint64(1), r.GetDefinition().GetGeneration())
	require.Contains(t, f.log.String(), "service=new")

	_, err = c.Register(callContext(t), &gladsheimv1.RegisterRequest{Definition: append(document, ' ')})
	refused(t, err, codes.AlreadyExists, "EXISTS")
	r, err = c.Register(callContext(t), &gladsheimv1.RegisterRequest{Definition: append(document, ' '), Replace: true})
	require.NoError(t, err)
	require.Equal(t, gladsheimv1.DefinitionChange_EFFECT_NEXT_START, r.GetChange().GetEffect())
	require.Equal(t, []string{"exec"}, r.GetChange().GetFields())

	_, err = c.Register(callContext(t), &gladsheimv1.RegisterRequest{Definition: []byte("{\n  nope}"), File: "bad.json"})
	s := refused(t, err, codes.InvalidArgument, service.ReasonBadDefinition)
	require.Contains(t, s.Message(), "bad.json:2:3: ")

	files := []*gladsheimv1.DefinitionFile{
		{Name: "a.json", Content: []byte(`{"name":"a","exec":["/bin/a"]}`)},
		{Name: "new.json", Content: append(document, ' ')},
	}
	for _, dry := range []bool{true, false} {
		a, err := c.Apply(callContext(t), &gladsheimv1.ApplyRequest{Files: files, DryRun: dry})
		require.NoError(t, err)
		require.Len(t, a.GetChanges(), 2)
		require.Equal(t, gladsheimv1.DefinitionChange_ACTION_ADDED, a.GetChanges()[0].GetAction())
		require.Equal(t, gladsheimv1.DefinitionChange_ACTION_UNCHANGED, a.GetChanges()[1].GetAction())
	}
	replace := false
	files[1].Content = append(files[1].Content, ' ')
	_, err = c.Apply(callContext(t), &gladsheimv1.ApplyRequest{Files: files, Replace: &replace})
	s = refused(t, err, codes.AlreadyExists, "EXISTS")
	require.Contains(t, s.Message(), "cannot register new")
	replace = true
	_, err = c.Apply(callContext(t), &gladsheimv1.ApplyRequest{Files: files, Replace: &replace})
	require.NoError(t, err)
	list, err := c.ListDefinitions(callContext(t), &gladsheimv1.ListDefinitionsRequest{})
	require.NoError(t, err)
	require.Len(t, list.GetDefinitions(), 5)
	d, err := c.GetDefinition(callContext(t), &gladsheimv1.GetDefinitionRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, `{"name":"web"}`, d.GetJson())
	_, err = c.Unregister(callContext(t), &gladsheimv1.UnregisterRequest{ServiceName: "web"})
	refused(t, err, codes.FailedPrecondition, "CONFLICT")
	d, err = c.Unregister(callContext(t), &gladsheimv1.UnregisterRequest{ServiceName: "a"})
	require.NoError(t, err)
	require.Equal(t, "a", d.GetServiceName())
	_, err = c.GetDefinition(callContext(t), &gladsheimv1.GetDefinitionRequest{ServiceName: "a"})
	s = refused(t, err, codes.NotFound, service.ReasonServiceNotFound)
	require.Contains(t, s.Message(), "cannot show the definition of a: ")
	_, err = c.Unregister(callContext(t), &gladsheimv1.UnregisterRequest{ServiceName: "a"})
	s = refused(t, err, codes.NotFound, service.ReasonServiceNotFound)
	require.Contains(t, s.Message(), "cannot unregister a: ")
}

func TestChecks(t *testing.T) {
	f := newFixture(t)
	c := gladsheimv1.NewRuntimeServiceClient(f.conn)
	_, err := c.CheckNow(callContext(t), &gladsheimv1.CheckNowRequest{ServiceName: "web"})
	refused(t, err, codes.FailedPrecondition, service.ReasonNotRunning)
	none, err := c.ListChecks(callContext(t), &gladsheimv1.ListChecksRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Empty(t, none.GetChecks())
	f.put("web", service.Running).Checks = []service.Probe{{At: testTime, Took: time.Millisecond, Status: service.Healthy, Message: "the check succeeded"}}
	h, err := c.CheckNow(callContext(t), &gladsheimv1.CheckNowRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY, h.GetStatus())
	checks, err := c.ListChecks(callContext(t), &gladsheimv1.ListChecksRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Len(t, checks.GetChecks(), 2)
	require.Equal(t, "asked for now", checks.GetChecks()[0].GetMessage())
	require.True(t, checks.GetChecks()[0].GetFailed())
	require.EqualValues(t, 1000, checks.GetChecks()[1].GetTookUs())
	require.Equal(t, testTime.UnixMilli(), checks.GetChecks()[1].GetBeganUnixMs())
	_, err = c.CheckNow(callContext(t), &gladsheimv1.CheckNowRequest{ServiceName: "nobody"})
	refused(t, err, codes.NotFound, service.ReasonServiceNotFound)
	_, err = c.ListChecks(callContext(t), &gladsheimv1.ListChecksRequest{ServiceName: "nobody"})
	refused(t, err, codes.NotFound, service.ReasonServiceNotFound)
}

// What a restart would ask for is told in the unit of the limit, and only where it differs.
func TestLimitsAtRestart(t *testing.T) {
	var applied service.Applied
	applied[service.CPUMax] = service.LimitReport{Requested: service.Of(500_000), Enforced: true, AtRestart: service.Of(250_000)}
	reports := toReports(applied)
	require.InDelta(t, 25, reports[service.CPUMax].GetAtRestart(), 0)
	require.Nil(t, reports[service.MemoryMax].AtRestart)
	require.Nil(t, reports[service.CPUMax].Instead)
	applied[service.CPUMax].Instead = service.Of(400_000)
	require.InDelta(t, 40, toReports(applied)[service.CPUMax].GetInstead(), 0)
}

func TestHost(t *testing.T) {
	f := newFixture(t)
	f.agent.Info = service.HostInfo{
		Hostname: "demeter", Kernel: "6.12", Version: "0.1.0", Started: testTime, Platform: "asgard", MaxServices: 25,
		Backends: []service.BackendInfo{{Name: "systemd", Available: true, Selected: true, Capabilities: []string{"memory_max"}}},
		System:   service.SystemUsage{MemoryTotal: 100, MemoryAvailable: 30, CPUPercent: 150, Cores: 4, Measured: testTime, MemoryBy: "/m", CoresBy: "/c"},
		All:      service.Usage{Source: "cgroup", Memory: 7, CPUTime: 1_000_000, CPUPercent: 25, Pids: service.Of(3)},
	}
	f.agent.Info.Power = service.PowerInfo{
		Power: service.Power{Battery: true, Draining: true, Percent: 12, Source: "sysfs"}, Level: service.PowerLow, StopBelow: 15, ReduceBelow: 30,
	}
	f.agent.Found = []service.Finding{{Level: service.SeverityProblem, Title: "t", Detail: "d", Fix: "f"}}
	f.agent.Config = []byte(`{"gladsheim":{}}`)
	c := gladsheimv1.NewHostServiceClient(f.conn)
	f.agent.Info.Budget, f.agent.Info.Promised = 200, 90
	h, err := c.GetHost(callContext(t), &gladsheimv1.GetHostRequest{})
	require.NoError(t, err)
	require.Equal(t, uint64(70), h.GetUsage().GetMemoryUsedBytes())
	require.Equal(t, "/m /c", h.GetUsage().GetMemoryLimitedBy()+" "+h.GetUsage().GetCoresLimitedBy())
	three := uint64(3)
	require.True(t, proto.Equal(&gladsheimv1.ResourceUsage{
		Source: "cgroup", MemoryBytes: 7, MemoryMb: 7.0 / (1 << 20), CpuTimeUsec: 1000, CpuPercent: 25, PidsCurrent: &three, MeasuredAtUnix: testTime.Unix(),
	}, h.GetServicesUsage()), "%v", h.GetServicesUsage())
	require.Empty(t, h.GetServicesUncounted())
	f.agent.Info.Uncounted = "nobody knows"
	unknown, err := c.GetHost(callContext(t), &gladsheimv1.GetHostRequest{})
	require.NoError(t, err)
	require.Nil(t, unknown.GetServicesUsage())
	require.Equal(t, "nobody knows", unknown.GetServicesUncounted())
	require.Equal(t, "gladsheim.v1", h.GetApiVersion())
	require.Len(t, h.GetStateCounts(), 3)
	require.True(t, h.GetBackends()[0].GetSelected())
	require.Equal(t, []uint64{200, 90}, []uint64{h.GetMemoryBudgetBytes(), h.GetMemoryPromisedBytes()})
	twelve := 12.0
	require.True(t, proto.Equal(&gladsheimv1.PowerInfo{
		Battery: true, OnBattery: true, Percent: &twelve, Source: "sysfs", Level: "low", StopServicesBelowPercent: 15, ReduceMonitoringBelowPercent: 30,
	}, h.GetPower()), "%v", h.GetPower())
	require.True(t, proto.Equal(&gladsheimv1.PowerInfo{Level: "full"}, toPower(service.PowerInfo{})), "a host without a battery")
	host := toWatchEvent((&service.Status{}).Notice(service.NoticePower, "low", "on battery, 12%")).GetEvent()
	require.True(t, proto.Equal(&gladsheimv1.Event{Kind: "power", Reason: "low", Detail: "on battery, 12%"}, host), "%v", host)
	d, err := c.Doctor(callContext(t), &gladsheimv1.DoctorRequest{})
	require.NoError(t, err)
	require.Equal(t, gladsheimv1.Finding_LEVEL_PROBLEM, d.GetFindings()[0].GetLevel())
	f.agent.Found = make([]service.Finding, 10_000)
	for i := range f.agent.Found {
		f.agent.Found[i] = service.Finding{Title: "wrong", Detail: strings.Repeat("x", 64<<10)}
	}
	d, err = c.Doctor(callContext(t), &gladsheimv1.DoctorRequest{})
	require.NoError(t, err)
	require.Len(t, d.GetFindings(), maxFindings+1)
	require.Equal(t, "9500 more findings are not shown", d.GetFindings()[maxFindings].GetTitle())
	f.agent.Older = []service.OlderDefault{{Service: service.MustName("web"), Limit: service.CPUMax, Has: service.Of(500_000), Now: service.Of(250_000)}}
	cfg, err := c.GetConfig(callContext(t), &gladsheimv1.GetConfigRequest{})
	require.NoError(t, err)
	require.Equal(t, `{"gladsheim":{}}`, cfg.GetJson())
	require.Len(t, cfg.GetOlderDefaults(), 1)
	require.True(t, proto.Equal(&gladsheimv1.OlderDefault{ServiceName: "web", Limit: "cpu_percent", Has: 50, Now: 25}, cfg.GetOlderDefaults()[0]))
	require.Equal(t, "/etc/gladsheim/gladsheim.json", cfg.GetSource())
	require.Equal(t, testTime.UnixMilli(), cfg.GetLoadedUnixMs())
	f.agent.Before = func(context.Context, string) error {
		return &service.Error{Op: "look at the host", Kind: service.HostUnavailable}
	}
	_, err = c.GetHost(callContext(t), &gladsheimv1.GetHostRequest{})
	refused(t, err, codes.Unavailable, "HOST_UNAVAILABLE")
}
