package cgroupfs

import (
	"context"
	"fmt"

	"github.com/gladsheim/gladsheim/cgroup"
)

// protect has the parent, and what is above it, ask for as much memory as is to be
// kept for the services in it: no more is kept for them.
func (b *Backend) protect(ctx context.Context) error {
	select {
	case b.protecting <- struct{}{}:
		defer func() { <-b.protecting }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for level := b.parent; level.Path() != "/"; level = level.Parent() {
		lacks, err := level.Unprotected()
		if err == nil {
			err = level.Apply(lacks)
		}
		if err != nil {
			return fmt.Errorf("keep memory for its services in %s: %w", level.Path(), err)
		}
		if !b.ours {
			break
		}
	}
	if b.above != nil {
		return b.above(ctx)
	}
	return nil
}

// unprotect takes back what was kept for a service that is no more. What can not be
// taken back now is with the next change.
func (b *Backend) unprotect(ctx context.Context) {
	kept, err := b.parent.Protection()
	if err != nil {
		return
	}
	for _, r := range cgroup.Protections {
		if kept[r].Value > 0 {
			_ = b.protect(ctx)
			return
		}
	}
}
