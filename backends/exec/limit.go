package exec

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	if withoutRTTime(l) != l {
		return service.Applied{}, refuseRTTime("limit", h.ref.Name)
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
	if !h.ended() {
		if now, err := rlimit.Report(h.main.PID(), withoutRTTime(h.requested)[service.Rlimits], service.RlimitRTTime); err == nil && !h.ended() {
			now.Requested, now.Enforced = h.requested[service.Rlimits], withoutRTTime(h.requested) == h.requested
			applied[service.Rlimits] = now
		}
	}
	report := &applied[service.NoFile]
	report.Applied, report.Effective, report.Enforced = service.Of(files), service.Of(files), true
	return applied, nil
}

// withoutRTTime is l without rlimits' rttime, which is what brands processes here.
func withoutRTTime(l service.Limits) service.Limits {
	list, err := service.ParseRlimits(l[service.Rlimits].Text)
	rest := slices.DeleteFunc(slices.Clone(list), func(r service.Rlimit) bool { return r.Kind == service.RlimitRTTime })
	if err == nil && len(rest) < len(list) {
		l[service.Rlimits] = service.OfRlimits(rest)
	}
	return l
}

func refuseRTTime(op string, name service.Name) error {
	return &service.Error{Op: op, Service: name, Kind: service.Unenforceable, Reason: service.ReasonLimitUnenforceable,
		Err: errors.New("the exec backend, which uses no cgroups, finds the processes of services by their rttime, so that rlimits can not set it; remove it, or set best_effort to run without it")}
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
	if !h.ended() {
		files, err := h.backend.proc.NoFileLimit(h.main.PID())
		if err == nil && !h.ended() { // else it may have been another's
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
