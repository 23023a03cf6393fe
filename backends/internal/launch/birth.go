package launch

import (
	"context"

	"github.com/gladsheim/gladsheim/backends"
)

// Bear has the child become the program, and does what birth says before, and, if it
// comes to nothing, after.
func (c *Child) Bear(ctx context.Context, birth backends.Birth, run backends.Runner, open func(context.Context) error) error {
	var err error
	if birth.Prepare != nil {
		err = birth.Prepare(ctx, run)
	}
	if err == nil {
		err = open(ctx)
	}
	if err == nil {
		return nil
	}
	c.Abandon()
	if birth.Undo != nil {
		birth.Undo(run, err)
	}
	return err
}
