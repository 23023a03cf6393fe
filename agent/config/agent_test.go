package config

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/platform"
)

const seedDocument = `{"gladsheim": {
	"grpc": {"host": "127.0.0.1", "port": 50060},
	"resource_limits": {"max_services": 15, "default_memory_mb": 512, "default_cpu_percent": 25},
	"health_monitoring": {"check_interval_ms": 2000, "auto_restart": false, "max_restart_attempts": 5, "restart_backoff_ms": 120000},
	"service_loader": {"startup_timeout_ms": 15000, "shutdown_timeout_ms": 5000, "force_kill_after_timeout": false},
	"battery_management": {"stop_services_below_percent": 15, "reduce_monitoring_below_percent": 30}}}`

func TestAgent(t *testing.T) {
	a, faults := ParseAgent("gladsheim.json", []byte(seedDocument), asgard(t))
	require.Empty(t, faults)
	require.Equal(t, Agent{
		GRPC:        &GRPC{Host: "127.0.0.1", Port: 50060},
		MaxServices: 15, MaxDefinitions: 1000, DefaultMemory: service.Of(512 << 20), DefaultCPU: service.Of(250_000), DefaultPids: service.Of(512),
		StopServicesBelow: 15, ReduceMonitoringBelow: 30,
		CheckInterval: 2 * time.Second, AutoRestart: false, MaxRestartAttempts: 5, RestartBackoff: 2 * time.Minute,
		StartupTimeout: 15 * time.Second, ShutdownTimeout: 5 * time.Second, ForceKillAfterTimeout: false,
	}, a)
	require.Equal(t, "127.0.0.1:50060", a.GRPC.Address())

	again, faults := ParseAgent("again.json", FormatAgent(a), Agent{DefaultPids: a.DefaultPids})
	require.Empty(t, faults)
	require.Equal(t, a, again)
}

func TestAgentDefaults(t *testing.T) {
	a, faults := ParseAgent("gladsheim.json", []byte(`{"gladsheim": {}}`), asgard(t))
	require.Empty(t, faults)
	require.Equal(t, asgard(t), a)
	require.Nil(t, a.GRPC, "TCP is served where it is configured only")
	require.Equal(t, 25, a.MaxServices)
	require.Equal(t, service.Limits{
		service.MemoryMax: service.Of(2 << 30), service.CPUMax: service.Of(750_000), service.PidsMax: service.Of(512),
	}, a.DefaultLimits())
	require.Equal(t, service.Defaults(), a.Base())

	require.Zero(t, a.StopServicesBelow, "nobody expects that of a server")
	alfheim, err := platform.Choose("alfheim", platform.Facts{})
	require.NoError(t, err)
	a, faults = ParseAgent("gladsheim.json", []byte(`{"gladsheim": {"battery_management": {"stop_services_below_percent": 0}}}`), DefaultAgent(alfheim))
	require.Empty(t, faults)
	require.Equal(t, [2]int{0, 30}, [2]int{a.StopServicesBelow, a.ReduceMonitoringBelow})

	a, faults = ParseAgent("gladsheim.json", []byte(`{"gladsheim": {"grpc": {}}}`), asgard(t))
	require.Empty(t, faults)
	require.Equal(t, "127.0.0.1:50060", a.GRPC.Address())
}

// TestDefaultsReachDefinitions: a definition has the agent's defaults where it
// says nothing, and its own word where it does.
func TestDefaultsReachDefinitions(t *testing.T) {
	a, faults := ParseAgent("gladsheim.json", []byte(seedDocument), asgard(t))
	require.Empty(t, faults)
	spec, faults := ParseDefinition("a.json", []byte(`{"name": "a", "exec": ["/a"], "stop": {"timeout": "7s"}}`), a.Base())
	require.Empty(t, faults)
	require.Equal(t, 2*time.Second, spec.Health.Interval)
	require.Equal(t, 15*time.Second, spec.Ready.Timeout)
	require.Equal(t, service.StopPolicy{Signal: 15, Timeout: 7 * time.Second, ForceKill: false}, spec.Stop)
	require.Equal(t, service.RestartPolicy{
		When: service.RestartNever, MaxAttempts: 5, Window: 10 * time.Minute, Backoff: 2 * time.Minute, MaxBackoff: 2 * time.Minute, Deterministic: 5,
	}, spec.Restart)
	require.Equal(t, service.Limits{}, spec.Limits, "limits of the definition are those it asks for")
}

func TestAgentFaultsAllAtOnce(t *testing.T) {
	a, faults := ParseAgent("faulty-agent.json", read(t, "testdata/faulty-agent.json"), asgard(t))
	require.Zero(t, a)
	golden(t, "testdata/faulty-agent.txt", []byte(faults.Error()+"\n"))
}

func TestAgentShape(t *testing.T) {
	for document, want := range map[string]string{
		`{}`:                        `c:1:1: gladsheim: is required: the document is {"gladsheim": {…}}`,
		`[]`:                        "c:1:1: is an array; it wants an object",
		`{"gladsheim": {}`:          "c:1:17: the document ends inside of an object that began in line 1",
		`{"grpc": {"port": 50060}}`: "c:1:1: gladsheim: is required: the document is {\"gladsheim\": {…}}\nc:1:2: grpc: is not a known key; known are gladsheim",
	} {
		_, faults := ParseAgent("c", []byte(document), Agent{})
		require.Equal(t, want, faults.Error())
	}
	for _, host := range []string{"localhost", "::1", "127.1.2.3"} {
		_, faults := ParseAgent("c", []byte(`{"gladsheim": {"grpc": {"host": "`+host+`"}}}`), Agent{})
		require.Empty(t, faults, host)
	}
}

func FuzzParseAgent(f *testing.F) {
	f.Add([]byte(seedDocument))
	f.Add([]byte(`{"gladsheim": {"resource_limits": {"default_cpu_percent": 33.33333}}}`))
	base := Agent{DefaultMemory: service.Of(1 << 30), DefaultCPU: service.Of(10_000)}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, faults := ParseAgent("a.json", data, base)
		if len(faults) > 0 {
			require.Zero(t, a)
			return
		}
		again, faults := ParseAgent("b.json", FormatAgent(a), Agent{})
		if a.CheckInterval == 0 || a.StartupTimeout == 0 || a.MaxDefinitions == 0 {
			return // the base has no valid value, and neither has the document
		}
		require.Empty(t, faults)
		require.Equal(t, a, again)
	})
}
