package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/api/client"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// define writes a definition of the host.
func (d *gladsheimd) define(name string, mode []string, more ...fields) {
	d.t.Helper()
	d.write("services.d/"+name+".json", doc(name, d.mode(mode...), more...))
}

// hangUp sends SIGHUP and waits until the daemon has said something about it, and
// that it is through: the next one must not take that for its own.
func (d *gladsheimd) hangUp(says string) {
	d.t.Helper()
	const through = "msg=reloaded"
	log := d.log()
	said, ended := strings.Count(log, says), strings.Count(log, through)
	require.NoError(d.t, d.process.Signal(syscall.SIGHUP))
	d.eventually(says, func() bool {
		log := d.log()
		return strings.Count(log, says) > said && strings.Count(log, through) > ended
	})
}

func (d *gladsheimd) maxServices() int {
	d.t.Helper()
	info, err := d.GetHost(d.t.Context(), &gladsheimv1.GetHostRequest{})
	require.NoError(d.t, err)
	return int(info.MaxServices)
}

// What is faulty when SIGHUP comes leaves what was in force, and says where it
// is faulty (C1); what is gone leaves what runs (C5).
func TestReload(t *testing.T) {
	d := start(t, func(d *gladsheimd) { d.define("a", []string{"sleep"}, fields{"description": "first"}) })
	pid := d.start("a").ProcessId
	same := func(description string) {
		t.Helper()
		s := d.status("a")
		require.Equal(t, pid, s.ProcessId)
		require.Equal(t, running, s.State)
		require.Equal(t, description, s.Description)
	}
	require.Equal(t, 200, d.maxServices())

	d.write("gladsheim.json", `{"gladsheim": {"resource_limits": {"max_services": 7},}}`)
	d.hangUp("gladsheim.json:1:54: ")
	require.Equal(t, 200, d.maxServices())
	d.settle(9)
	d.hangUp("msg=reloaded")
	require.Equal(t, 9, d.maxServices())
	same("first")

	d.write("services.d/a.json", `{"name": "a"`)
	d.hangUp("a.json:1:13: ")
	same("first")
	d.define("a", []string{"sleep"}, fields{"description": "second"})
	d.hangUp("msg=reloaded")
	same("second")

	require.NoError(t, os.Rename(d.path("services.d"), d.path("aside")))
	d.hangUp("has lost its definition")
	same("second")
	require.NoError(t, os.Rename(d.path("aside"), d.path("services.d")))
	d.define("b", []string{"sleep"})
	d.hangUp("msg=reloaded")
	same("second")
	require.Equal(t, d.path("services.d/a.json"), d.status("a").Source)
	d.start("b")
}

// A thousand SIGHUPs a second are few reloads, of which the last sees what is
// written last, and nothing that runs feels any (C10).
func TestAStormOfReloads(t *testing.T) {
	d := start(t, func(d *gladsheimd) {
		d.define("steady", []string{"sleep"})
		d.define("changing", []string{"sleep"})
	})
	steady, before := d.start("steady"), d.cpu()
	for n := range 1000 {
		require.NoError(t, d.process.Signal(syscall.SIGHUP))
		if n%50 == 0 {
			d.define("steady", []string{"sleep"}, fields{"description": fmt.Sprintf("round %d", n)})
			d.start("changing")
			d.stop("changing")
		}
	}
	d.define("steady", []string{"sleep"}, fields{"description": "the last"})
	require.NoError(t, d.process.Signal(syscall.SIGHUP))
	d.eventually("the last file counts", func() bool { return d.status("steady").Description == "the last" })
	now := d.status("steady")
	require.Equal(t, steady.ProcessId, now.ProcessId)
	require.Equal(t, steady.Incarnation, now.Incarnation)
	reloads := strings.Count(d.log(), "msg=reloaded")
	t.Logf("%d reloads, and 20 starts and stops, for %v of CPU time", reloads, d.cpu()-before)
	require.Less(t, reloads, 1001)
	if !emulated() {
		require.Less(t, d.cpu()-before, 5*time.Second)
	}
}

