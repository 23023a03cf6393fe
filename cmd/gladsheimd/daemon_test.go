package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/api/client"
	"github.com/gladsheim/gladsheim/backends/backendtest"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

const daemonVariable = "GLADSHEIMD_TEST_IS_DAEMON"

// TestMain makes this binary the daemon when a test has executed it again.
func TestMain(m *testing.M) {
	if os.Getenv(daemonVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// onHost tells whether this is a host that was made for tests; there the daemon
// uses whatever the host offers, and elsewhere what touches no other process.
func onHost() bool { return os.Getenv("GLADSHEIM_TEST_HOST") != "" }

// emulated tells whether it is one that is emulated in software, and slow.
func emulated() bool { return onHost() && os.Getenv("GLADSHEIM_TEST_HOST") != "bare" }

// caged tells whether services are in cgroups here.
func caged() bool { return strings.Contains(os.Getenv("GLADSHEIM_TEST_OFFERS"), "cgroup2") }

// patience is how long anything may take before a test gives up.
const patience = 2 * time.Minute

// gladsheimd is one in a process of its own, and a client of it.
type gladsheimd struct {
	*client.Client
	t        testing.TB
	dir      string // readable by everybody
	token    string // in the command line of each process of a service
	workload string
	process  *os.Process
}

// start starts a daemon, with what was put into its directory before.
func start(t testing.TB, before ...func(d *gladsheimd)) *gladsheimd {
	t.Helper()
	dir, err := os.MkdirTemp("", "gladsheimd-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	d := &gladsheimd{t: t, dir: dir, token: "daemon-test-" + filepath.Base(dir), workload: filepath.Join(dir, "workload")}
	program, err := os.ReadFile(backendtest.Workload(t))
	require.NoError(t, err)
	d.write("workload", string(program))
	require.NoError(t, os.Chmod(d.workload, 0o755))
	d.settle(200)
	require.NoError(t, os.MkdirAll(d.path("services.d"), 0o755))
	for _, f := range before {
		f(d)
	}
	args := []string{
		"gladsheimd", "-config", d.path("gladsheim.json"), "-services-dir", d.path("services.d"), "-state-dir", d.path("state"),
		"-run-dir", d.path("run"), "-log-dir", d.path("log"),
	}
	if !onHost() {
		args = append(args, "-backend", "exec")
	}
	log, err := os.Create(d.path("daemon.log"))
	require.NoError(t, err)
	defer log.Close()
	d.process, err = os.StartProcess("/proc/self/exe", args, &os.ProcAttr{
		Env: append(os.Environ(), daemonVariable+"=1"), Files: []*os.File{nil, log, log}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	require.NoError(t, err)
	t.Cleanup(d.end)
	d.eventually("it is ready", func() bool { return strings.Contains(d.log(), "msg=ready") })
	d.Client, err = client.Dial("unix://" + d.path("run/gladsheim.sock"))
	require.NoError(t, err)
	return d
}

// end stops every service and the daemon; nothing may be left.
func (d *gladsheimd) end() {
	if d.Client != nil {
		list, err := d.ListServices(context.Background(), &gladsheimv1.ListServicesRequest{})
		if err == nil {
			for _, s := range list.Services {
				_, _ = d.Kill(context.Background(), &gladsheimv1.KillRequest{ServiceName: s.ServiceName})
			}
		}
		require.NoError(d.t, d.Close())
	}
	require.NoError(d.t, d.process.Signal(syscall.SIGTERM))
	state, err := d.process.Wait()
	require.NoError(d.t, err)
	require.Zero(d.t, state.ExitCode(), d.log())
	require.Empty(d.t, d.processes(), "left behind")
	if d.t.Failed() {
		d.t.Logf("the daemon said:\n%s", d.log())
	}
	require.NoError(d.t, os.RemoveAll(d.dir))
}

func (d *gladsheimd) path(path string) string { return filepath.Join(d.dir, path) }

// write puts a file in its place at once, as an editor does.
func (d *gladsheimd) write(path, content string) {
	d.t.Helper()
	require.NoError(d.t, os.MkdirAll(filepath.Dir(d.path(path)), 0o755))
	require.NoError(d.t, os.WriteFile(d.path(path)+".new", []byte(content), 0o644))
	require.NoError(d.t, os.Rename(d.path(path)+".new", d.path(path)))
}

// settle writes a configuration that allows so many services.
func (d *gladsheimd) settle(services int) {
	d.t.Helper()
	d.write("gladsheim.json", fmt.Sprintf(`{"gladsheim": {"resource_limits": {"max_services": %d}}}`, services))
}

func (d *gladsheimd) log() string {
	text, err := os.ReadFile(d.path("daemon.log"))
	require.NoError(d.t, err)
	return string(text)
}

func (d *gladsheimd) eventually(what string, condition func() bool) {
	d.t.Helper()
	wait := 5 * time.Millisecond
	for end := time.Now().Add(patience); !condition(); <-time.After(wait) {
		if time.Now().After(end) {
			d.t.Fatalf("never: %s; the daemon said:\n%s", what, d.log())
		}
		wait = min(2*wait, 100*time.Millisecond)
	}
}

// fields are members of a definition.
type fields map[string]any

// doc is the definition of a service that is never restarted, unless more says
// otherwise.
func doc(name string, exec []string, more ...fields) string {
	all := fields{"name": name, "exec": exec, "restart": fields{"policy": "never"}}
	for _, f := range more {
		for key, value := range f {
			all[key] = value
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// mode is the command line of the torture program in a mode.
func (d *gladsheimd) mode(mode ...string) []string {
	return append([]string{d.workload, "-t", d.token}, mode...)
}

// register defines a service whose output is in a file, which said reads.
func (d *gladsheimd) register(name string, exec []string, more ...fields) *gladsheimv1.DefinitionChange {
	d.t.Helper()
	more = append([]fields{{"log": "file"}}, more...)
	r, err := d.Register(d.t.Context(), &gladsheimv1.RegisterRequest{Definition: []byte(doc(name, exec, more...)), File: "test.json", Replace: true})
	require.NoError(d.t, err)
	return r.Change
}

func (d *gladsheimd) start(name string) *gladsheimv1.ServiceStatus {
	d.t.Helper()
	s, err := d.StartService(d.t.Context(), &gladsheimv1.StartServiceRequest{ServiceName: name})
	require.NoError(d.t, err)
	return s
}

// run registers and starts the torture program in a mode.
func (d *gladsheimd) run(name string, mode []string, more ...fields) *gladsheimv1.ServiceStatus {
	d.t.Helper()
	d.register(name, d.mode(mode...), more...)
	s := d.start(name)
	d.eventually("the workload is ready: "+d.said(name), func() bool { return strings.Contains(d.said(name), "ready") })
	return s
}

func (d *gladsheimd) said(name string) string {
	text, _ := os.ReadFile(d.path("log/" + name + ".log"))
	return string(text)
}

func (d *gladsheimd) status(name string) *gladsheimv1.ServiceStatus {
	d.t.Helper()
	s, err := d.GetServiceStatus(d.t.Context(), &gladsheimv1.ServiceStatusRequest{ServiceName: name})
	require.NoError(d.t, err)
	return s
}

func (d *gladsheimd) stop(name string) *gladsheimv1.ServiceStatus {
	d.t.Helper()
	s, err := d.StopService(d.t.Context(), &gladsheimv1.StopServiceRequest{ServiceName: name})
	require.NoError(d.t, err)
	return s
}

func (d *gladsheimd) exits(name string) []*gladsheimv1.ExitRecord {
	d.t.Helper()
	h, err := d.ListExits(d.t.Context(), &gladsheimv1.ListExitsRequest{ServiceName: name})
	require.NoError(d.t, err)
	return h.Exits
}

// processes lists the living processes of this daemon's services, seen from
// outside.
func (d *gladsheimd) processes() (pids []int) {
	entries, err := os.ReadDir("/proc")
	require.NoError(d.t, err)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && bytes.Contains(line, []byte(d.token+"\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stat gives the fields of proc_pid_stat(5) from the third on, nil when there
// is no such process.
func stat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
}

// descriptors lists what the daemon has open, but for the files of one service,
// which its monitor opens when it comes to it.
func (d *gladsheimd) descriptors(but *gladsheimv1.ServiceStatus) []string {
	d.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", d.process.Pid)
	entries, err := os.ReadDir(dir)
	require.NoError(d.t, err)
	var links []string
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil && (but.Cgroup == "" || !strings.HasPrefix(link, filepath.Join("/sys/fs/cgroup", but.Cgroup))) {
			links = append(links, link)
		}
	}
	return links
}

// leftNothing waits until the daemon has no more open than it had.
func (d *gladsheimd) leftNothing(before []string, but *gladsheimv1.ServiceStatus) {
	d.t.Helper()
	var now []string
	defer func() {
		if d.t.Failed() {
			d.t.Logf("it had open %q, and now %q", before, now)
		}
	}()
	d.eventually("no descriptor is left", func() bool {
		now = d.descriptors(but)
		return len(now) <= len(before)
	})
}

// cpu is the CPU time that the daemon has used.
func (d *gladsheimd) cpu() time.Duration {
	d.t.Helper()
	f := stat(d.process.Pid)
	user, err := strconv.Atoi(f[14-3])
	require.NoError(d.t, err)
	system, err := strconv.Atoi(f[15-3])
	require.NoError(d.t, err)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on Linux
}
