package thjalfi

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func pids(n uint64) service.Limits { return service.Limits{service.PidsMax: service.Of(n)} }

// pidsMax is what the kernel holds of pids_max.
func (s *stage) pidsMax() service.Quota {
	s.t.Helper()
	h, err := s.Handle("look at", web)
	require.NoError(s.t, err)
	applied, err := h.Limits(s.t.Context())
	require.NoError(s.t, err)
	return applied[service.PidsMax].Applied
}

// told are the details of what was told of that kind.
func (s *stage) told(kind service.NoticeKind) []string {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	return slices.Clone(s.disk.details[kind])
}

func TestDriftIsRepaired(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(func(d *service.Spec) { d.Limits = pids(10) })
		s.host.Change(web, pids(999))
		synctest.Wait()
		require.Equal(t, service.Of(10), s.pidsMax())
		require.False(t, s.status().Fought[service.PidsMax])
	})
}

func TestDriftIsToldOnly(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(func(d *service.Spec) { d.Limits, d.Drift = pids(10), service.DriftTell })
		s.host.Change(web, pids(999))
		synctest.Wait()
		require.Equal(t, service.Of(999), s.pidsMax())
		require.Equal(t, service.Of(999), s.status().Applied[service.PidsMax].Applied)
		require.Equal(t, service.Of(999), s.status().Applied[service.PidsMax].Effective)
		require.False(t, s.status().Fought[service.PidsMax])
	})
}

// Who changes a limit now and then is repaired each time; who does it all the time wins,
// and is told of, until limits are set.
func TestAFightIsLeft(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(func(d *service.Spec) { d.Limits = pids(10) })
		for range 2 * mostRepairs {
			s.host.Change(web, pids(999))
			synctest.Wait()
			require.Equal(t, service.Of(10), s.pidsMax())
			time.Sleep(fight / 2)
		}
		time.Sleep(fight)
		for range mostRepairs {
			s.host.Change(web, pids(999))
			synctest.Wait()
			require.Equal(t, service.Of(10), s.pidsMax())
		}
		s.host.Change(web, pids(999))
		synctest.Wait()
		require.Equal(t, service.Of(999), s.pidsMax())
		require.True(t, s.status().Fought[service.PidsMax])
		require.Equal(t, service.Of(999), s.status().Applied[service.PidsMax].Effective)
		told := len(s.told(service.NoticeDrift))
		s.host.Change(web, pids(777))
		synctest.Wait()
		require.Equal(t, service.Of(777), s.status().Applied[service.PidsMax].Effective)
		require.Len(t, s.told(service.NoticeDrift), told, "that is known")

		_, err := s.SetLimits(t.Context(), web, pids(20), false, "dora")
		require.NoError(t, err)
		require.False(t, s.status().Fought[service.PidsMax])
		s.host.Change(web, pids(999))
		synctest.Wait()
		require.Equal(t, service.Of(20), s.pidsMax())
	})
}

// What can not be set back is told once, is no fight, and is tried again less and less
// often, until it can be.
func TestARepairThatFailsIsTriedAgain(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(func(d *service.Spec) { d.Limits = pids(10) })
		var repairs atomic.Int32
		var fits atomic.Bool
		s.fault = func(operation string) error {
			if operation != "repair" {
				return nil
			}
			repairs.Add(1)
			if !fits.Load() {
				return errors.New("it does not fit")
			}
			return nil
		}
		s.host.Change(web, pids(999))
		synctest.Wait()
		require.Equal(t, service.Of(999), s.status().Applied[service.PidsMax].Effective, "what holds is told")
		for range 100 { // somebody writes all the time, as we do when memory is reclaimed
			s.host.Write(web, "file")
			pass(time.Second)
		}
		require.InDelta(t, 4, repairs.Load(), 1)
		pass(time.Hour)
		require.InDelta(t, 4+2+11, repairs.Load(), 2)
		require.False(t, s.status().Fought[service.PidsMax])
		told := s.told(service.NoticeDrift)
		require.Len(t, told, 1)
		require.Contains(t, told[0], "it could not be repaired, and is tried again in 10s: it does not fit")

		fits.Store(true)
		pass(lastRepair)
		require.Equal(t, service.Of(10), s.pidsMax())
		require.Equal(t, service.Of(10), s.status().Applied[service.PidsMax].Applied)
		require.Contains(t, s.told(service.NoticeDrift)[1], "it is what it was again")
		repairs.Store(0)
		pass(time.Hour)
		require.Zero(t, repairs.Load())
	})
}

// When limits can not be read, what somebody changed, or is owed, is found later.
func TestALookThatFailsIsTakenAgain(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.running(func(d *service.Spec) { d.Limits = pids(10) })
		var blind atomic.Bool
		var stuck atomic.Bool
		s.fault = func(operation string) error {
			switch {
			case operation == "drift" && blind.Load():
				return errors.New("too many open files")
			case operation == "repair" && stuck.Load():
				return errors.New("it does not fit")
			}
			return nil
		}
		blind.Store(true)
		s.host.Change(web, pids(999))
		synctest.Wait()
		blind.Store(false)
		pass(firstRepair)
		require.Equal(t, service.Of(10), s.pidsMax())

		stuck.Store(true)
		s.host.Change(web, pids(999))
		synctest.Wait()
		blind.Store(true)
		s.host.Write(web, "file")
		synctest.Wait()
		blind.Store(false)
		stuck.Store(false)
		pass(2 * firstRepair)
		require.Equal(t, service.Of(10), s.pidsMax())
		blind.Store(true)
		pass(time.Hour)
	})
}
