package thjalfi

import (
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

		_, err := s.SetLimits(t.Context(), web, pids(20), false, "dora")
		require.NoError(t, err)
		require.False(t, s.status().Fought[service.PidsMax])
		s.host.Change(web, pids(999))
		synctest.Wait()
		require.Equal(t, service.Of(20), s.pidsMax())
	})
}
