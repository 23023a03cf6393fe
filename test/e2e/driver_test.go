package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// contextFor ends with the test, or when its patience does.
func contextFor(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	t.Cleanup(cancel)
	return ctx
}

// driver is a person's way to the agent: the CLI or gRPC. Each call has to
// succeed.
type driver interface {
	register(def fields)
	start(name string) *gladsheimv1.ServiceStatus
	status(name string) *gladsheimv1.ServiceStatus
	list() *gladsheimv1.ServiceList
	usage(name string) *gladsheimv1.ResourceUsage
	health(name string) *gladsheimv1.ServiceHealth
	set(name string, b bounds)
	restart(name string) *gladsheimv1.ServiceStatus
	stop(name string)
	exits(name string) *gladsheimv1.ExitHistory
	unregister(name string)
}

// byGRPC drives through the API.
type byGRPC struct{ *world }

func must[M proto.Message](t *testing.T, m M, err error) M {
	t.Helper()
	require.NoError(t, err, "%v", status.Convert(err).Details())
	return m
}

func (d byGRPC) register(def fields) { d.world.register(def) }

func (d byGRPC) start(name string) *gladsheimv1.ServiceStatus {
	s, err := d.services().StartService(contextFor(d.t), &gladsheimv1.StartServiceRequest{ServiceName: name})
	return must(d.t, s, err)
}

func (d byGRPC) status(name string) *gladsheimv1.ServiceStatus {
	s, err := d.services().GetServiceStatus(contextFor(d.t), &gladsheimv1.ServiceStatusRequest{ServiceName: name})
	return must(d.t, s, err)
}

func (d byGRPC) list() *gladsheimv1.ServiceList {
	l, err := d.services().ListServices(contextFor(d.t), &gladsheimv1.ListServicesRequest{IncludeResources: true, IncludeHealth: true})
	return must(d.t, l, err)
}

func (d byGRPC) usage(name string) *gladsheimv1.ResourceUsage {
	u, err := d.services().GetResourceUsage(contextFor(d.t), &gladsheimv1.ResourceUsageRequest{ServiceName: name})
	return must(d.t, u, err)
}

func (d byGRPC) health(name string) *gladsheimv1.ServiceHealth {
	h, err := d.services().GetServiceHealth(contextFor(d.t), &gladsheimv1.ServiceHealthRequest{ServiceName: name})
	return must(d.t, h, err)
}

func (d byGRPC) set(name string, b bounds) {
	l, err := d.services().SetResourceLimits(contextFor(d.t), &gladsheimv1.ResourceLimitsRequest{
		ServiceName: name, Limits: &gladsheimv1.ResourceLimits{MaxMemoryBytes: b.memory, MaxCpuPercent: float32(b.cpu), PidsMax: &b.pids},
	})
	checkSet(d.t, must(d.t, l, err), b)
}

// checkSet holds the answer to a change of limits against what was asked for.
func checkSet(t *testing.T, l *gladsheimv1.ResourceLimits, b bounds) {
	t.Helper()
	require.Equal(t, b, bounds{l.MaxMemoryBytes, uint64(l.MaxCpuPercent), l.GetPidsMax()})
}

func (d byGRPC) restart(name string) *gladsheimv1.ServiceStatus {
	s, err := d.services().RestartService(contextFor(d.t), &gladsheimv1.RestartServiceRequest{ServiceName: name})
	return must(d.t, s, err)
}

func (d byGRPC) stop(name string) {
	s, err := d.services().StopService(contextFor(d.t), &gladsheimv1.StopServiceRequest{ServiceName: name})
	require.Equal(d.t, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, must(d.t, s, err).State)
}

func (d byGRPC) exits(name string) *gladsheimv1.ExitHistory {
	h, err := d.runtime().ListExits(contextFor(d.t), &gladsheimv1.ListExitsRequest{ServiceName: name})
	return must(d.t, h, err)
}

func (d byGRPC) unregister(name string) {
	m, err := d.catalog().Unregister(contextFor(d.t), &gladsheimv1.UnregisterRequest{ServiceName: name})
	must(d.t, m, err)
}

// byCLI drives through the command line; -o json is protojson.
type byCLI struct{ *world }

// read runs the CLI and decodes what it prints.
func read[M proto.Message](d byCLI, m M, args ...string) M {
	d.t.Helper()
	out := d.mustCLI(append([]string{"-o", "json"}, args...)...)
	require.NoError(d.t, protojson.Unmarshal([]byte(out), m), "gladsheim %v printed %s", args, out)
	return m
}

func (d byCLI) register(def fields) {
	file := d.path(def["name"].(string) + ".json")
	writeFile(d.t, file, def.json(d.t))
	d.mustCLI("register", "-f", file)
}

func (d byCLI) start(name string) *gladsheimv1.ServiceStatus {
	d.mustCLI("start", name)
	return d.status(name)
}

func (d byCLI) status(name string) *gladsheimv1.ServiceStatus {
	return read(d, &gladsheimv1.ServiceStatus{}, "status", name)
}

func (d byCLI) list() *gladsheimv1.ServiceList {
	return read(d, &gladsheimv1.ServiceList{}, "list")
}

func (d byCLI) usage(name string) *gladsheimv1.ResourceUsage {
	return read(d, &gladsheimv1.ResourceUsage{}, "usage", name)
}

func (d byCLI) health(name string) *gladsheimv1.ServiceHealth {
	return read(d, &gladsheimv1.ServiceHealth{}, "health", name)
}

func (d byCLI) set(name string, b bounds) {
	l := read(d, &gladsheimv1.ResourceLimits{}, "set", name,
		"memory_max="+size(b.memory), fmt.Sprintf("cpu_percent=%d", b.cpu), fmt.Sprintf("pids_max=%d", b.pids))
	checkSet(d.t, l, b)
}

func (d byCLI) restart(name string) *gladsheimv1.ServiceStatus {
	d.mustCLI("restart", name)
	return d.status(name)
}

func (d byCLI) stop(name string) {
	d.mustCLI("stop", name)
	require.Equal(d.t, 3, d.cli("status", name).code, "status of a stopped service")
}

func (d byCLI) exits(name string) *gladsheimv1.ExitHistory {
	return read(d, &gladsheimv1.ExitHistory{}, "history", name, "--exits")
}

func (d byCLI) unregister(name string) {
	d.mustCLI("unregister", name)
	require.Equal(d.t, 4, d.cli("status", name).code, "status of an unknown service")
}

// drivers are both, each with the name of its subtest.
var drivers = map[string]func(*world) driver{
	"cli":  func(w *world) driver { return byCLI{w} },
	"grpc": func(w *world) driver { return byGRPC{w} },
}

// stopwatch measures how long f takes.
func stopwatch(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}
