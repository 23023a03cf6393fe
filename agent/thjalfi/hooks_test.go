package thjalfi

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// hooked is a service with hooks, and what became of them.
type hooked struct {
	*stage
	mu    sync.Mutex
	began []string                        // each as HOOK PROGRAM, and what it was told of the service
	takes map[string]time.Duration        // a program, how long
	ends  map[string]backends.Ran         // and how
	at    func(program string, main bool) // is called when one begins
	vars  map[string]map[string]string    // what it was told
}

func hookedStage(s *stage) *hooked {
	h := &hooked{stage: s, takes: map[string]time.Duration{}, ends: map[string]backends.Ran{}, vars: map[string]map[string]string{}}
	h.play(fake.Script{})
	return h
}

// play has the service behave like this.
func (h *hooked) play(script fake.Script) {
	script.Run = h.run
	h.stage.script(script)
}

func (h *hooked) run(ctx context.Context, p backends.Program) (backends.Ran, error) {
	name := p.Argv[0]
	h.mu.Lock()
	h.began = append(h.began, p.Environment["GLADSHEIM_HOOK"]+" "+name)
	h.vars[name] = p.Environment
	takes, ends, at := h.takes[name], h.ends[name], h.at
	h.mu.Unlock()
	if at != nil {
		at(name, h.host.IncarnationsAlive(web) == 1)
	}
	if takes == 0 {
		return ends, nil
	}
	select {
	case <-time.After(takes):
		return ends, nil
	case <-ctx.Done():
		kind := service.Cancelled
		if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			kind = service.Timeout
		}
		return backends.Ran{Output: []byte("half of it\n")}, &service.Error{Op: "run", Service: web, Kind: kind, Err: ctx.Err()}
	}
}

// comes says how long programs take from now on, and how they end.
func (h *hooked) comes(to backends.Ran, after time.Duration, programs ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, program := range programs {
		h.takes[program], h.ends[program] = after, to
	}
}

// ran wants these hooks to have begun since it was last called.
func (h *hooked) ran(want ...string) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	require.Equal(h.t, want, h.began)
	h.began = nil
}

func (h *hooked) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.began = nil
}

func (h *hooked) told(program, variable string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.vars[program][variable]
}

// allHooks is a hook of each kind, of two of the first.
func allHooks(d *service.Spec) {
	one := func(name string) [][]string { return [][]string{{"/" + name}} }
	d.Hooks = service.Hooks{
		PreStart: [][]string{{"/mkdir", "-p"}, {"/migrate"}}, PostStart: one("announce"), PreStop: one("withdraw"), PostStop: one("sweep"),
		Timeout: 30 * time.Second,
	}
}

func TestHooksAreRunInOrder(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		alive := map[string]bool{}
		h.at = func(program string, main bool) { alive[program] = main }
		h.comes(backends.Ran{}, time.Second, "/mkdir", "/migrate", "/announce", "/withdraw", "/sweep")
		c := s.start(allHooks)
		s.is(service.Launching)
		require.Equal(t, "pre_start: /mkdir -p", s.status().Hook)
		pass(2 * time.Second)
		s.pending(c)
		s.is(service.Starting)
		require.Equal(t, "post_start: /announce", s.status().Hook)
		pass(time.Second)
		s.ok(c)
		s.is(service.Running)
		require.Empty(t, s.status().Hook)
		h.ran("pre_start /mkdir", "pre_start /migrate", "post_start /announce")

		stop := s.stop()
		s.is(service.Stopping)
		s.alive(1)
		pass(time.Second)
		s.is(service.Clearing)
		s.alive(0)
		s.pending(stop)
		pass(time.Second)
		s.ok(stop)
		s.is(service.Stopped)
		h.ran("pre_stop /withdraw", "post_stop /sweep")
		require.Equal(t, map[string]bool{"/mkdir": false, "/migrate": false, "/announce": true, "/withdraw": true, "/sweep": false}, alive)
		s.saw("launching starting running stopping clearing stopped")

		require.Equal(t, "web", h.told("/mkdir", "GLADSHEIM_SERVICE"))
		require.Equal(t, "1", h.told("/mkdir", "GLADSHEIM_INCARNATION"))
		require.NotContains(t, h.vars["/mkdir"], "GLADSHEIM_MAIN_PID")
		for _, program := range []string{"/announce", "/withdraw"} {
			require.NotEmpty(t, h.told(program, "GLADSHEIM_MAIN_PID"))
			require.NotContains(t, h.vars[program], "GLADSHEIM_VERDICT")
		}
		require.Equal(t, "stopped", h.told("/sweep", "GLADSHEIM_VERDICT"))
		require.Equal(t, "SIGTERM", h.told("/sweep", "GLADSHEIM_EXIT_SIGNAL"))
		require.NotContains(t, h.vars["/sweep"], "GLADSHEIM_EXIT_CODE")
	})
}

