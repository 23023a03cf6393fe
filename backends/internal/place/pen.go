package place

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/watch"
)

// pen begins the names of cgroups below that of an incarnation, one for each program that
// runs beside its main process: the limits above hold in there, and what is in it can be
// killed at one stroke.
const pen = "gladsheim-run-"

// Beside runs a program beside the main process of the incarnation that lives in g, as
// backends.Handle says of Run, but for the end of the main process.
func Beside(ctx context.Context, w *watch.Watcher, g cgroup.Group, b launch.Beside) (backends.Ran, error) {
	if err := roomFor(g); err != nil {
		return backends.Ran{}, launch.BesideFailure(b.Ref.Name, service.Conflict, err)
	}
	if err := g.RefuseFrozen(); err != nil {
		return backends.Ran{}, launch.BesideFailure(b.Ref.Name, service.Conflict, err)
	}
	p, err := newPen(g)
	if err != nil {
		return backends.Ran{}, besideError(g, b, err)
	}
	dir, err := p.OpenDir()
	if err != nil {
		return backends.Ran{}, besideError(g, b, errors.Join(err, p.Remove()))
	}
	defer dir.Close()
	b.CgroupFD = int(dir.Fd())
	b.Sweep = func(ctx context.Context, _ *launch.Child) error { return sweep(ctx, p) }
	ran, err := b.Run(ctx, w)
	if left := p.Remove(); err == nil && left != nil {
		err = besideError(g, b, left)
	}
	return backends.Ran{Exit: ran.Exit, Output: ran.Output}, err
}

// roomFor refuses a program where to start it would be more memory than the limit leaves:
// the kernel might kill the service for it.
func roomFor(g cgroup.Group) error {
	most, err := g.Limit(service.MemoryMax)
	if err != nil || !most.Set || most.Value == service.Unlimited {
		return nil // the start tells what is wrong
	}
	gauge, err := g.Gauge()
	if err != nil {
		return nil
	}
	defer gauge.Close()
	now, err := gauge.Read()
	if err != nil || !now.Memory.Set {
		return nil
	}
	cache, err := gauge.Cache()
	if err != nil {
		return nil
	}
	held := now.Memory.Value - min(cache.Value, now.Memory.Value)
	if left := most.Value - min(held, most.Value); left < launch.GateMemory {
		return fmt.Errorf("its memory_max leaves it %s, and to start a program takes %s: the kernel might kill the service for it",
			service.FormatSize(left), service.FormatSize(launch.GateMemory))
	}
	return nil
}

// besideError is the error of files, which are gone when the incarnation is.
func besideError(g cgroup.Group, b launch.Beside, err error) error {
	if there, existsErr := g.Exists(); existsErr == nil && !there {
		return launch.BesideFailure(b.Ref.Name, service.NotRunning, err)
	}
	return launch.BesideFailure(b.Ref.Name, service.HostUnavailable, err)
}

func newPen(g cgroup.Group) (cgroup.Group, error) {
	for n := 1; ; n++ {
		p := g.Child(fmt.Sprintf("%s%d", pen, n))
		if err := p.Create(nil); !errors.Is(err, fs.ErrExist) {
			return p, err
		}
	}
}

func sweep(ctx context.Context, p cgroup.Group) error {
	if err := p.Kill(); err != nil {
		return err
	}
	return p.WaitEmpty(ctx)
}

// Beholden lists the processes of g that were run beside the main one, or descend from one
// that was.
func Beholden(g cgroup.Group) (pids []int, err error) {
	err = eachPen(g, func(p cgroup.Group) error {
		here, err := p.Processes()
		pids = append(pids, here...)
		return err
	})
	return pids, err
}

// EndBeside ends what an agent that is no more was running beside the main process.
func EndBeside(ctx context.Context, g cgroup.Group) error {
	return eachPen(g, func(p cgroup.Group) error {
		if err := sweep(ctx, p); err != nil {
			return err
		}
		return p.Remove()
	})
}

func eachPen(g cgroup.Group, do func(cgroup.Group) error) error {
	names, err := g.Children()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var all []error
	for _, name := range names {
		if strings.HasPrefix(name, pen) {
			all = append(all, do(g.Child(name)))
		}
	}
	return errors.Join(err, errors.Join(all...))
}
