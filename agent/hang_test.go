package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
	"github.com/gladsheim/gladsheim/sockets"
)

const allStopped = "all threads are stopped (SIGSTOP)"

// hangs are the reasons of all that was told of hangs of web.
func (h *house) hangs() []string { return h.reasons(web, service.NoticeHung, service.NoticeHungOver) }

// TestAHangIsTold: once, also by the next agent, until it is over; nothing else is done.
func TestAHangIsTold(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		pass(time.Minute)
		h.host.Signal(web, syscall.SIGSTOP)
		pass(5 * time.Second)
		require.Equal(t, []string{"stopped"}, h.hangs())
		s := h.status(web)
		require.Equal(t, allStopped, s.Hung.Why)
		require.WithinDuration(t, time.Now(), s.Hung.Since, 6*time.Second)
		require.Equal(t, service.Healthy, s.Verdict().Status, "its definition does not have it count")
		require.Equal(t, "it hangs: "+allStopped+"; the check: the main process runs", s.Verdict().Message)
		require.Contains(t, h.log.String(), allStopped)
		pass(time.Hour)
		require.Len(t, h.hangs(), 1)
		h.is(web, service.Running)

		h.reopen()
		require.Zero(t, h.status(web).Hung)
		pass(5 * time.Second)
		require.Len(t, h.hangs(), 2, "this agent has seen it, too")
		h.host.Signal(web, syscall.SIGCONT)
		pass(5 * time.Second)
		require.Equal(t, []string{"stopped", "stopped", ""}, h.hangs())
		require.Zero(t, h.status(web).Hung)
		require.Equal(t, "the main process runs", h.status(web).Verdict().Message)

		h.host.Signal(web, syscall.SIGSTOP)
		pass(5 * time.Second)
		h.stop(web)
		require.Equal(t, []string{"stopped", "stopped", "", "stopped", ""}, h.hangs(), "its end ends it")
		require.Zero(t, h.status(web).Hung)
	})
}

// TestAHangThatCounts goes the way of failing checks.
func TestAHangThatCounts(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"hang": "unhealthy"`)
		h.start(web)
		h.host.Signal(web, syscall.SIGSTOP)
		pass(3 * time.Second)
		h.is(web, service.Backoff)
		x := h.status(web).LastExit
		require.Equal(t, service.VerdictUnhealthy, x.Verdict)
		require.Equal(t, syscall.SIGTERM, x.Exit.Signal, "it could heed that")
		require.Contains(t, x.Message, "ended because it hung: "+allStopped)
		pass(5 * time.Second)
		h.is(web, service.Running)
		require.Equal(t, 2, h.host.Launches(web))
		require.Equal(t, []string{"stopped", ""}, h.hangs())
		require.Equal(t, 1, h.status(web).Machine.Failures)
	})
}

// TestAStopThatSomebodyWants: who sends SIGSTOP by us is taken at his word, also by the
// next agent, until SIGCONT.
func TestAStopThatSomebodyWants(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"hang": "unhealthy"`)
		h.start(web)
		signal := func(sig syscall.Signal) {
			_, err := h.Signal(t.Context(), web, sig, "dora")
			require.NoError(t, err)
		}
		signal(syscall.SIGSTOP)
		pass(time.Minute)
		h.is(web, service.Running)
		require.Equal(t, []string{"stopped"}, h.hangs())
		require.Equal(t, service.Ill, h.status(web).Verdict().Status, "it serves nobody")
		require.Contains(t, h.log.String(), "dora has stopped it")
		h.reopen()
		pass(time.Minute)
		h.is(web, service.Running)
		require.Len(t, h.hangs(), 2)

		signal(syscall.SIGCONT)
		pass(time.Minute)
		require.Len(t, h.hangs(), 3)
		h.host.Signal(web, syscall.SIGSTOP)
		pass(time.Minute)
		require.Equal(t, 2, h.host.Launches(web), "that was somebody else")
		h.is(web, service.Running)
	})
}

