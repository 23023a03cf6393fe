package thjalfi

import (
	"bytes"
	"context"
	"fmt"

	"github.com/gladsheim/gladsheim/backends"
)

// beside runs programs that ask how an incarnation is. One that did not end well is told
// with its last words.
func beside(h backends.Handle) Exec {
	return func(ctx context.Context, argv []string) error {
		ran, err := h.Run(ctx, argv)
		if err != nil {
			return err
		}
		if ran.Exit.Clean() {
			return nil
		}
		lines := bytes.Split(bytes.TrimSpace(ran.Output), []byte("\n"))
		if last := bytes.TrimSpace(lines[len(lines)-1]); len(last) > 0 {
			return fmt.Errorf("%s: %s: %s", argv[0], ran.Exit, last)
		}
		return fmt.Errorf("%s: %s", argv[0], ran.Exit)
	}
}
