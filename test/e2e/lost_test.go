package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// crowdSize is how many services lose their records at once. systemd makes no
// hundred scopes in useful time on a machine that is emulated, and a hundred
// cgroups are made where it is not.
func crowdSize(t *testing.T) int {
	if offers(t, "systemd") && !soak {
		return 10
	}
	return 100
}

// TestEverythingIsLost: an agent that finds neither the directory of what is nor that
// of what is wanted takes up all that runs, and starts nothing beside it.
func TestEverythingIsLost(t *testing.T) {
	oneOfAKind(t)
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.leave(syscall.SIGTERM)
		many := crowdSize(t)
		names := make([]string, many)
		for i := range names {
			names[i] = fmt.Sprintf("lost-%d", i)
			writeFile(t, w.path("services.d", names[i]+".json"), workload(t, names[i], "lost", "sleep").with(fields{
				"launch": mode, "restart": fields{"policy": "always"}, "limits": limits(t, fields{"memory_max": "64MiB", "memory_swap_max": "0", "cpu_percent": 50, "pids_max": 40}),
			}).json(t))
		}
		w.begin()
		var wg sync.WaitGroup
		for _, name := range names {
			wg.Go(func() {
				_, _ = w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: name})
			})
		}
		wg.Wait()
		byGRPC{w}.restart(names[0]) // so that it is not its first incarnation
		before := byGRPC{w}.list().Services
		require.Len(t, before, many)
		ran := time.Now().Unix()
		w.leave(syscall.SIGKILL)
		for _, dir := range []string{"run", "state"} {
			require.NoError(t, os.RemoveAll(w.path(dir)))
		}
		w.begin()
		eventually(t, "all are taken up", func() bool { return byGRPC{w}.list().RunningCount == uint32(many) })
		require.Len(t, marked(t, "lost"), many, "none is started beside another")
		for i, s := range (byGRPC{w}).list().Services {
			was := before[i]
			require.Equal(t, was.ProcessId, s.ProcessId, s.ServiceName)
			require.Equal(t, was.Incarnation, s.Incarnation)
			require.Equal(t, was.Cgroup, s.Cgroup)
			// What was recorded is when its launch began, which then waited for its turn;
			// what is left is when its process did. Seconds of the two clocks differ.
			require.GreaterOrEqual(t, s.StartTimeUnix, was.StartTimeUnix-2)
			require.LessOrEqual(t, s.StartTimeUnix, ran+2)
			require.Zero(t, s.RestartCount)
		}
		first := byGRPC{w}.status(names[0])
		checkLimits(t, first, bounds{64 * mebibyte, 50, 40})
		w.leave(syscall.SIGKILL) // there are records again
		w.begin()
		eventually(t, "all are taken up once more", func() bool { return byGRPC{w}.list().RunningCount == uint32(many) })
		require.NotContains(t, w.cli("doctor").stdout, "nobody recorded")

		require.NoError(t, syscall.Kill(int(first.ProcessId), syscall.SIGKILL))
		eventually(t, "it is started anew", func() bool {
			s := byGRPC{w}.status(names[0])
			return s.State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING && s.Incarnation == first.Incarnation+1
		})
		require.Len(t, marked(t, "lost"), many)
		w.mustCLI(append([]string{"--timeout", "5m", "stop"}, names...)...)
		w.nothingLeft()
	})
}

