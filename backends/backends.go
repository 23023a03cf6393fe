// Package backends is the contract between the agent and a way of running
// processes on a host. It holds no implementation; backends/backendtest holds
// the laws that every implementation passes.
package backends

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// ErrGone says that an incarnation is no more: nothing of it is left to adopt.
var ErrGone = errors.New("the incarnation is gone")

// ErrDeaf says that the kernel has no way to tell of an incarnation here: it has no
// cgroup, or the kernel was built without.
var ErrDeaf = errors.New("the kernel does not tell of it here")

// Backend launches incarnations, and finds those again that an earlier agent
// launched. It may be used by many goroutines at once.
type Backend interface {
	// Name is "systemd", "cgroupfs", "exec" or "fake".
	Name() string

	// Enforces tells what the kernel enforces here; it was asked, not guessed.
	Enforces() service.Enforcement

	// Plan tells under which unit or cgroup Launch will put the incarnation,
	// with PID, StartTicks and BootID still zero, so that it can be recorded
	// before the deed.
	Plan(l service.Launch) service.Ref

	// Launch brings l to life: limits hold before the program's first
	// instruction, and it runs when Launch returns. What birth says is done before the
	// program may run; an error of that, or the death of the agent, makes the child leave
	// without ever becoming the program.
	//
	// An error is a *service.Error that tells the step and the errno, and
	// leaves no process, cgroup, unit or file behind. When ctx ends, Launch
	// gives up and cleans up; it does not end a service it has launched.
	Launch(ctx context.Context, l service.Launch, birth Birth) (Handle, error)

	// Adopt takes up the incarnation that ref names. If its main process is
	// gone but something of it is left, or how it ended is known, the Handle tells
	// the exit at once, unknown or service.NeverRan if need be, and Release removes
	// the rest. If nothing is left the error is ErrGone. A process that merely has
	// the same number is never touched.
	//
	// l is what Launch was told, with the limits as Limit has changed them since: the
	// kernel knows what holds and not what was wanted. They are reported again, and nothing
	// is set. What Run runs is like l.
	Adopt(ctx context.Context, ref service.Ref, l service.Launch) (Handle, error)

	// Leftovers lists the incarnations on this host that look like ours, each
	// with the identity of its main process, living or not, as it was marked at
	// the launch. Where the mark is missing, or not to be trusted, PID,
	// StartTicks and BootID are zero: a main process is never guessed, and one
	// that lives is named only where it provably is of the incarnation. Where
	// the place tells the name itself, known is not looked at; the exec backend,
	// whose mark on a process is a hash, finds only services among known.
	Leftovers(ctx context.Context, known []service.Name) ([]service.Ref, error)

	// Close ends the backend's own goroutines and connections. It does not
	// touch a single service.
	Close() error
}

// Birth is what a Launch does beside making a process.
type Birth struct {
	// Identify is called with the complete Ref. It does not wait.
	Identify func(service.Ref) error
	// Prepare is called next, with what runs programs in the place of the incarnation and
	// under its limits, and may take as long as it likes. Other launches go on meanwhile.
	// When ctx ends, or the child at its gate does, so do the programs. Nil does nothing.
	Prepare func(ctx context.Context, run Runner) error
	// Undo is called if, since Prepare was, the launch came to nothing: before its place
	// is removed, and when the child is no more. What it runs has to say Program.After, and
	// ends with ctx, whatever became of that of Launch. Nil does nothing.
	Undo func(run Runner, why error)
}

// Runner is Handle.Run of one incarnation.
type Runner func(ctx context.Context, p Program) (Ran, error)

// Program is what Handle.Run runs.
type Program struct {
	Argv        []string          // absolute path, and arguments
	Environment map[string]string // added to that of the definition, and counts more
	// After has it run on its own: it needs no main process and does not end with it, but
	// only when that has ended may it be run, after Finish and before Release.
	After bool
}

// Hasher is a Backend whose marks are hashes, which tell no names.
type Hasher interface {
	// Unclaimed lists the living processes that carry a mark of some agent, and of
	// none of the services in known: of another agent, or of a service that is not
	// known any more.
	Unclaimed(ctx context.Context, known []service.Name) (pids []int, err error)
}

// LogTeller is a Backend whose services may have their logs written for them, as
// Spec.LogFull asks for it.
type LogTeller interface {
	// WatchLogs has tell told of logs that can not be written, when that begins and
	// when it ends, at once where it lasts, and maybe more than once. tell must not
	// block. Only the last caller's is told.
	WatchLogs(tell func(service.LogTrouble))
}

