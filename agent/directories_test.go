package agent

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// An end of which the record in the run directory could not be written was what its
// exit record says, to the next agent too: a clean one calls for no restart.
func TestEndWhileTheRunDirectoryWasFull(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web) // on-failure
		h.start(web)
		record := h.path("run/services/web.json")
		was, err := os.ReadFile(record)
		require.NoError(t, err)
		h.block("run/services/web.json")
		h.host.Crash(web, service.Exit{})
		pass(time.Minute)
		h.is(web, service.Stopped)
		h.unblock("run/services/web.json")
		require.NoError(t, os.WriteFile(record, was, 0o600))
		h.reopen()
		pass(time.Hour)
		h.is(web, service.Stopped)
		require.Equal(t, 1, h.host.Launches(web))
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Len(t, exits, 1)
		require.Equal(t, service.Exit{}, exits[0].Exit)
	})
}

// A change that was refused holds up no restart by the policy.
func TestRefusedChangeHoldsUpNoRestart(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"restart": {"policy": "always"}`)
		h.start(web)
		h.block("state/services/web.json")
		_, err := h.SetLimits(t.Context(), web, limits(pids, 50), service.Warnings{}, false, "dora")
		refused(t, err, service.HostUnavailable, "web.json")
		h.crash(web)
		pass(time.Minute)
		h.is(web, service.Running)
		require.EqualValues(t, 2, h.status(web).Machine.Incarnation)
		h.unblock("state/services/web.json")
		_, err = h.SetLimits(t.Context(), web, limits(memory, 64<<20), service.Warnings{}, false, "dora")
		require.NoError(t, err)
		h.reopen()
		require.Equal(t, limits(memory, 64<<20), h.wantedOf(web).Limits, "and what the disk may hold of it is written over")
	})
}

// A directory that can not be made anew holds up only what needs that one.
func TestOneDirectoryHoldsUpNoOther(t *testing.T) {
	for _, missing := range []string{"log", "state"} {
		t.Run(missing, func(t *testing.T) {
			opened(t, func(t *testing.T, h *house) {
				h.register(web, `"restart": {"policy": "always"}`, `"log": "null"`)
				h.start(web)
				h.lose("run", missing)
				require.NoError(t, os.WriteFile(h.path(missing), nil, 0o600)) // it can not be made
				h.crash(web)
				pass(time.Hour)
				h.is(web, service.Running)
				require.FileExists(t, h.path("run/services/web.json"))
				require.NoError(t, os.Remove(h.path(missing)))
			})
		})
	}
}

// A directory in one of ours that was removed alone is made anew with all that is known.
func TestAPartIsFilledAnew(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"restart": {"policy": "always"}`)
		h.register(db)
		h.start(web)
		h.lose("state/services")
		h.stop(web) // a write makes it anew
		pass(time.Hour)
		h.reopen()
		_, err := h.Status(db)
		require.NoError(t, err)
	})
}
