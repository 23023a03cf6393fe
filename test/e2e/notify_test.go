package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// speaker is a service that says of itself what the test wants.
type speaker struct {
	*world
	name   string
	orders *os.File
}

// speaker registers one.
func (w *world) speaker(mode, name string, more fields) *speaker {
	w.t.Helper()
	at := w.path(name + ".orders")
	require.NoError(w.t, syscall.Mkfifo(at, 0o600))
	require.NoError(w.t, os.Chmod(at, 0o666))
	orders, err := os.OpenFile(at, os.O_RDWR, 0)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { orders.Close() })
	w.register(workload(w.t, name, name, "notify", at).with(fields{"launch": mode}).with(more))
	return &speaker{world: w, name: name, orders: orders}
}

func (s *speaker) says(line string) {
	s.t.Helper()
	_, err := fmt.Fprintln(s.orders, line)
	require.NoError(s.t, err)
}

func (s *speaker) status() *gladsheimv1.ServiceStatus {
	s.t.Helper()
	return byGRPC{s.world}.status(s.name)
}

func (s *speaker) eventually(what string, condition func(*gladsheimv1.ServiceStatus) bool) {
	s.t.Helper()
	eventually(s.t, what, func() bool { return condition(s.status()) })
}

// socket is what it is told by its environment.
func (s *speaker) socket() string {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.status().ProcessId))
	require.NoError(s.t, err)
	for _, v := range strings.Split(string(text), "\x00") {
		if path, ok := strings.CutPrefix(v, "NOTIFY_SOCKET="); ok {
			return path
		}
	}
	return ""
}

// start has somebody start it, and tells when the start was answered.
func (s *speaker) start() (answer <-chan result) {
	answered := make(chan result, 1)
	go func() {
		defer close(answered) // also when there is no agent to answer
		answered <- s.cli("start", s.name)
	}()
	return answered
}

// TestNotify: a service is ready when it says so, it alone, and what it says is seen; an
// end of the agent changes nothing about how it says it.
func TestNotify(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) { newWorld(t).notify(mode) })
	}
}

func (w *world) notify(mode string) {
	t := w.t
	says := fields{"ready": fields{"type": "notify", "timeout": "1m"}}
	s, other := w.speaker(mode, "speaker", says), w.speaker(mode, "other", says)
	mute := w.speaker(mode, "mute", nil)
	w.mustCLI("start", "mute")
	require.Empty(t, mute.socket(), "who is not asked is told of no socket")

	answer, second := s.start(), other.start()
	starting := func(s *gladsheimv1.ServiceStatus) bool { return s.Phase == "starting" }
	s.eventually("it starts", starting)
	other.eventually("the other starts", starting)
	socket := s.socket()
	require.Equal(t, w.path("run", "notify", "speaker"), socket)
	s.says("STATUS=loading;EXTEND_TIMEOUT_USEC=120000000")
	s.eventually("its status is seen", func(s *gladsheimv1.ServiceStatus) bool { return s.GetNotified().GetStatus() == "loading" })

	// Lies: of another service, of this process, of another user.
	other.says("@" + socket + " READY=1;STATUS=lies")
	s.eventually("a lie is counted", func(s *gladsheimv1.ServiceStatus) bool { return s.GetNotified().GetDropped() == 1 })
	conn, err := net.Dial("unixgram", socket)
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("READY=1\nSTATUS=lies"))
	require.NoError(t, err)
	s.eventually("another lie is counted", func(s *gladsheimv1.ServiceStatus) bool { return s.GetNotified().GetDropped() == 2 })
	if isRoot(t) {
		asNobody(t, func() error {
			if _, err := net.Dial("unixgram", socket); !errors.Is(err, syscall.EACCES) {
				return fmt.Errorf("another user gets %w", err)
			}
			return nil
		})
	}
	now := s.status()
	require.Equal(t, "starting", now.Phase)
	require.Equal(t, "loading", now.GetNotified().GetStatus())
	require.Contains(t, w.mustCLI("events", "-n", "1000"), "which is none of the service's, sent a message")
	select {
	case r := <-answer:
		t.Fatalf("the start was answered: %+v", r)
	default:
	}

	s.says("READY=1;STATUS=up")
	require.Zero(t, (<-answer).code)
	other.says("READY=1")
	require.Zero(t, (<-second).code)
	s.eventually("it is up", func(s *gladsheimv1.ServiceStatus) bool { return s.GetNotified().GetStatus() == "up" })
	require.Contains(t, w.mustCLI("status", "speaker"), "Says: up")
	s.says("RELOADING=1")
	s.eventually("it reloads", func(s *gladsheimv1.ServiceStatus) bool { return s.GetNotified().GetReloading() })
	s.says("READY=1")
	s.eventually("it has reloaded", func(s *gladsheimv1.ServiceStatus) bool { return !s.GetNotified().GetReloading() })

	was := s.status()
	w.leave(syscall.SIGKILL)
	w.begin()
	s.eventually("it is taken up", func(s *gladsheimv1.ServiceStatus) bool { return s.Phase == "running" }) // before that nobody hears it
	s.says("STATUS=still up")
	s.eventually("the next agent hears it", func(s *gladsheimv1.ServiceStatus) bool { return s.GetNotified().GetStatus() == "still up" })
	require.Equal(t, was.ProcessId, s.status().ProcessId)

	s.says("STOPPING=1")
	s.eventually("it says that it stops", func(s *gladsheimv1.ServiceStatus) bool { return s.GetNotified().GetStopping() })
	w.mustCLI("stop", "speaker", "other", "mute")
	require.Nil(t, s.status().Notified)
	require.NoFileExists(t, socket)
}

