// Package place tells what befalls the cgroup of an incarnation: that the main process
// is taken out of it, as root can do, and systemd at its behest, and that it is frozen
// or thawed.
package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

// Place is where one incarnation belongs. Its methods may be called by many
// goroutines at once.
type Place struct {
	fs      procfs.FS
	group   cgroup.Group
	main    *process.Main
	left    chan struct{}
	froze   chan struct{}
	over    bool // left is closed; the watcher's, once it knows of the place
	events  *os.File
	unwatch func()
}

// Watch looks at once, and again whenever the kernel tells that the group has
// become empty, or was frozen or thawed (cgroup.events, Linux's cgroup-v2.rst). That
// the main process has left it does not tell when others stay behind in the group: then
// only who asks finds out.
func Watch(w *watch.Watcher, proc procfs.FS, g cgroup.Group, main *process.Main) (*Place, error) {
	p := &Place{fs: proc, group: g, main: main, left: make(chan struct{}), froze: make(chan struct{}, 1), unwatch: func() {}}
	events, err := g.OpenEvents()
	if errors.Is(err, fs.ErrNotExist) { // nobody is left in it, or will be
		p.look(0)
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	p.events = events
	if err := p.watch(w); err != nil {
		events.Close()
		return nil, fmt.Errorf("watch %s: %w", g.Path(), err)
	}
	return p, nil
}

func (p *Place) watch(w *watch.Watcher) error {
	raw, err := p.events.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { // the first look comes with it
		p.unwatch, failed = w.Add(int(fd), unix.EPOLLPRI|unix.EPOLLET, p.look)
	})
	return errors.Join(err, failed)
}

// look runs on the watcher's loop.
func (p *Place) look(uint32) {
	select {
	case p.froze <- struct{}{}:
	default: // nobody has looked since the last one
	}
	if !p.over && p.gone() {
		p.over = true
		close(p.left)
	}
}

// gone tells whether the main process lives elsewhere. One that is ending is
// still where it was, or where that has been.
func (p *Place) gone() bool {
	at, err := p.fs.Cgroup(p.main.PID())
	if err != nil || !p.main.Lives() { // else the number may be another's
		return false
	}
	at = strings.TrimSuffix(at, " (deleted)")
	return at != p.group.Path() && !strings.HasPrefix(at, p.group.Path()+"/")
}

// Left is closed when the main process lives and is no more in its place.
func (p *Place) Left() <-chan struct{} { return p.left }

// Froze holds a value when the group may have been frozen or thawed, and at the
// beginning.
func (p *Place) Froze() <-chan struct{} { return p.froze }

// Check is an error if the main process has left its place, also where the
// kernel does not tell.
func (p *Place) Check() error {
	if !p.gone() {
		return nil
	}
	return fmt.Errorf("somebody has moved process %d out of %s: no limit holds there; restart the service", p.main.PID(), p.group.Path())
}

// Close ends the watching. It is idempotent.
func (p *Place) Close() error {
	p.unwatch()
	if p.events == nil {
		return nil
	}
	if err := p.events.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Succeed makes a process that lives in g the main one, and marks g with it. What was run
// beside the main one can not be.
func Succeed(w *watch.Watcher, proc procfs.FS, shim *launch.Shim, g cgroup.Group, main *process.Main, pid int) error {
	return launch.Succession{
		Watcher: w, Proc: proc, Shim: shim, Main: main,
		Belongs: func(pid int) (bool, error) {
			at, err := proc.Cgroup(pid)
			if err != nil || !g.Holds(at) {
				return false, err
			}
			beside, err := Beholden(g)
			return !slices.Contains(beside, pid), err
		},
		Mark: func(p *process.Process) error {
			err := g.SetMark(process.Mark(p.PID(), p.StartTicks()))
			if errors.Is(err, errors.ErrUnsupported) { // the record alone tells then
				return nil
			}
			return err
		},
	}.By(pid)
}

// Kept tells whether a process that a record calls the main one of a service is in
// none of our cgroups, which lie below homes, and a child of the shim: then it was
// launched as such, and has been moved out of a cgroup that is no more.
func Kept(proc procfs.FS, pid int, homes string) bool {
	if at, err := proc.Cgroup(pid); err != nil || strings.HasPrefix(at, homes+"/") {
		return false // it is at home, as another one's
	}
	p, err := proc.Process(pid)
	if err != nil {
		return false
	}
	parent, err := proc.Process(p.PPID)
	return err == nil && parent.Name == gate.ShimName
}

// Owns tells whether the process that has a number now is in g, or is the main one of the
// incarnation that belongs there, wherever it was moved; main may be nil.
func Owns(proc procfs.FS, g cgroup.Group, main *process.Main, pid int) (bool, error) {
	if main != nil && pid == main.PID() && main.Lives() {
		return true, nil
	}
	at, err := proc.Cgroup(pid)
	if errors.Is(err, procfs.ErrNoProcess) {
		return false, nil
	}
	return err == nil && g.Holds(at), err
}
