package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// sinks are the ways of output that can be read from here: the service writes the file
// itself, the shim does, or journald has it.
func sinks(t *testing.T) map[string]fields {
	rotate := fields{"size": "64KiB", "total": "1MiB"}
	all := map[string]fields{"file": {"log": "file", "log_rotate": rotate}, "poured": {"log": "file", "log_full": "block", "log_rotate": rotate}}
	if offers(t, "systemd") {
		all["journal"] = fields{"log": "journal"}
	}
	return all
}

// late wants that a call was not answered by its deadline.
func late(t *testing.T, ask func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	require.Equal(t, codes.DeadlineExceeded, status.Code(ask(ctx)))
}

// waits has the CLI wait for services, of which one is there already: then it listens.
func (w *world) waits(already string, args ...string) <-chan result {
	w.t.Helper()
	out, err := os.Create(w.path("waits"))
	require.NoError(w.t, err)
	var stderr bytes.Buffer
	cmd := exec.CommandContext(contextFor(w.t), "gladsheim", append([]string{"--host", "unix://" + w.socket, "wait"}, args...)...)
	cmd.Stdout, cmd.Stderr = out, &stderr
	require.NoError(w.t, cmd.Start())
	said := func() string {
		text, err := os.ReadFile(out.Name())
		require.NoError(w.t, err)
		return string(text)
	}
	done := make(chan result, 1)
	go func() {
		_ = cmd.Wait() // its exit code tells
		out.Close()
		text, _ := os.ReadFile(out.Name())
		done <- result{cmd.ProcessState.ExitCode(), string(text), stderr.String()}
	}()
	eventually(w.t, "it listens", func() bool { return strings.HasPrefix(said(), already+": ") })
	return done
}

// TestReadyByLog: a start is over when the service has written its line, and not
// before; what an earlier instance wrote does not count, what is written while no agent
// runs does. Whoever waits for it hears of it over the death of the agent.
func TestReadyByLog(t *testing.T) {
	native(t)
	for _, mode := range preferred(t) {
		for sink, keys := range sinks(t) {
			t.Run(mode+"/"+sink, func(t *testing.T) {
				w := newWorld(t)
				open := w.path("open")
				def := keys.with(fields{"name": "server", "launch": mode, "restart": fields{"policy": "never"},
					"ready": fields{"type": "log", "pattern": "^listening on [0-9]+$", "timeout": patience.String()},
					"exec": []string{"/bin/sh", "-c", "echo not yet listening on 80; until [ -e " + open + " ]; do sleep 0.1; done; " +
						// more than a log of 64 KiB holds
						"i=0; while [ $i -lt 1500 ]; do i=$((i+1)); echo " + strings.Repeat("n", 90) + "; done; echo listening on 80 >&2; exec sleep 100000"}})
				w.register(def)
				w.register(workload(t, "beacon", "beacon", "sleep"))
				byGRPC{w}.start("beacon")
				late(t, func(ctx context.Context) error {
					_, err := w.services().StartService(ctx, &gladsheimv1.StartServiceRequest{ServiceName: "server"})
					return err
				})
				var before *gladsheimv1.ServiceStatus
				eventually(t, "the start goes on", func() bool {
					before = byGRPC{w}.status("server")
					require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_STARTING, before.State)
					return before.Phase == "starting" && before.ProcessId != 0
				})

				waited := w.waits("beacon", "beacon", "server")
				w.leave(syscall.SIGKILL)
				writeFile(t, open, nil)
				eventually(t, "the line is written", func() bool {
					cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", before.ProcessId))
					require.NoError(t, err)
					return strings.Contains(string(cmdline), "100000")
				})
				w.begin()
				r := <-waited
				require.Zero(t, r.code, "%s%s", r.stdout, r.stderr)
				require.Equal(t, "beacon: ready\nserver: ready\n", r.stdout)
				require.Contains(t, r.stderr, "there is an agent again; waiting for server")
				after := byGRPC{w}.status("server")
				require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, after.State)
				require.Equal(t, before.ProcessId, after.ProcessId)

				require.NoError(t, os.Remove(open))
				late(t, func(ctx context.Context) error {
					_, err := w.services().RestartService(ctx, &gladsheimv1.RestartServiceRequest{ServiceName: "server"})
					return err
				})
				eventually(t, "the next one starts", func() bool { return byGRPC{w}.status("server").Incarnation == before.Incarnation+1 })
				require.Equal(t, 8, w.cli("--timeout", "2s", "wait", "server").code)
				require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_STARTING, byGRPC{w}.status("server").State)
				writeFile(t, open, nil)
				w.mustCLI("--timeout", patience.String(), "wait", "server")
				require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, byGRPC{w}.status("server").State)
			})
		}
	}
}

