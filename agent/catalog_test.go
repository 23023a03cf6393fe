package agent

import (
	"context"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func TestRegister(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		change := h.register(web, `"description": "Front page"`)
		require.Equal(t, service.Change{Service: web, Action: service.ActionAdded, Effect: service.ReachNextStart}, change)
		d, err := h.Definition(web)
		require.NoError(t, err)
		require.Equal(t, service.Definition{
			Name: web, Document: []byte(doc(web, `"description": "Front page"`)), Source: service.SourceAPI, Generation: 1, Changed: time.Now(),
		}, d)
		s := h.status(web)
		require.Equal(t, "Front page", s.Spec.Description)
		require.Equal(t, service.SourceAPI, s.Source)
		require.EqualValues(t, 1, s.Generation)
		require.Equal(t, "alice", s.LastActor)

		change = h.register(web, `"description": "Front page"`)
		require.Equal(t, service.ActionUnchanged, change.Action)
		require.Equal(t, service.ReachNone, change.Effect)

		_, err = h.Register(t.Context(), "web.json", []byte(doc(web, `"umask": "077"`)), false, "alice")
		refused(t, err, service.Exists, "description", "umask")
		require.Equal(t, "Front page", h.status(web).Spec.Description)

		change = h.register(web, `"umask": "077"`)
		require.Equal(t, service.ActionChanged, change.Action)
		require.ElementsMatch(t, []string{"description", "umask"}, change.Fields)
		require.EqualValues(t, 2, h.status(web).Generation)
		require.Equal(t, []string{"added", "changed"}, h.reasons(web, service.NoticeRegistered))

		h.register(db)
		var names []service.Name
		for _, d := range h.Definitions() {
			names = append(names, d.Name)
		}
		require.Equal(t, []service.Name{db, web}, names)

		h.reopen()
		again, err := h.Definition(web)
		require.NoError(t, err)
		require.EqualValues(t, 2, again.Generation)
		require.Equal(t, doc(web, `"umask": "077"`), string(again.Document))
		require.EqualValues(t, 0o077, h.status(web).Spec.Umask)
	})
}

func TestRegisterRefuses(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		e := fake.Everything()
		e.Limits[service.IOWeight] = false
		h.enforces = &e
		h.define(db)
		h.open()
		before := h.tree()
		_, err := h.Register(t.Context(), "x.json", []byte(`{"name": "web", "exec": ["relative"], "colour": 1}`), false, "alice")
		refused(t, err, service.Invalid, "x.json:1:", "colour", "not an absolute path")
		_, err = h.Register(t.Context(), "db.json", []byte(doc(db)), true, "alice")
		refused(t, err, service.Conflict, "services.d/db.json defines it")
		_, err = h.Register(t.Context(), "web.json", []byte(doc(web, `"limits": {"cpu_percent": 300}`)), true, "alice")
		refused(t, err, service.Invalid, "cpu_percent")
		require.Equal(t, service.ReasonBadDefinition, service.ReasonOf(err))
		_, err = h.Register(t.Context(), "web.json", []byte(doc(web, `"limits": {"io_weight": 50}`)), true, "alice")
		refused(t, err, service.Unenforceable, "io_weight")
		_, err = h.Register(t.Context(), "web.json", []byte(doc(web, `"launch": "scope"`)), true, "alice")
		refused(t, err, service.Unenforceable, "systemd")
		require.Equal(t, before, h.tree())
		require.Len(t, h.List(), 1)
	})
}

// Of many who register the same new name, one succeeds.
func TestRegisterAtOnce(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		var added atomic.Int32
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				document := doc(web, `"umask": "`+[]string{"022", "027", "077"}[i%3]+`"`)
				change, err := h.Register(t.Context(), "web.json", []byte(document), false, "alice")
				switch {
				case err == nil && change.Action == service.ActionAdded:
					added.Add(1)
				case err != nil && service.KindOf(err) != service.Exists:
					t.Error(err)
				}
			})
		}
		all.Wait()
		require.EqualValues(t, 1, added.Load())
		require.EqualValues(t, 1, h.status(web).Generation)
	})
}

// What runs goes on as it was started (C11).
func TestRegisterWhileItRuns(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		pid := h.start(web).PID()
		h.register(web, `"working_directory": "/srv"`, `"restart": {"backoff": "1s"}`)
		require.Equal(t, pid, h.status(web).PID())
		h.crash(web)
		pass(time.Second)
		h.is(web, service.Running)
		h.stop(web)
		h.start(web)
		require.Equal(t, 3, h.host.Launches(web))
	})
}

