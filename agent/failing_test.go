package agent

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// block makes a record unwritable and unremovable: a directory is in its place.
func (h *house) block(path string) {
	h.t.Helper()
	require.NoError(h.t, os.RemoveAll(h.path(path)))
	h.write(path+"/x", "")
}

func (h *house) unblock(path string) {
	h.t.Helper()
	require.NoError(h.t, os.RemoveAll(h.path(path)))
}

func TestStartThatCanNotBeRecorded(t *testing.T) {
	for _, record := range []string{"run/services/web.json", "state/services/web.json"} {
		opened(t, func(t *testing.T, h *house) {
			h.register(web, `"restart": {"policy": "never"}`)
			h.block(record)
			_, err := h.Start(t.Context(), web, service.StartOptions{})
			refused(t, err, service.HostUnavailable, "web.json", "nothing was begun")
			require.Zero(t, h.host.Launches(web))
			h.unblock(record)
			h.start(web)
		})
	}
}

// What a write that failed may have left on disk all the same is not taken for what
// memory says (I4, I5): here it was renamed into place, and its directory not synced.
func TestStopAfterAStartThatWasHalfRecorded(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		record := h.path("state/services/web.json")
		registered, err := os.ReadFile(record)
		require.NoError(t, err)
		h.start(web)
		written, err := os.ReadFile(record)
		require.NoError(t, err)
		h.stop(web)
		h.close()
		require.NoError(t, os.WriteFile(record, registered, 0o600))
		h.lose("run")
		h.open()
		h.block("state/services/web.json")
		_, err = h.Start(t.Context(), web, service.StartOptions{})
		refused(t, err, service.HostUnavailable, "nothing was begun")
		h.unblock("state/services/web.json")
		require.NoError(t, os.WriteFile(record, written, 0o600))
		_, err = h.Stop(t.Context(), web, service.StopOptions{})
		require.NoError(t, err)
		h.reboot()
		h.open()
		pass(time.Hour)
		h.is(web, service.Stopped)
	})
}

// A registration that was refused does not come back with the next agent, whatever
// the failed write has left.
func TestRegistrationThatWasHalfRecorded(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(db)
		h.block("state/services/web.json")
		_, err := h.Register(t.Context(), "web.json", []byte(doc(web)), false, "alice")
		refused(t, err, service.HostUnavailable, "web.json")
		require.True(t, h.torn[web])
		h.unblock("state/services/web.json")
		h.reopen()
		_, err = h.Status(web)
		refused(t, err, service.NotFound)
		h.is(db, service.Stopped)
	})
}

// A directory that somebody removes under the agent is made anew, and is the agent's
// alone.
func TestDirectoriesRemovedUnderTheAgent(t *testing.T) {
	for _, dir := range []string{"run", "state", "log"} {
		for _, made := range []bool{false, true} { // by somebody else
			opened(t, func(t *testing.T, h *house) {
				h.register(web, `"restart": {"policy": "always"}`)
				h.start(web)
				for incarnation := uint64(2); incarnation < 4; incarnation++ {
					h.lose(dir)
					if made {
						require.NoError(t, os.Mkdir(h.path(dir), 0o750))
					}
					h.crash(web)
					pass(time.Minute)
					h.is(web, service.Running)
					require.EqualValues(t, incarnation, h.status(web).Machine.Incarnation)
				}
				info, err := os.Stat(h.path(dir))
				require.NoError(t, err)
				require.Equal(t, os.FileMode(0o750), info.Mode().Perm())
				require.Equal(t, 2, strings.Count(h.log.String(), "a directory was removed under the agent"))
				require.Empty(t, h.doctor())
				for _, lock := range []string{"run/agent.lock", "state/agent.lock", "log/logs.lock"} {
					f, err := os.Open(h.path(lock))
					require.NoError(t, err)
					require.ErrorIs(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK, lock)
					require.NoError(t, f.Close())
				}
				_, err = Open(t.Context(), h.config())
				require.ErrorIs(t, err, ErrTaken)
				h.stop(web)
			})
		}
	}
}

// What was known when a directory was removed is written anew with it.
func TestDirectoriesAreFilledAnew(t *testing.T) {
	for _, dir := range []string{"run", "state"} {
		opened(t, func(t *testing.T, h *house) {
			idle, ended := service.MustName("idle"), service.MustName("ended")
			for _, name := range []service.Name{web, db, idle, ended} {
				h.register(name, `"restart": {"policy": "always"}`)
			}
			for _, name := range []service.Name{web, idle, ended} {
				h.start(name)
			}
			h.stop(ended)
			before := h.tree()
			h.lose(dir)
			h.crash(web)
			pass(time.Minute)
			for path := range before {
				if filepath.Base(path) != "events.ring" { // which goes on without a name
					require.FileExists(t, path)
				}
			}
			h.reopen()
			pass(time.Minute)
			for name, state := range map[service.Name]service.State{web: service.Running, db: service.Stopped, idle: service.Running, ended: service.Stopped} {
				h.is(name, state)
			}
			require.Equal(t, 1, h.host.Launches(idle))
			require.NotNil(t, h.status(ended).LastExit)
			require.NotContains(t, h.log.String(), "is taken up")
		})
	}
}

