package thjalfi

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func (s *stage) reload(how service.Reload) *call {
	return begin(func() error { return s.Reload(context.Background(), web, how, "carol") })
}

// reloads is what was told of reloads.
func (s *stage) reloads() (out []string) {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	for _, detail := range s.disk.details[service.NoticeState] {
		if strings.Contains(detail, ", by carol") {
			out = append(out, detail)
		}
	}
	return out
}

func TestReloadByASignal(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		hup := service.Reload{Signal: syscall.SIGHUP}
		s.refused(s.reload(hup), service.NotRunning, service.ReasonNotRunning)
		s.script(fake.Script{Stubborn: true})
		s.running()
		s.lax = true // a signal that is no end is no deed that needs a record
		s.ok(s.reload(hup))
		s.is(service.Running)
		require.Equal(t, []string{"SIGHUP, by carol"}, s.reloads())
		require.Equal(t, "carol", s.status().LastActor)
	})
}

func TestReloadByAProgram(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		how := service.Reload{Exec: []string{"/bin/reload", "now"}, Timeout: 30 * time.Second}
		takes, ran := time.Second, backends.Ran{}
		s.script(fake.Script{Run: func(ctx context.Context, p backends.Program) (backends.Ran, error) {
			require.Equal(t, how.Exec, p.Argv)
			select {
			case <-time.After(takes):
				return ran, nil
			case <-ctx.Done():
				return backends.Ran{}, &service.Error{Op: "run", Service: web, Kind: service.Timeout, Err: ctx.Err()}
			}
		}})
		s.running()
		c := s.reload(how)
		s.pending(c)
		s.refused(s.reload(how), service.Conflict, service.Conflict.DefaultReason())
		pass(time.Second)
		s.ok(c)

		ran = backends.Ran{Exit: service.Exit{Code: 2}, Output: []byte("reading\nno such key: port\n")}
		c = s.reload(how)
		pass(time.Second)
		s.refused(c, service.Conflict, service.ReasonReloadFailed)
		require.ErrorContains(t, c.err, "exit code 2: no such key: port")
		require.Equal(t, []string{"reading", "no such key: port"}, lastLines(t, c.err))
		s.is(service.Running)

		takes = time.Hour
		c = s.reload(how)
		pass(30 * time.Second)
		require.True(t, c.over())
		require.Equal(t, service.Timeout, service.KindOf(c.err))
		require.ErrorContains(t, c.err, "the program did not end within 30s (reload.timeout), and was killed")

		c = s.reload(how) // a stop does not wait for it
		s.ok(s.stop())
		synctest.Wait()
		require.True(t, c.over())
		require.Error(t, c.err)
		require.Len(t, s.reloads(), 4)
		require.Equal(t, "/bin/reload now, by carol", s.reloads()[0])
		require.Contains(t, s.reloads()[1], "it failed: cannot reload web: the program ended: exit code 2")
	})
}

func TestWhatIsNotReadyDoesNotReload(t *testing.T) {
	play(t, func(t *testing.T, s *stage) {
		s.start(readyByTCP)
		s.refused(s.reload(service.Reload{Signal: syscall.SIGHUP}), service.Conflict, service.Conflict.DefaultReason())
		close(s.prober.ready)
		synctest.Wait()
		require.NoError(t, s.Freeze(t.Context(), web, "bob"))
		s.refused(s.reload(service.Reload{Signal: syscall.SIGHUP}), service.Conflict, service.Conflict.DefaultReason())
	})
}
