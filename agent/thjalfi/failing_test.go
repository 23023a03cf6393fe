package thjalfi

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func TestUnkillable(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Unkillable: true}, fake.Script{})
		s.running()
		stop := s.stop()
		pass(10 * time.Second) // the grace
		s.pending(stop)
		pass(clearTimeout)
		s.refused(stop, service.Timeout, service.ReasonUnkillable)
		require.ErrorContains(t, stop.err, "would not die")
		s.is(service.Stopping)
		s.alive(1)
		require.Contains(t, s.status().Error, "would not die")
		s.refused(s.start(), service.Conflict, service.ReasonPreviousAlive)
		s.refused(s.restart(), service.Conflict, service.ReasonPreviousAlive)

		kill := s.kill()
		pass(time.Minute)
		s.refused(kill, service.Timeout, service.ReasonUnkillable)
		s.is(service.Stopping)

		s.host.Free(web)
		pass(retryClear + 1)
		s.is(service.Stopped)
		s.alive(0)
		require.Empty(t, s.status().Error)
		require.True(t, s.lastExit().ForceKilled)
		s.running()
	})
}

// A child that would not die keeps the service from being started again.
func TestUnkillableLeftovers(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Children: 3, Unkillable: true}, fake.Script{})
		s.running()
		s.host.Crash(web, service.Exit{Code: 1})
		synctest.Wait()
		s.is(service.Clearing)
		pass(clearTimeout)
		s.refused(s.start(), service.Conflict, service.ReasonPreviousAlive)
		stop := s.stop()
		pass(time.Minute)
		s.refused(stop, service.Timeout, service.ReasonUnkillable)
		s.is(service.Clearing)
		require.Equal(t, 1, s.host.Launches(web))
		s.host.Free(web)
		pass(retryClear + 1)
		s.is(service.Stopped)
		s.running()
	})
}

// A failure to release is told and repeated, and ends by itself.
func TestReleaseFails(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		attempts := 0
		s.fault = func(operation string) error {
			if operation == "release" {
				if attempts++; attempts <= 3 {
					return errors.New("rmdir: device or resource busy")
				}
			}
			return nil
		}
		s.running()
		stop := s.stop()
		s.refused(stop, service.Timeout, service.ReasonUnkillable)
		require.ErrorContains(t, stop.err, "rmdir")
		s.is(service.Clearing)
		again := s.stop()
		s.pending(again)
		pass(retryClear)
		s.refused(again, service.Timeout, service.ReasonUnkillable)
		pass(2 * retryClear)
		s.is(service.Stopped)
		require.Equal(t, 4, attempts)
		s.saw("launching starting running stopping clearing stopped")
		require.Len(t, s.disk.exitsOf(web), 1)
	})
}

// With force_kill=false a kill that somebody asked for is repeated as well.
func TestKillFails(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		attempts := 0
		s.fault = func(operation string) error {
			if operation == "kill" {
				if attempts++; attempts <= 2 {
					return errors.New("cgroup.kill: input/output error")
				}
			}
			return nil
		}
		s.script(fake.Script{Stubborn: true})
		s.running(noForce)
		kill := s.kill()
		s.refused(kill, service.Timeout, service.ReasonUnkillable)
		s.alive(1)
		pass(2 * retryClear)
		s.is(service.Stopped)
		s.alive(0)
		require.False(t, s.lastExit().ForceKilled, "it did not outlive a timeout")
	})
}

func TestSignalFails(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.fault = func(operation string) error {
			if operation == "signal" {
				return &service.Error{Op: "signal", Service: web, Kind: service.HostUnavailable, Err: errors.New("EPERM")}
			}
			return nil
		}
		s.running()
		stop := s.stop()
		s.refused(stop, service.HostUnavailable, "HOST_UNAVAILABLE")
		pass(10 * time.Second)
		s.is(service.Stopped)
		s.alive(0)
	})
}

// A stop is carried out even if it can not be recorded, and then its caller
// hears that it may be undone.
func TestUnrecordedStop(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.lax = true
		s.disk.failWith(func(Record) error { return errors.New("no space left on device") })
		stop := s.stop()
		s.alive(0)
		require.Equal(t, service.Stopped, s.status().Machine.State)
		s.refused(stop, service.HostUnavailable, "HOST_UNAVAILABLE")
		require.ErrorContains(t, stop.err, "no space left on device")
		require.Contains(t, s.disk.told(), "unrecorded")
	})
	play(t, func(t *testing.T, s *stage) { // the intent is recorded, so that it can not be undone
		s.running()
		s.lax = true
		s.disk.failWith(func(r Record) error {
			if r.Machine.State == service.Stopped {
				return errors.New("no space left on device")
			}
			return nil
		})
		s.ok(s.stop())
		s.disk.failWith(nil)
		s.succeed(forEver)
		s.is(service.Stopped)
		s.alive(0)
		require.Equal(t, 1, s.host.Launches(web))
	})
}

func TestUnwritableExitRecord(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running()
		s.disk.buries = func() error { return errors.New("no space left on device") }
		s.ok(s.stop())
		require.NotNil(t, s.status().LastExit)
		require.Contains(t, s.status().LastExit.Message, "could not be written: no space left on device")
	})
}
