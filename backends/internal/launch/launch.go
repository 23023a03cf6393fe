// Package launch builds the child that becomes a service: a gate (see package
// gate) that has its own session, holds descriptors 0, 1 and 2 and nothing
// else, and waits. The caller puts it where it belongs, writes down who it is,
// and opens the gate; then the program runs with what its definition says and
// nothing of the agent's. If the agent dies before, the program never runs.
package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/failpoint"
	"github.com/gladsheim/gladsheim/watch"
)

// Path is the PATH of a program whose definition names none.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Request is one child to be made.
type Request struct {
	Launch   service.Launch
	CgroupFD int     // an open cgroup directory: the child is born inside (CLONE_INTO_CGROUP, clone(2)); -1: none
	Brand    uint64  // hard RLIMIT_RTTIME in microseconds, which every descendant inherits; the soft one is Self; 0: none
	Shim     *Shim   // whose child it is to be; nil: ours
	Output   *Output // stays the caller's; nil: what Launch says is opened

	files []int  // descriptors 4 and so on of the shim, if it is that
	fault faults // nil but in tests
}

// faults is called before each system call of a launch, which then fails with what it
// returns.
type faults func(call string) error

func (f faults) call(name string, do func() error) error {
	if f != nil {
		if err := f(name); err != nil {
			return err
		}
	}
	return do()
}

// Self is the soft RLIMIT_RTTIME of a branded child: its number and its start
// ticks, by which it is told from its descendants, which inherit them. It is less
// than any brand.
func Self(pid int, startTicks uint64) uint64 { return gate.Self(pid, startTicks) }

// ParseSelf reads what Self made, and tells whether it did.
func ParseSelf(self uint64) (pid int, startTicks uint64, ok bool) { return gate.ParseSelf(self) }

// BesideOf is Self of a branded child that runs beside a main process.
func BesideOf(pid int, startTicks uint64) uint64 { return gate.BesideOf(pid, startTicks) }

// IsBeside tells whether a branded process, or one that it descends from, has that.
func IsBeside(self uint64) bool { return gate.IsBeside(self) }

// Child is a gate that waits. Its methods may be called by many goroutines at
// once.
type Child struct {
	name    service.Name
	program string
	dir     string
	user    string
	pidfd   int
	process *process.Process
	forget  func() // says that nobody will ask how it ended
	fault   faults

	mu     sync.Mutex // held while the gate is opened or closed
	socket *os.File   // to the gate; nil when it is open or gone
}

// PID is the number of the child; the gate and the program have the same.
func (c *Child) PID() int { return c.process.PID() }

// PIDFD is the child's pidfd. It is the Process's and is closed with it.
func (c *Child) PIDFD() int { return c.pidfd }

// StartTicks is when the child was forked, in ticks since boot; exec does not
// change it.
func (c *Child) StartTicks() uint64 { return c.process.StartTicks() }

// Process holds the child. After Open has succeeded it is the caller's to
// close; until then, and when Open fails, Child does.
func (c *Child) Process() *process.Process { return c.process }

// Start makes a child that waits at its gate. An error is a *service.Error of
// Kind Unlaunchable, or Timeout or Cancelled when ctx ended first, and then no
// child exists.
func Start(ctx context.Context, w *watch.Watcher, req Request) (*Child, error) {
	plan, err := newPlan(req)
	if err != nil {
		return nil, err
	}
	return start(ctx, w, req, plan)
}

// StartPause makes a child that, once its gate is opened, sleeps for ever,
// also when the agent ends: it keeps a cgroup or scope alive. It is born in
// the cgroup directory cgroupFD, if that is not -1. Any fatal signal ends it.
func StartPause(w *watch.Watcher, cgroupFD int) (*Child, error) {
	return start(context.Background(), w, Request{CgroupFD: cgroupFD}, gate.Plan{Pause: true})
}

