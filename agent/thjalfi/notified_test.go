package thjalfi

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// hall is where services say how they are.
type hall struct {
	mu        sync.Mutex
	tell      func(service.Heard)
	provided  int
	forgotten int
	owns      func(pid int) (bool, error)
	unread    bool
	words     []service.Heard // that wait to be heard
	fault     error
}

func (h *hall) Provide(*service.Spec) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.provided++
	return h.fault
}

func (h *hall) Attend(_ service.Name, owns func(pid int) (bool, error), tell func(service.Heard)) (leave func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fault != nil {
		return nil, h.fault
	}
	h.tell, h.owns = tell, owns
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.tell = nil
	}, nil
}

func (h *hall) Hear(service.Name) {
	h.mu.Lock()
	tell, words := h.tell, h.words
	h.words = nil
	h.mu.Unlock()
	for _, w := range words {
		tell(w)
	}
}

func (h *hall) Unread(service.Name) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unread
}

func (h *hall) Forget(service.Name) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forgotten++
}

// says has web say something, which somebody must hear.
func (s *stage) says(message string) {
	s.t.Helper()
	said, err := service.ParseNotification(message)
	require.NoError(s.t, err)
	s.hears(service.Heard{Said: said})
}

func (s *stage) hears(h service.Heard) {
	s.t.Helper()
	s.hall.mu.Lock()
	tell := s.hall.tell
	s.hall.mu.Unlock()
	require.NotNil(s.t, tell, "nobody hears")
	tell(h)
	synctest.Wait()
}

// mutters has something be said that is heard only when somebody wants to know.
func (s *stage) mutters(message string) {
	s.t.Helper()
	said, err := service.ParseNotification(message)
	require.NoError(s.t, err)
	s.hall.mu.Lock()
	defer s.hall.mu.Unlock()
	s.hall.words = append(s.hall.words, service.Heard{Said: said})
}

func (s *stage) deaf() bool {
	s.hall.mu.Lock()
	defer s.hall.mu.Unlock()
	return s.hall.tell == nil
}

// complaints are what was told of how it says things.
func (s *stage) complaints() []string {
	return slices.DeleteFunc(s.told(service.NoticeState), func(detail string) bool { return detail == "" })
}

func notifies(d *service.Spec) { d.Ready.Type = service.CheckNotify }

func TestReadyBySayingSo(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		c := s.start(notifies)
		pass(10 * time.Second)
		s.pending(c)
		s.says("STATUS=loading\nREADY=0")
		s.is(service.Starting)
		require.Equal(t, "loading", s.status().Notified.Status)
		owns, err := s.hall.owns(s.status().Ref.PID)
		require.NoError(t, err)
		require.True(t, owns)
		s.says("READY=1")
		s.ok(c)
		s.is(service.Running)
		require.Equal(t, time.Now(), s.status().Notified.At)
		s.says("RELOADING=1\nSTATUS=reading")
		require.True(t, s.status().Notified.Reloading)
		s.says("READY=1\nSTATUS=up")
		require.False(t, s.status().Notified.Reloading)
		s.says("STOPPING=1")
		require.True(t, s.status().Notified.Stopping)
		s.ok(s.stop())
		require.True(t, s.deaf())
		require.Equal(t, 1, s.hall.forgotten)
		require.Zero(t, s.status().Notified)
		s.saw("launching starting running stopping clearing stopped")
	})
}

// One that is not asked to say anything is not heard.
func TestNobodyHearsWhoIsNotAsked(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ok(s.start())
		require.True(t, s.deaf())
		s.ok(s.stop())
		require.Zero(t, s.hall.forgotten)
	})
}

func TestWhoNeverSaysSoIsNotReady(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		c := s.start(notifies, never)
		pass(10 * time.Second)
		s.says("ERRNO=111\nSTATUS=no database")
		pass(20 * time.Second)
		s.refused(c, service.Timeout, service.ReasonStartupTimeout)
		require.ErrorContains(t, c.err, "it was not ready within 30s (ready: notify): it has not said READY=1")
		require.Contains(t, s.status().LastExit.Message, "it said ERRNO=111 (connection refused)")
		require.True(t, s.deaf())
	})
}

func TestExtendTheStart(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		c := s.start(notifies, never)
		s.says("EXTEND_TIMEOUT_USEC=5000000")
		pass(29 * time.Second)
		s.pending(c)
		s.says("EXTEND_TIMEOUT_USEC=5000000") // until 34 s
		pass(4 * time.Second)
		s.pending(c)
		s.says("EXTEND_TIMEOUT_USEC=60000000") // until 93 s
		pass(30 * time.Second)
		s.says("EXTEND_TIMEOUT_USEC=1000000") // which cuts nothing
		pass(29 * time.Second)
		s.pending(c)
		pass(time.Second)
		s.refused(c, service.Timeout, service.ReasonStartupTimeout)
	})
}

