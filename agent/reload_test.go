package agent

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/test/unprivileged"
)

// A directory of definitions that is gone has none; what runs runs on (C5).
func TestReloadWhenTheDirectoryIsGone(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.define(db)
		h.open()
		pid := h.start(web).PID()
		require.NoError(t, os.RemoveAll(h.path("services.d")))
		h.reload()
		h.is(web, service.Running)
		require.Equal(t, pid, h.status(web).PID())
		require.Contains(t, h.reasons(web), "orphaned")
		require.Len(t, h.doctor(), 1)
		_, err := h.Status(db)
		refused(t, err, service.NotFound)

		h.define(web)
		h.define(db)
		h.reload()
		h.is(web, service.Running)
		require.Equal(t, pid, h.status(web).PID())
		h.is(db, service.Stopped)
		require.Empty(t, h.doctor())
		require.Equal(t, 1, h.host.Launches(web))
	})
}

// Of many reloads at once while services come and go, the last one counts, and
// nothing that runs is touched (C10).
func TestReloadStorm(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.define(db)
		h.open()
		before := h.start(web)
		var storm sync.WaitGroup
		storm.Go(func() {
			for range 100 {
				h.start(db)
				time.Sleep(5 * time.Millisecond)
				h.stop(db)
			}
		})
		storm.Go(func() {
			for n := range 1000 {
				if n%50 == 49 {
					h.define(web, fmt.Sprintf(`"description": "round %d"`, n))
				}
				h.Reload(t.Context(), h.settings, nil)
				time.Sleep(time.Millisecond)
			}
		})
		storm.Wait()
		h.is(web, service.Running)
		after := h.status(web)
		require.Equal(t, before.PID(), after.PID())
		require.Equal(t, before.Machine.Incarnation, after.Machine.Incarnation)
		require.Equal(t, 1, h.host.Launches(web))
		require.Equal(t, 100, h.host.Launches(db))
		require.Equal(t, "round 999", after.Spec.Description)
		require.EqualValues(t, 21, after.Generation)
		require.Empty(t, h.doctor())
	})
}

// A file that can not be read freezes its service and no other (C12).
func TestReloadOfAnUnreadableFile(t *testing.T) {
	if !unprivileged.User(t) {
		return
	}
	inside(t, func(t *testing.T, h *house) {
		h.define(web, `"description": "known"`)
		h.open()
		pid := h.start(web).PID()
		h.define(web, `"description": "changed"`)
		require.NoError(t, os.Chmod(h.path("services.d/web.json"), 0))
		h.define(db)
		h.reload()
		h.is(web, service.Running)
		require.Equal(t, pid, h.status(web).PID())
		require.Equal(t, "known", h.status(web).Spec.Description)
		require.Equal(t, h.path("services.d/web.json"), h.status(web).Source, "it has not lost its definition")
		h.start(db)
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "web.json: permission denied")

		require.NoError(t, os.Chmod(h.path("services.d/web.json"), 0o644))
		h.reload()
		require.Equal(t, "changed", h.status(web).Spec.Description)
		require.Equal(t, pid, h.status(web).PID())
		require.Empty(t, h.doctor())
	})
}
