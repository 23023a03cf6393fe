package main

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/gladsheim/gladsheim/agent"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/offer"
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

func (u unfit) Unwrap() error { return u.error }

// unready is the error of a start that got no further than the host. One that
// lacks nothing but PID 1's answer is worth another try.
func unready(ours, host error) error {
	if ours == nil && errors.As(host, new(offer.NotYet)) {
		return host
	}
	return unfit{errors.Join(ours, host)}
}

func exitCode(err error) int {
	switch kind := service.KindOf(err); {
	case errors.Is(err, agent.ErrTaken), kind == service.Conflict: // who answers on our socket, or uses our cgroups
		return exitTaken
	case errors.As(err, new(unfit)), kind == service.Invalid, denied(err): // an address that can not be meant
		return exitUnfit
	}
	return 1
}

// denied tells whether the host does not let us have a file or a directory.
func denied(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EROFS)
}