// TestAnotherMainProcess: a service whose main process forks another one, says so and leaves
// goes on as the incarnation that it is. From then on it is the new one that is checked,
// taken up by the next agent, signalled, and whose end is told exactly.
func TestAnotherMainProcess(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			s := w.speaker(mode, "speaker", fields{"ready": fields{"type": "notify", "timeout": "1m"}, "restart": fields{"policy": "always", "backoff": "10ms"}})
			was := &gladsheimv1.ServiceStatus{}
			follows := func() {
				t.Helper()
				before := was.ProcessId
				s.eventually("another process is the main one, and the former is gone", func(s *gladsheimv1.ServiceStatus) bool {
					was = s
					return s.ProcessId != before && !slices.Contains(marked(t, "speaker"), int(before))
				})
				require.Equal(t, []int{int(was.ProcessId)}, marked(t, "speaker"))
				require.EqualValues(t, 1, was.Incarnation)
				require.Equal(t, "running", was.Phase)
				require.Empty(t, byGRPC{w}.exits("speaker").Exits)
				checkPlace(t, was, mode)
			}
			answer := s.start()
			s.eventually("it runs", func(s *gladsheimv1.ServiceStatus) bool { was = s; return s.ProcessId != 0 })
			s.says(">READY=1;STATUS=handed over")
			require.Zero(t, (<-answer).code)
			follows()
			require.Equal(t, "handed over", was.GetNotified().GetStatus())
			require.Equal(t, was.ProcessId, was.GetNotified().GetMainPid())
			require.Contains(t, w.mustCLI("events", "-n", "1000"), "which it calls its main one (MAINPID)")

			w.leave(syscall.SIGKILL)
			w.begin()
			s.eventually("it is taken up", func(s *gladsheimv1.ServiceStatus) bool { return s.Phase == "running" })
			require.Equal(t, was.ProcessId, s.status().ProcessId)
			s.says(">STATUS=handed over again")
			follows()

			s.says(fmt.Sprintf("MAINPID=%d", os.Getpid()))
			s.eventually("who is none of its own does not follow", func(*gladsheimv1.ServiceStatus) bool {
				return strings.Contains(w.mustCLI("events", "-n", "1000"), "is none of the service's own")
			})
			require.Equal(t, was.ProcessId, s.status().ProcessId)

			require.NoError(t, syscall.Kill(int(was.ProcessId), syscall.SIGKILL))
			x := w.ended("speaker")
			require.EqualValues(t, syscall.SIGKILL, x.GetSignal(), "%v", x)
			s.eventually("it is started again", func(s *gladsheimv1.ServiceStatus) bool { return s.Incarnation == 2 && s.ProcessId != 0 })
			s.says("READY=1")
			s.eventually("it runs again", func(s *gladsheimv1.ServiceStatus) bool { return s.Phase == "running" })
			s.says(">STOPPING=0")
			s.eventually("another one leads it", func(s *gladsheimv1.ServiceStatus) bool { return s.ProcessId == s.GetNotified().GetMainPid() })
			w.mustCLI("stop", "speaker")
			require.Empty(t, marked(t, "speaker"))
		})
	}
}

