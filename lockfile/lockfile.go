// Package lockfile locks the files by which agents keep each other out.
package lockfile

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/procfs"
)

// ErrHeld says that another process holds the lock.
var ErrHeld = errors.New("another process holds the lock")

const (
	patience = 10 * time.Second
	pause    = 10 * time.Millisecond
)

// Lock locks f until it is closed, by flock(2). The error is ErrHeld, at once, when
// somebody who lives holds the lock.
//
// A process that is killed amid a fork(2) leaves its locks to the child, which lets go
// of them when it executes its program; on a busy host the next agent is there before.
// So a lock whose holder does not live (proc_locks(5) names none) is waited for, though
// not for ever: in another PID namespace it may.
func Lock(fs procfs.FS, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if held(fs, info.Sys().(*syscall.Stat_t).Ino) || time.Now().After(end) {
			return ErrHeld
		}
	}
}

// held tells whether somebody who lives holds the lock of an inode, or nobody can tell.
func held(fs procfs.FS, inode uint64) bool {
	holders, err := fs.Flocks(inode)
	if err != nil {
		return true
	}
	for _, pid := range holders {
		p, err := fs.Process(pid)
		if err == nil && p.Alive() || err != nil && !errors.Is(err, procfs.ErrNoProcess) {
			return true
		}
	}
	return false
}
