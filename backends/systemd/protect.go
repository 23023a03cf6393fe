package systemd

import (
	"context"
	"fmt"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/units"
)

// Protect has the slice ask for as much memory as is to be kept for all that is in it
// (memory.min, memory.low): the kernel keeps no more for them. It may be called by many
// goroutines at once.
func (b *Backend) Protect(ctx context.Context) error {
	select {
	case b.keeping <- struct{}{}:
		defer func() { <-b.keeping }()
	case <-ctx.Done():
		return ctx.Err()
	}
	lacks, err := b.slice().Unprotected()
	if err == nil && lacks != (service.Limits{}) {
		err = b.bus.set(ctx, units.Slice, limitsAsProperties(lacks, true))
	}
	if err == nil {
		err = holds(b.slice(), lacks)
	}
	if err != nil {
		return fmt.Errorf("keep memory for services in %s: %w", units.Slice, err)
	}
	return nil
}

// unprotect takes back what was kept for a service that is no more. What can not be
// taken back now is with the next change.
func (b *Backend) unprotect(ctx context.Context) {
	kept, err := b.slice().Protection()
	if err != nil {
		return // the slice went with its last unit
	}
	for _, r := range cgroup.Protections {
		if kept[r].Value > 0 {
			_ = b.Protect(ctx)
			return
		}
	}
}

func (b *Backend) slice() cgroup.Group { return b.tree.Group("/" + units.Slice) }
