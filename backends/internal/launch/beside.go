package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/watch"
)

// Likeness is what a program that runs beside a main process has in common with it.
type Likeness struct {
	environment      map[string]string
	directory        string
	user, group      string
	umask            uint32
	oomScoreAdj      int
	nice, priority   int
	scheduling       service.Scheduling
	mayGainPrivilege bool
}

// LikenessOf is that of the main process of a definition.
func LikenessOf(spec *service.Spec) Likeness {
	return Likeness{
		environment: spec.Environment, directory: spec.WorkingDirectory, user: spec.User, group: spec.Group,
		umask: spec.Umask, oomScoreAdj: spec.OOMScoreAdj, nice: spec.Nice, priority: spec.Priority,
		scheduling: spec.Scheduling, mayGainPrivilege: spec.AllowNewPrivs,
	}
}

func (l Likeness) launch(ref service.Ref, p backends.Program, limits service.Limits) service.Launch {
	environment := l.environment
	if len(p.Environment) > 0 {
		environment = maps.Clone(p.Environment)
		for name, value := range l.environment {
			if _, more := environment[name]; !more {
				environment[name] = value
			}
		}
	}
	return service.Launch{Name: ref.Name, Incarnation: ref.Incarnation, Limits: limits, Spec: service.Spec{
		Name: ref.Name, Exec: p.Argv, Environment: environment, WorkingDirectory: l.directory, User: l.user, Group: l.group,
		Umask: l.umask, OOMScoreAdj: l.oomScoreAdj, Nice: l.nice, Priority: l.priority,
		Scheduling: l.scheduling, AllowNewPrivs: l.mayGainPrivilege,
	}}
}

// GateMemory is what a gate needs of memory to come to where it waits: it is a Go
// program with a few threads.
const GateMemory = 16 << 20

// Beside is a program that is to run once beside the main process of an incarnation.
type Beside struct {
	Ref     service.Ref
	Like    Likeness
	Limits  service.Limits // of the incarnation, of which those of processes are set
	Program backends.Program
	Main    *process.Main // all ends with it, unless Program.After; nil: there is none

	CgroupFD int    // that it is born in, -1: none
	Brand    uint64 // see Request; its own is told from that of a main process by BesideOf

	// Opening is called when its gate does nothing but wait, right before the program may
	// run; nil for nobody.
	Opening func()
	// Sweep kills whatever it has started, itself included, and returns when nothing is
	// left of that, or ctx ends; child is nil as long as nobody knows it. It is called
	// by one goroutine at a time.
	Sweep func(ctx context.Context, child *Child) error
}

// Ran is what became of such a program.
type Ran struct {
	Exit    service.Exit
	Output  []byte        // the last of stdout and stderr together
	CPUTime time.Duration // its own and that of what it had waited for
}

const (
	maxOutput = 4 << 10
	sweepTime = 10 * time.Second       // for what is left to end
	lastWords = 100 * time.Millisecond // for output of who is not ours any more, and holds it open
)

const opBeside = "run a program beside"

// Run runs it as a child of ours, and returns when nothing of it is left. When ctx ends it
// is killed, with all that it has started; else that is done when it has ended. An error is
// a *service.Error: of Kind Unlaunchable when the program did not run, NotRunning when the
// main process has ended, Timeout or Cancelled when ctx has. The output comes with an error,
// too.
func (b Beside) Run(ctx context.Context, w *watch.Watcher) (Ran, error) {
	var ran Ran
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	if b.Main != nil && !b.Program.After {
		go func() {
			if b.Main.Await(ctx) {
				end(errMainEnded)
			}
		}()
	}
	fail := func(err error) (Ran, error) { return ran, b.failure(ctx, err) }
	if ctx.Err() != nil {
		return fail(givenUp(ctx, b.Ref.Name, context.Cause(ctx)))
	}
	tap, err := openTap()
	if err != nil {
		return fail(resourceFailure(b.Ref.Name, err))
	}
	free := b.unblock(ctx)
	child, err := startBeside(ctx, w, b, tap)
	free()
	tap.hand()
	if err == nil && b.Opening != nil {
		if err = child.Ready(ctx); err == nil {
			b.Opening()
		}
	}
	if err == nil {
		err = child.Open(ctx)
	}
	ended := err == nil // Open has reaped what it did not open
	if err == nil {
		select {
		case <-child.Process().Exited():
		case <-ctx.Done():
			if child.Process().Lives() { // else it has ended in time, and it is we who were held up
				err = child.interrupted(ctx)
			}
		}
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), sweepTime)
	defer cancel()
	if left := b.Sweep(clean, child); left != nil {
		err = errors.Join(err, fmt.Errorf("what it has started would not end: %w", left))
	}
	if ended {
		ran.Exit, ran.CPUTime = child.bury()
	}
	ran.Output = tap.close()
	if err != nil {
		return fail(err)
	}
	return ran, nil
}