// Totaller is a Backend that has its services in one cgroup.
type Totaller interface {
	// Total tells what all services together have used since that cgroup was made, those
	// of other backends included that have theirs in it, and those that have ended. What
	// else lives in there has no part in it, but in Pressure. What is known of one
	// service alone is unset, such as peaks, and CPUPercent is left 0. Before the first
	// service was started there may be no cgroup: then the error is fs.ErrNotExist.
	Total() (service.Usage, error)
}

// Handle is one incarnation. Its methods may be called by many goroutines at
// once. Every error is a *service.Error.
type Handle interface {
	// Ref names the incarnation, by its present main process.
	Ref() service.Ref

	// Exited is closed when the main process has ended; Exit then tells how, and
	// ExitedAt when, by the wall clock; zero if nobody saw it. After Succeed all three
	// are about the one that succeeded, and who has got Exited before asks again: that
	// channel may never be closed.
	Exited() <-chan struct{}
	Exit() service.Exit
	ExitedAt() time.Time

	// Displaced is closed when the main process lives, and nothing of the
	// incarnation is left in its cgroup: somebody moved it, as only root can. No
	// limit holds for it there, nor is it counted; Signal, Kill and Release reach
	// it all the same, and Limit is refused with service.Unenforceable. The kernel
	// tells of it only when the cgroup becomes empty. It is nil without a cgroup.
	Displaced() <-chan struct{}

	// Signal sends sig to the main process, by pidfd. Of a process that has
	// ended it says service.NotRunning.
	Signal(ctx context.Context, sig syscall.Signal) error

	// Succeed makes another process of the incarnation its main one, as when that has
	// forked and leaves, which it may have done already: what the methods say of the main
	// process is of this one from now on, and where the incarnation is marked with its
	// main process, the mark is changed. It is held by a pidfd, and whether it is one of
	// the incarnation is asked after that. How it ends is known exactly if its parent has
	// ended by then, or if the kernel tells (Linux 6.15). One that is not of the
	// incarnation, or is what Run runs, is service.Conflict; one that has ended, and
	// an incarnation that was adopted when its main process was gone, NotRunning.
	Succeed(ctx context.Context, pid int) error

	// Run runs a program once beside the main process: as its user, with its environment,
	// directory, umask and limits, in its cgroup, under a session of its own. It returns
	// when nothing is left of the program and of all that it has started: what outlives it
	// is killed, and all of it when ctx ends (Timeout, Cancelled) or the main process does
	// (NotRunning). One that could not be executed is Unlaunchable, and so is one that has
	// no room within the limits. It is never counted as left over, nor in what Finish
	// tells. An error comes with the output, too. Many may run at once.
	Run(ctx context.Context, p Program) (Ran, error)

	// Freeze stops every process of the incarnation where it is, those being forked
	// included, and returns when the kernel says so (cgroup.freeze and cgroup.events,
	// Linux's cgroup-v2.rst); when ctx ends first it is thawed again, and the error is
	// of Kind Timeout. What is frozen can be killed; other signals wait. Without a
	// cgroup it is refused with service.Unenforceable: to stop each process by a
	// signal is seen by its parent, and misses those being forked. Idempotent.
	Freeze(ctx context.Context) error

	// Thaw lets it run again, whoever froze it. What a cgroup above its own keeps
	// frozen stays so, and that is service.Conflict. Idempotent.
	Thaw(ctx context.Context) error

	// FrozenBy asks the kernel which cgroup keeps the incarnation frozen: its own, or
	// the nearest above; "" when it runs, or is no more.
	FrozenBy() (cgroup string, err error)

	// Froze holds a value whenever what FrozenBy tells may have changed, whoever
	// changed it, and once at the beginning. It is for one listener, and nil without a
	// cgroup.
	Froze() <-chan struct{}

	// Kill kills every process of the incarnation and returns when none is
	// left, or with an error of Kind Timeout and the processes that would not
	// die when ctx ends first. Idempotent. Where a cgroup holds it, that is what
	// lives in there, and the main process wherever it is: children that a
	// service of root has moved elsewhere are no more of it, and live on.
	Kill(ctx context.Context) error

	// Limit changes limits of the running incarnation: those set in l; the
	// others stay. Applied tells of every resource what was read back. A limit
	// the host can not enforce is refused with service.Unenforceable before
	// anything is changed. What fails half way is set back, and the error tells what
	// holds if that fails, too. Nobody is killed for it: a MemoryMax below what is in use is
	// reached by reclaiming, which takes a second or more, and refused with
	// service.Conflict and ReasonLimitInUse if that can not be, or would hurt. Then, and
	// when ctx ends meanwhile, all is as before.
	Limit(ctx context.Context, l service.Limits) (service.Applied, error)

	// Force is Limit without that care: what does not fit is killed by the kernel.
	Force(ctx context.Context, l service.Limits) (service.Applied, error)

	// Throttle is Limit for the agent's own sake: what was asked for stays Requested,
	// and Instead tells what holds instead, until it is set back to the former, or to
	// what limits nothing where nobody asked (service.Limits.Instead), or until Limit or
	// Force change it.
	Throttle(ctx context.Context, l service.Limits) (service.Applied, error)

	// Drift compares the limits that are files with what they were when we last set
	// or, at first, read them; after an adoption with what was requested. It does what
	// answer says about each; what is to be set back is, as carefully as by Limit, and
	// Drift.Fault tells of those that could not be. It tells all that have changed.
	// Without a cgroup there are none.
	Drift(ctx context.Context, answer func(service.Drift) service.OnDrift) ([]service.Drift, error)

	// Limits reads the limits back without changing any.
	Limits(ctx context.Context) (service.Applied, error)

	// Usage reads the counters; CPUPercent is left 0.
	Usage(ctx context.Context) (service.Usage, error)

	// Hear calls tell with the name of each file of the incarnation's cgroup that
	// somebody writes to, be it the agent, and of memory.events and pids.events when
	// the kernel has counted something there; with "" when news were lost and any file
	// may have been written. tell must not block. Without a cgroup the error is ErrDeaf.
	Hear(tell func(file string)) (leave func(), err error)

	// Gauge opens what is looked at often. Without a cgroup the error is ErrDeaf.
	Gauge() (Gauge, error)

	// Tally reads how often a limit was run into. Without a cgroup the error is ErrDeaf.
	Tally() (service.Tally, error)

	// Press calls tell, at most once in a window, whenever some tasks of the
	// incarnation, or all of them if full is wanted, were held up for share of the
	// window. tell must not block. Where the kernel measures no pressure of it, the
	// error is ErrDeaf.
	Press(of service.PressureOf, full bool, share, window time.Duration, tell func()) (leave func(), err error)

	// AwaitStop calls tell once: when a signal may have stopped the main process (SIGSTOP
	// and its like), or it goes on. tell must not block. Who wants to hear of the next
	// time asks again, and looks at Threads only then. Where nobody tells of this, the
	// error is ErrDeaf, as when the shim that is its parent was left by an agent of before.
	AwaitStop(tell func()) (forget func(), err error)

	// Threads looks at the threads of the main process. Of one that has ended it says
	// service.NotRunning.
	Threads() (service.Threads, error)

	// Processes lists the processes of the incarnation, the main one first.
	Processes(ctx context.Context) ([]Process, error)

	// Owns tells whether the process that has this number now is one of the incarnation.
	// Of a number that nobody has it says no.
	Owns(pid int) (bool, error)
	// Finish kills what is left and reads the counters once more. The scope or
	// cgroup stays, and how the main process ended can be asked for again, so that
	// both can be recorded before Release. Like Kill it gives up with Kind Timeout
	// when ctx ends, and may be called again.
	Finish(ctx context.Context) (service.Remains, error)

	// Release is Finish, unless that was done, and then removes the scope or cgroup;
	// after it nothing of the incarnation exists, and nobody can tell any more how it
	// ended. It is idempotent: a second call returns the same Remains.
	Release(ctx context.Context) (service.Remains, error)

	// Close lets go of the incarnation without touching it.
	Close() error
}

// Ran is what became of a program that was run beside a main process.
type Ran struct {
	Exit   service.Exit
	Output []byte // the last 4 KiB of stdout and stderr together
}

// Gauge reads what is looked at often, at little cost. It is for one goroutine at a
// time. When the incarnation is no more, Read fails.
type Gauge interface {
	Read() (service.Gauge, error)
	// Cache is how many bytes of the memory are page cache that the kernel takes back
	// before anything else (inactive_file of memory.stat, cgroup-v2.rst); unset where it
	// does not count them. It costs several times as much as Read.
	Cache() (service.Quota, error)
	Close() error
}

// Process is one process of an incarnation.
type Process = service.Process