func TestAFailedPreStartEndsTheStart(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{Exit: service.Exit{Code: 3}, Output: []byte("looking\nno such disk\n")}, 0, "/mkdir")
		c := s.start(allHooks)
		s.refused(c, service.Unlaunchable, service.ReasonHookFailed)
		require.ErrorContains(t, c.err, "pre_start: /mkdir -p: exit code 3: no such disk")
		require.Equal(t, []string{"looking", "no such disk"}, lastLines(t, c.err))
		h.ran("pre_start /mkdir", "post_stop /sweep")
		require.Equal(t, "hook_failed", h.told("/sweep", "GLADSHEIM_VERDICT"))
		require.Zero(t, s.host.Runs(web), "its program ran")
		s.is(service.Backoff)
		last := s.lastExit()
		require.Equal(t, service.VerdictHookFailed, last.Verdict)
		require.Equal(t, service.NeverRan, last.Exit)
		require.Equal(t, []string{"looking", "no such disk"}, last.LastLines)

		h.comes(backends.Ran{}, 0, "/mkdir")
		pass(time.Minute)
		s.is(service.Running)
	})
}

func TestAFailedPostStartEndsTheStart(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{Exit: service.Exit{Code: 1}, Output: []byte("nobody listens\n")}, 0, "/announce")
		c := s.start(allHooks, never)
		s.refused(c, service.Unlaunchable, service.ReasonHookFailed)
		require.ErrorContains(t, c.err, "post_start: /announce: exit code 1: nobody listens")
		h.ran("pre_start /mkdir", "pre_start /migrate", "post_start /announce", "post_stop /sweep")
		require.Equal(t, "hook_failed", h.told("/sweep", "GLADSHEIM_VERDICT"))
		last := s.lastExit()
		require.Equal(t, service.VerdictHookFailed, last.Verdict)
		require.Contains(t, last.Message, "post_start: /announce: exit code 1: nobody listens")
		s.saw("launching starting stopping clearing crashed")
	})
}

func TestAFailedLaunchIsFollowedByPostStop(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.play(fake.Script{OpenError: &service.Error{Op: "start", Service: web, Kind: service.Unlaunchable, Permanent: true, Err: errors.New("no such file")}})
		s.refused(s.start(allHooks), service.Unlaunchable, service.Unlaunchable.DefaultReason())
		h.ran("pre_start /mkdir", "pre_start /migrate", "post_stop /sweep")
		require.Equal(t, "launch_failed", h.told("/sweep", "GLADSHEIM_VERDICT"))
		s.is(service.Crashed)
	})
}

func TestAStopDuringPreStart(t *testing.T) {
	for _, end := range []string{"stop", "kill"} {
		t.Run(end, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				h := hookedStage(s)
				h.comes(backends.Ran{}, time.Hour, "/migrate")
				h.comes(backends.Ran{}, time.Second, "/sweep")
				c := s.start(allHooks)
				pass(time.Second)
				stop := s.stop
				if end == "kill" {
					stop = s.kill
				}
				stopped := stop()
				s.pending(stopped)
				pass(time.Second)
				s.ok(stopped)
				s.refused(c, service.Conflict, service.Conflict.DefaultReason())
				h.ran("pre_start /mkdir", "pre_start /migrate", "post_stop /sweep")
				require.Equal(t, "stopped", h.told("/sweep", "GLADSHEIM_VERDICT"))
				require.Zero(t, s.host.Runs(web))
				require.Equal(t, service.VerdictStopped, s.lastExit().Verdict)
				s.is(service.Stopped)
			})
		})
	}
}

func TestHooksHaveATimeOfTheirOwn(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{}, time.Hour, "/migrate")
		h.comes(backends.Ran{}, time.Hour, "/announce")
		patient := func(d *service.Spec) { d.Hooks.Timeout = 2 * time.Hour }
		c := s.start(allHooks, patient)
		pass(2 * time.Hour)
		s.ok(c)
		s.ok(s.stop())

		h.comes(backends.Ran{}, 31*time.Second, "/migrate")
		c = s.start(allHooks, never)
		pass(30 * time.Second)
		s.refused(c, service.Timeout, service.ReasonHookFailed)
		require.ErrorContains(t, c.err, "pre_start: /migrate: it did not end within 30s (hooks.timeout): half of it")
	})
}