func TestExtendTheEnd(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Stubborn: true})
		c := s.start(notifies)
		s.says("READY=1")
		s.ok(c)
		s.says("EXTEND_TIMEOUT_USEC=3600000000") // there is nothing to extend
		c = s.stop()
		pass(9 * time.Second)
		s.says("STOPPING=1\nEXTEND_TIMEOUT_USEC=20000000")
		pass(20*time.Second - 1)
		s.pending(c)
		pass(1)
		s.ok(c)
		require.True(t, s.status().LastExit.ForceKilled)
	})
}

// That it is ready is not lost when it is frozen just then.
func TestReadyAndFrozen(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		c := s.start(notifies)
		pass(time.Second)
		s.host.Freeze(web, "")
		synctest.Wait()
		s.says("READY=1") // it said so before
		pass(time.Hour)
		s.pending(c)
		s.host.Thaw(web)
		synctest.Wait()
		s.ok(c)
	})
}

// What it says while no agent is there is lost, which is no failure of its own.
func TestSayingOverTheEndOfTheAgent(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.start(notifies)
		pass(time.Second)
		s.succeed(forEver)
		synctest.Wait()
		require.Equal(t, 1, s.hall.provided)
		s.is(service.Starting)
		s.says("READY=1")
		s.is(service.Running)
		s.succeed(forEver)
		synctest.Wait()
		s.is(service.Running)
		s.says("STATUS=still here")
		require.Equal(t, "still here", s.status().Notified.Status)
	})
	play(t, func(t *testing.T, s *stage) {
		s.start(notifies)
		pass(time.Second)
		s.succeed(forEver)
		pass(15*time.Second - 1)
		s.is(service.Starting)
		pass(1)
		s.is(service.Running)
	})
}

func TestWhatIsWrongWithASayingIsToldOnce(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		c := s.start(notifies)
		synctest.Wait()
		s.hears(service.Heard{Dropped: 1, Why: "process 7 of uid 33, which is none of the service's, sent a message"})
		s.hears(service.Heard{Dropped: 2, Why: "another"})
		require.EqualValues(t, 2, s.status().Notified.Dropped)
		require.Equal(t, []string{"process 7 of uid 33, which is none of the service's, sent a message"}, s.complaints())
		s.says("READY=1\nMAINPID=4711")
		s.ok(c)
		require.Len(t, s.complaints(), 2)
		require.Contains(t, s.complaints()[1], "it calls process 4711 its main one, and that stays process ")
		require.Contains(t, s.complaints()[1], "process 4711 is none of the service's own")
		s.says("MAINPID=4711")
		require.Len(t, s.complaints(), 2, "that was told")
		require.NotEqual(t, 4711, s.status().Ref.PID)
	})
}

// child is the one that the present incarnation has.
func (s *stage) child() int { return s.status().Ref.PID + 1 }

func TestAnotherMainProcess(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Children: 1, End: &fake.End{After: time.Minute, Exit: service.Exit{Code: 3}}})
		c := s.start(notifies, never)
		synctest.Wait()
		was, child := s.status().Ref, s.child()
		s.says(fmt.Sprintf("MAINPID=%d", was.PID))
		require.Empty(t, s.complaints(), "it is that")
		s.says(fmt.Sprintf("READY=1\nMAINPID=%d", child))
		s.ok(c)
		is := s.status().Ref
		require.Equal(t, child, is.PID)
		require.Equal(t, is, s.left().Ref, "it is on record")
		was.PID, was.StartTicks = is.PID, is.StartTicks
		require.Equal(t, was, is)
		require.Contains(t, s.complaints()[0], "its main one (MAINPID)")
		pass(time.Minute)
		synctest.Wait()
		s.is(service.Crashed)
		require.Equal(t, 3, s.lastExit().Exit.Code, "the end of who succeeded is that of the incarnation")
	})
}

// Who is ready and names another main process at once is ready by that one.
func TestHooksOfAnotherMainProcess(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		h := hookedStage(s)
		h.play(fake.Script{Children: 1})
		c := s.start(notifies, never, func(d *service.Spec) {
			d.Hooks = service.Hooks{PostStart: [][]string{{"/announce"}}, PreStop: [][]string{{"/withdraw"}}, Timeout: 30 * time.Second}
		})
		synctest.Wait()
		child := s.child()
		s.says(fmt.Sprintf("READY=1\nMAINPID=%d", child))
		s.ok(c)
		require.Equal(t, fmt.Sprint(child), h.told("/announce", "GLADSHEIM_MAIN_PID"))
		s.ok(s.stop())
		require.Equal(t, fmt.Sprint(child), h.told("/withdraw", "GLADSHEIM_MAIN_PID"))
		h.ran("post_start /announce", "pre_stop /withdraw")
	})
}

