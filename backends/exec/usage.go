package exec

import (
	"context"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
)

// Usage sums over the processes that live. CPU time also counts what ended and
// was waited for: by its parent, or as an orphan or the main process by us;
// what an earlier agent reaped, or nobody, is lost. The peak is the highest sum
// that was read, or the peak of one process if that is more: no less than the
// true one can be told.
func (h *handle) Usage(context.Context) (service.Usage, error) {
	// Before the look at those that live, so that none counts twice.
	dead := h.buriedTime()
	list, err := h.backend.survey(h.brand, h.main)
	if err != nil {
		return service.Usage{}, h.failure("read the usage of", err)
	}
	u := service.Usage{Source: "procfs", CPUTime: dead}
	var tasks, peak uint64
	for _, p := range list {
		u.Memory += p.RSS
		u.CPUTime += p.CPUTime + p.ChildrenCPUTime
		tasks += uint64(p.Threads)
		if most, err := h.backend.proc.MemoryPeak(p.PID); err == nil { // else it has ended
			peak = max(peak, most)
		}
	}
	u.Pids = service.Of(tasks)
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
	if last := h.latest.MemoryPeak; last.Set && last.Value > u.MemoryPeak.Value {
		u.MemoryPeak = last
	}
	h.latest = u
	return u
}

// buried counts the CPU time of an orphan that was reaped.
func (h *handle) buried(o launch.Orphan) {
	h.corpse(o.PID)
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
