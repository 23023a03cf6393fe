package thjalfi

import (
	"fmt"

	"github.com/gladsheim/gladsheim/agent/service"
)

// explain says in a sentence how an incarnation ended. why is what made us end one that
// used too much, or that hung.
func explain(x service.ExitRecord, why string, hung bool) string {
	text := x.Exit.String()
	switch x.Verdict {
	case service.VerdictOwnOOM:
		text += ", killed by the kernel at its own memory limit"
	case service.VerdictAncestorOOM:
		text += ", killed by the kernel at the memory limit of " + x.Remains.OOMLevel
	case service.VerdictHostOOM:
		text += ", killed by the kernel because the host ran out of memory"
	case service.VerdictStopped:
		text += ", stopped by " + x.RequestedBy
	case service.VerdictUnhealthy:
		if hung {
			text += ", ended because it hung"
			break
		}
		text += ", ended because its health checks failed"
	case service.VerdictWatchdog:
		text += ", ended because it did not say in time that it is well (WATCHDOG=1), or said that it is not"
	case service.VerdictExceeded:
		text += ", ended because it used too much for too long"
	case service.VerdictStartupTime:
		text += ", ended because it was not ready in time"
	case service.VerdictHookFailed:
		text += ", ended because a program failed that is run when it is ready"
	case service.VerdictKilled:
		switch {
		case x.Remains.Stopper != "":
			text += ", stopped from outside, by " + x.RequestedBy
		case x.RequestedBy != "":
			text += ", sent by " + x.RequestedBy
		default:
			text += ", killed from outside"
		}
	case service.VerdictLaunchFailed:
		text += ": " + errCutOff.Error()
	case service.VerdictUnknown:
		if x.Exit.Unknown == "" {
			text += ", and nobody can tell why: its counters were gone"
		}
	}
	if x.ForceKilled {
		text += ", killed after its stop timeout"
	}
	if x.Remains.Leftovers > 0 {
		text += fmt.Sprintf(", %d processes left over and killed", x.Remains.Leftovers)
	}
	if why != "" && (x.Verdict == service.VerdictUnhealthy || x.Verdict == service.VerdictExceeded || x.Verdict == service.VerdictHookFailed) {
		text += ": " + why
	}
	return text
}

// endError is what is told of such an end to whoever waited for readiness, and
// to readers.
func (a *actor) endError(x service.ExitRecord) error {
	switch x.Verdict {
	case service.VerdictStartupTime:
		return a.startupTimeout()
	case service.VerdictHookFailed:
		if a.unready != nil { // else an earlier agent knew why
			return a.unready
		}
	case service.VerdictStopped:
		return nil
	case service.VerdictLaunchFailed:
		return errCutOff
	}
	end := fmt.Errorf("it ended: %s", x.Message)
	if a.machine.Once && !a.machine.Unready {
		return &service.Error{Op: "start", Service: a.name, Kind: service.Unlaunchable, Reason: service.ReasonJobFailed, Err: end}
	}
	if !a.machine.Unready {
		return end
	}
	return &service.Error{Op: "start", Service: a.name, Kind: service.Unlaunchable, Reason: service.ReasonExitedEarly, Err: end}
}
