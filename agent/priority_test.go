package agent

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// With the agent start first those of the highest priority, all of one at once; the
// next wait until those run or have failed.
func TestAutostartByPriority(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		auto := `"autostart": true`
		h.define(core, auto, `"priority": 900`)
		h.define(mail, auto, `"priority": 900`, `"restart": {"policy": "never"}`)
		h.define(web, auto)
		h.define(db, auto)
		h.define(feed, auto, `"priority": 0`)
		h.host.Script(core, fake.Script{LaunchTime: 5 * time.Second})
		h.host.Script(mail, fake.Script{LaunchError: &service.Error{Op: "launch", Kind: service.Unlaunchable, Permanent: true}})
		h.host.Script(db, fake.Script{LaunchTime: 2 * time.Second})
		h.open()
		pass(4 * time.Second)
		h.is(mail, service.Crashed)
		for _, name := range []service.Name{web, db, feed} {
			require.Zero(t, h.host.Launches(name), "%v is before its turn", name)
		}
		pass(time.Second)
		h.is(core, service.Running)
		h.is(web, service.Running)
		require.Equal(t, service.Launching, h.status(db).Machine.State)
		require.Zero(t, h.host.Launches(feed))
		pass(2 * time.Second)
		h.is(db, service.Running)
		h.is(feed, service.Running)
	})
}

// Places go to those of the highest priority.
func TestPlacesByPriority(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.settings.MaxServices = 1
		h.define(web, `"autostart": true`)
		h.define(db, `"autostart": true`, `"priority": 501`)
		h.open()
		h.is(db, service.Running)
		h.is(web, service.Stopped)
		require.Contains(t, h.status(web).Error, "max_services")
	})
}
