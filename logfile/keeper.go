package logfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
	"weak"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

const (
	// shortest and longest are the waits between two looks at a log that is being
	// written. One that is not is looked at when the kernel tells that it is.
	shortest, longest = 100 * time.Millisecond, 2 * time.Second
	// retry is the wait after a cut that failed.
	retry = time.Minute
)

// Keeper cuts the logs of one directory when they are due. One goroutine serves
// all of them; it sleeps while nobody writes.
type Keeper struct {
	dir     string
	was     os.FileInfo // of dir, when it was last made
	log     *slog.Logger
	began   time.Time
	inotify *os.File
	conn    syscall.RawConn
	done    chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	files   map[string]weak.Pointer[File] // of each that somebody holds
	kept    map[string]*entry
	watched map[int]*entry // by watch descriptor
}

// entry is a log that is to be cut when it is due.
type entry struct {
	file *File

	// Of Keeper.mu.
	policy service.LogRotation
	due    time.Time // for the next look, zero for none
	wd     int       // watch descriptor of the file, -1 for none
	failed string    // why it could not be cut, "" if it could

	// Of the goroutine.
	seen  int64     // where the output ended at the last look
	at    time.Time // of the last look
	pause time.Duration
}

// atOnce is a due time that has passed.
var atOnce = time.Unix(1, 0)

// Open makes the directory, if it is not there, and begins to keep it.
func Open(dir string, log *slog.Logger) (*Keeper, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("cannot make the log directory: %w", err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	inotify := os.NewFile(uintptr(fd), "inotify")
	conn, err := inotify.SyscallConn()
	if err == nil {
		err = watchDir(fd, dir)
	}
	if err != nil {
		inotify.Close()
		return nil, err
	}
	k := &Keeper{
		dir: dir, log: log, began: time.Now(), inotify: inotify, conn: conn, done: make(chan struct{}),
		files: map[string]weak.Pointer[File]{}, kept: map[string]*entry{}, watched: map[int]*entry{},
	}
	if k.was, err = os.Stat(dir); err != nil {
		inotify.Close()
		return nil, fmt.Errorf("cannot look at the log directory: %w", err)
	}
	go k.run()
	return k, nil
}

// MakeDir makes a directory anew that somebody has removed, and keeps it. What was in
// the one that has gone is not there either. One that is there is left as it is.
func (k *Keeper) MakeDir() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := os.MkdirAll(k.dir, 0o750); err != nil {
		return fmt.Errorf("cannot make the log directory: %w", err)
	}
	now, err := os.Stat(k.dir)
	if err != nil {
		return fmt.Errorf("cannot look at the log directory: %w", err)
	}
	if os.SameFile(now, k.was) {
		return nil
	}
	for _, held := range k.files {
		if file := held.Value(); file != nil {
			file.unload()
		}
	}
	if ctl := k.conn.Control(func(fd uintptr) { err = watchDir(int(fd), k.dir) }); ctl != nil {
		return ctl
	}
	if err == nil {
		k.was = now
	}
	return err
}

func watchDir(inotify int, dir string) error {
	if _, err := unix.InotifyAddWatch(inotify, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		return fmt.Errorf("cannot watch %s: %w", dir, err)
	}
	return nil
}

// Close ends the keeping, after the cut that is under way.
func (k *Keeper) Close() {
	k.inotify.Close()
	<-k.done
}

// File is the output that is kept at path. It is the same File for all who ask.
func (k *Keeper) File(path string) *File {
	k.mu.Lock()
	defer k.mu.Unlock()
	if file := k.files[path].Value(); file != nil {
		return file
	}
	file := New(path)
	k.files[path] = weak.Make(file)
	return file
}

// Keep has the output at path cut from now on, as policy says.
func (k *Keeper) Keep(path string, policy service.LogRotation) {
	file := k.File(path)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept[path] == nil {
		k.kept[path] = &entry{file: file, wd: -1}
	}
	k.kept[path].policy, k.kept[path].due = policy, atOnce
	k.wake()
}

// Forget has the output at path left alone. Who reads it reads on, also when it is
// kept again.
func (k *Keeper) Forget(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.kept[path]; e != nil && e.wd >= 0 {
		_ = k.conn.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(e.wd)) })
	}
	delete(k.kept, path)
	maps.DeleteFunc(k.files, func(_ string, file weak.Pointer[File]) bool { return file.Value() == nil })
}

// Failures says of each log that can not be cut why.
func (k *Keeper) Failures() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]string{}
	for path, e := range k.kept {
		if e.failed != "" {
			out[path] = e.failed
		}
	}
	return out
}

// Full tells whether the file system of the directory has no block or no inode left:
// what a service writes there now fails with ENOSPC, unless root has a reserve.
func (k *Keeper) Full() (bool, error) {
	var fsys unix.Statfs_t
	if err := unix.Statfs(k.dir, &fsys); err != nil {
		return false, fmt.Errorf("statfs %s: %w", k.dir, err)
	}
	return fsys.Blocks > 0 && fsys.Bavail == 0 || fsys.Files > 0 && fsys.Ffree == 0, nil // some count none
}