func start(ctx context.Context, w *watch.Watcher, req Request, plan gate.Plan) (*Child, error) {
	name := req.Launch.Name
	message, err := plan.Encode()
	if err != nil {
		return nil, failure(name, service.ReasonExecTooBig, true, err)
	}
	if req.Shim == nil && isPoured(&req.Launch) {
		return nil, &service.Error{Op: "start", Service: name, Kind: service.Internal,
			Err: fmt.Errorf("log_full is %s, and there is no shim", req.Launch.Spec.LogFull)}
	}
	var output sinks
	if req.Output != nil {
		output = req.Output.sinks
	} else {
		if output, err = openOutput(req.fault, req.Launch); err != nil {
			return nil, resourceFailure(name, err)
		}
		defer output.close()
	}
	if err := failpoint.Hit(failpoint.S4LogOpen); err != nil {
		return nil, resourceFailure(name, err)
	}
	held, pidfd, ours, err := req.fork(ctx, w, output)
	if errors.Is(err, errLost) { // it was killed just now, say
		held, pidfd, ours, err = req.fork(ctx, w, output)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, givenUp(ctx, name, err)
	case err != nil:
		return nil, resourceFailure(name, err)
	}
	c := &Child{name: name, program: plan.Path, dir: plan.Directory, user: req.Launch.Spec.User,
		pidfd: pidfd, process: held, socket: ours, forget: func() {}, fault: req.fault}
	if req.Shim != nil {
		c.forget = func() { req.Shim.Released(name, req.Launch.Incarnation) }
	}
	if err := failpoint.Hit(failpoint.S7Cloned); err != nil {
		c.Abandon()
		return nil, resourceFailure(name, err)
	}
	stop := hurry(ctx, ours)
	err = req.fault.call("send the plan", func() error { _, err := ours.Write(message); return err })
	stop()
	switch {
	case err == nil, errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return c, nil // it may be gone already; Open tells how
	case ctx.Err() != nil:
		c.Abandon()
		return nil, c.interrupted(ctx)
	}
	c.Abandon()
	return nil, resourceFailure(name, fmt.Errorf("send the plan: %w", err))
}

// hurry lets whoever reads or writes on socket give up when ctx ends.
func hurry(ctx context.Context, socket *os.File) (stop func() bool) {
	return context.AfterFunc(ctx, func() { socket.SetDeadline(time.Unix(1, 0)) })
}

