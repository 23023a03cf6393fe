package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

const running = gladsheimv1.ServiceState_SERVICE_STATE_RUNNING

// crash kills the main process, and waits for the next incarnation.
func (w *world) crash(name string) {
	w.t.Helper()
	was := byGRPC{w}.status(name)
	require.NoError(w.t, syscall.Kill(int(was.ProcessId), syscall.SIGKILL))
	eventually(w.t, name+" runs again", func() bool {
		s := byGRPC{w}.status(name)
		return s.State == running && s.Incarnation == was.Incarnation+1
	})
	x := byGRPC{w}.exits(name).Exits[0]
	require.Equal(w.t, was.Incarnation, x.Incarnation)
	require.EqualValues(w.t, syscall.SIGKILL, x.GetSignal(), "%v", x)
}

// TestDirectoriesRemoved: an agent goes on whose directory somebody removes, and writes
// all that it knows into one made anew as soon as it writes anything.
func TestDirectoriesRemoved(t *testing.T) {
	native(t)
	eachMode(t, func(t *testing.T, w *world, mode string) {
		always := fields{"launch": mode, "log": "file", "restart": fields{"policy": "always", "backoff": "100ms"}}
		for _, name := range []string{"web", "idle"} {
			w.register(workload(t, name, name, "sleep").with(always))
		}
		for _, dir := range []string{"run", "state", "log"} {
			byGRPC{w}.start("web")
			idle := byGRPC{w}.start("idle")
			require.NoError(t, os.RemoveAll(w.path(dir)))
			w.crash("web")
			require.DirExists(t, w.path(dir))
			require.FileExists(t, w.path("log", "web.log"))
			require.Contains(t, w.daemonLog(), "a directory was removed under the agent; it is made anew\" directory="+w.path(dir))
			require.NoError(t, w.daemon.Process.Signal(syscall.SIGHUP)) // for its socket
			eventually(t, "it can be reached anew", func() bool { return w.cli("list").code == 0 })
			require.NotContains(t, w.cli("doctor").stdout, "can not be written")
			w.mustCLI("stop", "web")
			w.leave(syscall.SIGKILL)
			w.begin()
			eventually(t, "it is taken up", func() bool { return byGRPC{w}.status("idle").State == running })
			require.Equal(t, idle.ProcessId, byGRPC{w}.status("idle").ProcessId)
			require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, byGRPC{w}.status("web").State)
			require.Len(t, marked(t, "web"), 0)
			require.Len(t, marked(t, "idle"), 1)
			w.mustCLI("stop", "idle")
		}
	})
}

// full mounts a small file system on a directory of an agent that does not run. fill
// leaves no room in it, and free makes room again.
func (w *world) full(dir string) (fill, free func()) {
	at, hog := w.path(dir), w.path(dir, "hog")
	require.NoError(w.t, os.MkdirAll(at, 0o750))
	require.NoError(w.t, unix.Mount("none", at, "tmpfs", 0, "size=16m,mode=750"))
	w.t.Cleanup(func() { require.NoError(w.t, unix.Unmount(at, unix.MNT_DETACH)) })
	fill = func() {
		f, err := os.Create(hog)
		require.NoError(w.t, err)
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		require.ErrorIs(w.t, err, unix.ENOSPC)
	}
	return fill, func() { require.NoError(w.t, os.Remove(hog)) }
}

// TestNoRoom: with one of its directories full an agent serves on; what it can not
// record it refuses or says so, and goes on by itself when there is room.
func TestNoRoom(t *testing.T) {
	anywhere(t)
	if !limited(t) {
		t.Skip("nobody may mount on somebody's machine")
	}
	for _, dir := range []string{"run", "state", "log"} {
		t.Run(dir, func(t *testing.T) {
			w := newWorld(t)
			w.leave(syscall.SIGTERM)
			fill, free := w.full(dir)
			w.begin()
			sink := "auto" // the journal, where there is one
			if dir == "log" {
				sink = "file"
			}
			always := fields{"log": sink, "restart": fields{"policy": "always", "backoff": "100ms"}}
			for _, name := range []string{"web", "idle", "stopped"} {
				w.register(workload(t, name, name, "sleep").with(always))
			}
			byGRPC{w}.start("web")
			idle := byGRPC{w}.start("idle")
			fill()
			w.noRoom(dir)
			free()
			eventually(t, "web runs", func() bool { return byGRPC{w}.status("web").State == running })
			require.NotContains(t, w.cli("doctor").stdout, "can not be written")
			byGRPC{w}.start("stopped")
			w.mustCLI("stop", "stopped")
			web, exits := byGRPC{w}.status("web"), byGRPC{w}.exits("web").Exits
			w.leave(syscall.SIGKILL)
			w.begin()
			for _, was := range []*gladsheimv1.ServiceStatus{web, idle} {
				eventually(t, "it is taken up", func() bool { return byGRPC{w}.status(was.ServiceName).State == running })
				is := byGRPC{w}.status(was.ServiceName)
				require.Equal(t, was.ProcessId, is.ProcessId)
				require.Equal(t, was.Incarnation, is.Incarnation)
			}
			require.Len(t, byGRPC{w}.exits("web").Exits, len(exits))
			require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, byGRPC{w}.status("stopped").State)
			w.mustCLI("stop", "web", "idle")
		})
	}
}

// noRoom tells what is so while a directory is full.
func (w *world) noRoom(dir string) {
	was := byGRPC{w}.status("web")
	if dir == "log" { // services hear of that themselves
		w.crash("web")
		return
	}
	refused := w.cli("restart", "web")
	require.NotZero(w.t, refused.code)
	require.Contains(w.t, refused.stderr, "it runs on")
	require.Contains(w.t, refused.stderr, "no space left on device")
	require.Equal(w.t, was.ProcessId, byGRPC{w}.status("web").ProcessId)
	refused = w.cli("start", "stopped")
	require.NotZero(w.t, refused.code)
	require.Contains(w.t, refused.stderr, "nothing was begun")
	require.Empty(w.t, marked(w.t, "stopped"))
	_ = w.cli("stop", "stopped")
	doctor := w.cli("doctor")
	require.NotZero(w.t, doctor.code)
	require.Contains(w.t, doctor.stdout, "records can not be written in "+filepath.Join(w.path(dir), "services"))
	require.Contains(w.t, w.daemonLog(), "can not be written")
	if dir == "state" { // a restart by the policy goes on
		w.crash("web")
		return
	}
	require.NoError(w.t, syscall.Kill(int(was.ProcessId), syscall.SIGKILL))
	eventually(w.t, "it waits", func() bool {
		return strings.Contains(w.cli("status", "web").stdout, "no space left on device")
	})
	require.Len(w.t, byGRPC{w}.exits("web").Exits, 1)
	require.Empty(w.t, marked(w.t, "web"))
}
