package api

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/apitest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ Agent = (*apitest.Agent)(nil)

var testTime = time.Date(2026, 11, 22, 3, 41, 51, 250_000_000, time.UTC)

// fixture is a server on a real socket, with a scripted agent behind it.
type fixture struct {
	t      *testing.T
	agent  *apitest.Agent
	server *Server
	log    *logBuffer
	path   string
	conn   *grpc.ClientConn
	crash  chan struct{}
	served []chan error // the ends of Serve
}

// logBuffer may be written and read at once.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // t.TempDir is too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	return newFixtureWith(t, policy{self: uint32(os.Geteuid()), group: groupNumber})
}

func newFixtureWith(t *testing.T, y policy) *fixture {
	t.Helper()
	f := &fixture{t: t, log: &logBuffer{}, crash: make(chan struct{}, 8)}
	f.agent = &apitest.Agent{Now: testTime, LogDir: t.TempDir()}
	f.put("web", service.Running)
	f.put("db", service.Stopped)
	f.put("mail", service.Crashed)
	f.server = newServer(Config{
		Agent: f.agent, Log: slog.New(slog.NewTextHandler(f.log, nil)), Crash: func() { f.crash <- struct{}{} },
	}, y)
	f.path = filepath.Join(socketDir(t), "s")
	l, err := Listen("unix://" + f.path)
	require.NoError(t, err)
	f.serve(l)
	f.conn = f.dial("unix://" + f.path)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		f.server.Stop(ctx)
		for _, done := range f.served {
			require.NoError(t, <-done)
		}
	})
	return f
}

func (f *fixture) serve(l net.Listener) {
	done := make(chan error, 1)
	go func() { done <- f.server.Serve(l) }()
	f.served = append(f.served, done)
}

func (f *fixture) dial(target string, options ...grpc.DialOption) *grpc.ClientConn {
	conn, err := grpc.NewClient(target, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { conn.Close() })
	return conn
}

func (f *fixture) put(name string, state service.State) *apitest.Service {
	spec := service.Defaults()
	spec.Name, spec.Exec, spec.Description = service.MustName(name), []string{"/bin/" + name}, "The "+name
	spec.Limits[service.MemoryMax] = service.Of(256 << 20)
	st := service.Status{
		Name: spec.Name, Spec: &spec, Source: "/etc/gladsheim/services.d/" + name + ".json", Generation: 3,
		Machine: service.Machine{State: state, Incarnation: 7, Policy: spec.Restart},
		Started: testTime.Add(-time.Minute), Warnings: spec.Warnings,
	}
	st.Applied[service.MemoryMax] = service.LimitReport{Requested: spec.Limits[service.MemoryMax]}
	if state.Alive() {
		st.Ref = service.Ref{Backend: "systemd", Name: spec.Name, Incarnation: 7, Unit: "gladsheim-" + name + "-00000007.scope", Cgroup: "/gladsheim.slice/x", PID: 4321}
		st.Health = service.Health{Status: service.Healthy, Message: "200 OK", LastCheck: testTime.Add(-time.Second), NextCheck: testTime.Add(4 * time.Second)}
		held := service.Of(256 << 20)
		st.Applied[service.MemoryMax] = service.LimitReport{Requested: held, Applied: held, Effective: service.Of(128 << 20), SetBy: "/gladsheim.slice", Enforced: true}
	} else {
		st.Ended = testTime.Add(-time.Second)
	}
	s := &apitest.Service{
		Status: st, Document: []byte(`{"name":"` + name + `"}`),
		Usage:     service.Usage{Source: "cgroup", Memory: 64 << 20, MemoryPeak: service.Of(96 << 20), CPUPercent: 12.5, CPUTime: 3 * time.Second, Pids: service.Of(4)},
		Processes: []service.Process{{PID: 4321, Parent: 1, Command: "/bin/" + name}, {PID: 4322, Parent: 4321, Command: "worker \xff"}},
	}
	f.agent.Put(s)
	return s
}

// refused asserts the code and reason of an error that went through the table.
func refused(t *testing.T, err error, code codes.Code, reason service.Reason) *status.Status {
	t.Helper()
	s := status.Convert(err)
	require.Equal(t, code, s.Code(), "%v", err)
	require.Equal(t, string(reason), infoOf(t, s).GetReason())
	return s
}

func callContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // for a busy machine
	t.Cleanup(cancel)
	return ctx
}
