package config

import (
	"math"
	"net"
	"strconv"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/platform"
)

// Agent is the agent's configuration with every default filled in.
type Agent struct {
	Source string    // the file it was read from; empty when there is none
	Loaded time.Time // when it was read

	GRPC *GRPC // nil: no TCP, the unix socket only

	MaxServices    int // most services that run at once, 0 for no cap
	MaxDefinitions int // most definitions that callers may register
	// MemoryOvercommit is how much of the host's memory the services that run may have
	// as memory_max together, in percent; 0 for any.
	MemoryOvercommit int
	DefaultMemory    service.Quota // service.MemoryMax of services that say nothing of it
	DefaultCPU       service.Quota // service.CPUMax likewise
	DefaultPids      service.Quota // service.PidsMax likewise

	CheckInterval      time.Duration // health.interval of services that say nothing of it
	AutoRestart        bool          // whether they are restarted on failure
	MaxRestartAttempts int           // restart.max_attempts
	RestartBackoff     time.Duration // restart.backoff

	StopServicesBelow     int // charge of the battery, in percent, below which services are stopped; 0 for never
	ReduceMonitoringBelow int // likewise health checks and sampling are fewer

	StartupTimeout        time.Duration // ready.timeout
	ShutdownTimeout       time.Duration // stop.timeout
	ForceKillAfterTimeout bool          // stop.force_kill
}

// GRPC is a TCP address to serve.
type GRPC struct {
	Host string // an address of the loopback interface
	Port uint16
}

// Address is host:port.
func (g GRPC) Address() string { return net.JoinHostPort(g.Host, strconv.Itoa(int(g.Port))) }

// maxDefinitions is enough for any host, and little enough for the agent: each
// keeps its document, a status and a goroutine, whether it runs or not.
const maxDefinitions = 1000

// DefaultAgent is the configuration on a platform where no file says otherwise.
func DefaultAgent(p platform.Profile) Agent {
	s := service.Defaults()
	return Agent{
		MaxServices:           p.MaxServices,
		MaxDefinitions:        maxDefinitions,
		DefaultMemory:         p.Memory,
		DefaultCPU:            p.CPU,
		DefaultPids:           p.Pids,
		CheckInterval:         s.Health.Interval,
		AutoRestart:           s.Restart.When != service.RestartNever,
		MaxRestartAttempts:    s.Restart.MaxAttempts,
		RestartBackoff:        s.Restart.Backoff,
		StopServicesBelow:     p.StopServicesBelow,
		ReduceMonitoringBelow: p.ReduceMonitoringBelow,
		StartupTimeout:        s.Ready.Timeout,
		ShutdownTimeout:       s.Stop.Timeout,
		ForceKillAfterTimeout: s.Stop.ForceKill,
	}
}

// Base is what a definition says that says nothing: the Spec to parse
// definitions against. Limits are not in it, so that a Spec tells what was asked
// for; see DefaultLimits.
func (a Agent) Base() service.Spec {
	s := service.Defaults()
	s.Health.Interval = a.CheckInterval
	if !a.AutoRestart {
		s.Restart.When = service.RestartNever
	}
	s.Restart.MaxAttempts = a.MaxRestartAttempts
	s.Restart.Backoff = a.RestartBackoff
	s.Restart.MaxBackoff = max(s.Restart.MaxBackoff, a.RestartBackoff)
	s.Ready.Timeout = a.StartupTimeout
	s.Stop.Timeout = a.ShutdownTimeout
	s.Stop.ForceKill = a.ForceKillAfterTimeout
	return s
}

// DefaultLimits are the limits of services whose definition sets none.
func (a Agent) DefaultLimits() service.Limits {
	var l service.Limits
	l[service.MemoryMax] = a.DefaultMemory
	l[service.CPUMax] = a.DefaultCPU
	l[service.PidsMax] = a.DefaultPids
	return l
}

func self(a *Agent) *Agent { return a }

// agentFile is the table of the agent's configuration.
var agentFile = object[Agent]{keys: []key[Agent]{
	at("gladsheim", "The agent's configuration.", object[Agent]{keys: []key[Agent]{
		at("grpc", "Serve gRPC on TCP as well as on the unix socket.",
			tcp, func(a *Agent) **GRPC { return &a.GRPC }),
		at("resource_limits", "Limits of the whole, and of services that set none. Defaults are the platform's.",
			resourceLimits, self),
		at("health_monitoring", "Checks and restarts of services that do not say otherwise.",
			healthMonitoring, self),
		at("service_loader", "Starts and stops of services that do not say otherwise.",
			serviceLoader, self),
		at("battery_management", "What is saved when the host runs on its battery. Defaults are the platform's.",
			batteryManagement, self),
	}}, self).needed(),
}}

var tcp = optional[GRPC]{
	object: object[GRPC]{keys: []key[GRPC]{
		at("host", "Address of the loopback interface.", loopback{}, func(g *GRPC) *string { return &g.Host }),
		at("port", "TCP port.", whole[uint16]{low: 1, high: math.MaxUint16}, func(g *GRPC) *uint16 { return &g.Port }),
	}},
	initial: GRPC{Host: "127.0.0.1", Port: 50060},
}

var resourceLimits = object[Agent]{keys: []key[Agent]{
	at("max_services", "Most services that run at once.",
		whole[int]{low: 1, high: 100_000, zeroAbsent: true}, func(a *Agent) *int { return &a.MaxServices }),
	at("max_definitions", "Most definitions that callers may register; files of the host do not count.",
		whole[int]{low: 1, high: 100_000}, func(a *Agent) *int { return &a.MaxDefinitions }),
	at("memory_overcommit_percent", "How much of the host's memory the services that run may have as memory_max together; as much as they ask for when left out.",
		whole[int]{low: 1, high: 10_000, zeroAbsent: true}, func(a *Agent) *int { return &a.MemoryOvercommit }),
	at("default_memory_mb", "Memory in MiB.",
		mebibytes{}, func(a *Agent) *service.Quota { return &a.DefaultMemory }),
	at("default_cpu_percent", "CPU time in percent of one core.",
		percent{}, func(a *Agent) *service.Quota { return &a.DefaultCPU }),
}}