// Whoever has taken a directory meanwhile keeps it.
func TestDirectoryTakenBySomebodyElse(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.lose("run")
		h.write("run/agent.lock", "")
		f, err := os.Open(h.path("run/agent.lock"))
		require.NoError(t, err)
		defer f.Close()
		require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		for range 2 {
			_, err = h.Start(t.Context(), web, service.StartOptions{})
			require.ErrorIs(t, err, ErrTaken)
			require.Zero(t, h.host.Launches(web))
		}
	})
}

// Whoever hears that a restart is refused hears it behind the record that says so.
func TestRefusedRestartIsOnNoRecord(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		var refused atomic.Bool
		h.disk = func(call, path string) error {
			switch {
			case !refused.Load():
			case strings.HasSuffix(path, "state/services/.web.json"):
				return unix.ENOSPC
			case strings.HasSuffix(path, "run/services/.web.json") && call == "open":
				time.Sleep(time.Second)
			}
			return nil
		}
		h.open()
		h.register(web)
		h.start(web)
		refused.Store(true)
		_, err := h.Restart(t.Context(), web, service.StopOptions{Actor: "eve"})
		require.ErrorContains(t, err, "it runs on")
		store, err := skirnir.OpenStore(h.path("state"), h.path("run"), nil)
		require.NoError(t, err)
		left, err := store.Load()
		require.NoError(t, err)
		require.Equal(t, service.Running, left.Actual[0].Machine.State)
		refused.Store(false)
	})
}

