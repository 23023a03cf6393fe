package thjalfi

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// acked tells whether a call had ended well before the agent died.
func (s *stage) acked(c *call) bool { return s.life.Load() != 0 && c.over() && c.err == nil }

// consistent wants a service that either runs once or not at all, as is shown
// and as is on disk, and of each incarnation one exit record.
func (s *stage) consistent() {
	s.t.Helper()
	switch state := s.status().Machine.State; state {
	case service.Running:
		s.alive(1)
	case service.Stopped, service.Crashed:
		s.alive(0)
	default:
		require.Failf(s.t, "it did not come to rest", "it is %s", state)
	}
	s.oneRecordEach()
	if r, recorded := s.disk.get(web); recorded {
		require.Equal(s.t, s.status().Machine, r.Machine)
	}
}

// oneRecordEach wants at most one exit record of an incarnation, in order.
func (s *stage) oneRecordEach() {
	s.t.Helper()
	var seen []uint64
	for _, x := range s.disk.exitsOf(web) {
		seen = append(seen, x.Incarnation)
	}
	require.True(s.t, slices.IsSorted(seen), "%v", seen)
	require.Len(s.t, slices.Compact(slices.Clone(seen)), len(seen), "one ended twice: %v", seen)
}

// death is a change that the agent does not live through.
type death struct {
	name   string
	script []fake.Script
	begin  func(*stage)
	change func(*stage) (acked bool)
	check  func(t *testing.T, s *stage, acked bool)
}

func (s *stage) crash(exit service.Exit) {
	s.host.Crash(web, exit)
	synctest.Wait()
}

var deaths = []death{
	{
		name:   "start",
		change: func(s *stage) bool { return s.acked(s.start()) },
		check:  goesOnIfBegun,
	},
	{
		name:   "start of what is never restarted",
		change: func(s *stage) bool { return s.acked(s.start(never)) },
		check:  runsUnlessLost,
	},
	{
		name:   "restart of what is never restarted",
		begin:  func(s *stage) { s.running(never) },
		change: func(s *stage) bool { return s.acked(s.restart(never)) },
		check:  runsUnlessLost,
	},
	{
		name:   "start that waits",
		begin:  func(s *stage) { close(s.prober.ready) },
		change: func(s *stage) bool { return s.acked(s.start(readyByTCP)) },
		check:  goesOnIfBegun,
	},
	{
		name:   "stop",
		begin:  func(s *stage) { s.running() },
		change: func(s *stage) bool { return s.acked(s.stop()) },
		check:  isNotStartedAgain,
	},
	{
		name:   "stop of a stubborn one",
		script: []fake.Script{{Stubborn: true, Children: 1}},
		begin:  func(s *stage) { s.running() },
		change: func(s *stage) bool {
			c := s.stop()
			pass(time.Minute)
			return s.acked(c)
		},
		check: isNotStartedAgain,
	},
	{
		name:   "kill",
		script: []fake.Script{{Children: 2}},
		begin:  func(s *stage) { s.running() },
		change: func(s *stage) bool { return s.acked(s.kill()) },
		check:  isNotStartedAgain,
	},
	{
		name:   "stop during a launch",
		script: []fake.Script{{LaunchTime: time.Second}},
		begin:  func(s *stage) { s.start() },
		change: func(s *stage) bool { return s.acked(s.stop()) },
		check:  stopsIfAcked,
	},
	{
		name:   "stop during a launch that can not be given up",
		script: []fake.Script{{LaunchTime: time.Second, Stubborn: true, Children: 1}},
		begin:  func(s *stage) { s.dogged = true; s.start() },
		change: func(s *stage) bool {
			c := s.stop()
			pass(time.Minute)
			return s.acked(c)
		},
		check: stopsIfAcked,
	},
	{
		name:   "stop during backoff",
		begin:  func(s *stage) { s.running(); s.crash(service.Exit{Code: 1}) },
		change: func(s *stage) bool { return s.acked(s.stop()) },
		check:  stopsIfAcked,
	},
	{
		name:   "restart",
		begin:  func(s *stage) { s.running() },
		change: func(s *stage) bool { return s.acked(s.restart()) },
		check: func(t *testing.T, s *stage, acked bool) {
			require.Equal(t, service.Running, s.status().Machine.State)
			if acked {
				require.EqualValues(t, 2, s.status().Machine.Incarnation)
			}
		},
	},
	{
		name:   "crash",
		script: []fake.Script{{Children: 1}, {}},
		begin:  func(s *stage) { s.running() },
		change: func(s *stage) bool { s.crash(service.Exit{Code: 1}); pass(time.Minute); return false },
		check:  goesOnIfBegun,
	},
	{
		name:   "clean end",
		script: []fake.Script{{Children: 1}},
		begin:  func(s *stage) { s.running() },
		change: func(s *stage) bool {
			s.crash(service.Exit{})
			r, _ := s.disk.get(web) // once it is there how it ended, that is known for good
			return r.Machine.State == service.Clearing || r.Machine.State == service.Stopped
		},
		check: func(t *testing.T, s *stage, known bool) {
			if known {
				isNotStartedAgain(t, s, known)
				require.Equal(t, service.Exit{}, s.disk.exitsOf(web)[0].Exit)
			}
		},
	},
	{
		name:   "nothing",
		begin:  func(s *stage) { s.running() },
		change: func(*stage) bool { return true },
		check: func(t *testing.T, s *stage, _ bool) {
			goesOnIfBegun(t, s, true)
			require.Equal(t, 1, s.host.Launches(web), "it noticed")
		},
	},
}