var healthMonitoring = object[Agent]{keys: []key[Agent]{
	at("check_interval_ms", "From one health check to the next.",
		milliseconds{100 * time.Millisecond, 24 * time.Hour}, func(a *Agent) *time.Duration { return &a.CheckInterval }),
	at("auto_restart", "Start services again that failed.",
		yesNo{}, func(a *Agent) *bool { return &a.AutoRestart }),
	at("max_restart_attempts", "Restarts after failures within 10 minutes; one failure more, and a service is given up.",
		whole[int]{low: 0, high: 1_000_000}, func(a *Agent) *int { return &a.MaxRestartAttempts }),
	at("restart_backoff_ms", "Wait before the first attempt; it doubles for each further one.",
		milliseconds{0, 24 * time.Hour}, func(a *Agent) *time.Duration { return &a.RestartBackoff }),
}}

var serviceLoader = object[Agent]{keys: []key[Agent]{
	at("startup_timeout_ms", "How long a start may take.",
		milliseconds{time.Millisecond, 24 * time.Hour}, func(a *Agent) *time.Duration { return &a.StartupTimeout }),
	at("shutdown_timeout_ms", "How long a service may take to end.",
		milliseconds{0, time.Hour}, func(a *Agent) *time.Duration { return &a.ShutdownTimeout }),
	at("force_kill_after_timeout", "Kill what is left after that.",
		yesNo{}, func(a *Agent) *bool { return &a.ForceKillAfterTimeout }),
}}

var batteryManagement = object[Agent]{keys: []key[Agent]{
	at("stop_services_below_percent", "Charge below which services are stopped, but for those with power essential; 0 for never.",
		whole[int]{low: 0, high: 100}, func(a *Agent) *int { return &a.StopServicesBelow }),
	at("reduce_monitoring_below_percent", "Charge below which health checks are fewer; 0 for never.",
		whole[int]{low: 0, high: 100}, func(a *Agent) *int { return &a.ReduceMonitoringBelow }),
}}

// ParseAgent reads the agent's configuration. What it does not say is as in
// base, which is DefaultAgent of the platform. With faults the Agent is zero.
func ParseAgent(file string, data []byte, base Agent) (Agent, Faults) {
	d := newDocument(file, data)
	root := scan(d)
	if root == nil || !d.want(root, "", isObject) {
		return Agent{}, d.sorted()
	}
	a := base
	agentFile.read(d, "", root, &a)
	if _, given := root.has("gladsheim"); !given {
		d.fault(root.offset, "gladsheim", `is required: the document is {"gladsheim": {…}}`)
	}
	if len(d.faults) > 0 {
		return Agent{}, d.sorted()
	}
	return a, nil
}

// FormatAgent writes all that holds as a document that ParseAgent reads back.
func FormatAgent(a Agent) []byte { return pretty(agentFile.write(a)) }

// optional is an object that may be left out.
type optional[T any] struct {
	object  object[T]
	initial T // what an empty object means
}

func (o optional[T]) read(d *document, path string, n *node, v **T) {
	value := o.initial
	o.object.read(d, path, n, &value)
	*v = &value
}

func (o optional[T]) write(v *T) any {
	if v == nil {
		return nil
	}
	return o.object.write(*v)
}

func (o optional[T]) schema(*T) *jsonschema.Schema { return o.object.schema(o.initial) }

// loopback is an address that only this host reaches. Others wait for
// transport security: anybody who reaches the port could drive the agent.
type loopback struct{}

func (loopback) read(d *document, path string, n *node, v *string) {
	if !d.want(n, path, isText) {
		return
	}
	if ip := net.ParseIP(n.text); n.text != "localhost" && (ip == nil || !ip.IsLoopback()) {
		d.fault(n.offset, path,
			"%.100q is not an address of the loopback interface, such as 127.0.0.1; others are not served by this version, which has no TLS", n.text)
		return
	}
	*v = n.text
}

func (loopback) write(v string) any { return v }

func (loopback) schema(string) *jsonschema.Schema {
	return &jsonschema.Schema{Type: "string", Examples: []any{"127.0.0.1", "::1", "localhost"}}
}

// mebibytes is an amount of memory as a whole number of MiB.
type mebibytes struct{}

var mebibyteRange = whole[uint64]{low: 1, high: 1 << 30}

func (mebibytes) read(d *document, path string, n *node, v *service.Quota) {
	var mib uint64
	if mebibyteRange.read(d, path, n, &mib); mib > 0 {
		*v = service.Of(mib << 20)
	}
}

func (mebibytes) write(v service.Quota) any {
	if !v.Set {
		return nil
	}
	return v.Value >> 20
}

func (mebibytes) schema(service.Quota) *jsonschema.Schema { return mebibyteRange.schema(0) }

// percent is CPU time in percent of one core. Unlike in a definition it can not
// be "max": a service has a limit unless its own definition lifts it.
type percent struct{}

var cpuQuota = quota{service.CPUMax}

func (percent) read(d *document, path string, n *node, v *service.Quota) {
	if d.want(n, path, isNumber) {
		cpuQuota.read(d, path, n, v)
	}
}

func (percent) write(v service.Quota) any { return cpuQuota.write(v) }

func (percent) schema(v service.Quota) *jsonschema.Schema { return cpuQuota.schema(v).AnyOf[0] }