// Callers can not have the agent grow without end.
func TestMaxDefinitions(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.settings.MaxDefinitions = 2
		h.define(db)
		h.open()
		file := func(name string) service.File {
			return service.File{Name: name, Content: []byte(doc(service.MustName(name)))}
		}
		_, err := h.Apply(t.Context(), []service.File{file("a"), file("b"), file("c")}, service.ApplyOptions{DryRun: true}, "alice")
		refused(t, err, service.Exhausted, "3 would come", "max_definitions")
		_, err = h.Apply(t.Context(), []service.File{file("a"), file("b")}, service.ApplyOptions{}, "alice")
		require.NoError(t, err)
		_, err = h.Register(t.Context(), "web", []byte(doc(web)), false, "alice")
		refused(t, err, service.Exhausted, "2 definitions are registered")
		_, err = h.Register(t.Context(), "a", []byte(doc(service.MustName("a"), `"umask": "077"`)), true, "alice")
		require.NoError(t, err, "to replace one adds none")
		require.NoError(t, h.Unregister(t.Context(), service.MustName("b"), "alice"))
		h.register(web)
	})
}

func TestUnregister(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		refused(t, h.Unregister(t.Context(), web, "alice"), service.NotFound)
		h.register(web)
		h.start(web)
		refused(t, h.Unregister(t.Context(), web, "alice"), service.Conflict, "stop it first")
		h.stop(web)
		require.NoError(t, h.Unregister(t.Context(), web, "alice"))
		_, err := h.Status(web)
		refused(t, err, service.NotFound)
		_, err = h.Definition(web)
		refused(t, err, service.NotFound)
		_, err = h.Exits(web, 0)
		refused(t, err, service.NotFound)
		_, err = h.Start(t.Context(), web, service.StartOptions{})
		refused(t, err, service.NotFound)
		_, err = h.LogFile(web)
		refused(t, err, service.NotFound)
		for path := range h.tree() {
			require.NotContains(t, path, "web.json")
		}
		require.Equal(t, []string{"asked"}, h.reasons(web, service.NoticeUnregistered))

		h.register(web)
		require.EqualValues(t, 1, h.status(web).Generation)
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Empty(t, exits)
		h.start(web)
		h.stop(web)
		exits, _ = h.Exits(web, 0)
		require.Len(t, exits, 1)
	})
}

// A caller that goes away leaves nothing half forgotten.
func TestUnregisterWhoseCallerGoesAway(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 20 { // which of two that are ready comes first is left to chance
			h.register(web)
			require.NoError(t, h.Unregister(ctx, web, "alice"))
			require.Empty(t, h.List())
		}
		h.register(web)
		h.start(web)
	})
}

// Limits are not kept of a service that was forgotten meanwhile.
func TestSetLimitsWhileItIsForgotten(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		err := h.wantOf("keep limits of", web, func(*definition, *skirnir.Wanted) { t.Error("it is not registered") })
		refused(t, err, service.NotFound)
		for path := range h.tree() {
			require.NotContains(t, path, "web.json")
		}
	})
}

func TestUnregisterOfTheHost(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.open()
		refused(t, h.Unregister(t.Context(), web, "alice"), service.Conflict, "web.json defines it")
	})
}

func TestApply(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		files := []service.File{
			{Name: "web.json", Content: []byte(doc(web, `"umask": "077"`))},
			{Name: "db.json", Content: []byte(doc(db))},
		}
		want := []service.Change{
			{Service: web, Action: service.ActionChanged, Fields: []string{"umask"}, Effect: service.ReachNextStart},
			{Service: db, Action: service.ActionAdded, Effect: service.ReachNextStart},
		}
		before := h.tree()
		changes, err := h.Apply(t.Context(), files, service.ApplyOptions{DryRun: true}, "alice")
		require.NoError(t, err)
		require.Equal(t, want, changes)
		require.Equal(t, before, h.tree(), "a dry run")
		require.Len(t, h.Definitions(), 1)

		changes, err = h.Apply(t.Context(), files, service.ApplyOptions{}, "alice")
		require.NoError(t, err)
		require.Equal(t, want, changes)
		require.Len(t, h.Definitions(), 2)
		require.EqualValues(t, 0o077, h.status(web).Spec.Umask)

		changes, err = h.Apply(t.Context(), files, service.ApplyOptions{}, "alice")
		require.NoError(t, err)
		for _, c := range changes {
			require.Equal(t, service.ActionUnchanged, c.Action)
		}
	})
}

