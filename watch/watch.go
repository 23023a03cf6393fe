// Package watch is an epoll loop: whoever holds a file descriptor that has news (a
// pidfd, cgroup.events, a pressure trigger, a connection) adds it here with a
// function, and no goroutine sleeps for it.
//
// The epoll descriptor itself waits in Go's network poller (epoll(7) sets
// nest), so the loop costs no thread while nothing happens. Only what may not
// be asked twice, as it is in a nested set, has a loop with a thread.
package watch

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// batch is how many events are taken from the kernel at once.
const batch = 128

// Watcher is the loop. Its methods may be called by many goroutines at once.
type Watcher struct {
	epoll *os.File
	conn  syscall.RawConn
	done  chan struct{} // closed when the loop has ended
	end   int           // an eventfd that ends a loop with a thread of its own; -1 for one without

	// The thread that runs the functions of a batch, 0 between batches; how
	// remove finds out that it was called from one of them.
	thread atomic.Int64

	mu      sync.Mutex
	entries map[uint64]*entry
	last    uint64 // the latest key given out; keys are never used twice

	hearing  sync.Mutex // of what follows
	hears    *ear       // nil as long as nobody wants to hear
	triggers *Watcher   // nil as long as there are none
	closed   bool
}

// entry is one watched descriptor.
type entry struct {
	guard
	f func(events uint32)
}

// guard keeps a function from being called once it was removed.
type guard struct {
	removed atomic.Bool
	running sync.Mutex // held while the function runs
}

func (g *guard) do(f func()) {
	g.running.Lock()
	defer g.running.Unlock()
	if !g.removed.Load() {
		f()
	}
}

// New starts the loop.
func New() (*Watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make an epoll set: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot make the epoll set non-blocking: %w", err)
	}
	w, err := open(fd)
	if err != nil {
		return nil, err
	}
	if err := w.epoll.SetReadDeadline(time.Time{}); err != nil { // Go's poller would not have it
		w.epoll.Close()
		return nil, fmt.Errorf("cannot wait for the epoll set: %w", err)
	}
	go w.loop(w.poll)
	return w, nil
}

// newThreaded starts a loop that waits for its set in a thread.
func newThreaded() (*Watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make an epoll set: %w", err)
	}
	w, err := open(fd)
	if err != nil {
		return nil, err
	}
	if w.end, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		err = w.control(unix.EPOLL_CTL_ADD, w.end, unix.EPOLLIN, 0)
	}
	if err != nil {
		w.epoll.Close()
		if w.end >= 0 {
			unix.Close(w.end)
		}
		return nil, fmt.Errorf("cannot provide for the end of the epoll set: %w", err)
	}
	go w.loop(func(events []unix.EpollEvent) (int, error) { return unix.EpollWait(fd, events, -1) })
	return w, nil
}

func open(fd int) (*Watcher, error) {
	file := os.NewFile(uintptr(fd), "epoll")
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("cannot wait for the epoll set: %w", err)
	}
	return &Watcher{epoll: file, conn: conn, done: make(chan struct{}), end: -1, entries: map[uint64]*entry{}}, nil
}

// AddTrigger is Add for a descriptor whose event is gone once it was asked about, as
// that of a pressure trigger (psi_trigger_poll in kernel/sched/psi.c): in a nested set it
// would never arrive. The functions of triggers have a goroutine of their own.
func (w *Watcher) AddTrigger(fd int, events uint32, f func(events uint32)) (remove func(), err error) {
	w.hearing.Lock()
	defer w.hearing.Unlock()
	if w.closed {
		return nil, os.ErrClosed
	}
	if w.triggers == nil {
		if w.triggers, err = newThreaded(); err != nil {
			return nil, err
		}
	}
	return w.triggers.Add(fd, events, f)
}

// Add calls f on the loop's goroutine whenever fd has one of events (EPOLLIN,
// EPOLLPRI; EPOLLERR and EPOLLHUP are implied). f must not block.
//
// Events are level-triggered unless EPOLLET is among them: f has to take the
// cause away (read, or remove), or it is called again at once.
//
// The fd stays the caller's, who calls remove before closing it. When remove
// has returned f does not run and never will; only when remove is called from
// f, or from another function of this loop, does it not wait. Whoever calls it
// must not hold a lock that f takes. Further calls of remove do nothing.
func (w *Watcher) Add(fd int, events uint32, f func(events uint32)) (remove func(), err error) {
	e := &entry{f: f}
	key, err := w.add(fd, events, e)
	if err != nil {
		return nil, err
	}
	return func() { w.remove(e, fd, key) }, nil
}

