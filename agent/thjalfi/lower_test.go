package thjalfi

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func lowered() service.Limits {
	return service.Limits{service.MemoryMax: service.Of(64 << 20)}
}

// An end does not wait for memory to come back; the limit is for the next start then.
func TestAnEndGivesUpALowering(t *testing.T) {
	for what, end := range map[string]func(*stage) error{
		"stop": func(s *stage) error { return s.Stop(s.t.Context(), web, service.StopOptions{Actor: "dora"}) },
		"kill": func(s *stage) error {
			return s.Stop(s.t.Context(), web, service.StopOptions{Actor: "dora", Force: true})
		},
		"crash": func(s *stage) error { s.crash(service.Exit{Code: 1}); return nil },
	} {
		play(t, func(t *testing.T, s *stage) {
			s.script(fake.Script{Reclaim: time.Hour})
			s.running(never)
			set := begin(func() error { _, err := s.SetLimits(t.Context(), web, lowered(), false, "dora"); return err })
			synctest.Wait()
			start := time.Now()
			require.NoError(t, end(s), what)
			synctest.Wait()
			s.refused(set, service.NotRunning, service.ReasonNotRunning)
			require.Less(t, time.Since(start), time.Minute, what)
		})
	}
}

func TestACallerGivesUpALowering(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.script(fake.Script{Reclaim: time.Hour})
		s.running()
		before := s.status().Applied
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.SetLimits(ctx, web, lowered(), false, "dora")
		require.Equal(t, service.Timeout, service.KindOf(err))
		synctest.Wait()
		require.Equal(t, before, s.status().Applied)
		applied, err := s.SetLimits(t.Context(), web, lowered(), true, "dora")
		require.NoError(t, err)
		require.Equal(t, service.Of(64<<20), applied[service.MemoryMax].Applied)
	})
}
