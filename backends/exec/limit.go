package exec

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/rlimit"
	"github.com/gladsheim/gladsheim/procfs"
)

// Drift has no files of limits.
func (h *handle) Drift(context.Context, func(service.Drift) service.OnDrift) ([]service.Drift, error) {
	return nil, nil
}

// Force is Limit, which kills nobody here.
func (h *handle) Force(ctx context.Context, l service.Limits) (service.Applied, error) {
	return h.Limit(ctx, l)
}

// Throttle refuses: what holds a service back is a matter of cgroups.
func (h *handle) Throttle(_ context.Context, l service.Limits) (service.Applied, error) {
	return service.Applied{}, unenforceable("throttle", h.ref.Name, h.backend.Enforces().Missing(l))
}

// Limit implements backends.Handle.
func (h *handle) Limit(ctx context.Context, l service.Limits) (service.Applied, error) {
	if missing := h.backend.Enforces().Missing(l); len(missing) > 0 {
		return service.Applied{}, unenforceable("limit", h.ref.Name, missing)
	}
	done, err := h.take(ctx, "limit")
	if err != nil {
		return service.Applied{}, err
	}
	defer done()
	if _, err := h.noFile(); err != nil { // also tells whether anybody lives
		return service.Applied{}, err
	}
	h.mu.Lock()
	requested := h.requested
	h.mu.Unlock()
	limits, err := rlimit.Wanted(l, requested)
	if err == nil {
		err = rlimit.Set(h.pids, limits)
	}
	if err != nil {
		return service.Applied{}, h.limitFailure(err)
	}
	h.mu.Lock()
	h.requested = l.Over(h.requested)
	h.mu.Unlock()
	return h.Limits(ctx)
}

// Limits implements backends.Handle. The number of open files is the main
// process's, or that of the first of the others.
func (h *handle) Limits(context.Context) (service.Applied, error) {
	files, err := h.noFile()
	if err != nil {
		return service.Applied{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var applied service.Applied
	for r, want := range h.requested {
		applied[r].Requested = want
		if want.Set && want.Value == service.Unlimited {
			applied[r].Applied, applied[r].Enforced = want, true // nothing limits it, as asked
		}
	}
	applied[service.Rlimits].Enforced = true
	if h.main != nil && !over(h.exited) {
		if now, err := rlimit.Report(h.main.PID(), h.requested[service.Rlimits]); err == nil && !over(h.exited) {
			applied[service.Rlimits] = now
		}
	}
	report := &applied[service.NoFile]
	report.Applied, report.Effective, report.Enforced = service.Of(files), service.Of(files), true
	return applied, nil
}

func (h *handle) pids() ([]int, error) {
	list, err := h.backend.survey(h.brand, h.main)
	if err != nil {
		return nil, err
	}
	pids := make([]int, len(list))
	for i, p := range list {
		pids[i] = p.PID
	}
	return pids, nil
}

// noFile reads the limit of open files back: of the main process, or of another when
// that has ended, for which all processes of the host have to be looked at.
func (h *handle) noFile() (uint64, error) {
	if h.main != nil && !over(h.exited) {
		files, err := h.backend.proc.NoFileLimit(h.main.PID())
		if err == nil && !over(h.exited) { // else it may have been another's
			return files, nil
		}
	}
	pids, err := h.pids()
	if err != nil {
		return 0, h.failure("read the limits of", err)
	}
	for _, pid := range pids {
		files, err := h.backend.proc.NoFileLimit(pid)
		if errors.Is(err, procfs.ErrNoProcess) {
			continue
		}
		if err != nil {
			return 0, h.failure("read the limits of", err)
		}
		return files, nil
	}
	return 0, &service.Error{Op: "read the limits of", Service: h.ref.Name, Kind: service.NotRunning, Err: errors.New("none of its processes lives")}
}

func (h *handle) limitFailure(err error) error {
	kind := service.HostUnavailable
	if errors.Is(err, unix.EPERM) {
		kind = service.Denied
		err = fmt.Errorf("%w; without CAP_SYS_RESOURCE the agent can only lower it, and only for processes of its own user", err)
	}
	return &service.Error{Op: "limit", Service: h.ref.Name, Kind: kind, Err: err}
}