// TestWhatEndedStaysEnded: with the directory of what is lost within a boot, what has
// ended is not begun again, nor what ends before the next agent comes, unless the
// restart policy says so; each end has one record, which tells no more than is known.
func TestWhatEndedStaysEnded(t *testing.T) {
	native(t)
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.leave(syscall.SIGTERM)
		define := func(name, policy string, args ...string) {
			def := workload(t, name, "stays", args...)
			run := []string{"/bin/sh", "-c", `echo "$0" >> "$1"; shift; exec "$@"`, name, w.path("runs")}
			writeFile(t, w.path("services.d", name+".json"), def.with(fields{
				"exec":   append(run, def["exec"].([]string)...),
				"launch": mode, "autostart": true, "restart": fields{"policy": policy, "backoff": "100ms"},
			}).json(t))
		}
		runs := func() map[string]int {
			text, err := os.ReadFile(w.path("runs"))
			require.NoError(t, err)
			counted := map[string]int{}
			for name := range strings.Lines(string(text)) {
				counted[strings.TrimSpace(name)]++
			}
			return counted
		}
		define("done", "on-failure", "exit", "0")
		define("failed", "never", "exit", "5")
		define("stopped", "always", "sleep")
		define("unseen", "never", "sleep")
		define("again", "always", "sleep")
		w.begin()
		before := map[string]*gladsheimv1.ExitRecord{"done": w.ended("done"), "failed": w.ended("failed")}
		for _, name := range []string{"stopped", "unseen", "again"} {
			eventually(t, name+" runs", func() bool {
				return byGRPC{w}.status(name).State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
			})
		}
		w.mustCLI("stop", "stopped")
		before["stopped"] = w.ended("stopped")
		for round, alive := range [][]string{{"unseen", "again"}, {"again"}} {
			var pids []int
			for _, name := range alive {
				pids = append(pids, int(byGRPC{w}.status(name).ProcessId))
			}
			again := byGRPC{w}.status("again")
			w.leave(syscall.SIGKILL)
			require.NoError(t, os.RemoveAll(w.path("run")))
			for _, pid := range pids {
				require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			}
			w.begin()
			eventually(t, "what shall run does", func() bool {
				s := byGRPC{w}.status("again")
				return s.State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING && s.ProcessId != again.ProcessId
			})
			eventually(t, "what ended unseen is told", func() bool {
				return byGRPC{w}.status("unseen").State == gladsheimv1.ServiceState_SERVICE_STATE_CRASHED
			})
			for name, state := range map[string]gladsheimv1.ServiceState{
				"done": gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, "failed": gladsheimv1.ServiceState_SERVICE_STATE_CRASHED,
				"stopped": gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, "unseen": gladsheimv1.ServiceState_SERVICE_STATE_CRASHED,
			} {
				s := byGRPC{w}.status(name)
				require.Equal(t, state, s.State, name)
				require.EqualValues(t, 1, s.Incarnation, name)
				exits := byGRPC{w}.exits(name).Exits
				require.Len(t, exits, 1, name)
				if was := before[name]; was != nil {
					require.True(t, proto.Equal(was, exits[0]), "%s: %v\nwas: %v", name, exits[0], was)
				} else {
					before[name] = exits[0]
					require.Equal(t, "agent_was_down", exits[0].GetUnknownReason(), name)
				}
			}
			require.Equal(t, again.Incarnation+1, byGRPC{w}.status("again").Incarnation)
			exits := byGRPC{w}.exits("again").Exits
			require.Len(t, exits, round+1)
			require.Equal(t, again.Incarnation, exits[0].Incarnation, "the latest first")
			require.Equal(t, "agent_was_down", exits[0].GetUnknownReason())
			require.Equal(t, map[string]int{"done": 1, "failed": 1, "stopped": 1, "unseen": 1, "again": round + 2}, runs())
			require.Len(t, marked(t, "stays"), 1)
		}
		w.mustCLI("stop", "again")
		w.nothingLeft()
	})
}

// TestRegisteredAnew: what a caller had registered is taken up when it is registered
// again, and until then nothing is started beside it.
func TestRegisteredAnew(t *testing.T) {
	anywhere(t)
	eachMode(t, func(t *testing.T, w *world, mode string) {
		def := workload(t, "again", "again", "sleep").with(fields{"launch": mode})
		w.register(def)
		byGRPC{w}.start("again")
		before := byGRPC{w}.restart("again")
		w.leave(syscall.SIGKILL)
		for _, dir := range []string{"run", "state"} {
			require.NoError(t, os.RemoveAll(w.path(dir)))
		}
		w.begin()
		require.Equal(t, 4, w.cli("status", "again").code)
		require.Equal(t, []int{int(before.ProcessId)}, marked(t, "again"))
		if limited(t) {
			require.Contains(t, w.cli("doctor").stdout, "no service of that name is registered")
		}
		w.register(def)
		eventually(t, "it is taken up", func() bool {
			return byGRPC{w}.status("again").State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
		})
		after := byGRPC{w}.status("again")
		require.Equal(t, before.ProcessId, after.ProcessId)
		require.Equal(t, before.Incarnation, after.Incarnation)
		byGRPC{w}.stop("again")
		require.Empty(t, marked(t, "again"))
	})
}

