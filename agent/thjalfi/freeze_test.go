package thjalfi

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func (s *stage) freeze() *call {
	return begin(func() error { return s.Freeze(context.Background(), web, "dora") })
}

func (s *stage) thaw() *call {
	return begin(func() error { return s.Thaw(context.Background(), web, "erik") })
}

// frozen wants it to be known by which cgroup it is frozen, to readers and on disk; ""
// is for one that runs.
func (s *stage) frozen(by string) {
	s.t.Helper()
	synctest.Wait()
	require.Equal(s.t, by, s.status().FrozenBy)
	require.Equal(s.t, by != "", s.status().Machine.Frozen)
	s.is(s.status().Machine.State)
}

// What is frozen runs still, and is neither checked nor called stable; all of that
// begins anew when it is thawed.
func TestFreezeAndThaw(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.refused(s.freeze(), service.NotRunning, service.ReasonNotRunning)
		s.refused(s.thaw(), service.NotRunning, service.ReasonNotRunning)
		s.running()
		s.frozen("")
		place := s.status().Ref.Cgroup
		for range 2 {
			s.ok(s.freeze())
			s.frozen(place)
		}
		require.True(t, s.host.Frozen(web))
		require.Equal(t, service.Running, s.status().Machine.State)
		require.Equal(t, "dora", s.status().LastActor)
		require.Zero(t, s.prober.attending())
		pass(24 * time.Hour)
		s.frozen(place)
		for range 2 {
			s.ok(s.thaw())
			s.frozen("")
		}
		require.Equal(t, 1, s.prober.attending())
		s.alive(1)
		require.Equal(t, []string{"asked", "asked"}, slices.DeleteFunc(s.disk.told(), func(r string) bool { return r != "asked" }), "one of each")
		require.NotContains(t, s.disk.told(), "outside")
		s.saw("launching starting running")
	})
}

// A row of failures is over after it has run for long enough, and was not frozen.
func TestTheFrozenAreNotStable(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.host.Crash(web, service.Exit{Code: 1})
		pass(5 * time.Second)
		s.is(service.Running)
		require.Equal(t, 1, s.status().Machine.Failures)
		reset := s.plan().Spec.Restart.Reset(1)
		s.ok(s.freeze())
		pass(2 * reset)
		s.ok(s.thaw())
		pass(reset - time.Second)
		require.Equal(t, 1, s.status().Machine.Failures)
		pass(2 * time.Second)
		require.Zero(t, s.status().Machine.Failures)
	})
}

// A check that failed because it was frozen meanwhile does not count, however late the
// freeze is heard of.
func TestTheFrozenAreNotUnhealthy(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.prober.mu.Lock()
		unhealthy := s.prober.attended[1]
		s.prober.mu.Unlock()
		s.host.Freeze(web, "")
		unhealthy()
		s.frozen(s.status().Ref.Cgroup)
		s.host.Thaw(web)
		unhealthy()
		s.frozen("")
		unhealthy() // of a check that is no more
		s.is(service.Running)
		s.prober.sicken()
		require.NotEqual(t, service.Running, s.status().Machine.State, "that of the present one counts")
	})
}

// Whoever froze or thawed it behind our back, it is known, and told as that.
func TestFrozenByOthers(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.host.Freeze(web, "/gladsheim.slice")
		s.frozen("/gladsheim.slice")
		require.Contains(t, s.disk.told(), "outside")
		require.Equal(t, "alice", s.status().LastActor)
		s.refused(s.thaw(), service.Conflict, service.Conflict.DefaultReason())
		s.frozen("/gladsheim.slice")
		s.ok(s.freeze())
		s.frozen(s.status().Ref.Cgroup)
		s.host.Thaw(web)
		s.frozen("")
		s.alive(1)
	})
}

// A service is thawed to be told to end; killing needs no thaw.
func TestStopOfTheFrozen(t *testing.T) {
	for name, end := range map[string]struct {
		call  func(*stage) *call
		exit  service.Exit
		state service.State
	}{
		"stop":    {(*stage).stop, service.Exit{Signal: syscall.SIGTERM}, service.Stopped},
		"kill":    {(*stage).kill, service.Exit{Signal: syscall.SIGKILL}, service.Stopped},
		"restart": {func(s *stage) *call { return s.restart() }, service.Exit{Signal: syscall.SIGTERM}, service.Running},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				s.running()
				s.ok(s.freeze())
				s.ok(end.call(s))
				s.is(end.state)
				s.frozen("")
				require.Equal(t, end.exit, s.lastExit().Exit)
				require.False(t, s.lastExit().ForceKilled)
			})
		})
	}
}

// What a cgroup above keeps frozen can not heed the signal, and is killed.
func TestStopOfWhatIsFrozenAbove(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.host.Freeze(web, "/gladsheim.slice")
		stop := s.stop()
		s.pending(stop)
		pass(s.plan().Spec.Stop.Timeout)
		s.ok(stop)
		require.True(t, s.lastExit().ForceKilled)
	})
}

