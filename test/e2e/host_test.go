package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// patience is how long anything may take on an emulated machine before a test
// gives up. No test waits that long when all is well.
const patience = 5 * time.Minute

// offers tells whether the host has an ability: systemd, cgroup2 or exec.
// Outside of a test host nothing is offered, and the test is skipped.
func offers(t *testing.T, ability string) bool {
	t.Helper()
	all, on := os.LookupEnv("GLADSHEIM_TEST_OFFERS")
	if !on {
		t.Skip("this needs a test host: go run ./test/floors")
	}
	return slices.Contains(strings.Fields(all), ability)
}

// limited tells whether the kernel enforces limits here.
func limited(t *testing.T) bool { return offers(t, "cgroup2") }

// soak tells whether there is time for everything: `make soak`.
var soak = os.Getenv("GLADSHEIM_TEST_SOAK") != ""

// oneOfAKind is for stories that need no certain version of systemd or the kernel:
// unless there is time, one of the hosts with systemd hears them, and those without.
func oneOfAKind(t *testing.T) {
	t.Helper()
	toldOn(t, "systemd", "cgroup2", "bare", "bare as a user")
}

// anywhere is for stories of the agent that systemd does not change: unless there is
// time, one host with cgroups hears them, and the one that is not emulated.
func anywhere(t *testing.T) {
	t.Helper()
	toldOn(t, "cgroup2", "bare")
}

// native is for stories of the agent alone, which no way of launching changes and no
// cgroup: unless there is time, the host hears them that is not emulated.
func native(t *testing.T) {
	t.Helper()
	toldOn(t, "bare")
}

// toldOn skips a story elsewhere, unless there is time for everything.
func toldOn(t *testing.T, hosts ...string) {
	t.Helper()
	if soak || slices.Contains(hosts, host()) {
		return
	}
	t.Skip("told on " + strings.Join(hosts, ", "))
}

// host names the host that this is, and whose.
func host() string {
	name := os.Getenv("GLADSHEIM_TEST_HOST")
	if name == "bare" && os.Geteuid() != 0 {
		name += " as a user"
	}
	return name
}

// modes are the ways of launching that this host has. Where nothing but the version of
// systemd is another, its own way is enough unless there is time.
func modes(t *testing.T) []string {
	switch {
	case offers(t, "systemd") && !soak && host() != "systemd":
		return []string{"scope"}
	case offers(t, "systemd"):
		return []string{"scope", "cgroup"}
	case offers(t, "cgroup2"):
		return []string{"cgroup"}
	}
	return []string{"auto"}
}

// preferred is the way of launching that this host prefers, for stories that no such way
// changes; all of them if there is time.
func preferred(t *testing.T) []string {
	if soak {
		return modes(t)
	}
	return modes(t)[:1]
}

// world is one agent with directories of its own.
type world struct {
	t       *testing.T
	program string // the daemon's
	dir     string // readable by everybody: PostgreSQL runs as another user
	socket  string
	daemon  *exec.Cmd
	gone    chan error // what became of the daemon, told once
	log     *os.File
	conn    *grpc.ClientConn
}

// newWorld starts an agent, and at the end of the test stops it and checks
// that nothing is left.
func newWorld(t *testing.T) *world { return newWorldOf(t, "gladsheimd") }

// newWorldOf is newWorld with a certain program as the agent.
func newWorldOf(t *testing.T, program string) *world {
	t.Helper()
	offers(t, "exec") // skips outside of a host
	dir, err := os.MkdirTemp("", "gladsheim-e2e-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	w := &world{t: t, program: program, dir: dir, socket: filepath.Join(dir, "run", "gladsheim.sock")}
	require.NoError(t, os.MkdirAll(w.path("services.d"), 0o755))
	require.NoError(t, os.WriteFile(w.path("gladsheim.json"), []byte(
		fmt.Sprintf(`{"gladsheim":{"grpc":{"port":%d},"resource_limits":{"max_services":300,"default_memory_mb":512,"default_cpu_percent":100}}}`, tcpPort)), 0o600))
	w.log, err = os.OpenFile(w.path("daemon.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	t.Cleanup(w.end)
	w.begin()
	return w
}

// in is the same world, for a subtest.
func (w *world) in(t *testing.T) *world {
	here := *w
	here.t = t
	return &here
}

func (w *world) path(parts ...string) string {
	return filepath.Join(append([]string{w.dir}, parts...)...)
}

// flags are the daemon's. A host that is somebody's machine may offer more than
// the tests are to touch.
func (w *world) flags() []string {
	flags := []string{"-config", w.path("gladsheim.json"), "-services-dir", w.path("services.d"),
		"-state-dir", w.path("state"), "-run-dir", w.path("run"), "-log-dir", w.path("log")}
	if !limited(w.t) {
		flags = append(flags, "-backend", "exec")
	}
	return flags
}

// tcpPort is where the agent listens besides its socket.
var tcpPort = port(15060)

// begin starts the daemon and waits until it answers.
func (w *world) begin() {
	w.t.Helper()
	w.launch()
	w.ready()
}

// ready waits until the daemon answers.
func (w *world) ready() {
	w.t.Helper()
	_, err := gladsheimv1.NewHostServiceClient(w.conn).GetHost(contextFor(w.t), &gladsheimv1.GetHostRequest{}, grpc.WaitForReady(true))
	require.NoError(w.t, err, w.daemonLog())
}

// launch starts the daemon.
func (w *world) launch() {
	w.daemon = exec.Command(w.program, w.flags()...)
	w.daemon.Stdout, w.daemon.Stderr = w.log, w.log
	// It must outlive nobody and take no signal meant for the tests.
	w.daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(w.t, w.daemon.Start())
	w.gone = make(chan error, 1)
	go func(daemon *exec.Cmd, gone chan<- error) { gone <- daemon.Wait() }(w.daemon, w.gone)
	var err error
	w.conn, err = grpc.NewClient("unix://"+w.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: patience, Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, MaxDelay: 100 * time.Millisecond, Multiplier: 1.5}}))
	require.NoError(w.t, err)
}

