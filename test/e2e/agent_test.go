package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// TestTheOldClientsWork: a client made from nothing but the table of the wire
// contract tells its own story, of each real program, in each mode, and once
// over TCP.
func TestTheOldClientsWork(t *testing.T) {
	oneOfAKind(t)
	w := newWorld(t)
	tell := func(def fields, flags ...string) {
		w.register(def.with(fields{"limits": limits(t, fields{"pids_max": 64})}))
		out, err := exec.Command("wireclient", append([]string{"-service", def["name"].(string), "-cpu", "150", "-memory-mb", "256", "-patience", "2m"}, flags...)...).CombinedOutput()
		require.NoError(t, err, "%s: %s\n%s", def["name"], out, w.daemonLog())
	}
	tell(workload(t, "old", "old", "sleep"), "-addr", fmt.Sprintf("127.0.0.1:%d", tcpPort))
	for i, p := range programs {
		dir := w.path("work-" + p.name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		mode := modes(t)[i%len(modes(t))]
		tell(p.def(t, dir).with(fields{"name": p.name, "launch": mode}), "-titled", "-addr", "unix://"+w.socket)
	}
}

// TestAHundredStartsAtOnce all succeed; in the way of launching that the host
// prefers, or in each if there is time.
func TestAHundredStartsAtOnce(t *testing.T) {
	oneOfAKind(t)
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) { startAHundred(t, newWorld(t), mode) })
		if !soak {
			break
		}
	}
}

func startAHundred(t *testing.T, w *world, mode string) {
	const many = 100
	names := make([]string, many)
	for i := range names {
		names[i] = fmt.Sprintf("one-%d", i)
		w.register(workload(t, names[i], "crowd", "sleep").with(fields{"launch": mode}))
	}
	var wg sync.WaitGroup
	errs := make([]error, many)
	for i, name := range names {
		wg.Go(func() {
			_, errs[i] = w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: name})
		})
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.Len(t, marked(t, "crowd"), many)
	list := byGRPC{w}.list()
	require.EqualValues(t, many, list.RunningCount)
	checkPlace(t, byGRPC{w}.status(names[many-1]), mode)
	w.mustCLI(append([]string{"--timeout", "5m", "stop"}, names...)...)
	w.nothingLeft()
}

// TestServicesOutliveTheAgent: killed or asked to leave, the agent takes no
// service along, and the next one takes them up.
func TestServicesOutliveTheAgent(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			eachMode(t, func(t *testing.T, w *world, mode string) {
				w.register(workload(t, "lasting", "lasting", "sleep").with(fields{"launch": mode}))
				before := byGRPC{w}.start("lasting")
				checkPlace(t, before, mode)
				w.leave(sig)
				require.Equal(t, []int{int(before.ProcessId)}, marked(t, "lasting"))
				w.begin()
				eventually(t, "it is taken up", func() bool {
					return byGRPC{w}.status("lasting").State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
				})
				after := byGRPC{w}.status("lasting")
				require.Equal(t, before.ProcessId, after.ProcessId)
				require.Equal(t, before.Incarnation, after.Incarnation)
				byGRPC{w}.stop("lasting")
				require.Empty(t, marked(t, "lasting"))
			})
		})
	}
}