// With the state directory full, what runs and what was to run goes on; an end is
// recorded as soon as there is room, and somebody looks or anything happens.
func TestNoRoomForWhatIsWanted(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"restart": {"policy": "always"}`)
		h.start(web)
		h.block("state/services/web.json")
		h.block("state/exits/web.json")
		for incarnation := uint64(2); incarnation < 4; incarnation++ {
			h.crash(web)
			pass(time.Minute)
			h.is(web, service.Running)
			require.EqualValues(t, incarnation, h.status(web).Machine.Incarnation)
			_, err := h.Restart(t.Context(), web, service.StopOptions{Actor: "eve"})
			refused(t, err, service.HostUnavailable, "it runs on", "web.json")
		}
		_, err := h.Stop(t.Context(), web, service.StopOptions{Actor: "eve"})
		refused(t, err, service.HostUnavailable, "it may run again")
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "records can not be written in "+h.path("state"))
		h.unblock("state/services/web.json")
		h.unblock("state/exits/web.json")
		require.Empty(t, h.doctor())
		h.reopen()
		h.is(web, service.Stopped)
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Len(t, exits, 3)
		h.start(web)
		require.EqualValues(t, 4, h.status(web).Machine.Incarnation)
	})
}

// That records can not be written is told with the directory, for as long as it is so;
// no attempt is used up by it.
func TestRecordsThatCanNotBeWritten(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.register(db)
		h.start(web)
		h.start(db)
		h.block("run/services/web.json")
		_, err := h.Restart(t.Context(), web, service.StopOptions{Actor: "eve"})
		refused(t, err, service.HostUnavailable, "it runs on", "web.json")
		h.is(web, service.Running)
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "records can not be written in "+h.path("run/services"))
		require.Contains(t, h.log.String(), "level=ERROR msg=\"the record of a service can not be written\" service=web")
		h.crash(web)
		pass(time.Hour)
		h.is(web, service.Backoff)
		require.Contains(t, h.status(web).Error, "web.json")
		require.Equal(t, 1, strings.Count(h.log.String(), "can not be written"), "it is logged once")
		h.unblock("run/services/web.json")
		pass(time.Minute)
		h.is(web, service.Running)
		require.Empty(t, h.doctor())
		require.Contains(t, h.log.String(), "can be written again")
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Len(t, exits, 1)
	})
}

func TestStopThatCanNotBeRecorded(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.block("run/services/web.json")
		_, err := h.Stop(t.Context(), web, service.StopOptions{})
		refused(t, err, service.HostUnavailable, "it ended", "web.json")
		require.Zero(t, h.host.IncarnationsAlive(web))
		require.Contains(t, h.reasons(web), "unrecorded")
	})
}

func TestLimitsThatCanNotBeKept(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.block("state/services/web.json")
		_, err := h.SetLimits(t.Context(), web, limits(pids, 50), service.Warnings{}, false, "dora")
		refused(t, err, service.HostUnavailable, "web.json")
	})
}

func TestLimitsOfARunningServiceThatCanNotBeKept(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.block("run/services/web.json")
		_, err := h.SetLimits(t.Context(), web, limits(pids, 50), service.Warnings{}, false, "dora")
		refused(t, err, service.HostUnavailable, "web.json")
	})
}

// What happened to a service since it was registered is not taken back with the
// registration.
func TestRollbackTakesBackItsOwn(t *testing.T) {
	before := skirnir.Wanted{Name: web, Document: []byte("old"), Generation: 1, Up: true, Limits: limits(pids, 1)}
	w := skirnir.Wanted{Name: web, Document: []byte("new"), Generation: 2, Limits: limits(memory, 1<<30)}
	undo(&w, before)
	require.Equal(t, skirnir.Wanted{
		Name: web, Document: []byte("old"), Generation: 1, Limits: limits(memory, 1<<30).Over(limits(pids, 1)),
	}, w, "it was stopped meanwhile, and its memory limited")
}

func TestExitThatCanNotBeKept(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.block("state/exits/web.json")
		s := h.stop(web)
		require.Contains(t, s.LastExit.Message, "could not be written")
		exits, err := h.Exits(web, 0)
		require.NoError(t, err)
		require.Len(t, exits, 1, "known as long as this agent lives")

		err = h.Unregister(t.Context(), web, "alice")
		refused(t, err, service.HostUnavailable, "web.json")
		require.Len(t, h.List(), 1, "it is there still")
		h.unblock("state/exits/web.json")
		require.NoError(t, h.Unregister(t.Context(), web, "alice"))
		require.Empty(t, h.List())
		h.reopen()
		require.Empty(t, h.List())
	})
}

// A service that could not be forgotten can be used as before.
func TestUnregisterThatFails(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.stop(web)
		h.block("run/services/web.json")
		refused(t, h.Unregister(t.Context(), web, "alice"), service.HostUnavailable, "web.json")
		h.unblock("run/services/web.json")
		require.EqualValues(t, 2, h.start(web).Machine.Incarnation)
		h.reopen()
		h.is(web, service.Running)
	})
}

// TestCrowd has callers do everything at once; the race detector watches. Each
// gets an answer that the state of things may give, and none beside that.
func TestCrowd(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(db)
		h.open()
		h.host.Script(web, fake.Script{Term: &fake.End{After: time.Second}}, fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 1}}}, fake.Script{})
		var callers sync.WaitGroup
		for n := range uint64(12) {
			callers.Go(func() {
				dice := rand.New(rand.NewPCG(1, n))
				name := []service.Name{web, db}[n%2]
				ctx := t.Context()
				// may wants err to be nil or of one of the kinds, with all its words.
				may := func(call string, err error, kinds ...service.Kind) {
					if err != nil && (!slices.Contains(kinds, service.KindOf(err)) || strings.Contains(err.Error(), "  ")) {
						t.Errorf("%s of %s: %v: %v", call, name, service.KindOf(err), err)
					}
				}
				for range 12 {
					time.Sleep(time.Duration(dice.IntN(1000)) * time.Millisecond)
					switch dice.IntN(14) {
					case 0, 1, 2:
						_, err := h.Start(ctx, name, service.StartOptions{})
						may("start", err, service.NotFound, service.AlreadyRunning, service.Conflict)
					case 3:
						_, err := h.Stop(ctx, name, service.StopOptions{})
						may("stop", err, service.NotFound, service.NotRunning)
					case 4:
						_, err := h.Restart(ctx, name, service.StopOptions{})
						may("restart", err, service.NotFound, service.Conflict)
					case 5:
						_, err := h.Register(ctx, "web.json", []byte(doc(web, `"umask": "0`+string('0'+byte(n%8))+`7"`)), true, "alice")
						may("register", err)
					case 6:
						may("unregister", h.Unregister(ctx, name, "alice"), service.NotFound, service.Conflict)
					case 7:
						_, err := h.SetLimits(ctx, name, limits(pids, 10+n), service.Warnings{}, false, "dora")
						may("limit", err, service.NotFound)
					case 8:
						h.Reload(ctx, h.settings, nil)
					case 9:
						h.Doctor(ctx)
						_, err := h.Host(ctx)
						may("host", err)
					case 10:
						_, _, err := h.Usage(ctx, name)
						may("usage", err, service.NotFound, service.NotRunning)
						_, err = h.Limits(ctx, name)
						may("limits", err, service.NotFound, service.NotRunning)
					case 11:
						h.List()
						h.Definitions()
						_, err := h.Exits(name, 0)
						may("exits", err, service.NotFound)
					case 12:
						_, err := h.Apply(ctx, []service.File{{Name: "web.json", Content: []byte(doc(web))}}, service.ApplyOptions{DryRun: n%2 == 0}, "alice")
						may("apply", err)
					case 13:
						h.Kept(0)
						_, err := h.Processes(ctx, name)
						may("processes", err, service.NotFound)
					}
				}
			})
		}
		callers.Wait()
		for _, name := range []service.Name{web, db} {
			_, err := h.Stop(t.Context(), name, service.StopOptions{Force: true})
			if err != nil {
				require.Contains(t, []service.Kind{service.NotFound, service.NotRunning}, service.KindOf(err), "%v", err)
			}
		}
		pass(time.Hour)
		require.Empty(t, h.host.Processes())
		for _, name := range []service.Name{web, db} {
			require.LessOrEqual(t, h.host.PeakAlive(name), 1)
		}
		before := h.List()
		h.reopen()
		require.Len(t, h.List(), len(before))
		require.Empty(t, h.host.Processes())
	})
}