// TestAnotherParent: of what another shim had made, which nobody finds any more, or
// which was killed, an end is seen all the same.
func TestAnotherParent(t *testing.T) {
	oneOfAKind(t)
	eachMode(t, func(t *testing.T, w *world, mode string) {
		always := fields{"launch": mode, "restart": fields{"policy": "always", "backoff": "100ms"}}
		for _, name := range []string{"first", "second", "third"} {
			w.register(workload(t, name, name, "sleep").with(always))
		}
		anew := func() {
			w.leave(syscall.SIGKILL)
			w.begin()
		}
		ends := func(name string) {
			t.Helper()
			eventually(t, "it is taken up", func() bool {
				return byGRPC{w}.status(name).State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
			})
			was := byGRPC{w}.status(name)
			require.NoError(t, syscall.Kill(int(was.ProcessId), syscall.SIGKILL))
			eventually(t, "its end is seen", func() bool { return byGRPC{w}.status(name).Incarnation == was.Incarnation+1 })
		}
		byGRPC{w}.start("first")
		w.leave(syscall.SIGKILL)
		require.NoError(t, os.RemoveAll(w.path("run")))
		w.begin()
		byGRPC{w}.start("second")
		anew()
		ends("first")

		second := byGRPC{w}.status("second")
		parent := parentOf(t, int(second.ProcessId))
		require.NoError(t, syscall.Kill(parent, syscall.SIGKILL))
		byGRPC{w}.start("third")
		ends("second")
		ends("third")
		anew()
		ends("third")
		w.mustCLI("stop", "first", "second", "third")
		w.nothingLeft()
	})
}

// checkup answers health checks at once, but for the one that it is told to hold.
type checkup struct {
	*httptest.Server
	hold atomic.Pointer[held]
}

// held is a check that is not answered before it is released.
type held struct{ asked, release chan struct{} }

