package agent

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// unsure is a backend that does not know which process is the main one.
type unsure struct{ backends.Backend }

func (u unsure) Leftovers(ctx context.Context, known []service.Name) ([]service.Ref, error) {
	refs, err := u.Backend.Leftovers(ctx, known)
	for i := range refs {
		refs[i].PID, refs[i].StartTicks, refs[i].BootID = 0, 0, ""
	}
	return refs, err
}

// Processes that look like ours, that nobody recorded, and that can not be
// attributed are left alone, and no second copy is started beside them.
func TestStrangers(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.backends = []backends.Backend{unsure{fake.New(fake.Config{Host: h.host})}}
		h.define(web, `"autostart": true`)
		h.define(db)
		h.open()
		h.start(db)
		h.close()
		h.remove("run/services/web.json") // all that was known of it
		before := h.host.Processes()
		h.open()
		require.Equal(t, before, h.host.Processes())
		require.Equal(t, service.Stopped, h.status(web).Machine.State)
		h.is(db, service.Running)
		for _, try := range []func() error{
			func() error { _, err := h.Start(t.Context(), web, service.StartOptions{}); return err },
			func() error { _, err := h.Restart(t.Context(), web, service.StopOptions{}); return err },
		} {
			err := try()
			refused(t, err, service.Conflict, "svc-web-00000001", "which of its processes is the main one")
			require.Equal(t, service.ReasonPreviousAlive, service.ReasonOf(err))
		}
		require.Len(t, h.doctor(), 2)
		require.Contains(t, h.doctor()[0], "processes of web are alive that nobody recorded")
		require.Contains(t, h.doctor()[1], "web was to be started with the agent")
		require.Contains(t, h.log.String(), "left alone")
		h.register(service.MustName("other"))
		require.Len(t, h.doctor(), 2, "it is none of another's business")

		h.host.Crash(web, service.Exit{})
		h.reopen()
		pass(time.Second) // its first place is still taken, since nobody cleared it
		h.is(web, service.Running)
		require.Empty(t, h.doctor())
	})
}

// What waits for its next attempt, or crashed, is to run after a reboot although what
// was wanted was lost meanwhile.
func TestLostWishes(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web, `"restart": {"backoff": "1m"}`)
		h.define(db, `"restart": {"policy": "never"}`)
		h.open()
		for _, name := range []service.Name{web, db} {
			h.start(name)
			h.crash(name)
		}
		h.close()
		h.lose("state")
		h.open()
		h.is(web, service.Backoff)
		h.is(db, service.Crashed)
		h.reboot()
		h.open()
		h.is(web, service.Running)
		h.is(db, service.Running)
	})
}

// lose takes away what an agent has written down, all of it or one directory.
func (h *house) lose(dirs ...string) {
	h.t.Helper()
	for _, dir := range dirs {
		require.NoError(h.t, os.RemoveAll(h.path(dir)))
	}
}

