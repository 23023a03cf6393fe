package fake

import (
	"context"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// Script is how one launch and the program behind it behave. The zero value is
// launched at once and runs until it is signalled.
type Script struct {
	// LaunchTime is how long Launch takes before it calls identify.
	LaunchTime time.Duration
	// LaunchError, when not nil, is what Launch returns after LaunchTime,
	// before it calls identify. Nothing has run then.
	LaunchError error
	// OpenError, when not nil, is why the program can not be begun, and what Launch returns.
	OpenError error

	// End is how the program ends by itself; nil for never.
	End *End
	// Term is how it ends when it is told to (SIGTERM, SIGINT, SIGHUP,
	// SIGQUIT); nil for a program that dies of the signal.
	Term *End
	// Stubborn is a program that takes no notice of these signals.
	Stubborn bool
	// Children are processes beside the main one, from the first moment on.
	// They outlive it until they are killed.
	Children int
	// Unkillable keeps every process of the incarnation from dying, of
	// SIGKILL too, as one in an uninterruptible sleep does, until Host.Free.
	Unkillable bool

	// Reclaim is how long it takes to bring what it uses below a lower MemoryMax.
	Reclaim time.Duration

	// Run is what becomes of a program that is run beside the main process, before or after;
	// nil for one that ends at once, with code 0. It has to heed ctx, which ends with the
	// main process.
	Run func(ctx context.Context, p backends.Program) (backends.Ran, error)

	// Usage are the counters of a program of the given age; nil for a small
	// program that does nothing. Pids is filled in where it is not set.
	Usage func(age time.Duration) service.Usage
}

// End is an end of a main process.
type End struct {
	After time.Duration
	Exit  service.Exit

	// OOM other than OOMNone is a kill for want of memory, which takes the
	// children along. Level is the cgroup whose limit was reached.
	OOM   service.OOM
	Level string
}

// deadly tells which signals end a program that does nothing about them
// (signal(7)), and which ask it to end.
func deadly(sig syscall.Signal) (ends, asks bool) {
	switch sig {
	case 0, syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGURG, syscall.SIGWINCH,
		syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
		return false, false
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT:
		return true, true
	}
	return true, false
}
