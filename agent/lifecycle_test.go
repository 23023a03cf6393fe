package agent

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/backends/fake"
	"github.com/gladsheim/gladsheim/logfile"
)

func TestStartStopRestart(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		s := h.start(web)
		require.NotZero(t, s.PID())
		require.Equal(t, service.Healthy, s.Health.Status)
		_, err := h.Start(t.Context(), web, service.StartOptions{})
		refused(t, err, service.AlreadyRunning)
		s, err = h.Restart(t.Context(), web, service.StopOptions{Actor: "carol"})
		require.NoError(t, err)
		require.EqualValues(t, 2, s.Machine.Incarnation)
		require.Equal(t, "carol", s.LastActor)
		s = h.stop(web)
		require.Zero(t, s.PID())
		require.Equal(t, service.HealthUnknown, s.Health.Status)
		require.Equal(t, service.VerdictStopped, s.LastExit.Verdict)
		require.Equal(t, "bob", s.LastExit.RequestedBy)
		_, err = h.Stop(t.Context(), web, service.StopOptions{})
		refused(t, err, service.NotRunning)
		_, err = h.Restart(t.Context(), db, service.StopOptions{})
		refused(t, err, service.NotFound)
	})
}

func TestStartOptions(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"environment": {"A": "1", "B": "2"}, "limits": {"pids_max": 10, "nofile": 100}`)
		var limits service.Limits
		limits[service.PidsMax] = service.Of(5)
		_, err := h.Start(t.Context(), web, service.StartOptions{
			Environment: map[string]string{"B": "3", "C": "4"}, WorkingDirectory: "/srv", Args: []string{"-v"}, Limits: limits,
		})
		require.NoError(t, err)
		require.Equal(t, "/bin/web -v", h.host.Processes()[0].Command)
		applied, err := h.Limits(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, service.Of(5), applied[service.PidsMax].Applied)
		require.Equal(t, service.Of(100), applied[service.NoFile].Applied)
		require.Equal(t, service.Of(2048<<20), applied[service.MemoryMax].Applied, "the platform's")
		require.Equal(t, map[string]string{"A": "1", "B": "2"}, h.status(web).Spec.Environment, "the definition stays")

		h.stop(web)
		h.start(web)
		require.Equal(t, "/bin/web", h.host.Processes()[0].Command, "options are for one start")
		h.stop(web)
		_, err = h.Start(t.Context(), web, service.StartOptions{WorkingDirectory: "relative"})
		refused(t, err, service.Invalid, "working_directory")
		limits[service.MemoryMax] = service.Of(1)
		_, err = h.Start(t.Context(), web, service.StartOptions{Limits: limits})
		refused(t, err, service.Invalid, "memory_max")

		h.register(db)
		_, err = h.Start(t.Context(), db, service.StartOptions{Environment: map[string]string{"A": "1"}})
		require.NoError(t, err)
	})
}

// launched is what the present incarnation of a service was launched with.
func (h *house) launched(name service.Name) service.Spec {
	h.t.Helper()
	store, err := skirnir.OpenStore(h.path("state"), h.path("run"), func(string) error { return nil })
	require.NoError(h.t, err)
	left, err := store.Load()
	require.NoError(h.t, err)
	for _, r := range left.Actual {
		if r.Name == name {
			return r.Spec
		}
	}
	h.t.Fatalf("%s was not launched", name)
	return service.Spec{}
}

// A restart repeats what the last start asked for, over the definition as it is
// now; what was set since counts more. Agents come and go meanwhile.
func TestRestartRepeatsTheStart(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"environment": {"A": "1", "B": "2"}, "limits": {"pids_max": 10, "nofile": 100}`)
		var limits, live service.Limits
		limits[service.PidsMax], limits[service.MemoryMax] = service.Of(5), service.Of(64<<20)
		_, err := h.Start(t.Context(), web, service.StartOptions{
			Environment: map[string]string{"B": "3"}, WorkingDirectory: "/srv", Args: []string{"-v"}, Limits: limits,
			Warnings: service.Warnings{Memory: 50, CPU: 60}, Actor: "alice",
		})
		require.NoError(t, err)
		restarted := func(pids, memory uint64, warnings service.Warnings) service.Spec {
			t.Helper()
			s, err := h.Restart(t.Context(), web, service.StopOptions{Actor: "carol"})
			require.NoError(t, err)
			require.Equal(t, "carol", s.LastActor)
			require.Equal(t, warnings, s.Warnings)
			applied, err := h.Limits(t.Context(), web)
			require.NoError(t, err)
			require.Equal(t, service.Of(pids), applied[service.PidsMax].Applied)
			require.Equal(t, service.Of(memory), applied[service.MemoryMax].Applied)
			spec := h.launched(web)
			require.Equal(t, []string{"/bin/web", "-v"}, spec.Exec)
			require.Equal(t, "/srv", spec.WorkingDirectory)
			return spec
		}
		spec := restarted(5, 64<<20, service.Warnings{Memory: 50, CPU: 60})
		require.Equal(t, map[string]string{"A": "1", "B": "3"}, spec.Environment)

		live[service.PidsMax] = service.Of(7)
		_, err = h.SetLimits(t.Context(), web, live, service.Warnings{CPU: 70}, false, "dora")
		require.NoError(t, err)
		h.reopen()
		restarted(7, 64<<20, service.Warnings{Memory: 50, CPU: 70})

		h.register(web, `"environment": {"A": "9"}, "limits": {"pids_max": 20}`)
		spec = restarted(20, 64<<20, service.Warnings{Memory: 50, CPU: 80})
		require.Equal(t, map[string]string{"A": "9", "B": "3"}, spec.Environment)

		h.stop(web)
		h.reopen()
		restarted(20, 64<<20, service.Warnings{Memory: 50, CPU: 80})

		h.reboot()
		h.open()
		h.is(web, service.Running)
		require.Equal(t, []string{"/bin/web", "-v"}, h.launched(web).Exec, "as it was when the host went down")

		h.stop(web)
		h.reboot()
		h.open()
		h.is(web, service.Stopped)
		spec = restarted(20, 64<<20, service.Warnings{Memory: 50, CPU: 80})
		require.Equal(t, map[string]string{"A": "9", "B": "3"}, spec.Environment)
		h.stop(web)
		h.reboot()
		h.open()
		_, err = h.SetLimits(t.Context(), web, service.Limits{service.MemoryMax: service.Of(32 << 20)}, service.Warnings{Memory: 40}, false, "dora")
		require.NoError(t, err)
		restarted(20, 32<<20, service.Warnings{Memory: 40, CPU: 80})

		h.stop(web)
		h.start(web)
		require.Equal(t, []string{"/bin/web"}, h.launched(web).Exec)
		_, err = h.Restart(t.Context(), web, service.StopOptions{})
		require.NoError(t, err)
		require.Equal(t, []string{"/bin/web"}, h.launched(web).Exec, "the last start asked for nothing")
	})
}