// Whatever records are lost, what runs is taken up, and nothing is started beside
// it (I1, I2).
func TestLostRecords(t *testing.T) {
	for _, lost := range [][]string{{"run"}, {"state"}, {"run", "state"}} {
		t.Run(strings.Join(lost, "+"), func(t *testing.T) {
			inside(t, func(t *testing.T, h *house) {
				h.define(web, `"autostart": true`, `"limits": {"pids_max": 100}`)
				h.define(db)
				h.open()
				_, err := h.Restart(t.Context(), web, service.StopOptions{}) // so that it is not the first incarnation
				require.NoError(t, err)
				h.start(db)
				h.stop(db)
				h.start(db)
				before, processes := h.status(web), h.host.Processes()
				started := h.sinceBoot()
				h.close()
				h.lose(lost...)
				pass(time.Hour)
				h.open()
				require.Equal(t, processes, h.host.Processes())
				for _, name := range []service.Name{web, db} {
					h.is(name, service.Running)
					require.EqualValues(t, 2, h.status(name).Machine.Incarnation)
					require.True(t, h.status(name).Machine.Up)
				}
				now := h.status(web)
				require.Equal(t, before.Ref, now.Ref)
				require.Equal(t, before.Applied, now.Applied)
				require.Equal(t, before.Machine, now.Machine)
				if lost[0] == "run" {
					begun := h.began.Add(time.Duration(now.Ref.StartTicks) * 10 * time.Millisecond)
					require.True(t, now.Started.Equal(begun), "%v, not %v", now.Started, begun)
				} else {
					require.True(t, now.Started.Equal(before.Started))
					require.Equal(t, started, h.sinceBoot()-time.Hour)
				}
				require.Empty(t, h.doctor())

				h.log.Reset()
				h.reopen() // now there are records again
				require.Empty(t, h.log.String())
				require.Equal(t, processes, h.host.Processes())
				h.setLimits(web, limits(pids, 50))
				require.Equal(t, service.Of(50), h.holds(web, service.PidsMax))
				h.crash(db)
				h.is(db, service.Backoff)
				require.EqualValues(t, 2, h.status(db).LastExit.Incarnation)
				pass(time.Second)
				h.is(db, service.Running)
				require.EqualValues(t, 3, h.status(db).Machine.Incarnation)
				h.reboot()
				h.open()
				h.is(web, service.Running)
				h.is(db, service.Running)
				h.stop(web)
				h.stop(db)
			})
		})
	}
}

// Whatever stands in a record's place: what runs is taken up, and the rest lives.
func TestDamagedRecords(t *testing.T) {
	for what, damage := range map[string]func(path string) error{
		"empty":       func(path string) error { return os.Truncate(path, 0) },
		"cut":         func(path string) error { return os.Truncate(path, 100) },
		"missing":     os.Remove,
		"a directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"a link":      func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) },
		"huge":        func(path string) error { return os.Truncate(path, 2<<30) },
	} {
		for _, record := range []string{"run/services/web.json", "state/services/web.json", "state/exits/web.json"} {
			t.Run(what+" "+record, func(t *testing.T) {
				inside(t, func(t *testing.T, h *house) {
					h.define(web, `"autostart": true`)
					h.define(db)
					h.open()
					h.start(db)
					_, err := h.Restart(t.Context(), web, service.StopOptions{})
					require.NoError(t, err)
					before := h.host.Processes()
					h.close()
					require.NoError(t, damage(h.path(record)))
					h.open()
					require.Equal(t, before, h.host.Processes())
					h.is(web, service.Running)
					h.is(db, service.Running)
					require.EqualValues(t, 2, h.status(web).Machine.Incarnation)
					if what != "missing" {
						require.Len(t, h.doctor(), 1)
						require.Contains(t, h.doctor()[0], record)
					}
					h.reopen()
					require.Equal(t, before, h.host.Processes())
					require.Empty(t, h.doctor())
					h.stop(db)
					h.reboot()
					h.open()
					h.is(web, service.Running)
					h.is(db, service.Stopped)
				})
			})
		}
	}
}

// A record of a later version keeps the agent from starting, and stays as it is.
func TestRecordOfALaterVersion(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.open()
		h.start(web)
		h.close()
		before := h.host.Processes()
		for _, record := range []string{"run/services/web.json", "state/services/web.json"} {
			whole, err := os.ReadFile(h.path(record))
			require.NoError(t, err)
			h.write(record, `{"format":2,"crc32c":1727516817,"body":{}}`)
			tree := h.tree()
			_, err = Open(t.Context(), h.config())
			refused(t, err, service.Invalid, "later version", record)
			require.Equal(t, tree, h.tree())
			h.write(record, string(whole))
		}
		h.open()
		require.Equal(t, before, h.host.Processes())
		h.is(web, service.Running)
	})
}

// A stop that was under way when the records of what is were lost goes on.
func TestLostRecordsDuringAStop(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.host.Script(web, fake.Script{Stubborn: true}, fake.Script{})
		h.start(web)
		stop := later(func() error { _, err := h.Stop(t.Context(), web, service.StopOptions{}); return err })
		h.close()
		<-stop
		h.lose("run")
		h.open()
		h.is(web, service.Stopping)
		pass(time.Minute)
		h.is(web, service.Stopped)
		require.False(t, h.status(web).Machine.Up)
		h.reopen()
		h.is(web, service.Stopped)
		require.Equal(t, 1, h.host.Launches(web))
	})
}

