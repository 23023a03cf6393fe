package fake_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var web = service.MustName("web")

func request(incarnation uint64) service.Launch {
	spec := service.Defaults()
	spec.Name, spec.Exec = web, []string{"/bin/web"}
	return service.Launch{Name: web, Incarnation: incarnation, Spec: spec}
}

var anyone = backends.Birth{Identify: func(service.Ref) error { return nil }}

func launch(t *testing.T, b *fake.Backend, incarnation uint64) backends.Handle {
	t.Helper()
	h, err := b.Launch(t.Context(), request(incarnation), anyone)
	require.NoError(t, err)
	return h
}

// ended tells how the main process has ended, and after how long.
func ended(h backends.Handle) (service.Exit, time.Duration) {
	start := time.Now()
	<-h.Exited()
	return h.Exit(), time.Since(start)
}

// bubble runs a test in a bubble, with a backend that follows the scripts.
func bubble(t *testing.T, test func(t *testing.T, b *fake.Backend), scripts ...fake.Script) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t, fake.New(fake.Config{Scripts: map[service.Name][]fake.Script{web: scripts}}))
	})
}

func TestLaunchTakesItsTime(t *testing.T) {
	bubble(t, func(t *testing.T, b *fake.Backend) {
		start := time.Now()
		launch(t, b, 1)
		require.Equal(t, time.Minute, time.Since(start))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := b.Launch(ctx, request(2), backends.Birth{Identify: func(service.Ref) error {
			t.Error("identified")
			return nil
		}})
		require.Equal(t, service.Timeout, service.KindOf(err))
		require.Equal(t, time.Minute+time.Second, time.Since(start))
		require.Equal(t, 2, b.Launches(web))
		require.Equal(t, 1, b.Runs(web))
		require.Equal(t, 1, b.IncarnationsAlive(web))
	}, fake.Script{LaunchTime: time.Minute})
}

func TestScriptsFollowEachOther(t *testing.T) {
	failure := errors.New("no such program")
	bubble(t, func(t *testing.T, b *fake.Backend) {
		_, err := b.Launch(t.Context(), request(1), anyone)
		require.ErrorIs(t, err, failure)
		require.Empty(t, b.Processes())
		for incarnation := uint64(2); incarnation < 4; incarnation++ {
			exit, after := ended(launch(t, b, incarnation))
			require.Equal(t, service.Exit{Code: 3}, exit)
			require.Equal(t, time.Second, after)
		}
		require.Equal(t, 3, b.Launches(web))
		require.Equal(t, 2, b.Runs(web))
	}, fake.Script{LaunchError: failure}, fake.Script{End: &fake.End{After: time.Second, Exit: service.Exit{Code: 3}}})
}

func TestProgramTakesItsTimeToEnd(t *testing.T) {
	bubble(t, func(t *testing.T, b *fake.Backend) {
		h := launch(t, b, 1)
		require.NoError(t, h.Signal(t.Context(), syscall.SIGTERM))
		exit, after := ended(h)
		require.Equal(t, service.Exit{}, exit)
		require.Equal(t, 2*time.Second, after)
	}, fake.Script{Term: &fake.End{After: 2 * time.Second}, End: &fake.End{After: time.Hour, Exit: service.Exit{Code: 1}}})
}

func TestStubbornProgram(t *testing.T) {
	bubble(t, func(t *testing.T, b *fake.Backend) {
		h := launch(t, b, 1)
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD, syscall.SIGSTOP} {
			require.NoError(t, h.Signal(t.Context(), sig))
		}
		require.Equal(t, 1, b.IncarnationsAlive(web))
		require.NoError(t, h.Kill(t.Context()))
		exit, after := ended(h)
		require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, exit)
		require.Zero(t, after)
	}, fake.Script{Stubborn: true})
}

func TestUnkillableProgram(t *testing.T) {
	bubble(t, func(t *testing.T, b *fake.Backend) {
		h := launch(t, b, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, try := range []func() error{
			func() error { return h.Kill(ctx) },
			func() error { _, err := h.Release(ctx); return err },
		} {
			err := try()
			require.Equal(t, service.Timeout, service.KindOf(err))
			require.Equal(t, service.ReasonUnkillable, service.ReasonOf(err))
			require.EqualError(t, err, "cannot kill web: these processes would not die: 1001 (/bin/web), 1002 (/bin/web)")
		}
		require.Equal(t, 1, b.IncarnationsAlive(web))

		go func() {
			time.Sleep(time.Hour)
			b.Free(web)
		}()
		start := time.Now()
		remains, err := h.Release(t.Context())
		require.NoError(t, err)
		require.Equal(t, time.Hour, time.Since(start))
		require.Zero(t, remains.Leftovers)
		require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, h.Exit())
	}, fake.Script{Unkillable: true, Children: 1})
}

