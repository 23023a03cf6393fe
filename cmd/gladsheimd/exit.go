package main

import (
	"errors"

	"github.com/gladsheim/gladsheim/agent"
)

// The exit codes that a unit file or a person can act on (sysexits.h for the last).
const (
	exitUsage = 2
	exitTaken = 3
	exitUnfit = 78
)

// unfit marks an error that starting again does not mend: the host or the
// configuration has to change.
type unfit struct{ error }

func exitCode(err error) int {
	switch {
	case errors.Is(err, agent.ErrTaken):
		return exitTaken
	case errors.As(err, new(unfit)):
		return exitUnfit
	}
	return 1
}
