package cgroupfs

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// crowd runs f n times at once and fails with its errors.
func crowd(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var wait sync.WaitGroup
	failed := make([]error, n)
	for i := range n {
		wait.Go(func() { failed[i] = f(i) })
	}
	wait.Wait()
	require.NoError(t, errors.Join(failed...))
}

func TestHostHundredAtOnce(t *testing.T) {
	const n = 100
	b := newBackend(t, config(t))
	handles, plans := make([]backends.Handle, n), make([]service.Launch, n)
	for i := range plans {
		plans[i] = limited(plan("/bin/sleep", "1000"), limits(service.MemoryMax, 64<<20, service.PidsMax, 10, service.CPUMax, 500_000))
	}
	began := time.Now()
	crowd(t, n, func(i int) (err error) {
		handles[i], err = b.Launch(t.Context(), plans[i], backends.Birth{Identify: func(service.Ref) error { return nil }})
		return err
	})
	t.Logf("%d launches at once took %v", n, time.Since(began))
	for _, h := range handles {
		a, err := h.Limits(within(t))
		require.NoError(t, err)
		require.Equal(t, service.Of(64<<20), a[service.MemoryMax].Applied)
		require.Equal(t, service.Of(10), a[service.PidsMax].Applied)
	}
	began = time.Now()
	crowd(t, n, func(i int) error {
		_, err := handles[i].Release(context.Background())
		return errors.Join(err, handles[i].Close())
	})
	t.Logf("%d releases at once took %v", n, time.Since(began))
	refs, err := b.Leftovers(within(t), nil)
	require.NoError(t, err)
	require.Empty(t, refs)
}

func TestHostCyclesLeaveNothing(t *testing.T) {
	c := config(t)
	b := newBackend(t, c)
	count := func() (fds, goroutines, dirs int) {
		list, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		names, err := b.parent.Children()
		require.NoError(t, err)
		return len(list), runtime.NumGoroutine(), len(names)
	}
	cycle := func(argv ...string) {
		l := limited(plan(argv...), limits(service.MemoryMax, 64<<20))
		h, err := b.Launch(t.Context(), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
		if err == nil {
			_, err = h.Release(t.Context())
			require.NoError(t, h.Close())
			require.NoError(t, err)
		}
	}
	cycle("/bin/sleep", "1000")
	cycle("/nowhere")
	fds, goroutines, dirs := count()
	began := time.Now()
	for range 50 {
		cycle("/bin/sleep", "1000")
	}
	t.Logf("a cycle takes %v", time.Since(began)/50)
	for range 20 {
		cycle("/nowhere")
	}
	var f, g, d int
	for patience := time.Now().Add(10 * time.Second); time.Now().Before(patience); runtime.Gosched() {
		if f, g, d = count(); f <= fds && g <= goroutines && d == dirs {
			break
		}
	}
	require.LessOrEqual(t, f, fds, "descriptors")
	require.LessOrEqual(t, g, goroutines, "goroutines")
	require.Equal(t, dirs, d, "cgroups")
}

// Some durations, for the record: a launch with limits against a plain fork.
func TestHostLaunchTime(t *testing.T) {
	b := newBackend(t, config(t))
	const n = 30
	began := time.Now()
	for range n {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		require.NoError(t, err)
		_, err = p.Wait()
		require.NoError(t, err)
	}
	plain := time.Since(began) / n
	var launch, release, limit time.Duration
	for range n {
		l := limited(plan("/bin/true"), limits(service.MemoryMax, 64<<20, service.PidsMax, 10, service.CPUMax, 500_000))
		began = time.Now()
		h, err := b.Launch(t.Context(), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
		require.NoError(t, err)
		launch += time.Since(began)
		<-h.Exited()
		began = time.Now()
		_, err = h.Release(t.Context())
		require.NoError(t, err)
		release += time.Since(began)
		require.NoError(t, h.Close())
	}
	r := start(t, b, limited(plan("/bin/sleep", "1000"), limits(service.MemoryMax, 64<<20)))
	began = time.Now()
	for range n {
		_, err := r.Limit(t.Context(), limits(service.MemoryMax, 128<<20))
		require.NoError(t, err)
	}
	limit = time.Since(began)
	t.Logf("plain fork, exec and wait %v; launch %v; release %v; limit and read all back %v", plain, launch/n, release/n, limit/n)
}
