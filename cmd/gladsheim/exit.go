package main

import (
	"errors"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/client"
)

// The exit codes. Of several, the highest is the worst.
const (
	exitOK          = 0
	exitFailure     = 1 // of health, doctor and fsck: problems found
	exitUsage       = 2
	exitNotRunning  = 3
	exitNotFound    = 4
	exitDenied      = 5
	exitInvalid     = 6 // a definition or configuration
	exitUnreachable = 7
	exitTimeout     = 8
	exitConflict    = 9
	exitInterrupted = 130
)

// exitOf is the one table from kinds of errors to exit codes.
var exitOf = [service.NumKinds]int{
	service.Internal:        exitFailure,
	service.Invalid:         exitUsage,
	service.NotFound:        exitNotFound,
	service.Exists:          exitConflict,
	service.AlreadyRunning:  exitConflict,
	service.NotRunning:      exitNotRunning,
	service.Conflict:        exitConflict,
	service.Unenforceable:   exitConflict,
	service.Exhausted:       exitFailure,
	service.Denied:          exitDenied,
	service.Unauthenticated: exitDenied,
	service.Timeout:         exitTimeout,
	service.Cancelled:       exitInterrupted,
	service.Unlaunchable:    exitFailure,
	service.HostUnavailable: exitUnreachable,
}

// failure is an error with an exit code of its own.
type failure struct {
	code int
	err  error // nil when everything was said already
}

func (f *failure) Error() string {
	if f.err == nil {
		return "failed"
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// usage marks an error in how the command was called.
func usage(err error) error { return &failure{exitUsage, err} }

// exitCode finds the code of what a command returned.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	if e, ok := errors.AsType[*service.Error](err); ok { // of this side of the wire
		return exitOfReason(e.Kind, e.Reason)
	}
	return exitOfReason(client.KindOf(err), client.ReasonOf(err))
}

// exitOfReason tells a definition that is wrong from a request that is.
func exitOfReason(kind service.Kind, reason service.Reason) int {
	if reason == service.ReasonBadDefinition {
		return exitInvalid
	}
	return exitOf[kind]
}