// What ended while no agent was there, and left only children, is as dead without
// a record as with one.
func TestLostRecordOfWhatHasEnded(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		h.host.Script(web, fake.Script{Children: 2}, fake.Script{})
		h.open()
		h.start(web)
		h.close()
		h.lose("run", "state")
		h.host.Crash(web, service.Exit{Code: 1})
		h.open()
		h.is(web, service.Backoff)
		require.Equal(t, service.Exit{Unknown: "agent_was_down"}, h.status(web).LastExit.Exit)
		require.Equal(t, 2, h.status(web).LastExit.Remains.Leftovers)
		pass(time.Second)
		h.is(web, service.Running)
		require.EqualValues(t, 2, h.status(web).Machine.Incarnation)
	})
}

// What a caller had registered is taken up when it is registered again, whatever
// incarnation runs, and not before.
func TestRegisteredAnew(t *testing.T) {
	for _, again := range []string{"register", "apply", "file"} {
		opened(t, func(t *testing.T, h *house) {
			b := &deaf{fake.New(fake.Config{Host: h.host})}
			h.backends = []backends.Backend{b}
			h.reopen()
			h.register(web)
			h.start(web)
			h.stop(web)
			pid := h.start(web).PID()
			h.close()
			h.lose("run", "state")
			h.open()
			_, err := h.Status(web)
			refused(t, err, service.NotFound)
			require.Equal(t, 1, h.host.IncarnationsAlive(web))
			switch again {
			case "register":
				h.register(web)
			case "apply":
				_, err = h.Apply(t.Context(), []service.File{{Name: "web.json", Content: []byte(doc(web))}}, service.ApplyOptions{}, "alice")
				require.NoError(t, err)
			case "file":
				h.define(web)
				h.reload()
			}
			synctest.Wait()
			h.is(web, service.Running)
			require.Equal(t, pid, h.status(web).PID())
			require.EqualValues(t, 2, h.status(web).Machine.Incarnation)
			require.Empty(t, h.doctor())
			h.reopen()
			require.Equal(t, pid, h.status(web).PID())
			h.reboot()
			h.open()
			h.is(web, service.Running)
			h.stop(web)
		})
	}
}

// deaf is a backend that knows none but those whose names it is told.
type deaf struct{ backends.Backend }

func (d deaf) Leftovers(ctx context.Context, known []service.Name) ([]service.Ref, error) {
	refs, err := d.Backend.Leftovers(ctx, known)
	return slices.DeleteFunc(refs, func(r service.Ref) bool { return !slices.Contains(known, r.Name) }), err
}

// Where the place tells the name, what nobody defines is known as well: it is left
// alone, and told.
func TestStrangerThatNobodyDefines(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		pid := h.start(web).PID()
		h.close()
		h.lose("run", "state")
		h.open()
		require.Empty(t, h.List())
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "no service of that name is registered")
		h.register(web)
		synctest.Wait()
		h.is(web, service.Running)
		require.Equal(t, pid, h.status(web).PID())
		require.Empty(t, h.doctor())
		h.close()

		h.lose("run", "state")
		h.open()
		h.host.Crash(web, service.Exit{}) // before it is registered
		h.register(web)
		pass(time.Hour)
		h.is(web, service.Stopped)
		require.Empty(t, h.doctor())
	})
}

// Of two that live at once neither is taken up, nor touched.
func TestTwoStrangersOfOneName(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web)
		for incarnation := range uint64(2) {
			spec := service.Defaults()
			spec.Name, spec.Exec = web, []string{"/bin/web"}
			_, err := fake.New(fake.Config{Host: h.host}).Launch(t.Context(),
				service.Launch{Name: web, Incarnation: incarnation + 1, Spec: spec}, backends.Birth{Identify: func(service.Ref) error { return nil }})
			require.NoError(t, err)
		}
		before := h.host.Processes()
		h.open()
		require.Equal(t, before, h.host.Processes())
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "2 incarnations live at once")
		_, err := h.Start(t.Context(), web, service.StartOptions{})
		refused(t, err, service.Conflict, "2 incarnations live at once")
	})
}