func TestThePreStopIsWithinTheGrace(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{}, time.Hour, "/withdraw")
		s.running(allHooks)
		stop := s.stop()
		pass(7500*time.Millisecond - 1)
		s.pending(stop)
		s.is(service.Stopping)
		pass(1)
		s.ok(stop)
		last := s.lastExit()
		require.Equal(t, syscall.SIGTERM, last.Exit.Signal, "it is told to end, and has a quarter of the time for that")
		require.False(t, last.ForceKilled)
		require.Contains(t, s.disk.detailsOf(service.NoticeState), "pre_stop: /withdraw: it was ended, since pre_stop has used up three quarters of stop.timeout: half of it")
		h.ran("pre_start /mkdir", "pre_start /migrate", "post_start /announce", "pre_stop /withdraw", "post_stop /sweep")
	})
}

func TestAKillEndsHooks(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{}, time.Hour, "/withdraw")
		h.comes(backends.Ran{}, time.Hour, "/sweep")
		s.running(allHooks, func(d *service.Spec) { d.Hooks.Timeout = 2 * time.Hour })
		stop := s.stop()
		kill := s.kill()
		s.alive(0)
		s.is(service.Clearing)
		s.pending(stop)
		s.pending(kill)
		s.ok(s.kill()) // of post_stop
		s.ok(stop)
		s.ok(kill)
		s.is(service.Stopped)
		require.Contains(t, s.lastExit().Message, "post_stop: /sweep: it was given up")
	})
}

func TestAnEndIsNotHeldUpByHooksThatFail(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{Exit: service.Exit{Code: 1}}, 0, "/withdraw")
		h.comes(backends.Ran{Exit: service.Exit{Signal: syscall.SIGSEGV}}, 0, "/sweep")
		two := func(d *service.Spec) {
			d.Hooks.PreStop, d.Hooks.PostStop = append(d.Hooks.PreStop, []string{"/log-off"}), append(d.Hooks.PostStop, []string{"/polish"})
		}
		s.running(allHooks, two)
		h.ran("pre_start /mkdir", "pre_start /migrate", "post_start /announce")
		s.ok(s.stop())
		h.ran("pre_stop /withdraw", "pre_stop /log-off", "post_stop /sweep", "post_stop /polish")
		s.is(service.Stopped)
		require.Equal(t, service.VerdictStopped, s.lastExit().Verdict)
		require.Contains(t, s.lastExit().Message, "post_stop: /sweep: signal 11 (SIGSEGV)")
	})
}

func TestACrashIsFollowedByPostStopAlone(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{}, time.Minute, "/sweep")
		s.running(allHooks)
		h.ran("pre_start /mkdir", "pre_start /migrate", "post_start /announce")
		s.host.Crash(web, service.Exit{Code: 7})
		synctest.Wait()
		s.is(service.Clearing)
		pass(30 * time.Second)
		h.ran("post_stop /sweep")
		require.Equal(t, "crash", h.told("/sweep", "GLADSHEIM_VERDICT"))
		require.Equal(t, "7", h.told("/sweep", "GLADSHEIM_EXIT_CODE"))
		s.is(service.Backoff)
		pass(2 * time.Second)
		s.is(service.Running)
		h.ran("pre_start /mkdir", "pre_start /migrate", "post_start /announce")
		require.Equal(t, "2", h.told("/mkdir", "GLADSHEIM_INCARNATION"))
	})
}

func TestAnEndDuringPostStart(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{}, time.Hour, "/announce")
		c := s.start(allHooks, never)
		s.is(service.Starting)
		s.host.Crash(web, service.Exit{Code: 7})
		synctest.Wait()
		s.refused(c, service.Unlaunchable, service.ReasonExitedEarly)
		require.Equal(t, service.VerdictCrash, s.lastExit().Verdict)
		h.ran("pre_start /mkdir", "pre_start /migrate", "post_start /announce", "post_stop /sweep")
	})
}