// TestNotifyOfAnotherUser: who runs as another user can say it, too.
func TestNotifyOfAnotherUser(t *testing.T) {
	oneOfAKind(t)
	if !isRoot(t) {
		t.Skip("only root runs services as others")
	}
	for _, mode := range preferred(t) {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			s := w.speaker(mode, "speaker", fields{"user": "nobody", "group": "nogroup", "ready": fields{"type": "notify"}})
			answer := s.start()
			s.says("READY=1;STATUS=up")
			require.Zero(t, (<-answer).code)
			s.eventually("it is up", func(s *gladsheimv1.ServiceStatus) bool { return s.GetNotified().GetStatus() == "up" })
			w.mustCLI("stop", "speaker")
		})
	}
}

// TestNotifyByAScript: systemd-notify(1), a child of the main process that ends at once, is
// heard, since it waits for that. While the script says that it is well it runs on, in the
// interval that it was told; then it is ended.
func TestNotifyByAScript(t *testing.T) {
	oneOfAKind(t)
	tool, err := exec.LookPath("systemd-notify")
	if err != nil {
		require.False(t, offers(t, "systemd"), "there is no systemd-notify")
		t.Skip("there is no systemd-notify without systemd")
	}
	script := `[ "$WATCHDOG_USEC" = 3000000 ] && ` + tool + ` --ready --status="by a script" || exit 1
for beat in 1 2 3 4 5 6; do sleep 1; ` + tool + ` WATCHDOG=1; done
exec sleep 1000`
	for _, mode := range preferred(t) {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			w.register(workload(t, "script", "script").with(fields{"launch": mode, "ready": fields{"type": "notify"}, "exec": []string{"/bin/sh", "-c", script},
				"health": fields{"type": "watchdog", "interval": "3s"}, "restart": fields{"policy": "never"}}))
			w.mustCLI("start", "script")
			status := func() *gladsheimv1.ServiceStatus { return byGRPC{w}.status("script") }
			require.Equal(t, "by a script", status().GetNotified().GetStatus())
			eventually(t, "it is well", func() bool {
				return byGRPC{w}.health("script").Status == gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY
			})
			eventually(t, "it is ended", func() bool { return status().LastExit != nil })
			x := status().LastExit
			require.Equal(t, gladsheimv1.Verdict_VERDICT_WATCHDOG, x.Verdict)
			require.Greater(t, x.EndedUnixMs-x.StartedUnixMs, int64(6000), "it was well until then")
			w.mustCLI("stop", "script")
		})
	}
}

// TestNotifyNever: one that never says so is not ready in time, and the answer tells why.
func TestNotifyNever(t *testing.T) {
	native(t)
	w := newWorld(t)
	s := w.speaker("auto", "never", fields{"ready": fields{"type": "notify", "timeout": "1s"}})
	s.says("STATUS=not yet;ERRNO=2")
	failed := w.cli("start", "never")
	require.NotZero(t, failed.code)
	require.Contains(t, failed.stderr, "it has not said READY=1")
	require.Contains(t, byGRPC{w}.status("never").LastExit.Message, "it said ERRNO=2")
}

// TestWatchdog: a service that says in time that it is well runs on, over the end of the
// agent too; one that does not, or says that it is not, is ended, and restarted.
func TestWatchdog(t *testing.T) {
	anywhere(t)
	for _, mode := range preferred(t) {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			s := w.speaker(mode, "dog", fields{"health": fields{"type": "watchdog", "interval": "3s"}, "restart": fields{"policy": "always", "backoff": "10ms"}})
			w.mustCLI("start", "dog")
			was := s.status()
			feed := func(times int) {
				t.Helper()
				for range times {
					s.says("WATCHDOG=1")
					time.Sleep(500 * time.Millisecond)
				}
				require.Equal(t, was.ProcessId, s.status().ProcessId)
			}
			feed(10)
			require.Equal(t, gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY, byGRPC{w}.health("dog").Status)
			w.leave(syscall.SIGKILL)
			w.begin()
			feed(10)
			ends := func(n int, says string) {
				t.Helper()
				eventually(t, "it is restarted", func() bool { return s.status().RestartCount == uint32(n) && s.status().Phase == "running" })
				x := s.status().LastExit
				require.Equal(t, gladsheimv1.Verdict_VERDICT_WATCHDOG, x.Verdict)
				require.Contains(t, x.Message, says)
			}
			ends(1, "it did not say in time that it is well")
			s.says("WATCHDOG=1")
			s.says("WATCHDOG=trigger")
			ends(2, "or said that it is not")
			w.mustCLI("stop", "dog")
		})
	}
}