func TestAHangOfTheFrozenIsNone(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"hang": "unhealthy"`)
		h.start(web)
		h.host.Freeze(web, "/gladsheim.slice")
		pass(time.Second)
		h.host.Hold(web, service.Threads{Stopped: true, Held: true})
		pass(time.Hour)
		require.Empty(t, h.hangs())
		h.is(web, service.Running)
	})
}

// TestWhoseQueueItIs: by the cgroup of who made the socket, by that of who has it open, or
// by the family of that; else nobody's.
func TestWhoseQueueItIs(t *testing.T) {
	for name, arrange := range map[string]func(h *house, s *service.Status, q *sockets.Queue){
		"cgroup ID": func(h *house, s *service.Status, q *sockets.Queue) {
			h.write("cgroup"+s.Ref.Cgroup+"/cgroup.procs", "")
			q.Cgroup = cgroupID(h.path("cgroup" + s.Ref.Cgroup))
			require.NotZero(h.t, q.Cgroup)
		},
		"cgroup": func(h *house, s *service.Status, q *sockets.Queue) {
			h.process(4242, 1, s.Ref.Cgroup+"/worker", q.Inode)
		},
		"main process": func(h *house, s *service.Status, q *sockets.Queue) { h.process(s.PID(), 1, "/", q.Inode) },
		"descendant": func(h *house, s *service.Status, q *sockets.Queue) {
			h.process(4242, s.PID(), "/", 0)
			h.process(4243, 4242, "/", q.Inode)
		},
		"nobody": func(h *house, _ *service.Status, q *sockets.Queue) { h.process(4243, 1, "/", q.Inode) },
	} {
		t.Run(name, func(t *testing.T) {
			opened(t, func(t *testing.T, h *house) {
				h.register(web)
				h.host.Script(web, fake.Script{})
				h.start(web)
				q := sockets.Queue{Address: "127.0.0.1:80", Inode: 77, Waiting: 2}
				arrange(h, h.status(web), &q)
				owner, known := tables{h.Agent}.Owner(q)
				require.Equal(t, name != "nobody", known)
				if known {
					require.Equal(t, web, owner)
				}
			})
		})
	}
}

// TestQueuesThatCanNotBeSeen: the doctor tells, for as long as it is so.
func TestQueuesThatCanNotBeSeen(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		require.Empty(t, h.doctor())
		h.tellBlind(errors.New("sock_diag: no such file or directory"))
		require.Equal(t, []string{"that a service accepts no connections is not seen: sock_diag: no such file or directory"}, h.doctor())
		h.tellBlind(nil)
		require.Empty(t, h.doctor())
	})
}

// process puts one into /proc that has a socket open, 0 for none.
func (h *house) process(pid, parent int, cgroup string, socket uint64) {
	dir := "proc/" + strconv.Itoa(pid)
	h.write(dir+"/stat", strconv.Itoa(pid)+" (x) S "+strconv.Itoa(parent)+" 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0 0\n")
	h.write(dir+"/cgroup", "0::"+cgroup+"\n")
	require.NoError(h.t, os.MkdirAll(h.path(dir+"/fd"), 0o755))
	if socket != 0 {
		require.NoError(h.t, os.Symlink("socket:["+strconv.FormatUint(socket, 10)+"]", filepath.Join(h.path(dir), "fd", "3")))
	}
}

// TestWhatSomebodyHasStoppedIsNotIll: its checks fail, over the end of the agent too, until
// it gets CONT; from then on they count as ever.
func TestWhatSomebodyHasStoppedIsNotIll(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		var fails atomic.Bool
		h.host.Script(web, fake.Script{Run: func(context.Context, backends.Program) (backends.Ran, error) {
			if fails.Load() {
				return backends.Ran{Exit: service.Exit{Code: 1}}, nil
			}
			return backends.Ran{}, nil
		}})
		h.register(web, `"health": {"type": "exec", "exec": ["/bin/ask"], "interval": "5s", "threshold": 3}`)
		signal := func(sig syscall.Signal) {
			_, err := h.Signal(t.Context(), web, sig, "dora")
			require.NoError(t, err)
		}
		h.start(web)
		pass(time.Second) // the first check is well
		fails.Store(true)
		pass(11 * time.Second)
		require.Equal(t, 2, h.status(web).Health.Failures)
		signal(syscall.SIGSTOP)
		for range 2 {
			pass(time.Hour)
			h.is(web, service.Running)
			require.EqualValues(t, 1, h.status(web).Machine.Incarnation)
			health, err := h.CheckHealth(t.Context(), web)
			require.NoError(t, err)
			require.Equal(t, service.Checking, health.Status)
			require.Equal(t, "it is not judged: dora has stopped it with a signal, until it gets CONT", health.Message)
			h.reopen()
		}
		signal(syscall.SIGCONT)
		pass(time.Second)
		require.Equal(t, 1, h.status(web).Health.Failures, "checks begin anew, at once")
		pass(11 * time.Second)
		require.EqualValues(t, 1, h.status(web).LastExit.Incarnation)
		require.Equal(t, service.VerdictUnhealthy, h.status(web).LastExit.Verdict)
	})
}
