package process

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/procfs"
)

// Reaper reaps orphans that were given to this OS process, as all are to process
// 1. It leaves alone what a Process holds, whose exit is somebody's news.
type Reaper struct {
	fs   procfs.FS
	quit chan struct{}
	once sync.Once // closes quit
	done chan struct{}
}

// StartReaper reaps children that have ended and that no Process holds, whenever
// one ends. Nobody else in this OS process may wait for a child.
func StartReaper(fs procfs.FS) *Reaper {
	r := &Reaper{fs: fs, quit: make(chan struct{}), done: make(chan struct{})}
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	released := make(chan struct{}, 1)
	stop := whenReleased(released)
	go func() {
		defer close(r.done)
		defer signal.Stop(died)
		defer stop()
		for {
			select {
			case <-died:
			case <-released:
			case <-r.quit:
				return
			}
			r.reapAll()
		}
	}()
	return r
}

// Stop ends the reaper and waits for that. Idempotent.
func (r *Reaper) Stop() {
	r.once.Do(func() { close(r.quit) })
	<-r.done
}

// reapAll reaps every orphan that has ended.
func (r *Reaper) reapAll() {
	for {
		pid, held, found := zombie()
		switch {
		case !found:
			return
		case held:
			return // once it is reaped, released tells, and we look behind it
		case !reapStranger(pid):
			r.reapBehind()
			return
		}
	}
}

// reapBehind looks through all processes, because the kernel shows only the
// first of our zombies, and that one may be held meanwhile.
func (r *Reaper) reapBehind() {
	processes, err := r.fs.Processes()
	if err != nil {
		return // the next death tries again
	}
	for _, p := range processes {
		if p.PPID == os.Getpid() && !p.Alive() {
			reapStranger(p.PID)
		}
	}
}
