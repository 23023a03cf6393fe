package tail

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watch waits for a file to be written or for its name to change hands. The
// directory is watched for names only, or every log in it would wake us.
type watch struct {
	inotify *os.File
	file    int // watch descriptor of the present file, -1 for none
	stop    func() bool
}

const (
	watchedInDir  = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_ONLYDIR
	watchedOnFile = unix.IN_MODIFY
)

func newWatch(ctx context.Context, path string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), watchedInDir); err != nil {
		f.Close()
		return nil, fmt.Errorf("inotify_add_watch %s: %w", filepath.Dir(path), err)
	}
	// Closing it is what wakes a wait when ctx ends.
	return &watch{inotify: f, file: -1, stop: context.AfterFunc(ctx, func() { f.Close() })}, nil
}

// turn watches f instead of the file before it. It names f by its descriptor,
// so that it is that file whatever has become of its path.
func (w *watch) turn(f *os.File) error {
	control, err := w.inotify.SyscallConn()
	if err != nil {
		return err
	}
	var added error
	err = control.Control(func(fd uintptr) {
		if w.file >= 0 {
			// Fails if the file is deleted, for the watch went with it.
			_, _ = unix.InotifyRmWatch(int(fd), uint32(w.file))
		}
		w.file, added = unix.InotifyAddWatch(int(fd), fmt.Sprintf("/proc/self/fd/%d", f.Fd()), watchedOnFile)
	})
	return errors.Join(err, added)
}

// wait returns when something has changed, or with the error of ctx. What it
// was is not read: a look at the file tells, also after a queue overflow.
func (w *watch) wait(ctx context.Context) error {
	var events [4096]byte
	_, err := w.inotify.Read(events[:])
	if errors.Is(err, os.ErrClosed) {
		return ctx.Err()
	}
	return err
}

func (w *watch) close() {
	w.stop()
	w.inotify.Close()
}