// wake ends the sleep of the goroutine. The caller holds mu.
func (k *Keeper) wake() { _ = k.inotify.SetReadDeadline(atOnce) }

// run sleeps in a read of the inotify descriptor, whose deadline is the next look.
func (k *Keeper) run() {
	defer close(k.done)
	var events [4096]byte
	for {
		for _, e := range k.next() {
			k.look(e)
		}
		n, err := k.inotify.Read(events[:])
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err == nil:
			k.note(events[:n])
		case !errors.Is(err, os.ErrDeadlineExceeded):
			k.log.Error("logs are not cut any more", "error", err)
			return
		}
	}
}

// next gives the logs that are due, or sets the alarm for the first that will be.
func (k *Keeper) next() (due []*entry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var first time.Time
	now := time.Now()
	for _, e := range k.kept {
		switch {
		case e.due.IsZero():
		case !e.due.After(now):
			e.due = time.Time{}
			due = append(due, e)
		case first.IsZero() || e.due.Before(first):
			first = e.due
		}
	}
	if len(due) > 0 {
		first = atOnce // come again
	}
	_ = k.inotify.SetReadDeadline(first)
	return due
}

// note takes what the kernel tells.
func (k *Keeper) note(events []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int(binary.NativeEndian.Uint32(events))
		mask := binary.NativeEndian.Uint32(events[4:])
		length := binary.NativeEndian.Uint32(events[12:])
		name, rest := events[unix.SizeofInotifyEvent:][:length], events[unix.SizeofInotifyEvent+length:]
		events = rest
		e := k.watched[wd]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			for _, e := range k.kept {
				e.due = atOnce
			}
		case mask&unix.IN_IGNORED != 0:
			delete(k.watched, wd) // it tells once
			if e != nil && e.wd == wd {
				e.wd = -1
			}
		case e != nil:
			e.due = atOnce
		case length > 0: // of the directory
			name, _, _ = bytes.Cut(name, []byte{0})
			if e := k.kept[filepath.Join(k.dir, string(name))]; e != nil {
				e.due = atOnce
			}
		}
	}
}

// look cuts a log as far as it is due, and decides when to look again.
func (k *Keeper) look(e *entry) {
	k.mu.Lock()
	policy := e.policy
	k.mu.Unlock()
	now := time.Now()
	again, err := k.keep(e, policy, now)
	k.mu.Lock()
	defer k.mu.Unlock()
	before := e.failed
	e.failed = ""
	if err != nil {
		again, e.failed = now.Add(retry), err.Error()
	}
	if err != nil && e.failed != before {
		k.log.Warn("a log can not be cut; it grows on", "file", e.file.Path(), "error", err)
	}
	if e.due.IsZero() { // else it was asked for meanwhile
		e.due = again
	}
}

func (k *Keeper) keep(e *entry, policy service.LogRotation, now time.Time) (again time.Time, err error) {
	stream, err := e.file.Open()
	if err != nil {
		return time.Time{}, err
	}
	defer stream.Close()
	live, err := e.file.open(os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil // its coming will be told
	}
	if err != nil {
		return time.Time{}, err
	}
	defer live.Close()
	end, err := stream.End()
	if err != nil {
		return time.Time{}, err
	}
	if err := e.file.trim(live, policy, now); err != nil {
		return time.Time{}, err
	}
	again = e.file.ages(policy, now)
	grown, took := end-e.seen, now.Sub(e.at)
	e.seen, e.at = end, now
	if grown == 0 && e.pause >= longest {
		e.pause = 0
		return again, k.arm(e, live, stream, end)
	}
	e.pause = pause(e.pause, grown, took, int64(policy.Size)-(end-stream.Start()))
	// In step with others, so that one wake serves many.
	soon := k.began.Add((now.Sub(k.began) + e.pause).Truncate(shortest))
	if again.IsZero() || soon.Before(again) {
		again = soon
	}
	return again, nil
}

// pause is how long to wait for the next look at a log that grew by so much in
// such a time and has left bytes to grow until it is due: ever longer, but no
// longer than half the time until it is full.
func pause(last time.Duration, grown int64, took time.Duration, left int64) time.Duration {
	next := min(max(2*last, shortest), longest)
	if grown > 0 {
		full := time.Duration(float64(took) * float64(left) / float64(grown) / 2)
		next = max(min(next, full), shortest)
	}
	return next
}

// arm has the kernel tell when a log is written. What was written until then is
// looked for after.
func (k *Keeper) arm(e *entry, live *os.File, stream *Stream, end int64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var added error
	err := k.conn.Control(func(fd uintptr) {
		e.wd, added = unix.InotifyAddWatch(int(fd), fmt.Sprintf("/proc/self/fd/%d", live.Fd()), unix.IN_MODIFY|unix.IN_ONESHOT)
		if added == nil {
			k.watched[e.wd] = e
		}
	})
	if err := errors.Join(err, added); err != nil {
		return fmt.Errorf("cannot watch %s: %w", e.file.Path(), err)
	}
	if now, err := stream.End(); err != nil || now != end {
		e.due = atOnce
	}
	return nil
}
