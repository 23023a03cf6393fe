package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
	"github.com/gladsheim/gladsheim/logfile"
	"github.com/gladsheim/gladsheim/platform"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/sockets"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var web, db = service.MustName("web"), service.MustName("db")

// house is an agent in a bubble, with a fake backend, a fixture as /proc and
// directories of its own on a real disk.
type house struct {
	*Agent
	t        *testing.T
	dir      string
	logs     *logfile.Keeper
	host     *fake.Host
	boots    int // as the host counts them
	log      *lockedBuffer
	settings config.Agent
	findings []service.Finding
	backends []backends.Backend                            // nil: one fake on host
	fault    func(operation string, ref service.Ref) error // of that
	disk     func(call, path string) error                 // of the store
	enforces *service.Enforcement                          // by that
	began    time.Time                                     // of the boot, as the bubble's clock has it
	ahead    atomic.Int64                                  // by how much that was set since
	power    *plug
	clock    chan struct{} // has a value when somebody set it
}

var facts = platform.Facts{
	Hostname: "valhalla", Kernel: "6.12.0",
	Systemd: platform.Ability{Reason: "no systemd here"}, Cgroup2: platform.Ability{Reason: "no cgroups here"},
	BornInside: platform.Ability{Has: true}, Pidfd: platform.Ability{Has: true}, Pressure: platform.Ability{Has: true},
}

