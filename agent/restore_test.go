package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// Services notice nothing of an agent that goes and of one that comes (I1, I2).
func TestAdoption(t *testing.T) {
	for range 3 { // whichever is faster, the adoption or the look for strangers
		inside(t, func(t *testing.T, h *house) {
			h.define(db, `"autostart": true`)
			h.open()
			h.register(web)
			h.start(web)
			h.is(db, service.Running)
			before := h.host.Processes()
			webBefore, dbBefore := h.status(web), h.status(db)
			for range 3 {
				h.reopen()
				h.is(web, service.Running)
				h.is(db, service.Running)
				require.Equal(t, before, h.host.Processes())
				require.Empty(t, h.doctor())
				require.Empty(t, h.log.String())
				for _, s := range []*service.Status{webBefore, dbBefore} {
					now := h.status(s.Name)
					require.Equal(t, s.PID(), now.PID())
					require.Equal(t, s.Machine, now.Machine)
					require.True(t, s.Started.Equal(now.Started))
					require.Equal(t, s.LastActor, now.LastActor)
					require.Equal(t, s.Applied, now.Applied)
				}
			}
			require.Equal(t, 1, h.host.Launches(web))
			require.Equal(t, 1, h.host.Launches(db))
			_, err := h.Restart(t.Context(), web, service.StopOptions{})
			require.NoError(t, err)
			h.stop(db)
			h.reopen()
			h.is(db, service.Stopped) // although it starts by itself: somebody stopped it
			require.Equal(t, 1, h.host.Launches(db))
		})
	}
}

func TestEndsWhileNoAgentWasThere(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.close()
		h.host.Crash(web, service.Exit{Code: 1})
		h.open()
		h.is(web, service.Backoff)
		require.Equal(t, service.Exit{Unknown: "agent_was_down"}, h.status(web).LastExit.Exit)
		pass(time.Second)
		h.is(web, service.Running)
		require.EqualValues(t, 2, h.status(web).Machine.Incarnation)
	})
}

// An exit that was seen is known to the next agent as well.
func TestExitIsKnownToTheNextAgent(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.host.Script(web, fake.Script{Children: 1, Unkillable: true}, fake.Script{})
		h.start(web)
		h.host.Crash(web, service.Exit{})
		synctest.Wait()
		h.is(web, service.Clearing)
		h.reopen()
		h.host.Free(web)
		pass(time.Minute)
		h.is(web, service.Stopped)
		require.Equal(t, service.Exit{}, h.status(web).LastExit.Exit)
		require.Equal(t, service.VerdictClean, h.status(web).LastExit.Verdict)
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Len(t, exits, 1)
	})
}

// After a reboot what was wanted runs again, and nothing else.
func TestReboot(t *testing.T) {
	for _, tmpfs := range []bool{true, false} { // whether the run directory is lost
		inside(t, func(t *testing.T, h *house) {
			auto, crashed := service.MustName("auto"), service.MustName("crashed")
			h.define(auto, `"autostart": true`)
			h.define(crashed, `"restart": {"policy": "never"}`)
			h.open()
			h.register(web)
			h.register(db)
			h.start(web)
			h.start(db)
			h.stop(db)
			h.stop(auto)
			h.start(crashed)
			h.crash(crashed)
			h.is(crashed, service.Crashed)
			h.reboot()
			if tmpfs {
				require.NoError(t, os.RemoveAll(h.path("run")))
			}
			h.open()
			h.is(web, service.Running)
			h.is(db, service.Stopped)
			h.is(auto, service.Running)
			h.is(crashed, service.Running)
			require.Empty(t, h.doctor())
			require.Equal(t, "boot-1", h.status(web).Ref.BootID)
			h.reboot()
			h.open()
			h.is(web, service.Running)
			h.is(db, service.Stopped)
		})
	}
}

// At a shutdown services may be told to end before the agent is, by whoever
// tells: what nobody asked to end for good comes back with the next boot.
func TestShutdownIsNoStop(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.host.Crash(web, service.Exit{})
		synctest.Wait()
		h.is(web, service.Stopped)
		h.reopen()
		h.is(web, service.Stopped) // the agent alone does not repeat it
		h.reboot()
		h.open()
		h.is(web, service.Running)
	})
}

