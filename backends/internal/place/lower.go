package place

import (
	"context"
	"errors"
	"fmt"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/cgroup"
)

// Lowering calls set, which is to apply l, when l may be applied.
type Lowering func(ctx context.Context, l service.Limits, set func(context.Context) error) error

// AtOnce is the Lowering that has the kernel kill what does not fit; the careful one is
// cgroup.Group.Lower.
func AtOnce(ctx context.Context, _ service.Limits, set func(context.Context) error) error {
	return set(ctx)
}

// InUse is the refusal of a Lowering that came to nothing, or nil if err is of another
// kind.
func InUse(ctx context.Context, op string, name service.Name, err error) error {
	if e, ok := errors.AsType[*cgroup.InUseError](err); ok {
		return &service.Error{Op: op, Service: name, Kind: service.Conflict, Reason: service.ReasonLimitInUse,
			Err: fmt.Errorf("%s of %s is too low for what it uses, so nothing was changed: %w; choose a higher one, have it use less, or force it, and the kernel kills it",
				service.MemoryMax, service.MemoryMax.Format(service.Of(e.Max)), err)}
	}
	if e, ok := errors.AsType[*cgroup.HugePagesInUseError](err); ok {
		return &service.Error{Op: op, Service: name, Kind: service.Conflict, Reason: service.ReasonLimitInUse,
			Err: fmt.Errorf("%s: %w; the kernel takes none of them away: have it give them back, or restart it with the limit in its definition", service.HugetlbMax, e)}
	}
	switch ended := ctx.Err(); {
	case ended == nil || !errors.Is(err, ended):
		return nil
	case errors.Is(ended, context.DeadlineExceeded):
		return &service.Error{Op: op, Service: name, Kind: service.Timeout, Err: err}
	default:
		return &service.Error{Op: op, Service: name, Kind: service.Cancelled, Err: err}
	}
}
