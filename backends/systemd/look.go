package systemd

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/place"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/procfs"
)

// Hear tells of the files of the cgroup.
func (h *handle) Hear(tell func(file string)) (leave func(), err error) {
	dir, err := h.scope.OpenDir()
	if err == nil {
		defer dir.Close()
		leave, err = h.b.watcher.Hear(dir, cgroup.Notified, tell)
	}
	if err != nil {
		return nil, failure("hear", h.ref.Name, err)
	}
	return leave, nil
}

// Gauge opens the counters.
func (h *handle) Gauge() (backends.Gauge, error) {
	gauge, err := h.scope.Gauge()
	if err != nil {
		return nil, failure("measure", h.ref.Name, err)
	}
	return gauge, nil
}

// Tally reads the counters of the limits.
func (h *handle) Tally() (service.Tally, error) {
	tally, err := h.scope.Tally()
	if err != nil {
		return tally, failure("count the limits hit of", h.ref.Name, err)
	}
	return tally, nil
}

// Press watches a pressure file.
func (h *handle) Press(of service.PressureOf, full bool, share, window time.Duration, tell func()) (leave func(), err error) {
	leave, err = place.Press(h.b.watcher, h.scope, of, full, share, window, tell)
	if err != nil {
		return nil, failure("watch the pressure on", h.ref.Name, err)
	}
	return leave, nil
}

func (h *handle) AwaitStop(tell func()) (func(), error) {
	if forget, told := h.main.AwaitStop(tell); told {
		return forget, nil
	}
	return nil, backends.ErrDeaf
}

func (h *handle) Threads() (service.Threads, error) {
	t, err := h.main.Threads(h.b.fs)
	if err != nil {
		return t, failure("look at", h.ref.Name, err)
	}
	return t, nil
}

// Owns implements backends.Handle.
func (h *handle) Owns(pid int) (bool, error) {
	owns, err := place.Owns(h.b.fs, h.cell, h.main, pid)
	if err != nil {
		return false, failure("look at a process for", h.ref.Name, err)
	}
	return owns, nil
}

// Run implements backends.Handle. After the main process the scope is no more, since
// systemd removes it with the last of its processes: then the program runs in the cell,
// which has the limits from then on.
func (h *handle) Run(ctx context.Context, p backends.Program) (backends.Ran, error) {
	in := h.scope
	if p.After {
		if err := h.limitCell(ctx); err != nil {
			return backends.Ran{}, failure("run a program after", h.ref.Name, err)
		}
		in = h.cell
	} else if h.ended() {
		return backends.Ran{}, &service.Error{Op: "run a program beside", Service: h.ref.Name, Kind: service.NotRunning, Err: errors.New("its main process has ended")}
	}
	h.mu.Lock()
	limits := h.requested
	h.mu.Unlock()
	return place.Beside(ctx, h.b.watcher, in, launch.Beside{
		Ref: h.ref, Like: h.like, Limits: limits, Program: p, Main: h.main,
	})
}

func (h *handle) Processes(context.Context) ([]backends.Process, error) {
	pids, err := h.cell.Processes()
	if err != nil {
		return nil, failure("list the processes of", h.ref.Name, err)
	}
	var found []backends.Process
	main := h.Ref()
	for _, pid := range pids {
		p, err := h.b.fs.Process(pid)
		if errors.Is(err, procfs.ErrNoProcess) {
			continue
		}
		if err != nil {
			return nil, failure("list the processes of", h.ref.Name, err)
		}
		entry := backends.Process{PID: pid, Parent: p.PPID, Command: h.b.fs.Command(pid)}
		if pid == main.PID && p.Start == main.StartTicks {
			found = slices.Insert(found, 0, entry)
		} else {
			found = append(found, entry)
		}
	}
	return found, nil
}