// A record of another time counts less than what lives: one of an earlier incarnation
// is outdated, and one of a later incarnation leaves it in doubt.
func TestRecordOfAnotherIncarnation(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		record := func() string {
			h.close()
			text, err := os.ReadFile(h.path("run/services/web.json"))
			require.NoError(t, err)
			h.open()
			return string(text)
		}
		h.register(web)
		h.start(web)
		first := record()
		_, err := h.Restart(t.Context(), web, service.StopOptions{})
		require.NoError(t, err)
		before := h.host.Processes()
		for range 2 {
			h.close()
			h.write("run/services/web.json", first)
			h.open()
			pass(time.Hour)
			require.Equal(t, before, h.host.Processes())
			h.is(web, service.Running)
			require.EqualValues(t, 2, h.status(web).Machine.Incarnation)
		}
		second := record()
		h.stop(web)
		h.host.Script(web, fake.Script{})
		h.start(web)
		h.crash(web)
		h.is(web, service.Backoff)
		h.close()
		h.lose("run")
		_, err = fake.New(fake.Config{Host: h.host}).Launch(t.Context(), service.Launch{Name: web, Incarnation: 1,
			Spec: service.Spec{Name: web, Exec: []string{"/bin/web"}}}, backends.Birth{Identify: func(service.Ref) error { return nil }})
		require.NoError(t, err)
		before = h.host.Processes()
		require.NoError(t, os.MkdirAll(h.path("run/services"), 0o700))
		h.write("run/services/web.json", second)
		h.open()
		pass(time.Hour)
		require.Equal(t, before, h.host.Processes())
		require.Contains(t, h.doctor()[0], "a later incarnation, 2, was recorded")
	})
}

// Of what nobody recorded and in which nothing is alive, the rest is removed. Of a
// service that is defined it is an end that nobody saw.
func TestEmptyLeftovers(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		never, other := service.MustName("never"), service.MustName("other")
		b := &littered{Backend: fake.New(fake.Config{Host: h.host}), left: map[service.Name]bool{web: true, db: true, never: true, other: true}, gone: db}
		h.backends = []backends.Backend{b}
		h.define(web, `"autostart": true`)
		h.define(never, `"autostart": true`, `"restart": {"policy": "never"}`)
		h.open()
		for _, name := range []service.Name{web, never} {
			require.Equal(t, service.Exit{Unknown: "agent_was_down"}, h.status(name).LastExit.Exit)
			require.EqualValues(t, 7, h.status(name).LastExit.Incarnation)
		}
		pass(time.Second)
		h.is(web, service.Running)
		h.is(never, service.Crashed)
		require.Len(t, h.doctor(), 1, "that one has crashed")
		require.Equal(t, map[service.Name]bool{db: true}, b.left, "three removed, the other gone by itself")
	})
}

// littered is a backend with places in which nothing is alive.
type littered struct {
	backends.Backend
	mu   sync.Mutex
	left map[service.Name]bool
	gone service.Name // of which nothing is there when one looks again
}

func (b *littered) Leftovers(context.Context, []service.Name) (refs []service.Ref, err error) {
	for name := range b.left {
		refs = append(refs, b.Plan(service.Launch{Name: name, Incarnation: 7}))
	}
	return refs, nil
}

func (b *littered) Adopt(_ context.Context, ref service.Ref, _ service.Launch) (backends.Handle, error) {
	if ref.Name == b.gone {
		return nil, backends.ErrGone
	}
	return litter{backend: b, name: ref.Name}, nil
}

type litter struct {
	backends.Handle
	backend *littered
	name    service.Name
}

func (l litter) Hear(func(string)) (func(), error) { return nil, backends.ErrDeaf }

func (l litter) FrozenBy() (string, error) { return "", nil }

func (l litter) Drift(context.Context, func(service.Drift) service.OnDrift) ([]service.Drift, error) {
	return nil, nil
}

