package thjalfi

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// outlook is what was told of what becomes of a service whose start has failed.
func outlook(t *testing.T, err error) string {
	t.Helper()
	e, ok := errors.AsType[*service.Error](err)
	require.True(t, ok, "%v", err)
	return e.Outlook
}

var dies = fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 3}}}

func TestAFailedStartTellsWhatBecomesOfIt(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(dies, dies, dies)
		c := s.start(settling, policy(func(p *service.RestartPolicy) { p.MaxAttempts = 3 }))
		pass(time.Second)
		s.refused(c, service.Unlaunchable, service.ReasonExitedEarly)
		require.Equal(t, "it is tried again in 1s, attempt 1 of 3", outlook(t, c.err))
		require.NotContains(t, c.err.Error(), "again", "it is of this moment alone")
		s.is(service.Backoff)
		pass(2 * time.Second)
		s.is(service.Backoff)
		c = s.restart(settling, policy(func(p *service.RestartPolicy) { p.MaxAttempts, p.Backoff, p.MaxBackoff = 7, 90*time.Second, time.Hour }))
		pass(time.Second)
		require.Equal(t, "it is tried again in 1m30s, attempt 1 of 7", outlook(t, c.err))
	})
}

func TestAFailedStartTellsThatItIsGivenUp(t *testing.T) {
	for want, change := range map[string]func(*service.RestartPolicy){
		"given up, since it is not to be restarted (restart.policy)":                             func(p *service.RestartPolicy) { p.When = service.RestartNever },
		"given up, since it failed 1 times within 10m0s (restart.max_attempts is 0)":             func(p *service.RestartPolicy) { p.MaxAttempts = 0 },
		"given up, since it is not to be restarted after such an end (restart.exit_codes.never)": func(p *service.RestartPolicy) { p.Never = service.Ends{}.And(service.Exit{Code: 3}) },
	} {
		play(t, func(t *testing.T, s *stage) {
			s.script(dies)
			c := s.start(settling, policy(change))
			pass(time.Second)
			require.Equal(t, want, outlook(t, c.err))
			s.is(service.Crashed)
		})
	}
}

func TestALaunchThatFailsTellsWhatBecomesOfIt(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{LaunchError: &service.Error{Op: "start", Service: web, Kind: service.Unlaunchable, Reason: service.ReasonExecNotFound, Permanent: true}})
		c := s.start()
		require.Equal(t, "given up, since to try again can not help", outlook(t, c.err))
	})
	play(t, func(t *testing.T, s *stage) {
		s.disk.failWith(func(Record) error { return errors.New("no room") })
		s.lax = true
		c := s.start()
		s.refused(c, service.HostUnavailable, "HOST_UNAVAILABLE")
		require.Equal(t, "it is tried again in 1s", outlook(t, c.err), "that is no attempt of the policy")
		s.disk.failWith(nil)
		pass(time.Second)
		s.is(service.Running)
	})
}

// What is told is so when it is told: a retry hears how it stands then, and nobody what is
// not so any more.
func TestWhatBecomesOfItIsOfTheMoment(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(dies, fake.Script{})
		plan := s.plan(settling)
		plan.Options.Request = service.Request{ID: "one", Body: "a"}
		c := begin(func() error { return s.Start(context.Background(), web, plan) })
		pass(time.Second)
		require.Equal(t, "it is tried again in 1s, attempt 1 of 3", outlook(t, c.err))
		again := func() string {
			c := begin(func() error {
				_, err := s.Recall(context.Background(), web, service.Start, "alice", plan.Options.Request)
				return err
			})
			s.refused(c, service.Unlaunchable, service.ReasonExitedEarly)
			return outlook(t, c.err)
		}
		pass(800 * time.Millisecond)
		require.Equal(t, "it is tried again in 200ms, attempt 1 of 3", again())
		pass(200 * time.Millisecond)
		s.is(service.Starting)
		require.Empty(t, again())
		pass(5 * time.Second)
		s.is(service.Running)
		require.Empty(t, again())
	})
	play(t, func(t *testing.T, s *stage) { // somebody stopped it
		c := s.start(settling)
		s.stop()
		s.refused(c, service.Conflict, "CONFLICT")
		require.Empty(t, outlook(t, c.err))
	})
	play(t, func(t *testing.T, s *stage) { // the disk is slow, and somebody starts it anew meanwhile
		s.script(dies, fake.Script{})
		c := s.start(settling)
		released := make(chan struct{})
		s.disk.failWith(func(r Record) error {
			if r.Machine.State == service.Backoff {
				<-released
			}
			return nil
		})
		pass(time.Second)
		s.pending(c)
		other := s.start(settling)
		close(released)
		pass(0)
		s.refused(c, service.Unlaunchable, service.ReasonExitedEarly)
		require.Empty(t, outlook(t, c.err))
		pass(5 * time.Second)
		s.ok(other)
	})
}
