package agent

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Other defaults leave alone what runs, restarts by the policy included, and count from
// the next start or restart that somebody asks for; until then both are told.
func TestDefaultsChangeUnderRunningServices(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.define(web)
		h.define(db, `"limits": {"memory_max": "1GiB"}`)
		h.define(mail)
		h.define(feed)
		h.reload()
		h.start(web)
		h.start(db)
		h.start(mail)
		set, err := h.SetLimits(t.Context(), mail, service.Limits{service.MemoryMax: service.Of(1 << 30)}, service.Warnings{}, false, "alice")
		require.NoError(t, err)
		require.False(t, set[service.MemoryMax].AtRestart.Set)
		require.Empty(t, h.Configuration().Older)
		before := h.status(web).Ref
		h.settings.DefaultMemory = service.Of(512 << 20)
		h.reload()

		limits := func(name service.Name) service.LimitReport {
			t.Helper()
			applied, err := h.Limits(t.Context(), name)
			require.NoError(t, err)
			return applied[service.MemoryMax]
		}
		older := []service.OlderDefault{{Service: web, Limit: service.MemoryMax, Has: service.Of(2 << 30), Now: service.Of(512 << 20)}}
		require.Equal(t, older, h.Configuration().Older)
		require.Equal(t, before, h.status(web).Ref)
		require.Equal(t, service.Of(2<<30), limits(web).Effective)
		require.Equal(t, service.Of(512<<20), limits(web).AtRestart)
		require.False(t, limits(db).AtRestart.Set, "its definition says it")
		require.False(t, limits(mail).AtRestart.Set, "somebody set it")
		require.Equal(t, service.Of(512<<20), limits(feed).Requested, "what does not run has the new one")

		h.reopen()
		require.Equal(t, older, h.Configuration().Older, "the next agent knows")
		h.crash(web)
		pass(h.status(web).Spec.Restart.Backoff)
		require.Equal(t, older, h.Configuration().Older, "a restart by the policy runs what ran")
		_, err = h.Restart(t.Context(), web, service.StopOptions{Actor: "alice"})
		require.NoError(t, err)
		require.Empty(t, h.Configuration().Older)
		require.Equal(t, service.Of(512<<20), limits(web).Effective)
		require.False(t, limits(web).AtRestart.Set)

		h.define(db, `"limits": {"memory_max": "768MiB"}`)
		h.reload()
		require.Equal(t, service.Of(768<<20), limits(db).AtRestart, "a changed definition is told likewise")
		require.Empty(t, h.Configuration().Older, "and is no default")
	})
}