// Records that can not be read are set aside and told of, and the rest lives.
func TestCorruptRecords(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.register(db)
		h.start(web)
		h.start(db)
		h.close()
		for _, file := range []string{"state/services/web.json", "run/services/web.json", "state/exits/web.json"} {
			h.write(file, `{"format": 1, "crc32c": 1, "body": {}}`)
		}
		before := h.host.Processes()
		h.open()
		h.is(db, service.Running)
		require.Equal(t, before, h.host.Processes())
		_, err := h.Status(web)
		refused(t, err, service.NotFound)
		require.Len(t, h.doctor(), 4, "three records and the stranger that they leave: %v", h.doctor())
		require.Contains(t, strings.Join(h.doctor(), "\n"), "its checksum is wrong; set aside as web.json.corrupt-")
		aside, err := filepath.Glob(h.path("*/*/web.json.corrupt-*"))
		require.NoError(t, err)
		require.Len(t, aside, 3)

		h.reload()
		require.Len(t, h.doctor(), 4, "a reload does not make that well")
		h.register(web)
		synctest.Wait()
		h.is(web, service.Running)
		require.Equal(t, before, h.host.Processes())
		h.reopen()
		require.Empty(t, h.doctor(), "what was set aside is not told of again")
	})
}

// That exit records were damaged is told in their stead: history does not say that
// the service never ended.
func TestCorruptExits(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.stop(web)
		h.start(web)
		h.stop(web)
		h.close()
		h.write("state/exits/web.json", `{"format": 1, "crc32c": 1, "body": {}}`)
		h.open()
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Len(t, exits, 1)
		require.EqualValues(t, 2, exits[0].Incarnation)
		require.Equal(t, recordDamaged, exits[0].Exit.Unknown)
		require.Len(t, h.doctor(), 1)
		h.start(web)
		h.stop(web)
		h.reopen()
		exits, err = h.Exits(web, 0)
		require.NoError(t, err)
		require.Len(t, exits, 2)
	})
}

// Of exit records that were damaged nobody can say, after a reboot, whether the latest
// incarnation ended before it.
func TestCorruptExitsAndAReboot(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.stop(web)
		h.close()
		h.write("state/exits/web.json", `{"format": 1, "crc32c": 1, "body": {}}`)
		h.reboot()
		h.open()
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Len(t, exits, 1)
		require.EqualValues(t, 1, exits[0].Incarnation)
		require.Equal(t, recordDamaged, exits[0].Exit.Unknown)
		require.Contains(t, exits[0].Message, "was damaged, or the host went down")
	})
}

// What a caller registered and is not valid any more, as after an upgrade.
func TestRegisteredDefinitionThatIsNotValidAnyMore(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.settings.MaxRestartAttempts = 5
		h.open()
		document := `{"name": "web", "exec": ["/bin/web"], "restart": {"max_backoff": "2s"}}`
		_, err := h.Register(t.Context(), "web.json", []byte(document), false, "alice")
		require.NoError(t, err)
		pid := h.start(web).PID()
		h.settings.RestartBackoff = 10 * time.Second // above that max_backoff
		h.reopen()
		require.Len(t, h.doctor(), 2, "%v", h.doctor())
		require.Contains(t, h.doctor()[0], "max_backoff")
		require.Equal(t, pid, h.status(web).PID())
		h.is(web, service.Running)
		h.stop(web)
		require.NoError(t, h.Unregister(t.Context(), web, "alice"))
		h.reopen()
		require.Empty(t, h.doctor())
		require.Empty(t, h.List())
	})
}

// A service whose definition went away while no agent was there.
func TestDefinitionThatIsGone(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.define(db)
		h.open()
		pid := h.start(web).PID()
		h.start(db)
		h.stop(db)
		h.close()
		h.remove("services.d/web.json")
		h.remove("services.d/db.json")
		h.open()
		require.Equal(t, pid, h.status(web).PID())
		h.is(web, service.Running)
		_, err := h.Status(db)
		refused(t, err, service.NotFound)
		require.Len(t, h.doctor(), 1)
		h.reopen()
		require.Equal(t, pid, h.status(web).PID())
		h.stop(web)
		h.reload()
		require.Empty(t, h.List())

		h.define(db) // it comes back, with what is remembered of it
		h.reload()
		exits, err := h.Exits(db, 0)
		require.NoError(t, err)
		require.Len(t, exits, 1)
		require.NotNil(t, h.status(db).LastExit)
		h.start(db)
		require.EqualValues(t, 2, h.status(db).Machine.Incarnation)
		h.stop(db)
		exits, err = h.Exits(db, 0)
		require.NoError(t, err)
		require.Len(t, exits, 2)
	})
}