func isNotStartedAgain(t *testing.T, s *stage, acked bool) {
	require.Equal(t, 1, s.host.Launches(web), "it was started again")
	if acked {
		require.Equal(t, service.Stopped, s.status().Machine.State)
	}
}

func stopsIfAcked(t *testing.T, s *stage, acked bool) {
	if acked {
		isNotStartedAgain(t, s, acked)
	}
}

func goesOnIfBegun(t *testing.T, s *stage, acked bool) {
	if _, recorded := s.disk.get(web); recorded || acked {
		require.Equal(t, service.Running, s.status().Machine.State)
	}
}

// runsUnlessLost wants it to run, unless an agent died after it identified the
// incarnation: whether that ran is not known then.
func runsUnlessLost(t *testing.T, s *stage, acked bool) {
	for _, x := range s.disk.exitsOf(web) {
		if x.Exit == (service.Exit{Unknown: "agent_was_down"}) && x.Verdict == service.VerdictUnknown {
			return
		}
	}
	goesOnIfBegun(t, s, acked)
}

// play has the first agent die before the deed of that number, and the second
// before the deed of that; a third one sets things right. It tells who died.
func (d *death) play(t *testing.T, first, second int64) (died [2]bool) {
	play(t, func(t *testing.T, s *stage) {
		if d.script != nil {
			s.script(d.script...)
		}
		if d.begin != nil {
			d.begin(s)
		}
		s.life.Store(first)
		acked := d.change(s)
		died[0] = s.life.Load() == 0
		for i, life := range []int64{second, forEver} {
			s.succeed(life)
			close(s.prober.ready)
			pass(time.Hour)
			died[1] = died[1] || i == 0 && s.life.Load() == 0
		}
		s.consistent()
		d.check(t, s, acked)
	})
	return died
}

// TestAgentDiesAtEachPoint has the agent die before each of its deeds during a
// change, and the next agent before each of its own. (Rows A1 and A2 of the
// fault matrix.)
func TestAgentDiesAtEachPoint(t *testing.T) {
	for _, d := range deaths {
		t.Run(d.name, func(t *testing.T) {
			for first, all := int64(1), true; all; first++ {
				for second, again := int64(1), true; again; second++ {
					died := d.play(t, first, second)
					all, again = died[0], died[1]
					if t.Failed() {
						t.Fatalf("the first agent died before its deed %d, the second before its deed %d", first, second)
					}
				}
			}
		})
	}
}

// What an incarnation left behind is on record before its place is removed, so that
// its death certificate does not depend on which agent writes it.
func TestRemainsOutliveTheAgent(t *testing.T) {
	recorded := 0
	for life, lived := int64(1), false; !lived; life++ {
		play(t, func(t *testing.T, s *stage) {
			s.script(fake.Script{Children: 2, Usage: func(time.Duration) service.Usage {
				return service.Usage{Source: "cgroup", MemoryPeak: service.Of(7 << 20)}
			}})
			s.running(never)
			s.life.Store(life)
			s.lax = true
			s.fault = func(operation string) error {
				if r, _ := s.disk.get(web); operation == "release" && r.Remains == nil {
					t.Error("it is removed, and what it left behind is on no record")
				}
				return nil
			}
			s.host.OOMKill(web, service.OOMOwn, "/gladsheim/svc-web-00000001")
			pass(time.Second)
			lived = s.status().Machine.State == service.Crashed && s.life.Load() != 0
			r, _ := s.disk.get(web)
			s.succeed(forEver)
			s.lax = false
			pass(time.Minute)
			s.is(service.Crashed)
			require.Len(t, s.disk.exitsOf(web), 1)
			if r.Remains == nil && !lived {
				return
			}
			recorded++
			require.Equal(t, service.VerdictOwnOOM, s.lastExit().Verdict)
			require.Equal(t, service.Of(7<<20), s.lastExit().Remains.Usage.MemoryPeak)
			require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, s.lastExit().Exit)
		})
	}
	require.Greater(t, recorded, 2)
}

// A disk that is full holds up no end.
func TestRemainsThatCanNotBeRecorded(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.disk.failWith(func(r Record) error {
			if r.Remains != nil {
				return errors.New("no space left on device")
			}
			return nil
		})
		s.ok(s.stop())
		s.is(service.Stopped)
		require.Equal(t, service.VerdictStopped, s.lastExit().Verdict)
	})
}