func TestPostStartIsRunAgainAfterAThaw(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{}, time.Minute, "/announce")
		c := s.start(allHooks, func(d *service.Spec) { d.Hooks.Timeout = time.Hour })
		pass(30 * time.Second)
		s.host.Freeze(web, "")
		pass(time.Hour)
		s.pending(c)
		s.is(service.Starting)
		s.host.Thaw(web)
		synctest.Wait()
		h.ran("pre_start /mkdir", "pre_start /migrate", "post_start /announce", "post_start /announce")
		pass(time.Minute)
		s.ok(c)
	})
}

func TestTheNextAgentRunsHooksAgain(t *testing.T) {
	for _, during := range []string{"/migrate", "/announce", "/withdraw"} {
		t.Run(strings.Trim(during, "/"), func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				h := hookedStage(s)
				h.comes(backends.Ran{}, 10*time.Second, during)
				start := s.start(allHooks, func(d *service.Spec) { d.Stop.Timeout = time.Minute })
				if during == "/withdraw" {
					s.ok(start)
					s.stop()
				}
				pass(time.Second)
				h.forget()
				s.succeed(forEver)
				pass(20 * time.Second)
				want := map[string][]string{
					"/migrate":  {"pre_start /mkdir", "pre_start /migrate", "post_start /announce"},
					"/announce": {"post_start /announce"},
					"/withdraw": {"pre_stop /withdraw", "post_stop /sweep"},
				}[during]
				h.ran(want...)
				state := service.Running
				if during == "/withdraw" {
					state = service.Stopped
				}
				s.is(state)
			})
		})
	}
}

func TestHooksAreTold(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{}, 1500*time.Millisecond, "/migrate")
		c := s.start(allHooks)
		pass(2 * time.Second)
		s.ok(c)
		var told []string
		for _, detail := range s.disk.detailsOf(service.NoticeState) {
			if strings.HasPrefix(detail, "p") {
				told = append(told, detail)
			}
		}
		require.Equal(t, []string{
			"pre_start: /mkdir -p", "pre_start: /mkdir -p: ended well after 0s",
			"pre_start: /migrate", "pre_start: /migrate: ended well after 1.5s",
			"post_start: /announce", "post_start: /announce: ended well after 0s",
		}, told)
	})
}

// The post_stop hooks that follow a launch which came to nothing are ended by a kill alone,
// and by no time that the start had.
func TestPostStopOfAFailedStart(t *testing.T) {
	fails := func(s *stage) *hooked {
		h := hookedStage(s)
		h.comes(backends.Ran{Exit: service.Exit{Code: 3}}, 0, "/mkdir")
		h.comes(backends.Ran{Exit: service.Exit{Code: 4}}, 20*time.Second, "/sweep")
		s.start(allHooks, never)
		pass(time.Second)
		h.ran("pre_start /mkdir", "post_stop /sweep")
		return h
	}
	for name, end := range map[string]func(*stage) *call{
		"stop":    (*stage).stop,
		"restart": func(s *stage) *call { return s.restart(allHooks, never) },
		"hold": func(s *stage) *call {
			return begin(func() error { return s.Hold(context.Background(), web, nil, "battery") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				h := fails(s)
				c := end(s)
				pass(18 * time.Second)
				s.pending(c)
				h.comes(backends.Ran{}, 0, "/mkdir", "/sweep")
				pass(time.Second)
				require.True(t, c.over())
				require.Contains(t, s.disk.exitsOf(web)[0].Message, "post_stop: /sweep: exit code 4")
			})
		})
	}
	t.Run("kill", func(t *testing.T) {
		play(t, func(t *testing.T, s *stage) {
			fails(s)
			s.ok(s.kill())
			require.Contains(t, s.lastExit().Message, "post_stop: /sweep: it was given up")
		})
	})
	t.Run("ready.timeout", func(t *testing.T) {
		play(t, func(t *testing.T, s *stage) {
			h := hookedStage(s)
			h.play(fake.Script{OpenError: &service.Error{Op: "start", Service: web, Kind: service.Unlaunchable, Permanent: true, Err: errors.New("no such file")}})
			h.comes(backends.Ran{}, time.Minute, "/sweep")
			c := s.start(allHooks, func(d *service.Spec) { d.Hooks.PreStart, d.Hooks.Timeout = nil, time.Hour })
			pass(time.Minute)
			s.refused(c, service.Unlaunchable, service.Unlaunchable.DefaultReason())
			require.Equal(t, service.VerdictLaunchFailed, s.lastExit().Verdict)
			s.is(service.Crashed)
			h.ran("post_stop /sweep")
		})
	})
}