// TestEndsOfTheAbsence: services that end while the agent is dead are told with
// their exact codes and signals by the next one, each once, and what was to be
// restarted is. Nothing of it is invented, so nothing is told of those that live.
func TestEndsOfTheAbsence(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode string) {
		word := w.path("word")
		ends := map[string]struct {
			does    string
			want    service.Exit
			verdict gladsheimv1.Verdict
		}{
			"code-0":   {"exit 0", service.Exit{}, gladsheimv1.Verdict_VERDICT_CLEAN},
			"code-7":   {"exit 7", service.Exit{Code: 7}, gladsheimv1.Verdict_VERDICT_CRASH},
			"code-255": {"exit 255", service.Exit{Code: 255}, gladsheimv1.Verdict_VERDICT_CRASH},
			"segv":     {"kill -SEGV $$", service.Exit{Signal: syscall.SIGSEGV}, gladsheimv1.Verdict_VERDICT_CRASH},
			"killed":   {"kill -KILL $$", service.Exit{Signal: syscall.SIGKILL}, gladsheimv1.Verdict_VERDICT_KILLED_FROM_OUTSIDE},
		}
		for name, end := range ends {
			w.register(fields{"name": name, "launch": mode, "restart": fields{"policy": "never"}, "log": "null",
				"exec": []string{"/bin/sh", "-c", "until [ -e " + word + " ]; do sleep 0.05; done; " + end.does}})
			byGRPC{w}.start(name)
		}
		w.register(fields{"name": "again", "launch": mode, "restart": fields{"policy": "always", "backoff": "10ms"}, "log": "null",
			"exec": []string{"/bin/sh", "-c", "until [ -e " + word + " ]; do sleep 0.05; done; mv " + word + "2 " + word + "3 && exit 9; exec sleep 1000"}})
		again := byGRPC{w}.start("again")
		w.register(workload(t, "lives", "lives", "sleep").with(fields{"launch": mode}))
		lives := byGRPC{w}.start("lives")
		writeFile(t, word+"2", nil)

		w.leave(syscall.SIGKILL)
		writeFile(t, word, nil)
		eventually(t, "all have ended", func() bool {
			out, err := exec.Command("pgrep", "-f", "until .*"+word).Output()
			return err != nil && len(out) == 0
		})
		w.begin()
		for name, end := range ends {
			eventually(t, name+" is known to have ended", func() bool { return byGRPC{w}.status(name).LastExit != nil })
			exits := byGRPC{w}.exits(name).Exits
			require.Len(t, exits, 1, name)
			x := exits[0]
			require.Equal(t, end.want, service.Exit{Code: int(x.GetExitCode()), Signal: syscall.Signal(x.GetSignal()), Unknown: x.GetUnknownReason()}, "%s: %v", name, x)
			require.Equal(t, end.verdict, x.Verdict, "%s: %v", name, x)
		}
		eventually(t, "the other runs again", func() bool {
			s := byGRPC{w}.status("again")
			return s.State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING && s.Incarnation == again.Incarnation+1
		})
		exits := byGRPC{w}.exits("again").Exits
		require.Len(t, exits, 1)
		require.EqualValues(t, 9, exits[0].GetExitCode())
		s := byGRPC{w}.status("lives")
		require.Equal(t, lives.ProcessId, s.ProcessId)
		require.Zero(t, s.RestartCount)
		require.Empty(t, byGRPC{w}.exits("lives").Exits)
	})
}

// TestASecondAgentIsRefused: it exits 3 at once and touches nothing, whatever its
// configuration says.
func TestASecondAgentIsRefused(t *testing.T) {
	w := newWorld(t)
	w.register(workload(t, "only", "only", "sleep"))
	pid := byGRPC{w}.start("only").ProcessId
	eventually(t, "it writes no more", func() bool { return strings.Contains(w.mustCLI("logs", "only"), "ready") })
	writeFile(t, w.path("other.json"), []byte(`{"gladsheim":{"resource_limits":{"max_services":1}}}`))
	for what, args := range map[string][]string{
		"itself":            w.flags(),
		"another config":    append(w.flags(), "-config", w.path("other.json")),
		"no definitions":    append(w.flags(), "-services-dir", w.path("nowhere")),
		"the state is ours": append(w.flags(), "-run-dir", w.path("other-run")),
		"the run is ours":   append(w.flags(), "-state-dir", w.path("other-state")),
	} {
		before := w.touched()
		cmd := exec.Command("gladsheimd", args...)
		began := time.Now()
		out, err := cmd.CombinedOutput()
		took := time.Since(began)
		require.Error(t, err, what)
		require.Equal(t, 3, cmd.ProcessState.ExitCode(), "%s: %s", what, out)
		require.Less(t, took, time.Second, what)
		require.Equal(t, before, w.touched(), what)
		require.Equal(t, []int{int(pid)}, marked(t, "only"))
	}
	w.mustCLI("list")
}