// A definition that comes after another of the same name went away while no
// agent was there inherits nothing of it.
func TestVanishedAndDefinedAnew(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.define(db)
		h.open()
		h.start(web)
		h.start(db)
		_, err := h.SetLimits(t.Context(), web, limits(pids, 9), service.Warnings{}, false, "dora")
		require.NoError(t, err)
		h.reboot()
		h.remove("services.d/web.json")
		h.write("services.d/db.json", "{") // can not be read, and has not gone
		h.open()
		require.Empty(t, h.List())
		h.close()
		h.define(web, `"description": "another one"`)
		h.define(db)
		h.boots++
		h.boot("later")
		h.open()
		h.is(web, service.Stopped)
		h.is(db, service.Running)
		h.start(web)
		applied, err := h.Limits(t.Context(), web)
		require.NoError(t, err)
		require.NotEqual(t, service.Of(9), applied[service.PidsMax].Applied)
	})
}

// A retry that was due when a definition went away is none of the next one of
// that name, which starts by itself if it says so.
func TestRetryOfADefinitionThatIsGone(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.define(db)
		h.open()
		for _, name := range []service.Name{web, db} {
			h.start(name)
			h.crash(name)
			h.is(name, service.Backoff)
		}
		h.close()
		h.remove("services.d/web.json")
		h.remove("services.d/db.json")
		h.open()
		require.Empty(t, h.List())
		h.define(web, `"description": "another one"`)
		h.reload()
		h.is(web, service.Stopped)
		h.close()
		h.define(db, `"autostart": true`)
		h.open()
		pass(time.Hour)
		h.is(web, service.Stopped)
		h.is(db, service.Running)
		require.Equal(t, 1, h.host.Launches(web))
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Len(t, exits, 1)
	})
}

// A definition that can not be read now takes no retry away, as with a reload,
// and leaves none behind.
func TestRetryOfADefinitionThatIsHidden(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.open()
		h.start(web)
		h.crash(web)
		h.close()
		h.write("services.d/web.json", "{")
		h.open()
		h.is(web, service.Backoff)
		h.define(web)
		h.reload()
		pass(time.Second)
		h.is(web, service.Running)
		h.stop(web)
		h.reopen()
		pass(time.Hour)
		h.is(web, service.Stopped)
		require.Equal(t, 2, h.host.Launches(web))
	})
}

// Limits are dropped that were set over a file which changed, whether an agent
// saw that or not.
func TestFileThatChangedWhileNoAgentWasThere(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.open()
		_, err := h.SetLimits(t.Context(), web, limits(pids, 9), service.Warnings{}, false, "dora")
		require.NoError(t, err)
		h.reopen()
		h.start(web)
		holds := func() service.Quota {
			applied, err := h.Limits(t.Context(), web)
			require.NoError(t, err)
			return applied[service.PidsMax].Applied
		}
		require.Equal(t, service.Of(9), holds())
		h.stop(web)
		h.close()
		require.NotContains(t, h.log.String(), "dropped")
		h.define(web, `"limits": {"pids_max": 77}`)
		h.open()
		require.Contains(t, h.log.String(), "dropped")
		h.start(web)
		require.Equal(t, service.Of(77), holds())
	})
}

