package exec

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/backends/internal/process"
)

// reaper reaps orphans: processes of services whose parent died before them,
// so that they became our children. It leaves alone what a process.Process
// holds, whose exit is somebody's news, and what is no orphan of ours, which
// somebody else in this program may be waiting for.
type reaper struct {
	backend *Backend
	quit    chan struct{}
	once    sync.Once // closes quit
	done    chan struct{}
}

func startReaper(b *Backend) *reaper {
	r := &reaper{backend: b, quit: make(chan struct{}), done: make(chan struct{})}
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	released := make(chan struct{}, 1)
	stop := process.Released(released)
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

func (r *reaper) stop() {
	r.once.Do(func() { close(r.quit) })
	<-r.done
}

// reapAll reaps every orphan that has ended.
func (r *reaper) reapAll() {
	for {
		pid, held, found := process.Zombie()
		switch {
		case !found:
			return
		case held:
			return // once it is reaped, released tells, and we look behind it
		case !r.reap(pid):
			r.reapBehind()
			return
		}
	}
}

// reapBehind looks through all processes, because the kernel shows only the
// first of our zombies, and that one is another's to reap.
func (r *reaper) reapBehind() {
	processes, err := r.backend.proc.Processes()
	if err != nil {
		return // the next death tries again
	}
	for _, p := range processes {
		if p.PPID == os.Getpid() && !p.Alive() {
			r.reap(p.PID)
		}
	}
}

// reap reaps the child pid if it is an orphan of a service: it carries a
// brand, or is in the session of a main process that is known.
func (r *reaper) reap(pid int) bool {
	mark, err := r.backend.brandOf(pid)
	if err != nil {
		return false
	}
	if !mark.is() {
		session, err := unix.Getsid(pid)
		if err != nil || !r.backend.leads(session, &mark) {
			return false
		}
	}
	stranger, ok := process.Reap(pid)
	if ok {
		r.backend.orphan(mark, stranger)
	}
	return ok
}
