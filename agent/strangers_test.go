package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// Processes that look like ours and that nobody recorded are left alone, and no
// second copy is started beside them.
func TestStrangers(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
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
			refused(t, err, service.Conflict, "svc-web-00000001")
			require.Equal(t, service.ReasonPreviousAlive, service.ReasonOf(err))
		}
		require.Len(t, h.doctor(), 2)
		require.Contains(t, h.doctor()[0], "processes of web are alive that nobody recorded")
		require.Contains(t, h.doctor()[1], "web was to be started with the agent")
		require.Contains(t, h.log.String(), "left alone")

		h.host.Crash(web, service.Exit{})
		h.reopen()
		pass(time.Second) // its first place is still taken, since nobody cleared it
		h.is(web, service.Running)
		require.Empty(t, h.doctor())
	})
}

// Of what nobody recorded and in which nothing is alive, the rest is removed.
func TestEmptyLeftovers(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		b := &littered{Backend: fake.New(fake.Config{Host: h.host}), left: map[service.Name]bool{web: true, db: true}, gone: db}
		h.backends = []backends.Backend{b}
		h.define(web, `"autostart": true`)
		h.open()
		h.is(web, service.Running)
		require.Empty(t, h.doctor())
		require.Equal(t, map[service.Name]bool{db: true}, b.left, "one removed, the other gone by itself")
	})
}

// littered is a backend with places in which nothing is alive.
type littered struct {
	backends.Backend
	left map[service.Name]bool
	gone service.Name // of which nothing is there when one looks again
}

func (b *littered) Leftovers(context.Context, []service.Name) (refs []service.Ref, err error) {
	for name := range b.left {
		refs = append(refs, b.Plan(service.Launch{Name: name, Incarnation: 7}))
	}
	return refs, nil
}

func (b *littered) Adopt(_ context.Context, ref service.Ref, _ service.Limits) (backends.Handle, error) {
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

func (l litter) Close() error                                          { return nil }
func (l litter) Processes(context.Context) ([]backends.Process, error) { return nil, nil }

func (l litter) Release(context.Context) (service.Remains, error) {
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
