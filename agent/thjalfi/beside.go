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
		ran, err := h.Run(ctx, backends.Program{Argv: argv})
		if err != nil {
			return err
		}
		if ran.Exit.Clean() {
			return nil
		}
		if lines := linesOf(ran.Output); len(lines) > 0 {
			return fmt.Errorf("%s: %s: %s", argv[0], ran.Exit, lines[len(lines)-1])
		}
		return fmt.Errorf("%s: %s", argv[0], ran.Exit)
	}
}

// linesOf are the lines of what such a program wrote.
func linesOf(output []byte) (lines []string) {
	for line := range bytes.Lines(bytes.TrimSpace(output)) {
		lines = append(lines, string(bytes.TrimRight(line, "\r\n")))
	}
	return lines
}
