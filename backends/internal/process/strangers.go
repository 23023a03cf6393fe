package process

import (
	"sync"

	"golang.org/x/sys/unix"
)

// children are the processes that a Process holds. The table belongs to the
// whole OS process, as children do: whoever reaps strangers must know them
// all.
var children = struct {
	sync.Mutex
	held map[int]int // pid → how many hold it
	wake map[chan<- struct{}]bool
}{held: map[int]int{}, wake: map[chan<- struct{}]bool{}}

func own(pid int) {
	children.Lock()
	defer children.Unlock()
	children.held[pid]++
}

func disown(pid int) {
	children.Lock()
	defer children.Unlock()
	if children.held[pid]--; children.held[pid] == 0 {
		delete(children.held, pid)
	}
	for wake := range children.wake {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// zombie looks for a child of ours that has ended, without reaping it. held
// tells that a Process holds that child and is about to reap it; it may stand
// before others, which show when it is gone (see whenReleased).
func zombie() (pid int, held, ok bool) {
	pid, _, _, err := waitid(unix.P_ALL, 0, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	if err != nil {
		return 0, false, false
	}
	children.Lock()
	defer children.Unlock()
	return pid, children.held[pid] > 0, true
}

// reapStranger reaps the child pid, if it has ended and no Process holds it.
func reapStranger(pid int) bool {
	children.Lock()
	defer children.Unlock()
	if children.held[pid] > 0 {
		return false
	}
	_, _, _, err := waitid(unix.P_PID, pid, unix.WEXITED|unix.WNOHANG)
	return err == nil
}

// whenReleased sends to wake, without waiting, each time a Process has reaped its
// child or has let it go, until stop is called.
func whenReleased(wake chan<- struct{}) (stop func()) {
	children.Lock()
	defer children.Unlock()
	children.wake[wake] = true
	return func() {
		children.Lock()
		defer children.Unlock()
		delete(children.wake, wake)
	}
}