// Several that are registered need each other in any order, and what is there is not
// replaced unasked.
func TestRegisterSeveral(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		with := func(replace bool) service.ApplyOptions { return service.ApplyOptions{Replace: &replace} }
		files := []service.File{{Name: "web.json", Content: []byte(doc(web, requires(db)))}, {Name: "db.json", Content: []byte(doc(db))}}
		changes, err := h.Apply(t.Context(), files, with(false), "alice")
		require.NoError(t, err)
		require.Len(t, changes, 2)
		require.Equal(t, service.ActionAdded, changes[1].Action)
		_, err = h.Apply(t.Context(), files, with(false), "alice")
		require.NoError(t, err, "it is the same")

		before := h.tree()
		files = []service.File{{Name: "cache.json", Content: []byte(doc(cache))}, {Name: "db.json", Content: []byte(doc(db, `"umask": "077"`))}}
		_, err = h.Apply(t.Context(), files, with(false), "alice")
		refused(t, err, service.Exists, "cannot register db: it is registered already, and differs in umask")
		files = append(files, service.File{Name: "w.json", Content: []byte(`{"name": "web", "exec": []}`)})
		_, err = h.Apply(t.Context(), files, with(true), "alice")
		refused(t, err, service.Invalid, "cannot register: w.json:1:")
		require.Equal(t, before, h.tree(), "all, or none")
		_, err = h.Apply(t.Context(), files[:2], with(true), "alice")
		require.NoError(t, err)
		require.Len(t, h.Definitions(), 3)
	})
}

// All or none.
func TestApplyOfSomethingFaulty(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(service.MustName("host"))
		h.open()
		before := h.tree()
		good := service.File{Name: "db.json", Content: []byte(doc(db))}
		for name, tt := range map[string]struct {
			file service.File
			say  []string
		}{
			"faults":                {service.File{Name: "w.json", Content: []byte(`{"name": "web", "exec": []}`)}, []string{"w.json:1:", "exec"}},
			"twice":                 {service.File{Name: "again.json", Content: []byte(doc(db))}, []string{"again.json", "db is defined in db.json, too"}},
			"too much for the host": {service.File{Name: "w.json", Content: []byte(doc(web, `"limits": {"cpu_percent": 300}`))}, []string{"w.json", "cpu_percent"}},
		} {
			_, err := h.Apply(t.Context(), []service.File{good, tt.file}, service.ApplyOptions{}, "alice")
			refused(t, err, service.Invalid, tt.say...)
			require.Equal(t, service.ReasonBadDefinition, service.ReasonOf(err), name)
		}
		// What is no fault of the definition is told as what it is.
		ofHost := service.File{Name: "h.json", Content: []byte(doc(service.MustName("host")))}
		_, err := h.Apply(t.Context(), []service.File{good, ofHost}, service.ApplyOptions{}, "alice")
		refused(t, err, service.Conflict, "cannot apply host", "change that file instead")
		require.Equal(t, before, h.tree())
		require.Len(t, h.Definitions(), 1)
	})
}

// A disk that fails half-way leaves all as it was.
func TestApplyOnAFailingDisk(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		require.NoError(t, os.Mkdir(h.path("state/services/db.json"), 0o755)) // nothing can be renamed over it
		_, err := h.Apply(t.Context(), []service.File{
			{Name: "cache.json", Content: []byte(doc(service.MustName("cache")))},
			{Name: "web.json", Content: []byte(doc(web, `"umask": "077"`))},
			{Name: "db.json", Content: []byte(doc(db))},
		}, service.ApplyOptions{}, "alice")
		refused(t, err, service.HostUnavailable, "db.json")
		for range 2 {
			require.Len(t, h.Definitions(), 1)
			require.EqualValues(t, 0o022, h.status(web).Spec.Umask)
			require.EqualValues(t, 1, h.status(web).Generation)
			require.NoError(t, os.RemoveAll(h.path("state/services/db.json")))
			h.reopen() // and so it is on disk
		}
		_, err = h.Register(t.Context(), "db.json", []byte(doc(db)), false, "alice")
		require.NoError(t, err)
	})
}

func TestReload(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.define(db)
		h.open()
		pid := h.start(web).PID()

		cache := service.MustName("cache")
		h.define(cache, `"autostart": true`)
		h.define(web, `"description": "Front page"`)
		h.remove("services.d/db.json")
		h.reload()
		_, err := h.Status(db)
		refused(t, err, service.NotFound)
		h.is(cache, service.Stopped)
		require.Equal(t, h.path("services.d/cache.json"), h.status(cache).Source)
		require.Equal(t, "Front page", h.status(web).Spec.Description)
		require.EqualValues(t, 2, h.status(web).Generation)
		require.Equal(t, pid, h.status(web).PID(), "what runs is not touched")

		sequence := h.registry.Sequence()
		h.reload()
		require.Equal(t, sequence, h.registry.Sequence(), "nothing changed, nobody is told")
		require.Empty(t, h.doctor())
	})
}