func TestSignal(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		_, err := h.Signal(t.Context(), web, syscall.SIGHUP, "dora")
		refused(t, err, service.NotRunning)
		h.start(web)
		s, err := h.Signal(t.Context(), web, syscall.SIGURG, "dora")
		require.NoError(t, err)
		require.Equal(t, "dora", s.LastActor)
		require.Contains(t, h.reasons(web), "signal")
		h.is(web, service.Running)
		_, err = h.Signal(t.Context(), web, syscall.SIGKILL, "dora")
		require.NoError(t, err)
		synctest.Wait()
		h.is(web, service.Backoff)
		x := h.status(web).LastExit
		require.Equal(t, service.VerdictKilled, x.Verdict)
		require.Equal(t, "dora", x.RequestedBy)
		require.Contains(t, x.Message, "sent by dora")
		require.NotContains(t, x.Message, "outside")
	})
}

func TestMaxServices(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.settings.MaxServices = 2
		names := make([]service.Name, 10)
		for i := range names {
			names[i] = service.MustName(fmt.Sprintf("s%d", i))
			h.define(names[i])
		}
		h.host.Script(names[0], fake.Script{LaunchTime: time.Second})
		h.open()
		var started atomic.Int32
		var all sync.WaitGroup
		for _, name := range names {
			all.Go(func() {
				_, err := h.Start(t.Context(), name, service.StartOptions{})
				if err == nil {
					started.Add(1)
				} else if service.KindOf(err) != service.Exhausted {
					t.Error(err)
				}
			})
		}
		all.Wait()
		require.EqualValues(t, 2, started.Load(), "no more, even at once")
		require.Len(t, h.host.Processes(), 2)

		var running, stopped []service.Name
		for _, s := range h.List() {
			if s.Machine.State == service.Running {
				running = append(running, s.Name)
			} else {
				stopped = append(stopped, s.Name)
			}
		}
		_, err := h.Start(t.Context(), stopped[0], service.StartOptions{})
		refused(t, err, service.Exhausted, "max_services", "2")
		_, err = h.Restart(t.Context(), stopped[0], service.StopOptions{})
		refused(t, err, service.Exhausted)
		_, err = h.Start(t.Context(), running[0], service.StartOptions{})
		refused(t, err, service.AlreadyRunning)
		_, err = h.Restart(t.Context(), running[0], service.StopOptions{})
		require.NoError(t, err)
		h.crash(running[0])
		h.is(running[0], service.Backoff)
		h.start(running[0]) // it has its place

		h.settings.MaxServices = 1
		h.reload()
		_, err = h.Restart(t.Context(), running[0], service.StopOptions{})
		require.NoError(t, err, "it runs already")
		h.stop(running[0])
		_, err = h.Start(t.Context(), running[0], service.StartOptions{})
		refused(t, err, service.Exhausted)
		h.stop(running[1])
		h.start(stopped[0])
		h.settings.MaxServices = 0
		h.reload()
		for _, name := range names {
			if name != stopped[0] {
				h.start(name)
			}
		}
	})
}