// A file that says the same in other words, and one under other settings, is no
// other definition.
func TestFileThatIsLaidOutAnew(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		layout := func(space string) string {
			return strings.ReplaceAll(doc(web, `"limits": {"pids_max": 100}`), " ", space)
		}
		h.write("services.d/web.json", layout(" "))
		h.open()
		h.setLimits(web, limits(pids, 50))
		h.write("services.d/web.json", layout("  "))
		h.reload()
		d, err := h.Definition(web)
		require.NoError(t, err)
		require.Equal(t, layout("  "), string(d.Document))
		require.EqualValues(t, 1, d.Generation)
		h.reopen()
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax), "while an agent was there")
		h.setLimits(web, limits(pids, 40))
		h.close()
		h.write("services.d/web.json", layout("\t"))
		h.settings.ShutdownTimeout = time.Second
		h.open()
		require.Equal(t, service.Of(40), h.holds(web, service.PidsMax), "and while none was")

		require.NoError(t, h.want(web, func(w *skirnir.Wanted) { w.Over = digest([]byte(layout("\t"))) }))
		h.reopen()
		require.Equal(t, service.Of(40), h.holds(web, service.PidsMax), "as an earlier version wrote it")
		require.Empty(t, h.log.String())
	})
}

// An autostart that is refused is told, until the service is started.
func TestAutostartThatIsRefused(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web, `"autostart": true`, `"limits": {"cpu_percent": 800}`)
		h.open()
		require.Contains(t, h.status(web).Error, "more than this host has")
		require.Contains(t, strings.Join(h.doctor(), "\n"), "web was to be started")
		require.Contains(t, h.reasons(web), "autostart failed")
		h.define(web)
		h.reload()
		h.start(web)
		require.Empty(t, h.doctor())
	})
}

// A launch that the agent did not live through is made again, whether its
// definition is there or not.
func TestDeathDuringLaunch(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.open()
		h.host.Script(web, fake.Script{LaunchTime: time.Minute}, fake.Script{})
		start := later(func() error { _, err := h.Start(t.Context(), web, service.StartOptions{}); return err })
		h.close()
		refused(t, <-start, service.HostUnavailable)
		h.open()
		h.is(web, service.Running)
		require.Equal(t, 1, h.host.Runs(web))
	})
}

// other is a backend of another name on the same host.
type other struct{ backends.Backend }

func (other) Name() string { return "other" }

func (o other) Plan(l service.Launch) service.Ref {
	ref := o.Backend.Plan(l)
	ref.Backend = o.Name()
	return ref
}

// An agent that does not offer the backend by which a service was launched can
// neither see to it nor start a second one beside it.
func TestBackendThatIsNotOfferedAnyMore(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		pid := h.start(web).PID()
		usual := h.backends
		h.backends = []backends.Backend{other{fake.New(fake.Config{})}}
		h.reopen()
		require.Equal(t, service.Adopting, h.status(web).Machine.State)
		require.Contains(t, h.status(web).Error, "launched by the fake backend")
		_, err := h.Start(t.Context(), web, service.StartOptions{})
		refused(t, err, service.AlreadyRunning)
		stop := later(func() error { _, err := h.Stop(t.Context(), web, service.StopOptions{}); return err })
		pass(time.Minute)
		refused(t, <-stop, service.HostUnavailable, "does not offer")
		require.Equal(t, 1, h.host.IncarnationsAlive(web))
		require.Equal(t, pid, h.host.Processes()[0].PID)

		h.backends = usual
		h.reopen()
		pass(time.Minute)
		h.is(web, service.Stopped) // as was asked
	})
	opened(t, func(t *testing.T, h *house) { // while it waits for its next attempt
		h.register(web, `"restart": {"backoff": "1m"}`)
		h.start(web)
		h.crash(web)
		h.is(web, service.Backoff)
		h.backends = []backends.Backend{}
		h.reopen()
		pass(time.Hour)
		h.is(web, service.Crashed)
		require.Equal(t, 1, h.host.Launches(web))
		require.Len(t, h.doctor(), 1)
	})
}

func TestAutostart(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web, `"autostart": true`)
		h.define(db, `"autostart": true`)
		h.host.Script(db, fake.Script{LaunchError: &service.Error{Op: "launch", Service: db, Kind: service.Unlaunchable, Permanent: true}})
		h.open()
		h.is(web, service.Running)
		require.Equal(t, "autostart", h.status(web).LastActor)
		h.is(db, service.Crashed)
		require.Contains(t, h.log.String(), "autostart failed")
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "db has crashed")
		h.reopen()
		h.is(db, service.Crashed)
		require.Equal(t, 1, h.host.Launches(db), "not in this boot")
	})
}
