package service

import (
	"errors"
	"fmt"
	"strings"
)

// Kind classifies an Error by what a caller can do about it. Kinds map to gRPC
// codes and to exit codes of the CLI in one table each.
type Kind uint8

// The kinds. Internal is the zero value: an error nobody classified is ours.
const (
	Internal        Kind = iota
	Invalid              // the request or the definition is wrong
	NotFound             // no such service
	Exists               // it is there already
	AlreadyRunning       // it runs, so it can not be started
	NotRunning           // it does not run, so it can not be stopped or signalled
	Conflict             // it can not be done in the present state
	Unenforceable        // the host can not enforce a limit that was asked for
	Exhausted            // a cap is reached
	Denied               // the caller may not
	Unauthenticated      // nobody knows the caller
	Timeout              // it did not happen in time
	Cancelled            // the caller went away
	Unlaunchable         // the program could not be started
	HostUnavailable      // systemd, D-Bus, cgroupfs or /proc did not serve
	NumKinds
)

var kindNames = [NumKinds]string{
	"internal", "invalid", "not found", "exists", "already running", "not running", "conflict", "unenforceable",
	"exhausted", "denied", "unauthenticated", "timeout", "cancelled", "launch failed", "host unavailable",
}

func (k Kind) String() string { return kindNames[k] }

// Reason is a stable word for machines, finer than Kind; it travels as
// google.rpc.ErrorInfo.reason.
type Reason string

// The reasons. An Error without one gets its Kind's (see DefaultReason).
const (
	ReasonBadName            Reason = "BAD_NAME"
	ReasonBadDefinition      Reason = "BAD_DEFINITION"
	ReasonServiceNotFound    Reason = "SERVICE_NOT_FOUND"
	ReasonAlreadyRunning     Reason = "ALREADY_RUNNING"
	ReasonNotRunning         Reason = "NOT_RUNNING"
	ReasonLimitUnenforceable Reason = "LIMIT_UNENFORCEABLE"
	ReasonLimitInUse         Reason = "LIMIT_IN_USE"
	ReasonStartupTimeout     Reason = "STARTUP_TIMEOUT"
	ReasonStopTimeout        Reason = "STOP_TIMEOUT"
	ReasonUnkillable         Reason = "UNKILLABLE"
	ReasonPreviousAlive      Reason = "PREVIOUS_INSTANCE_ALIVE"
	ReasonExitedEarly        Reason = "EXITED_EARLY"
	ReasonReloadFailed       Reason = "RELOAD_FAILED"
	ReasonHookFailed         Reason = "HOOK_FAILED"
	ReasonNoReload           Reason = "NO_RELOAD"
	ReasonJobFailed          Reason = "JOB_FAILED"
	ReasonUnhealthy          Reason = "UNHEALTHY"
	ReasonDependencyFailed   Reason = "DEPENDENCY_FAILED"
	ReasonInUse              Reason = "IN_USE"
	ReasonNoHistory          Reason = "NO_USAGE_HISTORY"
	ReasonRequestIDReused    Reason = "REQUEST_ID_REUSED"
	ReasonBackendTimeout     Reason = "BACKEND_TIMEOUT"
	ReasonExecNotFound       Reason = "EXEC_NOT_FOUND"
	ReasonExecDenied         Reason = "EXEC_DENIED"
	ReasonExecFormat         Reason = "EXEC_FORMAT"
	ReasonExecTooBig         Reason = "EXEC_TOO_BIG"
	ReasonExecBusy           Reason = "EXEC_BUSY"
	ReasonExecLoop           Reason = "EXEC_LOOP"
	ReasonBadDirectory       Reason = "BAD_WORKING_DIRECTORY"
	ReasonUnknownUser        Reason = "UNKNOWN_USER"
	ReasonUnknownGroup       Reason = "UNKNOWN_GROUP"
	ReasonNoPermission       Reason = "NO_PERMISSION_TO_LAUNCH"
	ReasonNoResources        Reason = "NO_RESOURCES_TO_LAUNCH"
)

// DefaultReason is the reason of an Error of this kind that names none.
func (k Kind) DefaultReason() Reason {
	return Reason(strings.ToUpper(strings.ReplaceAll(kindNames[k], " ", "_")))
}

// Error is the error that crosses the borders of packages. Its text reads
// "cannot OP SERVICE: cause".
type Error struct {
	Op        string // what was tried, e.g. "start"
	Service   Name   // zero when it is about none
	Kind      Kind
	Reason    Reason   // "" for the kind's own
	Faults    []Fault  // for Invalid: what is wrong where
	Permanent bool     // for Unlaunchable: trying again can not help
	LastLines []string // of the output of what did not become ready
	Outlook   string   // what becomes of it now, when it was told; no part of the text, which may be kept
	Err       error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("cannot " + e.Op)
	if !e.Service.IsZero() {
		b.WriteString(" " + e.Service.String())
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	for i, f := range e.Faults {
		sep := "; "
		if i == 0 && e.Err == nil {
			sep = ": "
		}
		b.WriteString(sep + f.String())
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf finds the kind of err: that of the outermost *Error in its chain,
// else Internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// ReasonOf finds the reason of err, the kind's own when it names none.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok && e.Reason != "" {
		return e.Reason
	}
	return KindOf(err).DefaultReason()
}

// Fault is one thing that is wrong with a definition.
type Fault struct {
	File    string // name of the document, "" when unknown
	Line    int    // from 1; 0 when unknown
	Column  int    // byte in the line, from 1; 0 when unknown
	Field   string // path in the JSON document, e.g. "limits.memory_max" or "exec[0]"
	Message string
	Stray   Name // the service that the document defines where it has no effect, zero for none
}

// String writes "file:line:column: field: message", leaving out what is unknown.
func (f Fault) String() string {
	place := f.File
	if f.Line > 0 {
		place = fmt.Sprintf("%s:%d:%d", f.File, f.Line, f.Column)
	}
	var parts []string
	for _, part := range []string{strings.TrimPrefix(place, ":"), f.Field, f.Message} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}