// TestAFailedStartTellsWhy: the reason and the last lines come with the error.
func TestAFailedStartTellsWhy(t *testing.T) {
	native(t)
	for sink, keys := range sinks(t) {
		t.Run(sink, func(t *testing.T) {
			w := newWorld(t)
			never := fields{"policy": "never"}
			w.register(keys.with(fields{"name": "mute", "restart": never, "ready": fields{"type": "log", "pattern": "^listening", "timeout": "2s"},
				"exec": []string{"/bin/sh", "-c", "echo no port is free >&2; exec sleep 100000"}}))
			w.register(keys.with(fields{"name": "brief", "restart": never, "ready": fields{"settle": "20s"},
				"exec": []string{"/bin/sh", "-c", "echo the licence has run out; sleep 0.5; exit 3"}}))

			r := w.cli("start", "mute")
			require.Equal(t, 8, r.code)
			require.Contains(t, r.stderr, "it was not ready within 2s (ready: log ^listening): no line of its output matched")
			require.Contains(t, r.stderr, "  its last lines:\n    no port is free\n")
			require.Equal(t, 1, w.cli("wait", "mute").code)

			r = w.cli("start", "brief")
			require.Equal(t, 1, r.code)
			require.Contains(t, r.stderr, "exit code 3")
			require.Contains(t, r.stderr, "  its last lines:\n    the licence has run out\n")
			_, err := w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: "brief"})
			require.Equal(t, codes.FailedPrecondition, status.Code(err))
			told := status.Convert(err).Details()[0].(*gladsheimv1.GladsheimError)
			require.Equal(t, "EXITED_EARLY", told.Code)
			require.Equal(t, "the licence has run out", string(told.LastLines[0]))
		})
	}
}

// TestWait: for what comes about, and for what can not any more.
func TestWait(t *testing.T) {
	native(t)
	w := newWorld(t)
	for _, name := range []string{"a", "b", "idle"} {
		w.register(workload(t, name, "wait", "sleep"))
	}
	w.mustCLI("start", "a", "b")
	require.Equal(t, "a: healthy\nb: healthy\n", w.mustCLI("wait", "a", "b", "--for", "healthy"))
	require.Equal(t, 3, w.cli("wait", "a", "idle").code)
	require.Equal(t, 4, w.cli("wait", "a", "nobody").code)
	require.Equal(t, 8, w.cli("--timeout", "500ms", "wait", "a", "--for", "stopped").code)
	waited := w.waits("idle", "a", "b", "idle", "--for", "stopped")
	w.leave(syscall.SIGKILL)
	w.begin()
	w.mustCLI("stop", "a", "b")
	require.Zero(t, (<-waited).code)

	done := w.path("done")
	job := fields{"type": "oneshot", "restart": fields{"policy": "never"}}
	w.register(job.with(fields{"name": "job", "exec": []string{"/bin/sh", "-c", "sleep 2; touch " + done}}))
	w.register(job.with(fields{"name": "vain", "exec": []string{"/bin/sh", "-c", "sleep 1; exit 4"}}))
	require.Equal(t, 8, w.cli("--timeout", "500ms", "start", "job").code)
	w.mustCLI("wait", "job", "--for", "ready")
	require.FileExists(t, done, "a job is ready when it is done")
	w.mustCLI("wait", "job", "--for", "ready")
	require.Equal(t, 8, w.cli("--timeout", "500ms", "start", "vain").code)
	require.Equal(t, 1, w.cli("wait", "vain", "--for", "ready").code)
}

// TestRollingRestart: one after the other, up to the first that fails.
func TestRollingRestart(t *testing.T) {
	native(t)
	w := newWorld(t)
	never := fields{"policy": "never"}
	address := fmt.Sprintf("127.0.0.1:%d", port(15075))
	url := fields{"type": "http", "url": "http://" + address + "/health", "interval": "500ms"}
	w.register(workload(t, "front", "rolling", "http", address).with(fields{"health": url}))
	w.register(workload(t, "middle", "rolling", "sleep").with(fields{"ready": fields{"settle": "1s"}}))
	w.register(fields{"name": "moody", "restart": never, "ready": fields{"settle": "10s", "timeout": patience.String()}, "exec": []string{"/bin/sh", "-c",
		"if [ -e " + w.path("once") + " ]; then echo once is enough; exit 3; fi; touch " + w.path("once") + "; exec sleep 100000"}})
	w.register(workload(t, "last", "rolling", "sleep"))
	all := []string{"front", "middle", "moody", "last"}
	w.mustCLI(append([]string{"start"}, all...)...)

	require.Zero(t, w.cli("restart", "--rolling", "last", "middle", "front").code)
	r := w.cli("restart", "--rolling", "front", "middle", "moody", "last")
	require.Equal(t, 1, r.code, "%s%s", r.stdout, r.stderr)
	require.Regexp(t, `(?m)^… front: running, pid \d+; waiting until it is healthy$`, r.stdout)
	require.Regexp(t, `(?m)^● front: running, pid \d+`, r.stdout)
	require.Regexp(t, `(?m)^● middle: running, pid \d+`, r.stdout)
	require.Contains(t, r.stdout, "- last: not touched\n")
	require.Contains(t, r.stderr, "cannot start moody: it ended: exit code 3")
	require.Contains(t, r.stderr, "once is enough")
	for name, incarnation := range map[string]uint64{"front": 3, "middle": 3, "moody": 2, "last": 2} {
		require.Equal(t, incarnation, byGRPC{w}.status(name).Incarnation, name)
	}
	require.Equal(t, 4, w.cli("restart", "--rolling", "last", "nobody").code)
	require.EqualValues(t, 2, byGRPC{w}.status("last").Incarnation)
}