// One that is not ready is not frozen by us. If somebody else does, its time to become
// ready begins anew.
func TestFreezeOfWhatStarts(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		timeout := s.plan().Spec.Ready.Timeout
		start := s.start(readyByTCP)
		s.refused(s.freeze(), service.Conflict, service.Conflict.DefaultReason())
		s.host.Freeze(web, "")
		pass(2 * timeout)
		s.pending(start)
		require.Equal(t, service.Starting, s.status().Machine.State)
		s.frozen(s.status().Ref.Cgroup)
		s.prober.become()
		s.pending(start)
		s.ok(s.thaw())
		s.ok(start)
		s.frozen("")
		s.is(service.Running)
	})
	play(t, func(t *testing.T, s *stage) {
		start := s.start(readyByTCP, never)
		s.host.Freeze(web, "")
		pass(time.Hour)
		s.host.Thaw(web)
		pass(s.plan().Spec.Ready.Timeout - time.Second)
		s.pending(start)
		pass(time.Hour)
		s.refused(start, service.Timeout, service.ReasonStartupTimeout)
	})
}

// A freeze outlives the agent, and what was done while none was there is found out.
func TestFreezeOutlivesTheAgent(t *testing.T) {
	for name, meanwhile := range map[string]struct {
		do     func(*stage)
		frozen bool
		told   bool
	}{
		"nothing":      {func(*stage) {}, true, false},
		"it is thawed": {func(s *stage) { s.host.Thaw(web) }, false, true},
		"it ends":      {func(s *stage) { s.host.Crash(web, service.Exit{Signal: syscall.SIGKILL}) }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				s.running(never)
				place := s.status().Ref.Cgroup
				s.ok(s.freeze())
				s.Close()
				meanwhile.do(s)
				s.succeed(forEver)
				require.Equal(t, meanwhile.told, slices.Contains(s.disk.told(), "outside"))
				if !meanwhile.frozen {
					s.frozen("")
					return
				}
				s.frozen(place)
				require.Zero(t, s.prober.attending())
				s.ok(s.thaw())
				s.frozen("")
				require.Equal(t, 1, s.prober.attending())
			})
		})
	}
	t.Run("it is frozen", func(t *testing.T) {
		play(t, func(t *testing.T, s *stage) {
			s.running()
			s.Close()
			s.host.Freeze(web, "")
			s.succeed(forEver)
			s.frozen(s.status().Ref.Cgroup)
			require.Contains(t, s.disk.told(), "outside")
			require.Zero(t, s.prober.attending())
		})
	})
}

// An end of what is frozen is an end like any other.
func TestEndOfTheFrozen(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(never)
		s.ok(s.freeze())
		s.host.Crash(web, service.Exit{Signal: syscall.SIGKILL})
		synctest.Wait()
		s.is(service.Crashed)
		s.frozen("")
		require.Equal(t, service.VerdictKilled, s.lastExit().Verdict)
	})
}

// A freeze that fails is told, and changes nothing; so is one of a host that can not.
func TestFreezeFails(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.fault = func(operation string) error {
			if operation == "freeze" {
				return &service.Error{Op: "freeze", Service: web, Kind: service.Timeout}
			}
			return nil
		}
		s.refused(s.freeze(), service.Timeout, service.Timeout.DefaultReason())
		s.frozen("")
		require.Equal(t, "alice", s.status().LastActor)
		s.ok(s.stop())
	})
}

// A signal to what is frozen waits, which is told.
func TestSignalToTheFrozen(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.lax = true // the signal is none of ours
		s.running(never)
		s.ok(s.freeze())
		s.ok(begin(func() error { return s.Signal(context.Background(), web, syscall.SIGTERM, "fred") }))
		s.alive(1)
		s.ok(s.thaw())
		synctest.Wait()
		s.is(service.Crashed)
		require.Equal(t, "fred", s.lastExit().RequestedBy)
	})
}

// The next agent does not tell again who froze it, be it a cgroup above.
func TestFrozenByOthersOutlivesTheAgent(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.host.Freeze(web, "/gladsheim.slice")
		s.frozen("/gladsheim.slice")
		s.succeed(forEver)
		s.frozen("/gladsheim.slice")
		require.NotContains(t, s.disk.told(), "outside")
		s.host.Thaw(web)
		s.frozen("")
		require.Contains(t, s.disk.told(), "outside")
	})
}

// A freeze for the battery that came to nothing leaves nothing of it: who freezes the
// service next has it frozen for reasons of his own.
func TestSparingThatCameToNothing(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.fault = func(operation string) error {
			if operation == "freeze" {
				return errors.New("the kernel refuses")
			}
			return nil
		}
		spare := begin(func() error { return s.Spare(context.Background(), web, holder) })
		require.True(t, spare.over())
		require.ErrorContains(t, spare.err, "the kernel refuses")
		r, _ := s.disk.get(web)
		require.False(t, r.Machine.Spared)
		s.fault = nil
		s.ok(s.freeze())
		require.True(t, s.status().Machine.Frozen)
		require.False(t, s.status().Machine.Spared)
		require.Empty(t, s.status().Error)
	})
}