// A definition that is replaced reaches nothing that runs, and all of the next
// incarnation (C11).
func TestAReplacedDefinitionWaitsForTheNextStart(t *testing.T) {
	d := start(t)
	other := d.path("other")
	program, err := os.ReadFile(d.workload)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(other, program, 0o755))
	limit := func(bytes, files int) fields {
		l := fields{"nofile": files}
		if caged() {
			l["memory_max"] = bytes
		}
		return fields{"limits": l}
	}
	is := func(s *gladsheimv1.ServiceStatus, exe string, bytes, files int, user string) {
		t.Helper()
		proc := fmt.Sprintf("/proc/%d", s.ProcessId)
		link, err := os.Readlink(proc + "/exe")
		require.NoError(t, err)
		require.Equal(t, exe, link)
		limits, err := os.ReadFile(proc + "/limits")
		require.NoError(t, err)
		require.Regexp(t, fmt.Sprintf(`Max open files +%d +%d`, files, files), string(limits))
		status, err := os.ReadFile(proc + "/status")
		require.NoError(t, err)
		require.Contains(t, string(status), "\nUid:\t"+user+"\t")
		if caged() {
			held, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", s.Cgroup, "memory.max"))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(bytes), strings.TrimSpace(string(held)))
		}
	}
	me := fmt.Sprint(os.Geteuid())
	first := d.run("web", []string{"sleep"}, limit(64<<20, 300))
	is(first, d.workload, 64<<20, 300, me)

	then, next := me, fields{}
	if os.Geteuid() == 0 {
		then, next["user"] = "65534", "nobody"
	}
	change := d.register("web", []string{other, "-t", d.token, "sleep"}, limit(96<<20, 400), next)
	require.Equal(t, gladsheimv1.DefinitionChange_ACTION_CHANGED, change.Action)
	require.Equal(t, gladsheimv1.DefinitionChange_EFFECT_NEXT_START, change.Effect)
	require.Contains(t, change.Fields, "exec")
	now := d.status("web")
	require.Equal(t, first.ProcessId, now.ProcessId)
	is(now, d.workload, 64<<20, 300, me)

	now, err = d.RestartService(t.Context(), &gladsheimv1.RestartServiceRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.NotEqual(t, first.ProcessId, now.ProcessId)
	is(now, other, 96<<20, 400, then)
}

// Where the agent can not be asked it starts nothing.
func TestATakenAddressStartsNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	dir := t.TempDir()
	in := func(path string) string { return filepath.Join(dir, path) }
	require.NoError(t, os.Mkdir(in("services.d"), 0o755))
	require.NoError(t, os.WriteFile(in("services.d/a.json"), []byte(doc("a", []string{"/bin/true"}, fields{"autostart": true})), 0o644))
	log, err := os.Create(in("daemon.log"))
	require.NoError(t, err)
	defer log.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{
		"gladsheimd", "-backend", "exec", "-listen", "tcp://" + l.Addr().String(), "-services-dir", in("services.d"),
		"-state-dir", in("state"), "-run-dir", in("run"), "-log-dir", in("log"),
	}, &os.ProcAttr{Env: append(os.Environ(), daemonVariable+"=1"), Files: []*os.File{nil, log, log}})
	require.NoError(t, err)
	state, err := p.Wait()
	require.NoError(t, err)
	said, err := os.ReadFile(in("daemon.log"))
	require.NoError(t, err)
	require.NotZero(t, state.ExitCode())
	require.Contains(t, string(said), "address already in use")
	require.NoFileExists(t, in("run/services/a.json"), "%s", said)
}

// A socket that was removed, with its directory or alone, is there again after a reload.
func TestReloadListensAnew(t *testing.T) {
	d := start(t, func(d *gladsheimd) { d.define("a", []string{"sleep"}) })
	for _, gone := range []string{"run/gladsheim.sock", "run"} {
		require.NoError(t, os.RemoveAll(d.path(gone)))
		d.hangUp("the socket was removed")
		info, err := os.Stat(d.path("run"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o750), info.Mode().Perm())
		c, err := client.Dial("unix://" + d.path("run/gladsheim.sock"))
		require.NoError(t, err)
		_, err = c.GetHost(t.Context(), &gladsheimv1.GetHostRequest{})
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	d.start("a")
	d.stop("a")
}
