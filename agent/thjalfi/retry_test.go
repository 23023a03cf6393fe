package thjalfi

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// asks begins a call with an id, whose body is the kind alone.
func (s *stage) asks(kind service.EventKind, id string, changes ...func(*service.Spec)) *call {
	request, plan := service.Request{ID: id, Body: kind.String()}, s.plan(changes...)
	plan.Options.Request = request
	opts := service.StopOptions{Actor: "alice", Force: kind == service.Kill, Request: request}
	return begin(func() error {
		switch kind {
		case service.Start:
			return s.Start(context.Background(), web, plan)
		case service.Restart:
			opts.Force = id == "force"
			return s.Restart(context.Background(), web, plan, opts)
		}
		return s.Stop(context.Background(), web, opts)
	})
}

func TestARetryJoinsWhatIsUnderWay(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		first := s.asks(service.Start, "a", readyByTCP)
		retry := s.asks(service.Start, "a", readyByTCP)
		s.pending(retry)
		s.refused(s.asks(service.Start, "b"), service.AlreadyRunning, service.ReasonAlreadyRunning)
		close(s.prober.ready)
		synctest.Wait()
		s.ok(first)
		s.ok(retry)
		require.Equal(t, 1, s.host.Launches(web))
		require.EqualValues(t, 1, s.status().Machine.Incarnation)
	})
	play(t, func(t *testing.T, s *stage) { // its caller has gone, and it goes on
		ctx, leave := context.WithCancel(t.Context())
		plan := s.plan(readyByTCP)
		plan.Options.Request = service.Request{ID: "a", Body: "start"}
		gone := begin(func() error { return s.Start(ctx, web, plan) })
		leave()
		synctest.Wait()
		s.refused(gone, service.Cancelled, "CANCELLED")
		close(s.prober.ready)
		synctest.Wait()
		s.ok(s.stop())
		s.ok(s.asks(service.Start, "a"))
		s.is(service.Stopped)
	})
}

func TestARetryAfterSuccessDoesNothing(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ok(s.asks(service.Start, "start"))
		s.ok(s.asks(service.Start, "start"))
		s.ok(s.asks(service.Restart, "restart"))
		s.ok(s.asks(service.Restart, "restart"))
		require.Equal(t, 2, s.host.Launches(web))
		s.ok(s.asks(service.Stop, "stop"))
		s.ok(s.asks(service.Stop, "stop"))
		s.ok(s.asks(service.Start, "start"))
		s.is(service.Stopped)
		s.running()
		s.ok(s.asks(service.Stop, "stop"))
		s.is(service.Running)
		s.ok(s.asks(service.Kill, "kill"))
		s.running()
		s.ok(s.asks(service.Kill, "kill"))
		s.is(service.Running)
		s.succeed(forEver) // and the next agent knows it, too
		for kind, id := range map[service.EventKind]string{service.Start: "start", service.Stop: "stop", service.Restart: "restart", service.Kill: "kill"} {
			s.ok(s.asks(kind, id))
		}
		s.is(service.Running)
		require.Equal(t, 4, s.host.Launches(web))
	})
}

func TestARetryAfterFailureFailsAlike(t *testing.T) {
	for name, c := range map[string]struct {
		script fake.Script
		patch  func(*service.Spec)
		reason service.Reason
	}{
		"ended early": {fake.Script{End: &fake.End{Exit: service.Exit{Code: 3}}}, readyByTCP, service.ReasonExitedEarly},
		"not ready":   {fake.Script{}, readyByTCP, service.ReasonStartupTimeout},
		"no program": {fake.Script{LaunchError: &service.Error{Op: "start", Service: web, Kind: service.Unlaunchable, Reason: service.ReasonExecNotFound,
			Permanent: true, Err: context.DeadlineExceeded}}, readyByTCP, service.ReasonExecNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(t *testing.T, s *stage) {
				s.script(c.script, fake.Script{})
				first := s.asks(service.Start, "a", c.patch, never)
				pass(time.Minute)
				require.True(t, first.over())
				require.Equal(t, c.reason, service.ReasonOf(first.err))
				same := func() {
					t.Helper()
					retry := s.asks(service.Start, "a", c.patch, never)
					require.True(t, retry.over())
					require.EqualError(t, retry.err, first.err.Error())
					require.Equal(t, service.KindOf(first.err), service.KindOf(retry.err))
					require.Equal(t, c.reason, service.ReasonOf(retry.err))
					require.Equal(t, 1, s.host.Launches(web))
				}
				same()
				s.succeed(forEver)
				same()
				s.ok(s.asks(service.Start, "b"))
				require.EqualError(t, s.asks(service.Start, "a", c.patch, never).err, first.err.Error(), "though it runs now")
			})
		})
	}
	play(t, func(t *testing.T, s *stage) { // what would not die
		s.script(fake.Script{Unkillable: true})
		s.running()
		first := s.asks(service.Kill, "a")
		pass(clearTimeout)
		s.refused(first, service.Timeout, service.ReasonUnkillable)
		s.refused(s.asks(service.Kill, "a"), service.Timeout, service.ReasonUnkillable)
		r, _ := s.disk.get(web)
		require.NotNil(t, r.Asked[0].Failure, "on disk as well")
		s.host.Free(web)
		pass(time.Minute)
		s.is(service.Stopped)
	})
}

