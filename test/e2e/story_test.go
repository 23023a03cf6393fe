package e2e

import (
	"fmt"
	"io"
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

// program is a real one: how to prepare and define it, how to tell that it
// serves, and how to make it eat memory without end.
type program struct {
	name  string
	def   func(t *testing.T, dir string) fields
	works func() error
	eat   func() error
}

var programs = []program{
	{"nginx", defineNginx, func() error { return get(nginxURL) }, func() error { return post(nginxURL+"eat", feast) }},
	{"redis", defineRedis, func() error { return redis("ping") }, func() error { return redis("setrange", "feast", fmt.Sprint(feast), "x") }},
	{"postgres", definePostgres, func() error { return sql("select 1") }, func() error { return sql(fmt.Sprintf("select length(repeat('x', %d))", feast)) }},
}

// feast is more than the limit under which a program is to eat it.
const (
	feast    = 256 * mebibyte
	starving = 80 * mebibyte
)

func redis(args ...string) error {
	return run(append([]string{"redis-cli", "-e", "-p", redisPort}, args...)...)
}

func sql(command string) error {
	return run(postgres("psql"), "-h", "127.0.0.1", "-p", postgresPort, "-U", "postgres", "-c", command)
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

// post sends that many zeros.
func post(url string, size int64) error {
	zeros, err := os.Open("/dev/zero")
	if err != nil {
		return err
	}
	defer zeros.Close()
	request, err := http.NewRequest(http.MethodPost, url, io.LimitReader(zeros, size))
	if err != nil {
		return err
	}
	request.ContentLength = size
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	return answer.Body.Close()
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
		"uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;\nserver { listen 127.0.0.1:%[2]d; location / { return 200 'well'; }\n"+
		// It takes a whole request into memory before it passes it on.
		"location /eat { client_max_body_size 0; client_body_buffer_size 1000m; proxy_pass http://127.0.0.1:%[2]d/; } }\n}\n", dir, port(18080))
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
// change a limit live, restart, stop, and nothing is left. Each program hears it
// from both drivers; where there are two ways of launching, from one in each
// unless there is time for all.
func TestRealPrograms(t *testing.T) {
	w := newWorld(t)
	for n, p := range programs {
		dir := w.path("work-" + p.name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		def := p.def(t, dir)
		for i, mode := range modes(t) {
			by := []string{"cli", "grpc"}
			if len(modes(t)) > 1 && !soak {
				by = by[(n+i)%2:][:1]
			}
			for _, by := range by {
				t.Run(strings.Join([]string{p.name, mode, by}, "/"), func(t *testing.T) {
					name := strings.Join([]string{p.name, mode, by}, "-")
					t.Cleanup(func() { // a story that breaks off shall not spoil the next
						_, _ = w.runtime().Kill(contextFor(t), &gladsheimv1.KillRequest{ServiceName: name})
					})
					tell(t, drivers[by](w.in(t)), p, def.with(fields{
						"name": name, "launch": mode, "description": "a real program",
						"limits": limits(t, fields{"memory_max": "256MiB", "memory_swap_max": "0", "cpu_percent": 150, "pids_max": 100}),
					}))
				})
			}
		}
	}
}

func tell(t *testing.T, d driver, p program, def fields) {
	name, mode := def["name"].(string), def["launch"].(string)
	works := func() { // PostgreSQL accepts connections before it serves them
		t.Helper()
		eventually(t, p.name+" works", func() bool { return p.works() == nil })
	}
	d.register(def)
	s := d.start(name)
	require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, s.State)
	works()
	s = d.status(name)
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.ProcessId))
	if err == nil { // of another user's process a plain user may not ask
		want, err := filepath.EvalSymlinks(def["exec"].([]string)[0])
		require.NoError(t, err)
		require.Equal(t, want, exe)
	}
	checkPlace(t, s, mode)
	checkLimits(t, s, bounds{memory: 256 * mebibyte, cpu: 150, pids: 100})

	require.Equal(t, gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY, d.health(name).Status)
	checkUsage(t, s, func() *gladsheimv1.ResourceUsage { return d.usage(name) })
	require.EqualValues(t, 1, d.list().RunningCount)

	ends := 0
	if limited(t) {
		d.set(name, bounds{starving, 120, 64})
		after := d.status(name)
		require.Equal(t, s.ProcessId, after.ProcessId, "a live change restarts nothing")
		checkLimits(t, after, bounds{starving, 120, 64})
		s = starve(t, d, p, name)
		works()
		ends++
	}

	before := family(t, s)
	require.Greater(t, d.restart(name).Incarnation, s.Incarnation)
	ends++
	checkGone(t, s, before)
	works()
	fresh := d.status(name)
	checkPlace(t, fresh, mode)
	checkLimits(t, fresh, bounds{starving, 120, 64})

	before = family(t, fresh)
	d.stop(name)
	ends++
	require.Error(t, p.works())
	checkGone(t, fresh, before)
	exits := d.exits(name).Exits
	require.Len(t, exits, ends)
	require.Equal(t, gladsheimv1.Verdict_VERDICT_STOPPED, exits[0].Verdict, "%v", exits[0])
	require.NotEmpty(t, exits[0].RequestedBy)
	require.False(t, exits[0].KilledAfterTimeout)
	d.unregister(name)
}

// starve makes a program eat more than its limit. The kernel kills it, which is
// told as that, and it comes back by itself, limits and all.
func starve(t *testing.T, d driver, p program, name string) *gladsheimv1.ServiceStatus {
	t.Helper()
	before := d.status(name)
	relatives := family(t, before)
	require.Error(t, p.eat(), "the meal of %d bytes", feast)
	var after *gladsheimv1.ServiceStatus
	eventually(t, name+" is back", func() bool {
		after = d.status(name)
		return after.State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING && after.Incarnation > before.Incarnation
	})
	checkGone(t, before, relatives)
	x := after.LastExit
	require.Equal(t, gladsheimv1.Verdict_VERDICT_OWN_LIMIT_OOM, x.GetVerdict(), "%v", x)
	require.Equal(t, before.Cgroup, x.OomLevel)
	// The kernel lets received data over the limit (memory.peak of cgroup-v2.rst).
	require.GreaterOrEqual(t, x.GetMemoryPeakBytes(), uint64(starving-mebibyte))
	require.Less(t, x.GetMemoryPeakBytes(), uint64(starving+16*mebibyte))
	require.EqualValues(t, 1, after.RestartCount)
	checkLimits(t, after, bounds{starving, 120, 64})
	return after
}