func TestExits(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"restart": {"policy": "never"}`)
		for i := range 20 {
			h.start(web)
			log, err := os.OpenFile(h.path("log/web.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			require.NoError(t, err)
			if i != 15 {
				fmt.Fprintf(log, "starting\nround %d\n", i)
			}
			require.NoError(t, log.Close())
			h.host.Crash(web, service.Exit{Code: i + 1})
			synctest.Wait()
		}
		check := func() {
			exits, err := h.Exits(web, 0)
			require.NoError(t, err)
			require.Len(t, exits, 16)
			for i, x := range exits {
				require.Equal(t, service.Exit{Code: 20 - i}, x.Exit, "latest first")
				require.EqualValues(t, 20-i, x.Incarnation)
				if round := 19 - i; round == 15 {
					require.Empty(t, x.LastLines, "it said nothing, and the others' words are not its own")
				} else {
					require.Equal(t, []string{"starting", fmt.Sprintf("round %d", round)}, x.LastLines)
				}
			}
			for _, x := range h.exits[web][:15] {
				require.Empty(t, x.LastLines, "those of the latest alone are kept in memory")
			}
			exits, err = h.Exits(web, 3)
			require.NoError(t, err)
			require.Len(t, exits, 3)
			require.Equal(t, service.Exit{Code: 20}, exits[0].Exit)
			require.Equal(t, exits[0].Message, h.status(web).LastExit.Message)
			require.False(t, h.status(web).Ended.IsZero())
		}
		check()
		h.reopen()
		check()
		h.start(web)
		require.EqualValues(t, 21, h.status(web).Machine.Incarnation, "numbers go on")
		_, err := h.Exits(db, 0)
		refused(t, err, service.NotFound)
	})
}

func TestWatch(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		after, notices, err := h.Watch(t.Context())
		require.NoError(t, err)
		require.Equal(t, h.Sequence(), after)
		h.start(web)
		h.crash(web)
		var states []string
		for len(notices) > 0 {
			n := <-notices
			if n.Kind == service.NoticeState {
				states = append(states, n.State.String())
			}
		}
		require.Equal(t, []string{"launching", "starting", "running", "clearing", "backoff"}, states)

		require.Len(t, h.Kept(h.Sequence()-3), 3)
	})
}

func TestLogFile(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		log, err := h.LogFile(web)
		require.NoError(t, err)
		require.Equal(t, h.path("log/web.log"), log.Path())
		h.register(db, `"log": "null"`)
		_, err = h.LogFile(db)
		refused(t, err, service.Conflict, "null")
		_, err = h.LogFile(service.MustName("other"))
		refused(t, err, service.NotFound)
		h.start(db)
		h.crash(db)
		require.Empty(t, h.status(db).LastExit.LastLines)
	})
}

func TestLastLines(t *testing.T) {
	opened(t, func(t *testing.T, h *house) { h.checkLastLines() })
}

func (h *house) checkLastLines() {
	t, dir := h.t, h.path("log")
	of := func(name string, from int64) []string {
		return h.lastLines(&service.Spec{Name: service.MustName(name)}, 1, from)
	}
	lastLines := func(from int64) []string { return of("x", from) }
	path := dir + "/x.log"
	require.Nil(t, lastLines(0), "there is none")
	long := make([]byte, 64<<10)
	for i := range long {
		long[i] = 'x'
	}
	many := ""
	for i := range 100 {
		many += fmt.Sprintf("line %d\n", i)
	}
	for _, tt := range []struct {
		name, content string
		count         int
		first, last   string
	}{
		{"empty", "", 0, "", ""},
		{"line breaks", "\n\n\n", 0, "", ""},
		{"one", "one\n", 1, "one", "one"},
		{"no line break at the end", "one\ntwo", 2, "one", "two"},
		{"many", many, 20, "line 80", "line 99"},
		{"NUL and invalid UTF-8", "a\x00b\xff\n", 1, "a\x00b\uFFFD", "a\x00b\uFFFD"},
		{"nothing but a long line", string(long) + "\n", 1, string(long[:16<<10-1]), string(long[:16<<10-1])},
		{"a long line before", string(long) + "\nend\n", 1, "end", "end"},
	} {
		require.NoError(t, os.WriteFile(path, []byte(tt.content), 0o600))
		lines := lastLines(0)
		require.Len(t, lines, tt.count, tt.name)
		if tt.count > 0 {
			require.Equal(t, tt.first, lines[0], tt.name)
			require.Equal(t, tt.last, lines[tt.count-1], tt.name)
		}
	}
	require.NoError(t, os.WriteFile(path, long, 0o600))
	require.LessOrEqual(t, len(lastLines(0)[0]), 16<<10, "a line without end")

	require.NoError(t, os.WriteFile(path, []byte("of the former\nof this one\n"), 0o600))
	require.Equal(t, []string{"of this one"}, lastLines(int64(len("of the former\n"))))
	require.Nil(t, lastLines(h.logEnd(service.MustName("x"))), "it wrote nothing")
	require.Len(t, lastLines(1000), 2, "the file was cut")

	require.NoError(t, os.Symlink(path, dir+"/link.log"))
	require.Contains(t, of("link", 0)[0], "can not be read")
	require.NoError(t, syscall.Mkfifo(dir+"/fifo.log", 0o600))
	require.NotPanics(t, func() { of("fifo", 0) }, "and it does not block")
	require.NoError(t, os.Mkdir(dir+"/dir.log", 0o700))
	require.Contains(t, of("dir", 0)[0], "can not be read")
}

// The lines of an incarnation are known by where they begin in all that its
// service ever wrote, whatever is cut off the log meanwhile.
func TestLastLinesAfterACut(t *testing.T) {
	dir := t.TempDir()
	agent := func() *Agent {
		logs, err := logfile.Open(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
		require.NoError(t, err)
		t.Cleanup(logs.Close)
		return &Agent{cfg: Config{LogDir: dir, Logs: logs}}
	}
	a := agent()
	spec := service.Spec{Name: web, Rotation: service.LogRotation{Size: 64 << 10, Total: 1 << 20}}
	path := a.logPath(web)
	logStart := func(a *Agent) int64 {
		a.keepLog(&spec)
		return a.logEnd(web)
	}
	log, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer log.Close()
	say := func(from, to int) {
		for i := from; i < to; i++ {
			_, err := fmt.Fprintf(log, "line %d\n", i)
			require.NoError(t, err)
		}
	}
	say(0, 100)
	first := logStart(a)
	require.EqualValues(t, 10*len("line 0\n")+90*len("line 10\n"), first)
	say(100, 103)
	require.Equal(t, []string{"line 100", "line 101", "line 102"}, a.lastLines(&spec, 1, first))
	say(103, 10_000)
	cut := func() bool {
		info, err := os.Stat(path)
		require.NoError(t, err)
		return info.Size() < 64<<10
	}
	require.Eventually(t, cut, 30*time.Second, 10*time.Millisecond)
	for _, a := range []*Agent{a, agent()} { // also the next agent
		lines := a.lastLines(&spec, 1, first)
		require.Len(t, lines, 20)
		require.Equal(t, []string{"line 9980", "line 9999"}, []string{lines[0], lines[19]})
		second := logStart(a)
		require.Greater(t, second, int64(64<<10))
		require.Nil(t, a.lastLines(&spec, 1, second))
		_, err = log.WriteString("of this one\n")
		require.NoError(t, err)
		require.Equal(t, []string{"of this one"}, a.lastLines(&spec, 1, second))
		say(9980, 10_000)
	}
}

func TestCheckHealth(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		_, err := h.CheckHealth(t.Context(), web)
		refused(t, err, service.NotFound)
		h.register(web)
		health, err := h.CheckHealth(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, service.HealthUnknown, health.Status)
		pid := h.start(web).PID()
		for _, is := range []struct {
			state   string
			threads int
			want    service.HealthStatus
		}{
			{"S", 1, service.Healthy}, {"R", 1, service.Healthy}, {"Z", 1, service.Ill}, {"T", 1, service.Ill},
			{"Z", 2, service.Healthy}, // another thread lives, and may be about to execute a program
		} {
			h.write(fmt.Sprintf("proc/%d/stat", pid), fmt.Sprintf("%d (web) %s 1 1 1 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 %d 0 100100 1000 10", pid, is.state, is.threads)+
				" 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n")
			health, err = h.CheckHealth(t.Context(), web)
			require.NoError(t, err)
			require.Equal(t, is.want, health.Status, "%v: %s", is, health.Message)
			require.Equal(t, health, h.status(web).Health, "readers see it, too")
		}
		require.NoError(t, os.RemoveAll(h.path(fmt.Sprintf("proc/%d", pid))))
		health, err = h.CheckHealth(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, service.Ill, health.Status)
	})
}

// An unhealthy service is told of, restarted, and told of again.
func TestHealthNotices(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.keepHealth(web, service.Health{Status: service.Ill, Message: "answered 500"})
		h.keepHealth(web, service.Health{Status: service.Ill, Message: "answered 502"})
		require.Equal(t, "answered 502", h.status(web).Health.Message)
		require.Equal(t, []string{"healthy", "unhealthy"}, h.reasons(web, service.NoticeHealth), "once for each change")
		h.keepHealth(db, service.Health{}) // unregistered meanwhile
	})
}

// A retry is answered by the next agent as the first request was, though another
// service has the room meanwhile.
func TestARetryByTheNextAgent(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		opts := service.StartOptions{Actor: "alice", Args: []string{"x"}, Request: service.Request{ID: "a", Body: "1"}}
		s, err := h.Start(t.Context(), web, opts)
		require.NoError(t, err)
		h.reopen()
		retried, err := h.Start(t.Context(), web, opts)
		require.NoError(t, err)
		require.Equal(t, s.Machine.Incarnation, retried.Machine.Incarnation)
		require.Equal(t, s.Ref, retried.Ref)
		again := service.StopOptions{Actor: "alice", Request: service.Request{ID: "b", Body: "2"}}
		s, err = h.Restart(t.Context(), web, again)
		require.NoError(t, err)
		require.EqualValues(t, 2, s.Machine.Incarnation)
		require.Equal(t, "/bin/web x", h.host.Processes()[0].Command, "the options, and not their id, are repeated")
		h.stop(web)
		h.register(db)
		h.start(db)
		h.settings.MaxServices = 1
		h.reopen()
		_, err = h.Start(t.Context(), web, opts)
		require.NoError(t, err)
		_, err = h.Restart(t.Context(), web, again)
		require.NoError(t, err)
		h.is(web, service.Stopped)
		again.Request.Body = "3"
		_, err = h.Restart(t.Context(), web, again)
		refused(t, err, service.Conflict)
		require.Equal(t, service.ReasonRequestIDReused, service.ReasonOf(err))
	})
}
