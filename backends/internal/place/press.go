package place

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/watch"
)

// Press is backends.Handle.Press for the group of an incarnation.
func Press(w *watch.Watcher, g cgroup.Group, of service.PressureOf, full bool, share, window time.Duration, tell func()) (leave func(), err error) {
	f, err := g.Pressure(of, full, share, window)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) { // psi=0
		if there, _ := g.Exists(); there {
			return nil, backends.ErrDeaf
		}
	}
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	var remove func()
	var begun sync.Mutex // held until remove is known
	begun.Lock()
	var failed error
	err = raw.Control(func(fd uintptr) {
		remove, failed = w.AddTrigger(int(fd), unix.EPOLLPRI, func(events uint32) {
			if events&unix.EPOLLERR != 0 { // the group is gone
				begun.Lock()
				defer begun.Unlock()
				remove()
				return
			}
			tell()
		})
	})
	begun.Unlock()
	if err = errors.Join(err, failed); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", f.Name(), err), f.Close())
	}
	return func() {
		remove()
		_ = f.Close() // it was only ever asked to tell
	}, nil
}