func newCheckup(t *testing.T) *checkup {
	c := &checkup{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if h := c.hold.Swap(nil); h != nil {
			close(h.asked)
			<-h.release
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// checked is a service that is checked all the time, and restarted at the first
// failure.
func (w *world) checked(name string, c *checkup) *gladsheimv1.ServiceStatus {
	w.t.Helper()
	w.register(workload(w.t, name, name, "sleep").with(fields{
		"health":  fields{"type": "http", "url": c.URL, "interval": "100ms", "timeout": "2s", "threshold": 1},
		"restart": fields{"policy": "always"},
	}))
	return byGRPC{w}.start(name)
}

// unharmed holds that a service is the one that it was, is well, and is asked so.
func (w *world) unharmed(was *gladsheimv1.ServiceStatus) {
	w.t.Helper()
	last := byGRPC{w}.health(was.ServiceName).LastCheckUnix
	eventually(w.t, "it is checked again", func() bool {
		h := byGRPC{w}.health(was.ServiceName)
		return h.LastCheckUnix != last && h.Status == gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY
	})
	is := byGRPC{w}.status(was.ServiceName)
	require.Equal(w.t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, is.State)
	require.Equal(w.t, was.Incarnation, is.Incarnation)
	require.Equal(w.t, was.ProcessId, is.ProcessId)
}

// TestAStalledAgentBlamesNobody: stopped in the midst of a check, for longer than that
// may take, it waits for the answer all the same.
func TestAStalledAgentBlamesNobody(t *testing.T) {
	native(t)
	w, c := newWorld(t), newCheckup(t)
	was := w.checked("patient", c)
	for _, stalled := range []time.Duration{2500 * time.Millisecond, 5 * time.Second} {
		h := &held{asked: make(chan struct{}), release: make(chan struct{})}
		c.hold.Store(h)
		<-h.asked
		require.NoError(t, w.daemon.Process.Signal(syscall.SIGSTOP))
		time.Sleep(stalled)
		require.NoError(t, w.daemon.Process.Signal(syscall.SIGCONT))
		time.Sleep(100 * time.Millisecond) // it has seen by now how late it is
		close(h.release)
		w.unharmed(was)
	}
	require.Empty(t, byGRPC{w}.exits("patient").Exits)
}

// TestAStarvedAgentBlamesNobody: with a hundredth of a processor it blames nobody for
// being late itself, nor when it was frozen in the midst of a check.
func TestAStarvedAgentBlamesNobody(t *testing.T) {
	if !limited(t) || offers(t, "systemd") && !soak {
		t.Skip("nothing here starves a process, or it is tried where systemd is not")
	}
	w, c := newWorld(t), newCheckup(t)
	was := w.checked("patient", c)
	const root = "/sys/fs/cgroup/"
	group := filepath.Join(root, "starved")
	require.NoError(t, os.Mkdir(group, 0o755))
	home, agent := cgroupOf(w.daemon.Process.Pid), strconv.Itoa(w.daemon.Process.Pid)
	put := func(file, value string) {
		require.NoError(t, os.WriteFile(filepath.Join(group, file), []byte(value), 0))
	}
	put("cgroup.procs", agent)
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(root, home, "cgroup.procs"), []byte(agent), 0)
		eventually(t, "nobody lives in it", func() bool { return os.Remove(group) == nil })
	})

	put("cpu.max", "1000 100000")
	time.Sleep(5 * time.Second)
	put("cpu.max", "max 100000")
	w.unharmed(was)

	h := &held{asked: make(chan struct{}), release: make(chan struct{})}
	c.hold.Store(h)
	<-h.asked
	put("cgroup.freeze", "1")
	time.Sleep(3 * time.Second)
	put("cgroup.freeze", "0")
	time.Sleep(100 * time.Millisecond) // it has seen by now how late it is
	close(h.release)
	w.unharmed(was)
	require.Empty(t, byGRPC{w}.exits("patient").Exits)
}

// TestTheClockIsSet: nobody is restarted, and a wait for the next attempt goes on as
// before, over the end of an agent as well.
func TestTheClockIsSet(t *testing.T) {
	anywhere(t)
	if os.Getenv("GLADSHEIM_TEST_HOST") == "bare" {
		t.Skip("it is somebody's clock")
	}
	w := newWorld(t)
	began, clock := time.Now(), time.Now().Round(0)
	set := func(ahead time.Duration) {
		now := syscall.NsecToTimeval(clock.Add(time.Since(began) + ahead).UnixNano())
		require.NoError(t, syscall.Settimeofday(&now))
	}
	t.Cleanup(func() { set(0) })
	was := w.checked("timeless", newCheckup(t))
	const wait = 15 * time.Second
	w.register(workload(t, "again", "again", "exit", "1").with(fields{"restart": fields{"policy": "on-failure", "backoff": wait.String(), "max_backoff": wait.String()}}))
	_, _ = w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: "again"})
	w.ended("again")
	ended := time.Now()
	const year = 365 * 24 * time.Hour
	for i, ahead := range []time.Duration{time.Hour, -time.Hour, 10 * year, -10 * year} {
		set(ahead)
		w.unharmed(was)
		if i%2 == 0 {
			w.leave(syscall.SIGKILL)
			w.begin()
			eventually(t, "it is taken up", func() bool {
				return byGRPC{w}.status("timeless").State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
			})
			w.unharmed(was)
		}
	}
	require.Less(t, time.Since(ended), wait, "the host is too slow for this test")
	require.Len(t, byGRPC{w}.exits("again").Exits, 1, "it was tried again too early")
	eventually(t, "it is tried again", func() bool { return len(byGRPC{w}.exits("again").Exits) == 2 })
	require.GreaterOrEqual(t, time.Since(ended), wait*8/10-time.Second, "waits differ by a fifth, and its end was seen late")
	require.Less(t, time.Since(ended), 2*wait)
}