func startBeside(ctx context.Context, w *watch.Watcher, b Beside, t *tap) (*Child, error) {
	req := Request{Launch: b.Like.launch(b.Ref, b.Program, b.Limits), CgroupFD: b.CgroupFD, Brand: b.Brand, Output: t.output()}
	plan, err := newPlan(req)
	if err != nil {
		return nil, err
	}
	plan.Beside = true
	return start(ctx, w, req, plan)
}

// unblock has a fork come to its end when ctx does: one into a frozen cgroup waits until
// that is thawed, or the child is killed. Nothing is done any more when free returns.
func (b Beside) unblock(ctx context.Context) (free func()) {
	born, done := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		for {
			_ = b.Sweep(ctx, nil) // what it can not do now is told by the last one
			select {
			case <-born:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	return func() {
		close(born)
		if !stop() {
			<-done
		}
	}
}

// bury lets go of a child that was killed, or has ended, and tells how.
func (c *Child) bury() (service.Exit, time.Duration) {
	select {
	case <-c.process.Exited():
		defer c.process.Close()
		return c.process.Exit(), c.process.Used().CPUTime
	case <-time.After(reapWait):
		go func() {
			<-c.process.Exited()
			c.process.Close()
		}()
		return service.Exit{Unknown: "unkillable"}, 0
	}
}

var errMainEnded = errors.New("its main process has ended")

// failure is err as Run tells it.
func (b Beside) failure(ctx context.Context, err error) error {
	if context.Cause(ctx) == errMainEnded {
		return &service.Error{Op: opBeside, Service: b.Ref.Name, Kind: service.NotRunning, Reason: service.ReasonNotRunning, Err: errMainEnded}
	}
	if kind := service.KindOf(err); ctx.Err() != nil && kind != service.Timeout && kind != service.Cancelled { // its gate was killed for that
		err = givenUp(ctx, b.Ref.Name, err)
	}
	return BesideFailure(b.Ref.Name, service.HostUnavailable, err)
}

// BesideFailure is what keeps a program from being run beside a main process: err as it is
// if that is one of ours, else of that kind.
func BesideFailure(name service.Name, kind service.Kind, err error) error {
	told := service.Error{Kind: kind, Err: err}
	if e, ok := errors.AsType[*service.Error](err); ok {
		told = *e
		if err != error(e) {
			told.Err = err
		}
	}
	told.Op, told.Service, told.Permanent = opBeside, name, false
	return &told
}

// tap is a pipe of which the last of what is written is kept, and the rest thrown away.
type tap struct {
	in, write int // for the child
	read      *os.File
	kept      chan []byte
}

func openTap() (*tap, error) {
	in, err := open(nil, os.DevNull, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		unix.Close(in)
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	t := &tap{in: in, write: pipe[1], kept: make(chan []byte, 1)}
	if err := unix.SetNonblock(pipe[0], true); err != nil {
		unix.Close(in)
		unix.Close(pipe[0])
		unix.Close(pipe[1])
		return nil, fmt.Errorf("set not to block: %w", err)
	}
	t.read = os.NewFile(uintptr(pipe[0]), "output")
	go func() {
		var kept tail
		_, _ = io.Copy(&kept, t.read) // to its end: a full pipe would hold it up
		t.kept <- kept
	}()
	return t, nil
}

func (t *tap) output() *Output { return &Output{sinks{in: uintptr(t.in), out: uintptr(t.write)}} }

// hand lets go of what the child has now, or has not got.
func (t *tap) hand() {
	unix.Close(t.in)
	unix.Close(t.write)
}

// close gives what was kept.
func (t *tap) close() []byte {
	_ = t.read.SetReadDeadline(time.Now().Add(lastWords)) // as a rule all who could write have ended
	defer t.read.Close()
	return <-t.kept
}

// tail is the last of what was written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p[max(0, len(p)-maxOutput):]...)
	*t = append((*t)[:0], (*t)[max(0, len(*t)-maxOutput):]...)
	return len(p), nil
}