func (w *world) daemonLog() string {
	text, err := os.ReadFile(w.path("daemon.log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// end stops every service and the daemon. A service that is left behind, in
// whatever form, fails the test.
func (w *world) end() {
	if w.t.Failed() {
		w.t.Logf("the daemon said:\n%s", w.daemonLog())
	}
	select {
	case err := <-w.gone:
		require.Fail(w.t, "the agent ended by itself", "%v", err)
	default:
	}
	list, err := w.services().ListServices(contextFor(w.t), &gladsheimv1.ListServicesRequest{})
	require.NoError(w.t, err)
	for _, s := range list.Services {
		_, err := w.runtime().Kill(contextFor(w.t), &gladsheimv1.KillRequest{ServiceName: s.ServiceName})
		if status.Code(err) != codes.FailedPrecondition { // it does not run
			require.NoError(w.t, err)
		}
	}
	w.leave(syscall.SIGTERM)
	w.log.Close()
	w.nothingLeft()
	require.NoError(w.t, os.RemoveAll(w.dir))
}

// nothingLeft holds that no cgroup, unit or process of a service is there.
func (w *world) nothingLeft() {
	w.t.Helper()
	require.Empty(w.t, ourCgroups(w.t), "cgroups")
	require.Empty(w.t, ourUnits(w.t), "units")
	require.Empty(w.t, marked(w.t, ""), "processes")
}

// leave ends the daemon and waits for it. Asked politely, it must exit 0.
func (w *world) leave(sig syscall.Signal) {
	require.NoError(w.t, w.daemon.Process.Signal(sig))
	defer w.conn.Close()
	select {
	case err := <-w.gone:
		if sig == syscall.SIGTERM {
			require.NoError(w.t, err, w.daemonLog())
		}
	case <-time.After(patience):
		_ = w.daemon.Process.Kill()
		<-w.gone
		require.Fail(w.t, "the daemon does not leave", w.daemonLog())
	}
}

func (w *world) services() gladsheimv1.GladsheimServiceClient {
	return gladsheimv1.NewGladsheimServiceClient(w.conn)
}
func (w *world) runtime() gladsheimv1.RuntimeServiceClient {
	return gladsheimv1.NewRuntimeServiceClient(w.conn)
}
func (w *world) catalog() gladsheimv1.CatalogServiceClient {
	return gladsheimv1.NewCatalogServiceClient(w.conn)
}

// define is a definition document: base fields with more over them.
type fields map[string]any

func (f fields) with(more fields) fields {
	out := fields{}
	for k, v := range f {
		out[k] = v
	}
	for k, v := range more {
		out[k] = v
	}
	return out
}

func (f fields) json(t *testing.T) []byte {
	t.Helper()
	doc, err := json.Marshal(f)
	require.NoError(t, err)
	return doc
}

// limits are the given limits, best_effort where the kernel enforces none.
func limits(t *testing.T, given fields) fields {
	if limited(t) {
		return given
	}
	return given.with(fields{"best_effort": true})
}

// workload is a definition that runs the torture program in a mode. token
// marks all of its processes.
func workload(t *testing.T, name, token string, mode ...string) fields {
	t.Helper()
	offers(t, "exec") // skips outside of a host
	path, err := exec.LookPath("workload")
	require.NoError(t, err)
	path, err = filepath.Abs(path)
	require.NoError(t, err)
	return fields{"name": name, "exec": append([]string{path, "-t", mine(token)}, mode...), "restart": fields{"policy": "never"}}
}

// mine makes a token ours alone: on the host that is this machine as it is, the
// tests run as root and as a plain user at the same time.
func mine(token string) string { return fmt.Sprintf("e2e-%d-%s", os.Getpid(), token) }

// port is one that only we use, for the same reason.
func port(n int) int {
	if os.Getuid() != 0 {
		return n + 1000
	}
	return n
}

// register makes a definition known, over whatever had its name.
func (w *world) register(def fields) {
	w.t.Helper()
	_, err := w.catalog().Register(contextFor(w.t), &gladsheimv1.RegisterRequest{Definition: def.json(w.t), File: "test.json", Replace: true})
	require.NoError(w.t, err)
}

// result is what a run of the CLI gave.
type result struct {
	code           int
	stdout, stderr string
}

// cli runs the CLI against this world's agent.
func (w *world) cli(args ...string) result {
	w.t.Helper()
	cmd := exec.CommandContext(contextFor(w.t), "gladsheim", append([]string{"--host", "unix://" + w.socket}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		require.NoError(w.t, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// mustCLI is cli for what has to succeed.
func (w *world) mustCLI(args ...string) string {
	w.t.Helper()
	r := w.cli(args...)
	require.Zero(w.t, r.code, "gladsheim %v: %s%s\n%s", args, r.stdout, r.stderr, w.daemonLog())
	return r.stdout
}

// eventually polls a condition that nothing tells of. It does so on the test's
// own goroutine, where a condition may end the test, and ever more rarely, for
// on an emulated machine looking costs what is looked for its time.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	wait := 5 * time.Millisecond
	for end := time.Now().Add(patience); !condition(); <-time.After(wait) {
		require.True(t, time.Now().Before(end), "in vain: %s", what)
		wait = min(2*wait, 200*time.Millisecond)
	}
}

func isRoot(t *testing.T) bool {
	t.Helper()
	u, err := user.Current()
	require.NoError(t, err)
	return u.Uid == "0"
}