// A service that runs outlives its definition (C5).
func TestReloadOfARunningServiceWhoseFileIsGone(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.open()
		pid := h.start(web).PID()
		h.remove("services.d/web.json")
		h.reload()
		h.is(web, service.Running)
		require.Equal(t, pid, h.status(web).PID())
		require.Contains(t, h.reasons(web), "orphaned")
		require.Empty(t, h.reasons(web, service.NoticeUnregistered), "it is still there")
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "definition")
		said := h.log.String()
		h.reload()
		require.Equal(t, said, h.log.String(), "said once")

		h.crash(web)
		pass(time.Second)
		h.is(web, service.Running)

		h.define(web) // it is back
		h.reload()
		require.Empty(t, h.doctor())
		require.Equal(t, h.path("services.d/web.json"), h.status(web).Source)
		h.is(web, service.Running)

		h.remove("services.d/web.json")
		h.reload()
		h.stop(web)
		h.reload()
		_, err := h.Status(web)
		refused(t, err, service.NotFound)
	})
}

// A caller may take over what has lost its definition.
func TestRegisterWhatHasLostItsDefinition(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.open()
		pid := h.start(web).PID()
		h.remove("services.d/web.json")
		h.reload()
		change := h.register(web)
		require.Equal(t, service.ActionAdded, change.Action)
		require.Empty(t, h.doctor())
		h.reopen()
		require.Equal(t, pid, h.status(web).PID())
		require.Equal(t, service.SourceAPI, h.status(web).Source)
	})
}

// A file that became faulty leaves its service as it was.
func TestReloadOfAFaultyFile(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web, `"description": "good"`)
		h.define(db)
		h.open()
		h.write("services.d/web.json", `{"name": "web", "exec": `)
		h.reload()
		require.Equal(t, "good", h.status(web).Spec.Description)
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "web.json:1:")
		require.Contains(t, h.log.String(), "definition refused")
		h.start(web)

		h.define(web, `"description": "mended"`)
		h.reload()
		require.Equal(t, "mended", h.status(web).Spec.Description)
		require.Empty(t, h.doctor())

		// What can not be read at all is no reason to forget anything.
		require.NoError(t, os.Rename(h.path("services.d"), h.path("aside")))
		h.write("services.d", "")
		h.reload()
		require.Len(t, h.List(), 2)
		require.Len(t, h.doctor(), 1)
	})
}

func TestReloadTakesSettings(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.open()
		h.register(db)
		require.Equal(t, 10*time.Second, h.status(web).Spec.Stop.Timeout)
		h.settings.ShutdownTimeout = 3 * time.Second
		h.settings.MaxServices = 1
		h.reload()
		require.Equal(t, 3*time.Second, h.status(web).Spec.Stop.Timeout)
		require.Equal(t, 3*time.Second, h.status(db).Spec.Stop.Timeout)
		require.EqualValues(t, 1, h.status(web).Generation, "its definition is what it was")
		require.Contains(t, string(h.Configuration().Document), `"shutdown_timeout_ms": 3000`)
		h.start(web)
		_, err := h.Start(t.Context(), db, service.StartOptions{})
		refused(t, err, service.Exhausted)
	})
}

// Where both define a name, the host's file counts, for as long as it is there.
func TestHostOverCaller(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"description": "caller's"`)
		h.define(web, `"description": "host's"`)
		h.reload()
		require.Equal(t, "host's", h.status(web).Spec.Description)
		h.reopen()
		require.Equal(t, "host's", h.status(web).Spec.Description)
		h.start(web)
		h.remove("services.d/web.json")
		h.reload()
		require.Equal(t, "caller's", h.status(web).Spec.Description)
		require.Equal(t, service.SourceAPI, h.status(web).Source)
		h.is(web, service.Running)
		h.reopen()
		require.Equal(t, "caller's", h.status(web).Spec.Description)
		require.Empty(t, h.doctor())
	})
}

func TestFaultyFileAtTheStart(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(db)
		h.write("services.d/web.json", strings.Replace(doc(web), "exec", "exce", 1))
		h.open()
		require.Len(t, h.List(), 1)
		require.Len(t, h.doctor(), 2)
		require.Contains(t, h.doctor()[1], `did you mean "exec"?`)
	})
}