func TestAnIDIsForOneRequest(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ok(s.asks(service.Start, "a"))
		s.refused(s.asks(service.Stop, "a"), service.Conflict, service.ReasonRequestIDReused)
		s.is(service.Running)
		s.succeed(forEver)
		s.refused(s.asks(service.Restart, "a"), service.Conflict, service.ReasonRequestIDReused)
		c := begin(func() error {
			return s.Stop(context.Background(), web, service.StopOptions{Actor: "bob", Request: service.Request{ID: "a", Body: "stop"}})
		})
		s.ok(c) // that is another's
		s.is(service.Stopped)
	})
}

func TestARefusalIsJudgedAnew(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.refused(s.asks(service.Start, "a"), service.AlreadyRunning, service.ReasonAlreadyRunning)
		s.ok(s.stop())
		s.refused(s.asks(service.Stop, "b"), service.NotRunning, service.ReasonNotRunning)
		s.ok(s.asks(service.Start, "a"))
		s.is(service.Running)
		s.ok(s.asks(service.Stop, "b"))
		s.is(service.Stopped)
	})
}

func TestAsManyRequestsAsAreKept(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.ok(s.asks(service.Start, "first"))
		for i := range keptRequests - 1 {
			s.ok(s.asks(service.Restart, fmt.Sprint(i)))
		}
		s.ok(s.asks(service.Start, "first"))
		s.ok(s.asks(service.Restart, "one more"))
		s.refused(s.asks(service.Start, "first"), service.AlreadyRunning, service.ReasonAlreadyRunning)
		r, _ := s.disk.get(web)
		require.Len(t, r.Asked, keptRequests)
	})
	play(t, func(t *testing.T, s *stage) { // those that are under way are not forgotten
		s.script(fake.Script{Stubborn: true})
		s.running()
		var calls []*call
		for i := range keptRequests {
			calls = append(calls, s.asks(service.Stop, fmt.Sprint(i)))
		}
		s.refused(s.asks(service.Stop, "one more"), service.Exhausted, "EXHAUSTED")
		r, _ := s.disk.get(web)
		require.Len(t, r.Asked, keptRequests, "on disk though nothing changed but that they were asked")
		pass(time.Minute)
		for _, c := range calls {
			s.ok(c)
		}
	})
}

// Wherever the agent dies in a request, the retry that the next one gets has the
// answer, and what was asked for has happened once.
func TestARetryAfterTheAgentDied(t *testing.T) {
	for _, c := range []struct {
		name string
		kind service.EventKind
		id   string
		runs int // before and in all
		ends service.State
	}{
		{"start", service.Start, "a", 1, service.Running},
		{"stop", service.Stop, "a", 1, service.Stopped},
		{"kill", service.Kill, "a", 1, service.Stopped},
		{"restart", service.Restart, "a", 2, service.Running},
		{"restart by force", service.Restart, "force", 2, service.Running},
	} {
		t.Run(c.name, func(t *testing.T) {
			points, lost := 0, 0
			for life, lived := int64(1), false; !lived; life++ {
				play(t, func(t *testing.T, s *stage) {
					close(s.prober.ready)
					if c.kind != service.Start {
						s.running(never, readyByTCP)
					}
					s.life.Store(life)
					s.lax = true // of an agent that is dead nothing is to be recorded
					first := s.asks(c.kind, c.id, never, readyByTCP)
					pass(time.Minute)
					lived = s.acked(first)
					s.succeed(forEver)
					s.lax = false
					close(s.prober.ready)
					retry := s.asks(c.kind, c.id, never, readyByTCP)
					pass(time.Minute)
					require.True(t, retry.over())
					s.consistent()
					if retry.err != nil { // it was at its gate: nobody knows that it did not run
						lost++
						require.ErrorContains(t, retry.err, "agent_was_down")
						require.Equal(t, c.runs-1, s.host.Runs(web))
						require.EqualError(t, s.asks(c.kind, c.id, never, readyByTCP).err, retry.err.Error())
						return
					}
					require.Equal(t, c.ends.String(), s.status().Machine.State.String(), "life %d", life)
					require.Equal(t, c.runs, s.host.Runs(web), "life %d", life)
					again := s.asks(c.kind, c.id, never, readyByTCP)
					s.ok(again)
					require.Equal(t, c.runs, s.host.Runs(web))
				})
				points++
			}
			require.Greater(t, points, 4, "so many points at which it died")
			require.LessOrEqual(t, lost, 1)
		})
	}
}
