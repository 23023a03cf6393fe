package exec

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/procfs"
)

// Usage sums over the processes that live. CPU time and IO also count what ended
// and was waited for: by its parent, or, CPU time alone, as an orphan or the main
// process by us; what an earlier agent reaped, or nobody, is lost. The peak is the
// highest sum that was read, or the peak of one process if that is more: no less
// than the true one can be told. IO of processes that we may not trace is unset, and
// so is all that only a cgroup counts.
func (h *handle) Usage(context.Context) (service.Usage, error) {
	// Before the look at those that live, so that none counts twice.
	dead := h.buriedTime()
	list, err := h.backend.survey(h.brand, h.main)
	if err != nil {
		return service.Usage{}, h.failure("read the usage of", err)
	}
	u := service.Usage{Source: "procfs", CPUTime: dead}
	var tasks, peak uint64
	var memory procfs.Memory
	var io struct{ read, written uint64 }
	traced := true
	for _, p := range list {
		u.Memory += p.RSS
		u.CPUTime += p.CPUTime + p.ChildrenCPUTime
		tasks += uint64(p.Threads)
		if m, err := h.backend.proc.Memory(p.PID); err == nil { // else it has ended
			peak = max(peak, m.Peak)
			memory.Anon, memory.File, memory.Swap = memory.Anon+m.Anon, memory.File+m.File, memory.Swap+m.Swap
		}
		read, written, err := h.backend.proc.IO(p.PID)
		traced = traced && !errors.Is(err, fs.ErrPermission)
		io.read, io.written = io.read+read, io.written+written
	}
	u.Pids = service.Of(tasks)
	if len(list) > 0 {
		u.Anon, u.File, u.Swap = service.Of(memory.Anon), service.Of(memory.File), service.Of(memory.Swap)
		if traced {
			u.IO.ReadBytes, u.IO.WriteBytes = service.Of(io.read), service.Of(io.written)
		}
	}
	if peak = max(peak, u.Memory); peak > 0 {
		u.MemoryPeak = service.Of(peak)
	}
	return h.remember(u), nil
}

// remember keeps u for after the end, never with less than was told before: a
// process that ends between two looks takes its time along for a moment.
func (h *handle) remember(u service.Usage) service.Usage {
	h.mu.Lock()
	defer h.mu.Unlock()
	u.CPUTime = max(u.CPUTime, h.latest.CPUTime)
	u.PidsPeak = service.Of(u.Pids.Value)
	for _, q := range []struct{ now, last *service.Quota }{
		{&u.MemoryPeak, &h.latest.MemoryPeak}, {&u.PidsPeak, &h.latest.PidsPeak},
		{&u.IO.ReadBytes, &h.latest.IO.ReadBytes}, {&u.IO.WriteBytes, &h.latest.IO.WriteBytes},
	} {
		if q.last.Set && q.last.Value > q.now.Value {
			*q.now = *q.last
		}
	}
	h.latest = u
	return u
}

// buried counts the CPU time of an orphan that was reaped.
func (h *handle) buried(o launch.Orphan) {
	h.corpse(o.PID)
	if h.main != nil && h.main.PID() == o.PID { // one that succeeded: its time is told with its end
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dead += o.CPUTime
}

func (h *handle) buriedTime() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.main != nil {
		return h.dead + h.main.Used().CPUTime
	}
	return h.dead
}
