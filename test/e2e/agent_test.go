package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// TestTheOldClientsWork: a client made from nothing but the table of the wire
// contract tells its own story.
func TestTheOldClientsWork(t *testing.T) {
	w := newWorld(t)
	w.register(workload(t, "old", "old-token", "sleep").with(fields{"limits": limits(t, fields{"pids_max": 64})}))
	out, err := exec.Command("wireclient", "-addr", "unix://"+w.socket, "-service", "old", "-patience", "2m").CombinedOutput()
	require.NoError(t, err, "%s\n%s", out, w.daemonLog())
}

// TestAHundredStartsAtOnce all succeed.
func TestAHundredStartsAtOnce(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode string) {
		const many = 100
		names := make([]string, many)
		for i := range names {
			names[i] = fmt.Sprintf("one-%d", i)
			// Each waits for its turn at PID 1, and that counts as its start.
			w.register(workload(t, names[i], "crowd-token", "sleep").with(fields{"launch": mode, "ready": fields{"timeout": "5m"}}))
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
		require.Len(t, marked(t, "crowd-token"), many)
		require.EqualValues(t, many, byGRPC{w}.list().RunningCount)
		r := w.cli(append([]string{"--timeout", "5m", "stop"}, names...)...)
		require.Zero(t, r.code, r.stderr)
		require.Empty(t, marked(t, "crowd-token"))
		require.Empty(t, ourCgroups(t))
	})
}

// TestCyclesLeaveNothing: starts and stops, failing ones included, leave no fd,
// no cgroup, no unit, no process and no file behind.
func TestCyclesLeaveNothing(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(workload(t, "good", "cycle-token", "sleep").with(fields{"launch": mode}))
		w.register(fields{"name": "bad", "launch": mode, "exec": []string{"/nonexistent/program"}, "restart": fields{"policy": "never"}})
		cycle := func() {
			byGRPC{w}.start("good")
			_, err := w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: "bad"})
			require.Equal(t, codes.FailedPrecondition, status.Code(err), "%v", err)
			byGRPC{w}.stop("good")
		}
		for range 3 { // what is made once and kept is no leak
			cycle()
		}
		fds, threads := w.fds(), w.goroutinesHint()
		for range cycles(t) {
			cycle()
		}
		require.Equal(t, fds, w.fds(), "open files of the daemon")
		require.InDelta(t, threads, w.goroutinesHint(), 8, "threads of the daemon")
		require.Empty(t, marked(t, "cycle-token"))
		require.Empty(t, ourCgroups(t))
	})
}

// cycles is how often to go round: 1,000 where the machine is real, fewer where
// it is emulated and each costs twenty times as much.
func cycles(t *testing.T) int {
	if limited(t) {
		return 40
	}
	return 1000
}

func (w *world) fds() int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.daemon.Process.Pid))
	require.NoError(w.t, err)
	return len(list)
}

func (w *world) goroutinesHint() int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", w.daemon.Process.Pid))
	require.NoError(w.t, err)
	return len(list)
}

// TestServicesOutliveTheAgent: killed or asked to leave, the agent takes no
// service along, and the next one takes them up.
func TestServicesOutliveTheAgent(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			eachMode(t, func(t *testing.T, w *world, mode string) {
				w.register(workload(t, "lasting", "lasting-token", "sleep").with(fields{"launch": mode}))
				before := byGRPC{w}.start("lasting")
				w.leave(sig)
				require.Equal(t, []int{int(before.ProcessId)}, marked(t, "lasting-token"))
				w.begin()
				eventually(t, "it is taken up", func() bool {
					return byGRPC{w}.status("lasting").State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
				})
				after := byGRPC{w}.status("lasting")
				require.Equal(t, before.ProcessId, after.ProcessId)
				require.Equal(t, before.Incarnation, after.Incarnation)
				byGRPC{w}.stop("lasting")
				require.Empty(t, marked(t, "lasting-token"))
			})
		})
	}
}

// TestASecondAgentIsRefused: it exits 3 and touches nothing.
func TestASecondAgentIsRefused(t *testing.T) {
	w := newWorld(t)
	cmd := exec.Command("gladsheimd", "-config", w.path("gladsheim.json"), "-services-dir", w.path("services.d"),
		"-state-dir", w.path("state"), "-run-dir", w.path("run"), "-log-dir", w.path("log"))
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 3, cmd.ProcessState.ExitCode(), "%s", out)
	w.mustCLI("list")
}

// TestRefusals: bad input gets its own exit code, and a sentence that says what
// to do.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.register(workload(t, "there", "there-token", "sleep"))
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
