package watch

import (
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const deadline = 10 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newWatcher(t testing.TB) *Watcher {
	t.Helper()
	w, err := New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	return w
}

// counter is an eventfd: readable while it holds more than 0.
func counter(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func raise(t testing.TB, fd int) {
	t.Helper()
	_, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	require.NoError(t, err)
}

func drain(fd int) {
	_, _ = unix.Read(fd, make([]byte, 8))
}

func receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(deadline):
		require.Fail(t, "nothing came")
	}
	panic("not reached")
}

func TestEveryEventIsTold(t *testing.T) {
	w := newWatcher(t)
	fd := counter(t)
	events := make(chan uint32)
	remove, err := w.Add(fd, unix.EPOLLIN, func(e uint32) { drain(fd); events <- e })
	require.NoError(t, err)
	for range 100 {
		raise(t, fd)
		require.Equal(t, uint32(unix.EPOLLIN), receive(t, events))
	}
	remove()
	remove()
}

func TestWhatIsReadyBeforehandIsTold(t *testing.T) {
	w := newWatcher(t)
	for _, events := range []uint32{unix.EPOLLIN, unix.EPOLLIN | unix.EPOLLET} {
		fd := counter(t)
		raise(t, fd)
		told := make(chan struct{}, 1)
		remove, err := w.Add(fd, events, func(uint32) { drain(fd); told <- struct{}{} })
		require.NoError(t, err)
		receive(t, told)
		remove()
	}
}

func TestLevelTriggeredUntilTheCauseIsTakenAway(t *testing.T) {
	w := newWatcher(t)
	fd := counter(t)
	var calls atomic.Int32
	done := make(chan struct{})
	remove, err := w.Add(fd, unix.EPOLLIN, func(uint32) {
		if calls.Add(1) == 5 {
			drain(fd)
			close(done)
		}
	})
	require.NoError(t, err)
	raise(t, fd)
	receive(t, done)
	remove()
	require.Equal(t, int32(5), calls.Load())
}

func TestHangUpIsToldUnasked(t *testing.T) {
	w := newWatcher(t)
	r, p, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	told := make(chan uint32, 1)
	remove, err := w.Add(int(r.Fd()), unix.EPOLLET, func(e uint32) { told <- e })
	require.NoError(t, err)
	defer remove()
	require.NoError(t, p.Close())
	require.Equal(t, uint32(unix.EPOLLHUP), receive(t, told))
}

func TestRemoveFromTheFunctionItself(t *testing.T) {
	w := newWatcher(t)
	fd, other := counter(t), counter(t)
	var calls atomic.Int32
	var remove func()
	var known sync.Mutex
	known.Lock()
	remove, err := w.Add(fd, unix.EPOLLIN, func(uint32) {
		known.Lock()
		remove()
		remove()
		known.Unlock()
		calls.Add(1)
	})
	require.NoError(t, err)
	known.Unlock()
	raise(t, fd)
	// It was never drained: only the removal ends the events.
	told := make(chan struct{}, 1)
	removeOther, err := w.Add(other, unix.EPOLLIN, func(uint32) { drain(other); told <- struct{}{} })
	require.NoError(t, err)
	defer removeOther()
	for range 20 {
		raise(t, other)
		receive(t, told)
	}
	require.Equal(t, int32(1), calls.Load())
}

func TestRemoveFromAnotherFunctionOfTheLoop(t *testing.T) {
	w := newWatcher(t)
	fd, other := counter(t), counter(t)
	removeOther, err := w.Add(other, unix.EPOLLIN, func(uint32) { drain(other) })
	require.NoError(t, err)
	done := make(chan struct{})
	remove, err := w.Add(fd, unix.EPOLLIN, func(uint32) { drain(fd); removeOther(); close(done) })
	require.NoError(t, err)
	defer remove()
	raise(t, fd)
	receive(t, done)
}