// fork has a gate made, and gives our end of its socket: a gate that nobody knows of
// leaves when that is closed.
func (r Request) fork(ctx context.Context, w *watch.Watcher, output sinks) (held *process.Process, pidfd int, ours *os.File, err error) {
	ours, theirs, err := socketPair(r.fault)
	if err != nil {
		return nil, -1, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	defer unix.Close(theirs)
	if held, pidfd, err = r.forkAs(ctx, w, output, theirs); err != nil {
		ours.Close()
		return nil, -1, nil, err
	}
	return held, pidfd, ours, nil
}

// forkAs executes this very program again as a gate, in a session of its own.
func (r Request) forkAs(ctx context.Context, w *watch.Watcher, output sinks, socket int) (held *process.Process, pidfd int, err error) {
	if r.Shim != nil {
		owner := whose(r.Launch.Name, r.Launch.Incarnation)
		f, err := r.Shim.fork(ctx, owner, r.CgroupFD, output, socket)
		if err != nil {
			return nil, -1, fmt.Errorf("fork: %w", err)
		}
		held, err = process.Ward(w, int(f.child.PID), f.pidfd, f.child.StartTicks, r.Shim)
		if err != nil {
			discard(f.pidfd)
			r.Shim.abandon(owner)
		}
		return held, f.pidfd, err
	}
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{gate.Mark, gate.OneProcessor},
		Files: []uintptr{output.in, output.out, output.out, uintptr(socket)},
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	}
	name := gate.Name
	if r.files != nil {
		name = gate.ShimName
	}
	for _, fd := range r.files {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	if r.CgroupFD >= 0 {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, r.CgroupFD
	}
	// The link names the running program even when its file was replaced.
	var pid int
	err = r.fault.call("fork", func() (err error) { pid, err = syscall.ForkExec("/proc/self/exe", []string{name}, attr); return err })
	if err != nil {
		return nil, -1, fmt.Errorf("fork: %w", err)
	}
	err = r.fault.call("take up the child", func() error { held, err = process.Child(w, pid, pidfd); return err })
	if err != nil {
		discard(pidfd)
	}
	return held, pidfd, err
}

// Ready waits until the gate does nothing but wait. From then on it needs no
// more threads and hardly more memory, so that a cgroup's limits may be lowered
// to less than it took to get there. Its errors are those of Open, and the child
// is gone then too.
func (c *Child) Ready(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.socket == nil {
		return c.notClosed()
	}
	stop := hurry(ctx, c.socket)
	first := make([]byte, gate.AnswerSize)
	err := c.fault.call("hear the gate", func() error { _, err := io.ReadFull(c.socket, first); return err })
	stop()
	if err == nil {
		if said, _ := gate.ReadAnswers(first); said[0].Errno == 0 {
			return nil
		}
	}
	c.socket.Close()
	c.socket = nil
	switch {
	case err == nil:
		said, _ := gate.ReadAnswers(first)
		c.discard()
		return c.refused(said[0])
	case ctx.Err() != nil:
		c.discard()
		return c.interrupted(ctx)
	case isEnd(err) || errors.Is(err, io.ErrUnexpectedEOF):
		return c.died(nil)
	}
	return c.died(err)
}

func (c *Child) notClosed() error {
	return &service.Error{Op: "start", Service: c.name, Kind: service.Internal, Err: errors.New("the gate is not closed any more")}
}

// Open opens the gate and returns nil once the program has taken the child
// over. Otherwise the child is gone and reaped when Open returns, and the
// error is a *service.Error that tells the step and the errno: of Kind
// Unlaunchable, or Timeout or Cancelled when ctx ended first. A gate that was
// killed before it could execute is Unlaunchable too, with its real end.
func (c *Child) Open(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.socket == nil {
		return c.notClosed()
	}
	stop := hurry(ctx, c.socket)
	answers, err := c.converse()
	err = failpoint.After(err, failpoint.S10GateReleased)
	stop()
	c.socket.Close()
	c.socket = nil

	last := len(answers) - 1
	switch {
	case err != nil && ctx.Err() != nil:
		c.discard()
		return c.interrupted(ctx)
	case last >= 0 && answers[last].Errno != 0:
		c.discard()
		return c.refused(answers[last])
	case err != nil || last < 0 || answers[last].Step != gate.StepExecute:
		return c.died(err)
	}
	return nil
}

// converse opens the gate and hears it out, until the socket's other end is
// closed by execve or by death.
func (c *Child) converse() ([]gate.Answer, error) {
	err := c.fault.call("open the gate", func() error { _, err := c.socket.Write([]byte{gate.Go}); return err })
	if err != nil && !isEnd(err) { // of one that is gone what it said before is still to be read
		return nil, err
	}
	var answers []gate.Answer
	var rest []byte
	buffer := make([]byte, 64)
	for {
		var n int
		err := c.fault.call("hear the gate", func() (err error) { n, err = c.socket.Read(buffer); return err })
		var more []gate.Answer
		more, rest = gate.ReadAnswers(append(rest, buffer[:n]...))
		answers = append(answers, more...)
		switch {
		case n == 0 && err != nil && isEnd(err):
			return answers, nil
		case err != nil:
			return answers, err
		}
	}
}

// Abandon closes the gate: the child leaves without exec, and is reaped when
// Abandon returns. Idempotent; after Open it does nothing.
func (c *Child) Abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.socket == nil {
		return
	}
	c.socket.Close()
	c.socket = nil
	c.discard()
}