func TestWantOfMemory(t *testing.T) {
	own := fake.Script{Children: 2, End: &fake.End{
		After: time.Minute, Exit: service.Exit{Signal: syscall.SIGKILL}, OOM: service.OOMOwn, Level: "/gladsheim/svc-web-00000001",
	}}
	bubble(t, func(t *testing.T, b *fake.Backend) {
		h := launch(t, b, 1)
		exit, _ := ended(h)
		require.Equal(t, syscall.SIGKILL, exit.Signal)
		require.Empty(t, b.Processes(), "it takes the children along")
		remains, err := h.Release(t.Context())
		require.NoError(t, err)
		require.Equal(t, service.OOMOwn, remains.OOM)
		require.Equal(t, "/gladsheim/svc-web-00000001", remains.OOMLevel)

		h = launch(t, b, 2)
		b.OOMKill(web, service.OOMHost, "/")
		ended(h)
		remains, err = h.Release(t.Context())
		require.NoError(t, err)
		require.Equal(t, service.OOMHost, remains.OOM)
	}, own, fake.Script{})
}

func TestCrash(t *testing.T) {
	bubble(t, func(t *testing.T, b *fake.Backend) {
		require.PanicsWithValue(t, "fake: no main process of web runs", func() { b.Crash(web, service.Exit{}) })
		h := launch(t, b, 1)
		b.Crash(web, service.Exit{Code: 9})
		exit, _ := ended(h)
		require.Equal(t, service.Exit{Code: 9}, exit)
		remains, err := h.Release(t.Context())
		require.NoError(t, err)
		require.Equal(t, 4, remains.Leftovers)
	}, fake.Script{Children: 4})
}

func TestHostOutlivesBackends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := fake.NewHost()
		first := fake.New(fake.Config{Host: host})
		ref := launch(t, first, 1).Ref()
		require.NoError(t, first.Close())
		_, err := first.Launch(t.Context(), request(2), anyone)
		require.Equal(t, service.HostUnavailable, service.KindOf(err))

		second := fake.New(fake.Config{Host: host})
		h, err := second.Adopt(t.Context(), ref, service.Launch{})
		require.NoError(t, err)
		go func() {
			time.Sleep(time.Minute)
			host.Crash(web, service.Exit{Code: 9})
		}()
		exit, after := ended(h)
		require.Equal(t, service.Exit{Unknown: "agent_was_down"}, exit)
		require.Equal(t, time.Minute, after)

		h = launch(t, second, 2)
		host.Reboot()
		ended(h)
		require.Empty(t, host.Processes())
		_, err = fake.New(fake.Config{Host: host}).Adopt(t.Context(), h.Ref(), service.Launch{})
		require.ErrorIs(t, err, backends.ErrGone)
	})
}

func TestPeakTellsOfTwoAtATime(t *testing.T) {
	bubble(t, func(t *testing.T, b *fake.Backend) {
		one := launch(t, b, 1)
		require.Equal(t, 1, b.PeakAlive(web))
		launch(t, b, 2)
		require.NoError(t, one.Kill(t.Context()))
		require.Equal(t, 1, b.IncarnationsAlive(web))
		require.Equal(t, 2, b.PeakAlive(web))
	})
}

func TestFault(t *testing.T) {
	failure := errors.New("D-Bus is gone")
	var operations []string
	b := fake.New(fake.Config{Fault: func(operation string, ref service.Ref) error {
		require.Equal(t, web, ref.Name)
		operations = append(operations, operation)
		if operation == "limit" || operation == "release" {
			return failure
		}
		return nil
	}})
	h := launch(t, b, 1)
	_, err := h.Limit(t.Context(), service.Limits{})
	require.ErrorIs(t, err, failure)
	_, err = h.Release(t.Context())
	require.ErrorIs(t, err, failure)
	require.Equal(t, 1, b.IncarnationsAlive(web), "nothing happened")
	require.Equal(t, []string{"launch", "limit", "release"}, operations)
}

func TestUsageFollowsAge(t *testing.T) {
	bubble(t, func(t *testing.T, b *fake.Backend) {
		h := launch(t, b, 1)
		time.Sleep(10 * time.Second)
		u, err := h.Usage(t.Context())
		require.NoError(t, err)
		require.Equal(t, service.Usage{CPUTime: 5 * time.Second, Pids: service.Of(1)}, u)
	}, fake.Script{Usage: func(age time.Duration) service.Usage { return service.Usage{CPUTime: age / 2} }})
}