// touched tells of all that an agent has made in its directories what tells that it was
// touched.
func (w *world) touched() map[string]string {
	all := map[string]string{}
	for _, dir := range []string{"run", "state", "log", "services.d"} {
		require.NoError(w.t, filepath.WalkDir(w.path(dir), func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st syscall.Stat_t
			if err := syscall.Lstat(path, &st); err != nil {
				return err
			}
			var content []byte
			if st.Mode&syscall.S_IFMT == syscall.S_IFREG {
				content, err = os.ReadFile(path)
			}
			all[path] = fmt.Sprintf("%o %d:%d inode %d modified %v changed %v %q", st.Mode, st.Uid, st.Gid, st.Ino, st.Mtim, st.Ctim, content)
			return err
		}))
	}
	return all
}

// TestASecondAgentWithDirectoriesOfItsOwnIsRefused where the two would share
// cgroups: neither could tell the other's services from leftovers.
func TestASecondAgentWithDirectoriesOfItsOwnIsRefused(t *testing.T) {
	oneOfAKind(t)
	w := newWorld(t)
	if !limited(t) {
		return // two may run side by side without cgroups
	}
	cmd := exec.Command("gladsheimd", "-config", w.path("gladsheim.json"), "-services-dir", w.path("other.d"),
		"-state-dir", w.path("other-state"), "-run-dir", w.path("other-run"), "-log-dir", w.path("other-log"))
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 3, cmd.ProcessState.ExitCode(), "%s", out)
	require.Contains(t, string(out), "another agent has its services in")
	w.mustCLI("list")
}

// TestNobodyElseKeepsTheAgentOut: another user, who may open the tree of cgroups and a
// log directory that is readable, locks what he can.
func TestNobodyElseKeepsTheAgentOut(t *testing.T) {
	oneOfAKind(t)
	if os.Getuid() != 0 {
		t.Skip("only root can act as somebody else")
	}
	w := newWorld(t)
	w.leave(syscall.SIGTERM)
	require.NoError(t, os.Chmod(w.path("log"), 0o755))
	asNobody(t, func() error {
		for _, path := range []string{"/sys/fs/cgroup", w.path("log")} {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = f.Close() })
			if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
				return fmt.Errorf("flock %s: %w", path, err)
			}
		}
		return nil
	})
	w.begin()
	ours := []string{w.path("log", "logs.lock"), w.path("state", "agent.lock"), w.path("run", "agent.lock")}
	if limited(t) {
		ours = append(ours, "/run/gladsheim-cgroups.lock")
	}
	for _, path := range ours {
		require.FileExists(t, path)
	}
	asNobody(t, func() error {
		for _, path := range ours {
			if _, err := os.Open(path); !errors.Is(err, os.ErrPermission) {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		return nil
	})
}

// asNobody runs f in a thread of another user, which ends with it.
func asNobody(t *testing.T, f func() error) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		for _, call := range [][4]uintptr{{syscall.SYS_SETGROUPS}, {syscall.SYS_SETRESGID, 65534, 65534, 65534}, {syscall.SYS_SETRESUID, 65534, 65534, 65534}} {
			if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- errno
				return
			}
		}
		done <- f()
	}()
	require.NoError(t, <-done)
}