func TestRemoveWaitsForTheFunction(t *testing.T) {
	w := newWatcher(t)
	fd := counter(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	var finished atomic.Bool
	remove, err := w.Add(fd, unix.EPOLLIN, func(uint32) {
		drain(fd)
		close(entered)
		<-leave
		finished.Store(true)
	})
	require.NoError(t, err)
	raise(t, fd)
	receive(t, entered)
	removed := make(chan bool)
	for range 2 {
		go func() { remove(); removed <- finished.Load() }()
	}
	close(leave)
	for range 2 {
		require.True(t, receive(t, removed))
	}
}

// A descriptor number that is closed and given out again must not reach the
// function of its former owner.
func TestNumbersAreUsedAgain(t *testing.T) {
	w := newWatcher(t)
	for range 500 {
		fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		require.NoError(t, err)
		var gone atomic.Bool
		told := make(chan struct{}, 1)
		remove, err := w.Add(fd, unix.EPOLLIN|unix.EPOLLET, func(uint32) {
			if gone.Load() {
				panic("called after its removal")
			}
			told <- struct{}{}
		})
		require.NoError(t, err)
		receive(t, told)
		remove()
		gone.Store(true)
		require.NoError(t, unix.Close(fd))
	}
	require.Empty(t, w.entries)
}

func TestManyAddAndRemoveAtOnce(t *testing.T) {
	w := newWatcher(t)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 200 {
				fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
				if err != nil {
					t.Error(err)
					return
				}
				remove, err := w.Add(fd, unix.EPOLLIN, func(uint32) {})
				if err != nil {
					t.Error(err)
				} else {
					remove()
				}
				unix.Close(fd)
			}
		})
	}
	wait.Wait()
	require.Empty(t, w.entries)
}

func TestABadDescriptorIsRefused(t *testing.T) {
	w := newWatcher(t)
	_, err := w.Add(-1, unix.EPOLLIN, func(uint32) {})
	require.ErrorIs(t, err, unix.EBADF)
	plain, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer plain.Close()
	_, err = w.Add(int(plain.Fd()), unix.EPOLLIN, func(uint32) {})
	require.ErrorIs(t, err, unix.EPERM, "epoll takes no plain files")
	require.Empty(t, w.entries)
}

func TestAfterClose(t *testing.T) {
	w, err := New()
	require.NoError(t, err)
	fd := counter(t)
	remove, err := w.Add(fd, unix.EPOLLIN, func(uint32) {})
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, w.Close())
	remove()
	_, err = w.Add(fd, unix.EPOLLIN, func(uint32) {})
	require.ErrorIs(t, err, os.ErrClosed)
}

func TestAnIdleLoopHoldsNoThread(t *testing.T) {
	threads := func() int {
		entries, err := os.ReadDir("/proc/self/task")
		require.NoError(t, err)
		return len(entries)
	}
	var watchers []*Watcher
	before := threads()
	for range 50 {
		w, err := New()
		require.NoError(t, err)
		watchers = append(watchers, w)
	}
	require.Less(t, threads(), before+25)
	for _, w := range watchers {
		require.NoError(t, w.Close())
	}
}

func BenchmarkEvent(b *testing.B) {
	w := newWatcher(b)
	fd := counter(b)
	told := make(chan struct{})
	remove, err := w.Add(fd, unix.EPOLLIN, func(uint32) { drain(fd); told <- struct{}{} })
	require.NoError(b, err)
	defer remove()
	for b.Loop() {
		raise(b, fd)
		<-told
	}
}

func TestTriggers(t *testing.T) {
	w := newWatcher(t)
	fd := counter(t)
	told := make(chan struct{})
	remove, err := w.AddTrigger(fd, unix.EPOLLIN, func(uint32) { drain(fd); told <- struct{}{} })
	require.NoError(t, err)
	for range 100 {
		raise(t, fd)
		receive(t, told)
	}
	remove()
	remove()
	raise(t, fd)
	require.NoError(t, w.Close())
	_, err = w.AddTrigger(fd, unix.EPOLLIN, func(uint32) {})
	require.ErrorIs(t, err, os.ErrClosed)
}
