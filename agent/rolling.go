package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// rollingMargin is what a restart may take beyond what its definition allows, since the
// host is busy.
const rollingMargin = 30 * time.Second

// RollingRestart restarts services one after the other and tells each step. The next is
// begun when the one before is ready and, where its check asks, healthy. It ends with the
// error of the first that fails, after it has told which were not touched; and when ctx
// ends, which lets the restart in hand come to its end, or when tell fails.
func (a *Agent) RollingRestart(ctx context.Context, names []service.Name, opts service.RollingOptions, tell func(service.Rolling) error) error {
	for i, name := range names {
		err := a.roll(ctx, name, opts, tell)
		if err == nil {
			continue
		}
		lost := tell(service.Rolling{Service: name, Step: service.RollingFailed, Err: err})
		for _, rest := range names[i+1:] {
			if lost == nil {
				lost = tell(service.Rolling{Service: rest, Step: service.RollingUntouched})
			}
		}
		return err
	}
	return nil
}

// roll restarts one, and returns when it is as well as it has to be.
func (a *Agent) roll(ctx context.Context, name service.Name, opts service.RollingOptions, tell func(service.Rolling) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	before, err := a.Status(name)
	if err != nil {
		return err
	}
	each := opts.Each
	if each == 0 {
		each = rollingTime(before.Spec, opts.Stop)
	}
	if err := tell(service.Rolling{Service: name, Step: service.RollingBegun}); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, each)
	defer cancel()
	st, err := a.Restart(bounded, name, opts.Stop)
	if err != nil {
		if ctx.Err() == nil && bounded.Err() != nil {
			return late(name, fmt.Errorf("it was not ready within %v; the restart goes on", each))
		}
		return err
	}
	if st.Spec.Health.Type != service.CheckProcess {
		if err := tell(service.Rolling{Service: name, Step: service.RollingReady, Status: st}); err != nil {
			return err
		}
		if st, err = a.awaitHealthy(bounded, name, st.Machine.Incarnation, each); err != nil {
			return err
		}
	}
	return tell(service.Rolling{Service: name, Step: service.RollingDone, Status: st})
}

func rollingTime(spec *service.Spec, stop service.StopOptions) time.Duration {
	d := spec.StopTime(stop.Timeout) + spec.StartTime() + rollingMargin
	if h := spec.Health; h.Type != service.CheckProcess {
		d += h.StartPeriod + time.Duration(h.Threshold+h.SuccessThreshold)*(h.Interval+h.Timeout)
	}
	return d
}

func late(name service.Name, err error) error {
	return &service.Error{Op: "restart", Service: name, Kind: service.Timeout, Err: err}
}

// awaitHealthy returns when an incarnation is healthy, or why it is not. Each is how long
// ctx lasts, for people.
func (a *Agent) awaitHealthy(ctx context.Context, name service.Name, incarnation uint64, each time.Duration) (*service.Status, error) {
	_, notices, err := a.Watch(ctx)
	if err != nil {
		return nil, err
	}
	for {
		st, err := a.Status(name)
		if err != nil {
			return nil, err
		}
		health := st.Verdict() // a hang may count as unhealthy
		switch {
		case st.Machine.Incarnation != incarnation || st.Machine.State != service.Running:
			return nil, ill(name, errors.New("it was ready, and runs no more before it was healthy"))
		case health.Status == service.Healthy:
			return st, nil
		case health.Status == service.Ill || health.Status == service.CheckTimedOut:
			return nil, ill(name, fmt.Errorf("it is ready, and %s: %s", health.Status, health.Message))
		}
		// If we were slow some were left out, and others wait.
		if _, open := <-notices; !open {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, late(name, fmt.Errorf("it is ready, and was not healthy within %v: %s", each, health.Message))
			}
			return nil, ctx.Err()
		}
	}
}

func ill(name service.Name, err error) error {
	return &service.Error{Op: "restart", Service: name, Kind: service.Unlaunchable, Reason: service.ReasonUnhealthy, Err: err}
}
