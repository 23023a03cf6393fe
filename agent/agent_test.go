package agent

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestOpenEmpty(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		require.Empty(t, h.List())
		require.Empty(t, h.Definitions())
		require.Empty(t, h.doctor())
		require.Empty(t, h.log.String())
		_, err := h.Status(web)
		refused(t, err, service.NotFound)
		h.reopen()
		require.Empty(t, h.log.String())
	})
}

// A second agent finds the directories taken, and touches nothing.
func TestOpenTwice(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		before := h.tree()
		_, err := Open(t.Context(), h.config())
		require.ErrorIs(t, err, ErrTaken)
		require.Equal(t, before, h.tree())

		other := h.config()
		other.StateDir = h.path("other")
		_, err = Open(t.Context(), other)
		require.ErrorIs(t, err, ErrTaken, "the run directory alone is enough")
		h.is(web, service.Running)
		require.Equal(t, 1, h.host.Launches(web))

		mine := h.Agent // still at work
		h.stop(web)
		mine.Close()
		h.Agent = nil
		h.open()
		h.is(web, service.Stopped)
	})
}

// Two agents would cut the same logs; members of the group may open the directory,
// and so lock it, and keep nobody out.
func TestTheLogDirectoryIsOurs(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		dir, err := os.Open(h.path("log"))
		require.NoError(t, err)
		defer dir.Close()
		require.NoError(t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
		h.open()
		info, err := os.Stat(h.path("log/logs.lock"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode())
		other := h.config()
		other.StateDir, other.RunDir = h.path("other/state"), h.path("other/run")
		_, err = Open(t.Context(), other)
		require.ErrorIs(t, err, ErrTaken)
		require.ErrorContains(t, err, h.path("log"))
	})
}

// What outlives a reboot and what does not can not be in one place.
func TestOneDirectoryForBoth(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		cfg := h.config()
		cfg.RunDir = cfg.StateDir
		_, err := Open(t.Context(), cfg)
		refused(t, err, service.Invalid, "state and run")
		require.NotErrorIs(t, err, ErrTaken)
		require.NoError(t, os.Symlink(h.path("state"), h.path("link")))
		cfg.RunDir = h.path("link")
		_, err = Open(t.Context(), cfg)
		refused(t, err, service.Invalid, "state and run")
	})
}

// Nothing is launched before whoever opened the agent says so.
func TestAutostartWaitsForItsCall(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web, `"autostart": true`)
		a, err := Open(t.Context(), h.config())
		require.NoError(t, err)
		h.Agent = a
		pass(time.Hour)
		h.is(web, service.Stopped)
		a.Autostart()
		synctest.Wait()
		h.is(web, service.Running)
		h.reopen()
		require.Equal(t, 1, h.host.Launches(web))
	})
}

func TestOpenOnAHostThatDoesNotServe(t *testing.T) {
	for name, spoil := range map[string]func(h *house){
		"no boot id":       func(h *house) { h.remove("proc/sys/kernel/random/boot_id") },
		"no meminfo":       func(h *house) { h.remove("proc/meminfo") },
		"state is a file":  func(h *house) { h.write("state", "") },
		"a file in state":  func(h *house) { h.write("state/services", "") },
		"lock is a folder": func(h *house) { h.write("run/agent.lock/x", "") },
	} {
		t.Run(name, func(t *testing.T) {
			inside(t, func(t *testing.T, h *house) {
				spoil(h)
				_, err := Open(t.Context(), h.config())
				require.Error(t, err)
				require.NotErrorIs(t, err, ErrTaken)
				// The locks are free again.
				if info, err := os.Stat(h.path("state")); err == nil && info.IsDir() {
					cfg := h.config()
					a := &Agent{cfg: cfg, locks: map[string]*os.File{}}
					if err := a.lock(cfg.StateDir); err != nil {
						require.NotErrorIs(t, err, ErrTaken)
					}
					a.unlock()
				}
			})
		})
	}
}

func TestLockIsNoLink(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.write("elsewhere", "precious")
		require.NoError(t, os.MkdirAll(h.path("state"), 0o755))
		require.NoError(t, os.Symlink(h.path("elsewhere"), h.path("state/agent.lock")))
		_, err := Open(t.Context(), h.config())
		require.Error(t, err)
	})
}

// What an agent does when it is closed while it starts services by itself.
func TestCloseDuringAutostart(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web, `"autostart": true`, `"ready": {"type": "tcp", "address": "127.0.0.1:1"}`)
		h.open()
		h.is(web, service.Starting)
		h.close()
		require.NotContains(t, h.log.String(), "level=ERROR")
	})
}
