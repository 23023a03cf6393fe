package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// rest is how long the kernel gathers what is written before it is read again, so
// that a service which runs into its limit a hundred times a second does not wake the
// agent as often. What comes after a longer silence is heard at once.
const rest = 50 * time.Millisecond

// ear is the one inotify(7) instance of a Watcher.
type ear struct {
	fd     int
	buffer []byte
	rested *time.Timer // at the end of a rest

	mu        sync.Mutex
	closed    bool
	listeners map[int32][]*listener // by the watch of the directory
}

// listener hears one directory.
type listener struct {
	guard
	tell func(file string)
	pins []int32 // watches of files
}

// Hear calls tell on the loop's goroutine with the name of each file in dir that
// somebody writes to, and of those among notified that the kernel itself has news in:
// memory.events and its like (kernfs_notify). It has no other way to tell of these than
// by their inodes, which therefore are held. Of files that are written often tell hears
// only now and then. With "" it is told that news were lost: any file may have been
// written. tell must not block.
//
// dir may be closed at once. A name among notified that is not there is left out. Of
// leave the same holds as of the function that Add returns; after the directory was
// removed, it is still to be called.
func (w *Watcher) Hear(dir *os.File, notified []string, tell func(file string)) (leave func(), err error) {
	e, err := w.ear()
	if err != nil {
		return nil, err
	}
	l := &listener{tell: tell}
	at := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd()))
	e.mu.Lock()
	defer e.mu.Unlock()
	wd, err := e.watch(at, unix.IN_MODIFY|unix.IN_ONLYDIR)
	if err != nil {
		return nil, fmt.Errorf("hear what is written in %s: %w", dir.Name(), err)
	}
	e.listeners[wd] = append(e.listeners[wd], l)
	for _, name := range notified {
		pin, err := e.watch(at+"/"+name, unix.IN_DELETE_SELF)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			e.forget(wd, l)
			return nil, fmt.Errorf("hear the news in %s/%s: %w", dir.Name(), name, err)
		}
		l.pins = append(l.pins, pin)
	}
	return func() {
		e.mu.Lock()
		e.forget(wd, l)
		e.mu.Unlock()
		w.settle(&l.guard)
	}, nil
}

// ear opens the ear when it is wanted first.
func (w *Watcher) ear() (*ear, error) {
	w.hearing.Lock()
	defer w.hearing.Unlock()
	if w.hears != nil {
		return w.hears, nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot make an inotify instance (fs.inotify.max_user_instances bounds them): %w", err)
	}
	e := &ear{fd: fd, buffer: make([]byte, 64<<10), listeners: map[int32][]*listener{}}
	rearm := func() error { return nil }
	e.rested = time.AfterFunc(math.MaxInt64, func() { _ = rearm() }) // fails when the loop was closed
	rearm, err = w.addOnce(fd, unix.EPOLLIN, func(uint32) { e.hear(); e.rested.Reset(rest) })
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	w.hears = e
	return e, nil
}

// watch adds a watch; the path leads through a descriptor.
func (e *ear) watch(path string, mask uint32) (int32, error) {
	if e.closed {
		return 0, os.ErrClosed
	}
	wd, err := unix.InotifyAddWatch(e.fd, path, mask)
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: there are as many watches as fs.inotify.max_user_watches allows; raise it (sysctl)", err)
	}
	return int32(wd), err
}

// forget takes l away, and the watches when nobody else has them. That of what was
// removed went with it.
func (e *ear) forget(wd int32, l *listener) {
	if l.removed.Swap(true) || e.closed {
		return
	}
	left := slices.DeleteFunc(slices.Clone(e.listeners[wd]), func(x *listener) bool { return x == l })
	if len(left) > 0 {
		e.listeners[wd] = left
		return
	}
	delete(e.listeners, wd)
	for _, wd := range append(l.pins, wd) {
		_, _ = unix.InotifyRmWatch(e.fd, uint32(wd))
	}
}

// hear reads what was written, as much as there is room for, and tells it.
func (e *ear) hear() {
	n, err := unix.Read(e.fd, e.buffer)
	if err != nil {
		return // EINTR, EAGAIN: it is there the next time
	}
	for left := e.buffer[:n]; len(left) >= unix.SizeofInotifyEvent; {
		wd := int32(binary.NativeEndian.Uint32(left))
		mask := binary.NativeEndian.Uint32(left[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(left[12:]))
		name, _, _ := bytes.Cut(left[unix.SizeofInotifyEvent:end], []byte{0})
		left = left[end:]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			e.tellAll()
		case mask&unix.IN_MODIFY != 0:
			e.mu.Lock()
			listeners := e.listeners[wd]
			e.mu.Unlock()
			for _, l := range listeners {
				l.do(func() { l.tell(string(name)) })
			}
		}
	}
}

func (e *ear) tellAll() {
	e.mu.Lock()
	all := slices.Collect(maps.Values(e.listeners))
	e.mu.Unlock()
	for _, l := range slices.Concat(all...) {
		l.do(func() { l.tell("") })
	}
}

// close ends it; the loop has ended.
func (e *ear) close() error {
	e.rested.Stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	return unix.Close(e.fd)
}
