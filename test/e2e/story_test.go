package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

const mebibyte = 1 << 20

func size(bytes uint64) string { return fmt.Sprintf("%dMiB", bytes/mebibyte) }

func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, content, 0o644))
}

// program is a real one: how to prepare and define it, and how to tell that it
// serves.
type program struct {
	name  string
	def   func(t *testing.T, dir string) fields
	works func() error
}

var programs = []program{
	{"nginx", defineNginx, func() error { return get(nginxURL) }},
	{"redis", defineRedis, func() error { return run("redis-cli", "-p", redisPort, "ping") }},
	{"postgres", definePostgres, func() error { return run(postgres("pg_isready"), "-h", "127.0.0.1", "-p", postgresPort) }},
}

var (
	nginxURL     = fmt.Sprintf("http://127.0.0.1:%d/", port(18080))
	redisPort    = strconv.Itoa(port(16379))
	postgresPort = strconv.Itoa(port(15432))
)

func get(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status)
	}
	return nil
}

func run(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return nil
}

func defineNginx(t *testing.T, dir string) fields {
	conf := fmt.Sprintf("daemon off; pid %[1]s/nginx.pid; error_log stderr; worker_processes 2;\nevents {}\nhttp {\n"+
		"access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fcgi; "+
		"uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;\nserver { listen 127.0.0.1:%[2]d; location / { return 200 'well'; } }\n}\n", dir, port(18080))
	writeFile(t, filepath.Join(dir, "nginx.conf"), []byte(conf))
	return fields{
		"exec":   []string{"/usr/sbin/nginx", "-e", "stderr", "-c", filepath.Join(dir, "nginx.conf")},
		"ready":  fields{"type": "http", "url": nginxURL, "timeout": "60s"},
		"health": fields{"type": "http", "url": nginxURL, "interval": "500ms"},
	}
}

func defineRedis(_ *testing.T, dir string) fields {
	return fields{
		"exec":              []string{"/usr/bin/redis-server", "--port", redisPort, "--bind", "127.0.0.1", "--save", "", "--dir", dir},
		"working_directory": dir,
		"ready":             fields{"type": "tcp", "address": "127.0.0.1:" + redisPort, "timeout": "60s"},
	}
}

// postgres finds a program of PostgreSQL, which Debian keeps by version.
func postgres(name string) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		return name
	}
	return found[len(found)-1]
}

// emptyCluster is in the images of the emulated hosts, where initdb takes long.
const emptyCluster = "/var/lib/postgresql/empty"

func definePostgres(t *testing.T, dir string) fields {
	data := filepath.Join(dir, "pg")
	def := fields{
		"exec": []string{postgres("postgres"), "-D", data, "-p", postgresPort, "-h", "127.0.0.1", "-k", "", "-c", "fsync=off", "-c", "shared_buffers=16MB"},
		// A fast shutdown: it does not wait for clients.
		"stop":  fields{"signal": "SIGINT", "timeout": "60s"},
		"ready": fields{"type": "tcp", "address": "127.0.0.1:" + postgresPort, "timeout": "60s"},
	}
	init := []string{postgres("initdb"), "-D", data, "--no-sync", "--auth=trust", "-U", "postgres"}
	if isRoot(t) {
		_, err := user.Lookup("postgres")
		require.NoError(t, err)
		require.NoError(t, run("install", "-d", "-o", "postgres", "-m", "700", data))
		init = append([]string{"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"}, init...)
		def["user"] = "postgres"
	}
	switch _, err := os.Stat(emptyCluster); {
	case err == nil && isRoot(t): // what initdb would make, made before
		require.NoError(t, run("cp", "-a", emptyCluster+"/.", data))
	default:
		require.NoError(t, run(init...))
	}
	return def
}