// What it says at the very moment at which a part of its time is over is not overruled by
// that.
func TestReadyAtTheTimer(t *testing.T) {
	for _, after := range []time.Duration{2 * time.Second, 9 * time.Second} { // amid its time, and at its end
		play(t, func(t *testing.T, s *stage) {
			h := hookedStage(s)
			h.comes(backends.Ran{}, 15*time.Second, "/announce")
			c := s.start(allHooks, notifies, never, func(d *service.Spec) { d.Ready.Timeout = 10 * time.Second })
			pass(after + 1)
			a, err := s.find("test", web)
			require.NoError(t, err)
			ready, why := service.ParseNotification("READY=1")
			require.Empty(t, why)
			a.inbox <- func() { // both have come, and the timer is seen first
				s.hall.tell(service.Heard{Said: ready})
				time.Sleep(time.Second)
				<-a.timer.C
				a.timeout()
			}
			pass(20 * time.Second)
			s.ok(c)
			h.ran("pre_start /mkdir", "pre_start /migrate", "post_start /announce")
		})
	}
}

func TestThePreStopIsWithinTheGraceOfWhatIsNotKilled(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{}, time.Hour, "/withdraw")
		s.running(allHooks, noForce, func(d *service.Spec) { d.Hooks.Timeout = 2 * time.Hour })
		stop := s.stop()
		pass(7500 * time.Millisecond)
		s.ok(stop)
		require.Equal(t, syscall.SIGTERM, s.lastExit().Exit.Signal, "it was told to end")
	})
}

func TestAPreStopMayEndTheService(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{}, time.Second, "/withdraw")
		s.running(allHooks, func(d *service.Spec) { d.Hooks.PreStop = append(d.Hooks.PreStop, []string{"/second"}) })
		h.forget()
		stop := s.stop()
		s.host.Crash(web, service.Exit{})
		synctest.Wait()
		s.ok(stop)
		h.ran("pre_stop /withdraw", "post_stop /sweep")
		require.Contains(t, s.disk.detailsOf(service.NoticeState), "pre_stop: /withdraw: the service ended meanwhile")
		require.Equal(t, service.VerdictStopped, s.lastExit().Verdict)
	})
}

// A run of hooks that was given up may take a while to end; the next waits for that, and
// what the old one says last is not taken for the new one's.
func TestHooksOfAKindAreNotRunTwiceAtOnce(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		var now, most atomic.Int32
		s.script(fake.Script{Run: func(ctx context.Context, _ backends.Program) (backends.Ran, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			select {
			case <-time.After(10 * time.Second):
				return backends.Ran{}, nil
			case <-ctx.Done():
				time.Sleep(time.Second)
				return backends.Ran{}, &service.Error{Op: "run", Service: web, Kind: service.Cancelled, Err: ctx.Err()}
			}
		}})
		c := s.start(func(d *service.Spec) {
			d.Hooks = service.Hooks{PostStart: [][]string{{"/announce"}}, Timeout: time.Minute}
		})
		s.host.Freeze(web, "")
		synctest.Wait()
		s.host.Thaw(web)
		pass(5 * time.Second)
		require.EqualValues(t, 1, most.Load())
		require.Equal(t, "post_start: /announce", s.status().Hook)
		pass(10 * time.Second)
		s.ok(c)
	})
}

func TestARemovalThatIsTriedAgainForgetsNoHook(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{Exit: service.Exit{Code: 5}}, 0, "/sweep")
		s.running(allHooks)
		h.forget()
		fails := true
		s.fault = func(operation string) error {
			if operation == "release" && fails {
				fails = false
				return errors.New("busy")
			}
			return nil
		}
		s.stop()
		pass(10 * time.Second)
		s.is(service.Stopped)
		h.ran("pre_stop /withdraw", "post_stop /sweep")
		require.Contains(t, s.lastExit().Message, "post_stop: /sweep: exit code 5")
	})
}

// An agent that leaves amid post_stop leaves the place to the next.
func TestLeavingAmidPostStop(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.comes(backends.Ran{}, 10*time.Second, "/sweep")
		s.running(allHooks)
		s.stop()
		pass(time.Second)
		s.is(service.Clearing)
		s.fault = func(operation string) error {
			if operation == "release" {
				t.Error("its place is removed")
			}
			return nil
		}
		s.Close()
		r, _ := s.disk.get(web)
		require.Equal(t, service.Clearing, r.Machine.State)
		require.NotNil(t, r.Remains)
		s.fault = nil
	})
}