func (l litter) Ref() service.Ref {
	return l.backend.Plan(service.Launch{Name: l.name, Incarnation: 7})
}

func (l litter) Exited() <-chan struct{} {
	over := make(chan struct{})
	close(over)
	return over
}
func (l litter) Exit() service.Exit                              { return service.Exit{Unknown: "agent_was_down"} }
func (l litter) ExitedAt() time.Time                             { return time.Time{} }
func (l litter) Displaced() <-chan struct{}                      { return nil }
func (l litter) Froze() <-chan struct{}                          { return nil }
func (l litter) Limits(context.Context) (service.Applied, error) { return service.Applied{}, nil }

func (l litter) Close() error                                          { return nil }
func (l litter) Processes(context.Context) ([]backends.Process, error) { return nil, nil }

func (l litter) Finish(context.Context) (service.Remains, error) { return service.Remains{}, nil }

func (l litter) Release(context.Context) (service.Remains, error) {
	l.backend.mu.Lock()
	defer l.backend.mu.Unlock()
	delete(l.backend.left, l.name)
	return service.Remains{}, nil
}

func TestLeftoversCanNotBeTold(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.backends = []backends.Backend{mute{fake.New(fake.Config{Host: h.host})}}
		h.reopen()
		h.is(web, service.Running)
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "fake")
	})
}

// mute does not tell of leftovers.
type mute struct{ backends.Backend }

func (mute) Leftovers(context.Context, []service.Name) ([]service.Ref, error) {
	return nil, &service.Error{Op: "look for leftovers", Kind: service.HostUnavailable}
}

// blind is a backend that does not tell what an earlier agent left while it is
// shut.
type blind struct {
	backends.Backend
	shut bool
}

func (b *blind) Leftovers(ctx context.Context, known []service.Name) ([]service.Ref, error) {
	if b.shut {
		return nil, errors.New("D-Bus does not answer")
	}
	return b.Backend.Leftovers(ctx, known)
}

// While nobody knows what an earlier agent left, only services are started of
// which there is a record.
func TestLeftoversThatCanNotBeListed(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		b := &blind{Backend: fake.New(fake.Config{Host: h.host})}
		h.backends = []backends.Backend{b}
		h.define(web, `"autostart": true`)
		h.define(db)
		h.open()
		h.start(db)
		h.close()
		h.remove("run/services/web.json")
		b.shut = true
		h.open()
		require.Equal(t, 1, h.host.IncarnationsAlive(web))
		require.Contains(t, strings.Join(h.doctor(), "\n"), "D-Bus does not answer")
		_, err := h.Start(t.Context(), web, service.StartOptions{})
		refused(t, err, service.HostUnavailable, "D-Bus does not answer")
		h.stop(db)
		h.start(db)
		b.shut = false
		_, err = h.Start(t.Context(), web, service.StartOptions{})
		refused(t, err, service.Conflict, "svc-web-00000001")
		require.Equal(t, 1, h.host.Launches(web))
	})
}

// hashing is a backend whose marks tell no names: what none of the known fits.
type hashing struct {
	backends.Backend
	others map[service.Name]int
	err    error
}

func (b hashing) Unclaimed(_ context.Context, known []service.Name) (pids []int, err error) {
	for name, pid := range b.others {
		if !slices.Contains(known, name) {
			pids = append(pids, pid)
		}
	}
	return pids, b.err
}

func TestTheDoctorTellsOfTheUnclaimed(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		told := func() (titles []string) {
			for _, f := range h.Doctor(t.Context()) {
				if strings.Contains(f.Title, "not registered") {
					titles = append(titles, f.Title)
				}
			}
			return titles
		}
		b := hashing{Backend: fake.New(fake.Config{Host: h.host}), others: map[service.Name]int{web: 4711, service.MustName("lost"): 4712}}
		h.backends = []backends.Backend{b}
		h.define(web)
		h.open()
		require.Equal(t, []string{"1 processes carry the mark of an agent, of a service that is not registered here: [4712]"}, told())
		delete(b.others, service.MustName("lost"))
		require.Empty(t, told())
	})
}