// TestRealPrograms is the main story: register, start under limits, see it run,
// change a limit live, restart, stop, and nothing is left.
func TestRealPrograms(t *testing.T) {
	w := newWorld(t)
	for _, p := range programs {
		dir := w.path("work-" + p.name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		def := p.def(t, dir)
		for _, mode := range modes(t) {
			for by, drive := range drivers {
				t.Run(strings.Join([]string{p.name, mode, by}, "/"), func(t *testing.T) {
					name := strings.Join([]string{p.name, mode, by}, "-")
					t.Cleanup(func() { // a story that breaks off shall not spoil the next
						_, _ = w.runtime().Kill(contextFor(t), &gladsheimv1.KillRequest{ServiceName: name})
					})
					tell(t, drive(w.in(t)), p, def.with(fields{
						"name": name, "launch": mode, "description": "a real program",
						"limits": limits(t, fields{"memory_max": "256MiB", "memory_swap_max": "0", "cpu_percent": 150, "pids_max": 100}),
					}))
				})
			}
		}
	}
}

func tell(t *testing.T, d driver, p program, def fields) {
	name := def["name"].(string)
	d.register(def)
	s := d.start(name)
	require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, s.State)
	// PostgreSQL accepts connections before it serves them.
	eventually(t, p.name+" works", func() bool { return p.works() == nil })
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.ProcessId))
	if err == nil { // of another user's process a plain user may not ask
		want, err := filepath.EvalSymlinks(def["exec"].([]string)[0])
		require.NoError(t, err)
		require.Equal(t, want, exe)
	}
	checkLimits(t, s, "268435456")

	require.Equal(t, gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY, d.health(name).Status)
	u := d.usage(name)
	require.Greater(t, u.MemoryBytes, uint64(mebibyte))
	require.InDelta(t, float64(u.MemoryBytes)/mebibyte, u.MemoryMb, 0.01)
	if limited(t) { // /proc counts in hundredths of a second
		require.NotZero(t, u.CpuTimeUsec)
	}
	list := d.list()
	require.EqualValues(t, 1, list.RunningCount)

	if limited(t) {
		l := d.setMemory(name, 192*mebibyte)
		require.EqualValues(t, 192*mebibyte, l.MaxMemoryBytes)
		after := d.status(name)
		require.Equal(t, s.ProcessId, after.ProcessId, "a live change restarts nothing")
		checkLimits(t, after, "201326592")
	}

	fresh := d.restart(name)
	require.NotEqual(t, s.ProcessId, fresh.ProcessId)
	require.Greater(t, fresh.Incarnation, s.Incarnation)
	eventually(t, p.name+" works", func() bool { return p.works() == nil })

	d.stop(name)
	require.Error(t, p.works())
	checkGone(t, fresh)
	exits := d.exits(name).Exits
	require.Len(t, exits, 2)
	require.Equal(t, gladsheimv1.Verdict_VERDICT_STOPPED, exits[0].Verdict, "%v", exits[0])
	require.NotEmpty(t, exits[0].RequestedBy)
	require.False(t, exits[0].KilledAfterTimeout)
	d.unregister(name)
}

// checkLimits holds the limits of a running service against the kernel and
// systemd.
func checkLimits(t *testing.T, s *gladsheimv1.ServiceStatus, memory string) {
	t.Helper()
	if !limited(t) {
		require.ElementsMatch(t, []string{"memory_max", "memory_swap_max", "cpu_percent", "pids_max"}, s.UnenforcedLimits)
		return
	}
	require.Empty(t, s.UnenforcedLimits)
	require.NotEmpty(t, s.Cgroup)
	require.Equal(t, s.Cgroup, cgroupOf(t, s.ProcessId))
	require.Equal(t, memory, cgroupFile(t, s.Cgroup, "memory.max"))
	require.Equal(t, "0", cgroupFile(t, s.Cgroup, "memory.swap.max"))
	require.Equal(t, "150000 100000", cgroupFile(t, s.Cgroup, "cpu.max"))
	require.Equal(t, "100", cgroupFile(t, s.Cgroup, "pids.max"))
	require.Equal(t, "1", cgroupFile(t, s.Cgroup, "memory.oom.group"))
	if s.Unit == "" {
		return
	}
	require.Equal(t, "active", systemctl(t, s.Unit, "ActiveState"))
	require.True(t, strings.HasPrefix(systemctl(t, s.Unit, "ControlGroup"), "/gladsheim.slice/"))
	require.Equal(t, s.Cgroup, systemctl(t, s.Unit, "ControlGroup"))
	require.Equal(t, memory, systemctl(t, s.Unit, "MemoryMax"))
	require.Equal(t, "1.500000s", systemctl(t, s.Unit, "CPUQuotaPerSecUSec"))
	require.Equal(t, "100", systemctl(t, s.Unit, "TasksMax"))
}

// checkGone holds that nothing of an incarnation is left.
func checkGone(t *testing.T, s *gladsheimv1.ServiceStatus) {
	t.Helper()
	require.NoDirExists(t, "/proc/"+strconv.Itoa(int(s.ProcessId)))
	if s.Cgroup != "" {
		require.NoDirExists(t, filepath.Join("/sys/fs/cgroup", s.Cgroup))
	}
	if s.Unit != "" {
		require.Equal(t, "not-found", systemctl(t, s.Unit, "LoadState"))
	}
}