// addOnce calls f once for all events until again is called, and does not remove fd.
func (w *Watcher) addOnce(fd int, events uint32, f func(events uint32)) (again func() error, err error) {
	key, err := w.add(fd, events|unix.EPOLLONESHOT, &entry{f: f})
	if err != nil {
		return nil, err
	}
	return func() error { return w.control(unix.EPOLL_CTL_MOD, fd, events|unix.EPOLLONESHOT, key) }, nil
}

func (w *Watcher) add(fd int, events uint32, e *entry) (key uint64, err error) {
	w.mu.Lock()
	w.last++
	key = w.last
	w.entries[key] = e
	w.mu.Unlock()

	if err := w.control(unix.EPOLL_CTL_ADD, fd, events, key); err != nil {
		w.forget(key)
		return 0, fmt.Errorf("cannot watch fd %d: %w", fd, err)
	}
	return key, nil
}

func (w *Watcher) remove(e *entry, fd int, key uint64) {
	if !e.removed.Swap(true) {
		w.forget(key)
		// Fails when the loop was closed, which has removed everything.
		_ = w.control(unix.EPOLL_CTL_DEL, fd, 0, 0)
	}
	w.settle(&e.guard)
}

// settle waits for the function of a removed guard, unless it is called from the loop.
func (w *Watcher) settle(g *guard) {
	if int64(unix.Gettid()) == w.thread.Load() {
		return
	}
	g.running.Lock()
	g.running.Unlock()
}

func (w *Watcher) forget(key uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.entries, key)
}

// control is epoll_ctl(2) on a set that can not be closed meanwhile. The key
// travels in the event's data. It fails with os.ErrClosed after Close.
func (w *Watcher) control(op, fd int, events uint32, key uint64) error {
	event := unix.EpollEvent{Events: events, Fd: int32(uint32(key)), Pad: int32(uint32(key >> 32))}
	var failure error
	err := w.conn.Control(func(epoll uintptr) {
		failure = unix.EpollCtl(int(epoll), op, fd, &event)
	})
	if err != nil {
		return os.ErrClosed
	}
	return failure
}

// Close ends the loop and waits for it. It must not be called from a function
// that the loop runs. Afterwards Add fails with os.ErrClosed and remove does nothing.
func (w *Watcher) Close() error {
	err := w.epoll.Close()
	<-w.done
	w.hearing.Lock()
	defer w.hearing.Unlock()
	w.closed = true
	if w.triggers != nil {
		err = errors.Join(err, w.triggers.closeThreaded())
		w.triggers = nil
	}
	if w.hears != nil {
		err = errors.Join(err, w.hears.close())
		w.hears = nil
	}
	if err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("cannot close the epoll set: %w", err)
	}
	return nil
}

// closeThreaded ends a loop that waits in a thread, before its set is closed under it.
func (w *Watcher) closeThreaded() error {
	if _, err := unix.Write(w.end, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return fmt.Errorf("cannot end the loop of the epoll set: %w", err)
	}
	<-w.done
	return errors.Join(w.epoll.Close(), unix.Close(w.end))
}

func (w *Watcher) loop(wait func([]unix.EpollEvent) (int, error)) {
	defer close(w.done)
	events := make([]unix.EpollEvent, batch)
	for {
		n, err := wait(events)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // closed
		}
		for _, e := range events[:n] {
			if e.Fd == 0 && e.Pad == 0 { // no key
				return
			}
		}
		w.dispatch(events[:n])
	}
}

// poll waits in Go's poller.
func (w *Watcher) poll(events []unix.EpollEvent) (n int, err error) {
	err = w.conn.Read(func(epoll uintptr) bool {
		var err error
		n, err = unix.EpollWait(int(epoll), events, 0)
		return err == nil && n > 0
	})
	return n, err
}

// dispatch runs the functions of a batch. It keeps its thread meanwhile, so
// that the thread's number tells remove who calls it.
func (w *Watcher) dispatch(events []unix.EpollEvent) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w.thread.Store(int64(unix.Gettid()))
	defer w.thread.Store(0)
	for _, event := range events {
		key := uint64(uint32(event.Fd)) | uint64(uint32(event.Pad))<<32
		w.mu.Lock()
		e := w.entries[key]
		w.mu.Unlock()
		if e != nil {
			e.do(func() { e.f(event.Events) })
		}
	}
}