// Who becomes the main process of what is to end is told to end.
func TestAnotherMainProcessIsToEnd(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Children: 1, Term: &fake.End{After: 5 * time.Second}})
		c := s.start(notifies, never)
		synctest.Wait()
		s.says("READY=1")
		s.ok(c)
		var signals atomic.Int32
		s.fault = func(operation string) error {
			if operation == "signal" {
				signals.Add(1)
			}
			return nil
		}
		stop := s.stop()
		synctest.Wait()
		once := signals.Load()
		require.NotZero(t, once)
		s.says(fmt.Sprintf("MAINPID=%d", s.child()))
		require.Equal(t, 2*once, signals.Load())
		pass(5 * time.Second)
		s.ok(stop)
	})
}

// The word may wait to be heard when the end of who said it is seen.
func TestAMainProcessThatIsFollowed(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Children: 1, End: &fake.End{After: time.Minute}})
		c := s.start(notifies, never)
		synctest.Wait()
		s.says("READY=1")
		s.ok(c)
		child := s.child()
		s.mutters(fmt.Sprintf("MAINPID=%d", child))
		pass(time.Minute)
		synctest.Wait()
		s.is(service.Running)
		require.Equal(t, child, s.status().Ref.PID)
		s.ok(s.stop())
		require.Equal(t, 1, len(s.told(service.NoticeExit)))
	})
}

// What is said when the end was seen comes too late.
func TestAMainProcessThatIsNamedTooLate(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Children: 1, End: &fake.End{After: time.Minute, Exit: service.Exit{Code: 4}}, Unkillable: true})
		c := s.start(notifies, never)
		synctest.Wait()
		s.says("READY=1")
		s.ok(c)
		child := s.child()
		pass(time.Minute)
		synctest.Wait()
		s.is(service.Clearing)
		s.says(fmt.Sprintf("MAINPID=%d", child))
		require.NotEqual(t, child, s.status().Ref.PID)
		s.is(service.Clearing)
		s.host.Free(web)
		synctest.Wait()
		s.is(service.Crashed)
		require.Equal(t, 4, s.lastExit().Exit.Code)
	})
}

// Who names a process that is none of its own has ended all the same.
func TestAMainProcessThatIsNotFollowed(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Children: 1, End: &fake.End{After: time.Minute, Exit: service.Exit{Code: 4}}})
		c := s.start(notifies, never)
		synctest.Wait()
		s.says("READY=1")
		s.ok(c)
		s.mutters("MAINPID=4711")
		pass(time.Minute)
		synctest.Wait()
		s.is(service.Crashed)
		require.Equal(t, 4, s.lastExit().Exit.Code)
	})
}

func TestWhoCanNotBeHeard(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.hall.fault = errors.New("no descriptor is free")
		c := s.start(notifies, never)
		synctest.Wait()
		require.Equal(t, []string{"what it says of itself is not heard: no descriptor is free"}, s.complaints())
		pass(30 * time.Second)
		s.refused(c, service.Timeout, service.ReasonStartupTimeout)
	})
}

// Nor is it ended for not having said that it is well.
func TestAWatchdogThatCanNotBeHeard(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.hall.fault = errors.New("no descriptor is free")
		s.ok(s.start(withWatchdog, never))
		synctest.Wait()
		require.Zero(t, s.prober.count)
		require.Equal(t, service.HealthUnknown, s.status().Health.Status)
		require.Contains(t, s.status().Health.Message, "not heard")
	})
}

func withWatchdog(d *service.Spec) { d.Health.Type = service.CheckWatchdog }

// Who says more than is read is not taken for silent, since what it did say may be unread.
func TestAWatchdogInAFlood(t *testing.T) {
	for health, excused := range map[service.CheckType]bool{service.CheckWatchdog: true, service.CheckTCP: false} {
		play(t, func(t *testing.T, s *stage) {
			start := s.start(func(d *service.Spec) { d.Health.Type, d.Ready.Type = health, service.CheckNotify }, never)
			s.says("READY=1")
			s.ok(start)
			require.NoError(t, s.prober.excuse())
			s.hall.mu.Lock()
			s.hall.unread = true
			s.hall.mu.Unlock()
			if excused {
				require.EqualError(t, s.prober.excuse(), "it says more than is read of it, and WATCHDOG=1 may be among the rest")
			} else {
				require.NoError(t, s.prober.excuse())
			}
		})
	}
}

// A watchdog that was not fed ends the service, and the record says so.
func TestWatchdog(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ok(s.start(withWatchdog, never))
		s.says("WATCHDOG=1")
		s.says("WATCHDOG=1\nSTATUS=well")
		s.says("WATCHDOG=trigger")
		require.Equal(t, []int{2, 1}, []int{s.prober.beats, s.prober.triggers})
		s.prober.sicken()
		require.Equal(t, service.Crashed, s.status().Machine.State)
		x := s.status().LastExit
		require.Equal(t, service.VerdictWatchdog, x.Verdict)
		require.Contains(t, x.Message, "it did not say in time that it is well")
		s.saw("launching starting running stopping clearing crashed")
	})
}