// inside runs f in a house whose agent is not open yet.
func inside(t *testing.T, f func(*testing.T, *house)) {
	t.Helper()
	dir, log := t.TempDir(), &lockedBuffer{}
	// Outside of the bubble, for it waits for the kernel.
	logs, err := logfile.Open(filepath.Join(dir, "log"), slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	defer logs.Close()
	synctest.Test(t, func(t *testing.T) {
		profile, err := platform.Choose("asgard", platform.Facts{})
		require.NoError(t, err)
		h := &house{t: t, dir: dir, logs: logs, host: fake.NewHost(), log: log, settings: config.DefaultAgent(profile), power: &plug{news: make(chan struct{}, 1)}, clock: make(chan struct{}, 1)}
		h.write("services.d/.keep", "")
		h.boot(h.bootID())
		h.write("proc/meminfo", "MemTotal: 4096000 kB\nMemAvailable: 2048000 kB\nSwapTotal: 0 kB\n")
		h.write("proc/stat", "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 50 0 50 400 0 0 0 0 0 0\ncpu1 50 0 50 400 0 0 0 0 0 0\n")
		h.write("cgroup/cpuset.cpus.effective", "0-1\n")
		h.began = time.Now().Add(-24 * time.Hour)
		defer h.close()
		f(t, h)
	})
}

// opened runs f in a house whose agent is open.
func opened(t *testing.T, f func(*testing.T, *house)) {
	t.Helper()
	inside(t, func(t *testing.T, h *house) {
		h.open()
		f(t, h)
	})
}

func (h *house) path(path string) string { return filepath.Join(h.dir, path) }

// write puts a file in its place at once, as an editor does.
func (h *house) write(path, content string) {
	h.t.Helper()
	path = h.path(path)
	require.NoError(h.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(h.t, os.WriteFile(path+".new", []byte(content), 0o644))
	require.NoError(h.t, os.Rename(path+".new", path))
}

func (h *house) remove(path string) {
	h.t.Helper()
	require.NoError(h.t, os.Remove(h.path(path)))
}

// boot gives the host a boot id.
func (h *house) boot(id string) { h.write("proc/sys/kernel/random/boot_id", id+"\n") }

func (h *house) bootID() string { return fmt.Sprintf("boot-%d", h.boots) }

// reboot ends everything and boots again.
func (h *house) reboot() {
	h.close()
	h.host.Reboot()
	h.boots++
	h.boot(h.bootID())
}

func (h *house) config() Config {
	h.t.Helper()
	proc, err := procfs.New(h.path("proc"))
	require.NoError(h.t, err)
	offered := h.backends
	if offered == nil {
		offered = []backends.Backend{fake.New(fake.Config{Host: h.host, Fault: h.fault, Enforces: h.enforces})}
	}
	host := facts
	host.CgroupRoot = h.path("cgroup")
	return Config{
		Version: "1.2.3", StateDir: h.path("state"), RunDir: h.path("run"), MakeRunDir: func() error { return os.MkdirAll(h.path("run"), 0o750) }, LogDir: h.path("log"), Logs: h.logs, ServicesDir: h.path("services.d"),
		Backends: offered, Findings: h.findings, Procfs: proc, SinceBoot: h.sinceBoot, ClockSet: h.clock, Facts: host, Power: h.power,
		Platform: "asgard", Settings: h.settings, Log: slog.New(slog.NewTextHandler(h.log, nil)), fault: h.disk,
		spread: func() float64 { return 0.5 }, queues: func() ([]sockets.Queue, error) { return nil, nil },
	}
}

// open opens an agent and lets it come to rest.
func (h *house) open() {
	h.t.Helper()
	a, err := Open(h.t.Context(), h.config())
	require.NoError(h.t, err)
	h.Agent = a
	a.Autostart()
	synctest.Wait()
}

func (h *house) sinceBoot() time.Duration { return time.Since(h.began) - time.Duration(h.ahead.Load()) }

// setClock sets the clock ahead. As time in the bubble passes, so does time since the
// boot but for that.
func (h *house) setClock(ahead time.Duration) {
	time.Sleep(ahead)
	h.ahead.Add(int64(ahead))
}

func (h *house) close() {
	if h.Agent != nil {
		h.Agent.Close()
		h.Agent = nil
	}
}

// reopen is the end of an agent and the beginning of the next.
func (h *house) reopen() {
	h.t.Helper()
	h.close()
	h.open()
}

// doc is a definition, with further keys.
func doc(name service.Name, keys ...string) string {
	return fmt.Sprintf(`{%s}`, strings.Join(append([]string{fmt.Sprintf(`"name": %q, "exec": ["/bin/%s"]`, name, name)}, keys...), ", "))
}

// define writes a definition of the host.
func (h *house) define(name service.Name, keys ...string) {
	h.t.Helper()
	h.write("services.d/"+name.String()+".json", doc(name, keys...))
}

// register registers a definition, or replaces it.
func (h *house) register(name service.Name, keys ...string) service.Change {
	h.t.Helper()
	change, err := h.Register(h.t.Context(), name.String()+".json", []byte(doc(name, keys...)), true, "alice")
	require.NoError(h.t, err)
	return change
}

func (h *house) reload() {
	h.t.Helper()
	h.Reload(h.t.Context(), h.settings, nil)
	synctest.Wait()
}

func (h *house) start(name service.Name) *service.Status {
	h.t.Helper()
	s, err := h.Start(h.t.Context(), name, service.StartOptions{Actor: "alice"})
	require.NoError(h.t, err)
	require.Equal(h.t, service.Running, s.Machine.State)
	return s
}

func (h *house) stop(name service.Name) *service.Status {
	h.t.Helper()
	s, err := h.Stop(h.t.Context(), name, service.StopOptions{Actor: "bob"})
	require.NoError(h.t, err)
	require.Equal(h.t, service.Stopped, s.Machine.State)
	return s
}

func (h *house) crash(name service.Name) {
	h.host.Crash(name, service.Exit{Code: 1})
	synctest.Wait()
}

func (h *house) status(name service.Name) *service.Status {
	h.t.Helper()
	s, err := h.Status(name)
	require.NoError(h.t, err)
	return s
}

// is wants a service in a state, alive or not as that says.
func (h *house) is(name service.Name, state service.State) {
	h.t.Helper()
	require.Equal(h.t, state.String(), h.status(name).Machine.State.String())
	alive := 0
	if state.Alive() {
		alive = 1
	}
	require.Equal(h.t, alive, h.host.IncarnationsAlive(name))
	require.LessOrEqual(h.t, h.host.PeakAlive(name), 1, "two at once")
}

// refused wants an error of a kind that says something.
func refused(t *testing.T, err error, kind service.Kind, words ...string) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, kind, service.KindOf(err), "%v", err)
	for _, word := range words {
		require.ErrorContains(t, err, word)
	}
}

// doctor is what the doctor says that is not well, beyond what he says of a
// house where all is well.
func (h *house) doctor() []string {
	usual := len(h.cfg.Facts.Findings()) + 1 // where output goes
	var out []string
	for _, f := range h.Doctor(h.t.Context())[usual:] {
		if f.Level != service.SeverityOK {
			out = append(out, f.Title+": "+f.Detail)
		}
	}
	return out
}

// tree is every file below the house's directories, with what it holds.
func (h *house) tree() map[string]string { return files(h.t, h.dir) }

// reasons are the reasons of all notices about a service.
func (h *house) reasons(name service.Name, kinds ...service.NoticeKind) []string {
	var out []string
	for _, n := range h.Kept(0) {
		if n.Service == name && (len(kinds) == 0 || slices.Contains(kinds, n.Kind)) {
			out = append(out, n.Reason)
		}
	}
	return out
}

// pass lets time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// later is a call that is not waited for.
func later(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	synctest.Wait()
	return done
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Reset()
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