// TestRefusals: bad input gets its own exit code, and a sentence that says what
// to do.
func TestRefusals(t *testing.T) {
	native(t)
	w := newWorld(t)
	w.register(workload(t, "there", "there", "sleep"))
	bad := w.path("bad.json")
	writeFile(t, bad, []byte("{\n  \"name\": \"bad\",\n  \"exec\": [\"relative\"],\n  \"limits\": {\"memory_max\": \"12MB\"},\n  \"colour\": 1\n}\n"))
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"start", "nobody"}, 4, "no such service"},
		{[]string{"status", "nobody"}, 4, "no such service"},
		{[]string{"stop", "there"}, 3, "stopped"},
		{[]string{"start", "Not A Name"}, 2, "name"},
		{[]string{"register", "-f", bad}, 6, "bad.json:5:"},
		{[]string{"config", "check", bad}, 6, "bad.json:4:"},
		{[]string{"frobnicate"}, 2, "frobnicate"},
		{[]string{"set", "there", "memory_max=banana"}, 2, "banana"},
		{[]string{"signal", "there", "SIGNOPE"}, 2, "SIGNOPE"},
	} {
		r := w.cli(tt.args...)
		require.Equal(t, tt.code, r.code, "gladsheim %v: %s%s", tt.args, r.stdout, r.stderr)
		require.Contains(t, r.stdout+r.stderr, tt.says, "gladsheim %v", tt.args)
	}
	w.mustCLI("start", "there")
	r := w.cli("start", "there")
	require.Equal(t, 9, r.code, r.stderr)
	gone := exec.Command("gladsheim", "--host", "unix:///nonexistent.sock", "list")
	out, _ := gone.CombinedOutput()
	require.Equal(t, 7, gone.ProcessState.ExitCode(), "%s", out)
}

// TestLaunchErrorsAreThemselves: each is told as itself, and leaves nothing.
func TestLaunchErrorsAreThemselves(t *testing.T) {
	oneOfAKind(t)
	eachMode(t, func(t *testing.T, w *world, mode string) {
		script := w.path("no-interpreter")
		require.NoError(t, os.WriteFile(script, []byte("#!/nonexistent/interpreter\n"), 0o755))
		noexec := w.path("not-executable")
		require.NoError(t, os.WriteFile(noexec, []byte("#!/bin/sh\n"), 0o644))
		garbage := w.path("garbage")
		require.NoError(t, os.WriteFile(garbage, []byte("\x00\x01\x02garbage"), 0o755))
		for name, tt := range map[string]struct {
			def  fields
			says string
		}{
			"missing":     {fields{"exec": []string{"/nonexistent/x"}}, "no such file"},
			"interpreter": {fields{"exec": []string{script}}, "no such file"},
			"mode":        {fields{"exec": []string{noexec}}, "permission denied"},
			"format":      {fields{"exec": []string{garbage}}, "exec format error"},
			"directory":   {fields{"exec": []string{"/bin/true"}, "working_directory": "/nonexistent"}, "/nonexistent"},
			"user":        {fields{"exec": []string{"/bin/true"}, "user": "nobody-of-that-name"}, "nobody-of-that-name"},
		} {
			w.register(tt.def.with(fields{"name": name, "launch": mode}))
			_, err := w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: name})
			require.Equal(t, codes.FailedPrecondition, status.Code(err), "%s: %v", name, err)
			require.Contains(t, strings.ToLower(err.Error()), tt.says)
			s := byGRPC{w}.status(name)
			require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_CRASHED, s.State, "%s is not tried again", name)
		}
		require.Empty(t, ourCgroups(t))
	})
}

// TestOutputIsKept: logs shows it, and an exit record holds its last lines.
func TestOutputIsKept(t *testing.T) {
	oneOfAKind(t)
	w := newWorld(t)
	w.register(fields{"name": "talker", "exec": []string{"/bin/sh", "-c", "for i in $(seq 30); do echo line $i; done; echo oops >&2; exit 4"}, "restart": fields{"policy": "never"}})
	_, _ = w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: "talker"})
	eventually(t, "it ends", func() bool { return len(byGRPC{w}.exits("talker").Exits) > 0 })
	x := byGRPC{w}.exits("talker").Exits[0]
	require.EqualValues(t, 4, x.GetExitCode())
	require.Len(t, x.LastLines, 20)
	require.Equal(t, "oops", string(x.LastLines[19]))
	out := w.mustCLI("logs", "talker", "-n", "2")
	require.Contains(t, out, "line 30")
	require.Contains(t, out, "oops")
	require.NotContains(t, out, "line 29")
}
