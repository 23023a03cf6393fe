package thjalfi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var web = service.MustName("web")

const clearTimeout = 10 * time.Second

// stage is a host with an agent on it, in a bubble of its own. What the agent
// does to the host passes hooks that hold it against what is on disk by then.
type stage struct {
	*Thjalfi
	t        *testing.T
	host     *fake.Host
	disk     *disk
	prober   *prober
	backend  *watched
	fault    func(operation string) error // of the backend, nil for none
	complain func(format string, args ...any)
	shim     bool                          // how a process ends is told to every agent
	dogged   bool                          // a launch can not be given up
	slow     time.Duration                 // from when it is identified until it runs
	line     chan struct{}                 // closed when a line has come that is waited for
	lookedAt []string                      // the outputs in which it is
	looking  sync.Mutex                    // held over lookedAt
	noOutlet atomic.Pointer[service.Error] // why the output of a launch has nowhere to go
	lax      bool                          // the disk fails, so that deeds may come without a record
	began    time.Time
	clockSet atomic.Int64              // by how much, altogether
	hall     hall                      // where services say how they are
	gazes    atomic.Int64              // how many incarnations are looked at
	spread   float64                   // of waits before restarts: as the policy says
	turnIn   atomic.Int64              // how long the next one to ask for its turn has to wait
	wellFrom atomic.Pointer[time.Time] // since when its checks say that it is healthy, nil while they do not
	life     atomic.Int64              // deeds until the agent dies in the middle of things; below 0: never
}

var errDead = errors.New("the agent is dead")

// breathe is called before each deed of the agent that outlasts it. Of an agent
// that has died nothing does.
func (s *stage) breathe() error {
	if left := s.life.Load(); left < 0 || left > 0 && s.life.Add(-1) > 0 {
		return nil
	}
	return errDead
}

// play runs f on a stage, and has the agent leave in the end.
func play(t *testing.T, f func(*testing.T, *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		defer func() {
			s.Close() // of the agent that is there by then
			require.Zero(t, s.gazes.Load(), "what is looked at for ever")
		}()
		f(t, s)
		s.disk.mu.Lock()
		defer s.disk.mu.Unlock()
		require.Empty(t, s.disk.lost)
	})
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, host: fake.NewHost(), disk: newDisk(), prober: newProber(), line: make(chan struct{}), began: time.Now(), spread: 0.5}
	s.complain = t.Errorf
	s.life.Store(forEver)
	s.disk.breathe, s.disk.alive = s.breathe, s.host.IncarnationsAlive
	s.board()
	s.Add(web, Restored{})
	return s
}

// board brings an agent onto the stage.
func (s *stage) board() {
	b := fake.New(fake.Config{Host: s.host, Fault: s.hook, Shim: s.shim})
	s.backend = &watched{Backend: b, stage: s}
	s.Thjalfi = New(Config{
		Keeper: s.disk, Prober: s.prober, Monitor: s.watching(), Listener: &s.hall, ClearTimeout: clearTimeout, SinceBoot: s.sinceBoot,
		Spread: func() float64 { return s.spread }, Turn: s.turn, Well: s.wellFor,
		Outlet: func(l *service.Launch, _ service.Ref) (int64, error) {
			if err := s.noOutlet.Load(); err != nil {
				return 0, err
			}
			return int64(s.host.Runs(l.Name)), nil
		},
		LastLines: func(spec *service.Spec, incarnation uint64, from int64) []string {
			return []string{fmt.Sprintf("the end of %s.%d from %d", spec.Name, incarnation, from)}
		},
		AwaitLine: func(ctx context.Context, spec *service.Spec, incarnation uint64, from int64) error {
			s.looking.Lock()
			s.lookedAt = append(s.lookedAt, fmt.Sprintf("%s.%d from %d", spec.Name, incarnation, from))
			s.looking.Unlock()
			select {
			case <-s.line:
				return nil
			case <-ctx.Done():
				return errors.New("no line matched")
			}
		},
	})
}

// turn has whoever asks wait once for as long as was said.
func (s *stage) turn(service.Name) time.Duration { return time.Duration(s.turnIn.Swap(0)) }

func (s *stage) wellFor(service.Name) time.Duration {
	if from := s.wellFrom.Load(); from != nil {
		return time.Since(*from)
	}
	return 0
}

// awaited are the outputs in which a line was waited for.
func (s *stage) awaited() []string {
	s.looking.Lock()
	defer s.looking.Unlock()
	return slices.Clone(s.lookedAt)
}

// watching is who looks at what services use, and sees that all of it ends.
func (s *stage) watching() Monitor { return &gaze{stage: s} }

type gaze struct{ stage *stage }

func (g *gaze) Attend(service.Name, uint64, backends.Handle, bool) (leave func(*service.Remains)) {
	g.stage.gazes.Add(1)
	return func(*service.Remains) { g.stage.gazes.Add(-1) }
}

// sinceBoot tells the time of a host that was up for a day when time in the bubble
// began, and whose clock was set meanwhile.
func (s *stage) sinceBoot() time.Duration {
	return 24*time.Hour + time.Since(s.began) - time.Duration(s.clockSet.Load())
}

// setClock sets the host's clock ahead.
func (s *stage) setClock(ahead time.Duration) {
	s.clockSet.Add(int64(ahead))
	time.Sleep(ahead)
}

// forEver is the life of an agent that does not die.
const forEver = -1

// succeed has the agent leave, and another, of such a life, take up what it
// left on disk.
func (s *stage) succeed(life int64) {
	s.Close()
	s.life.Store(life)
	s.disk.reopen()
	s.prober = newProber()
	s.board()
	s.Add(web, s.left())
	synctest.Wait()
}

// left is what is on disk, as the agent makes it of a record.
func (s *stage) left() Restored {
	r, recorded := s.disk.get(web)
	if !recorded {
		return Restored{}
	}
	return Restored{Record: r, Plan: &Plan{Spec: r.Spec, Limits: r.Limits, Backend: s.backend, Actor: r.Actor}}
}

// hook holds every deed against the record of it.
func (s *stage) hook(operation string, ref service.Ref) error {
	if err := s.breathe(); err != nil {
		return err
	}
	r, _ := s.disk.get(ref.Name)
	may := map[string][]service.State{
		"launch": {service.Launching}, "adopt": {service.Adopting}, "finish": {service.Clearing}, "release": {service.Clearing},
		"signal": {service.Stopping}, "kill": {service.Stopping, service.Clearing},
	}[operation]
	if may != nil && !s.lax {
		if !slices.Contains(may, r.Machine.State) || r.Machine.Incarnation != ref.Incarnation {
			s.complain("%s of incarnation %d, and on disk it is %s %d", operation, ref.Incarnation, r.Machine.State, r.Machine.Incarnation)
		}
		if want := ref; operation == "launch" && r.Ref != want {
			s.complain("launched at %+v, and on disk it is at %+v", want, r.Ref)
		}
	}
	if s.fault != nil {
		return s.fault(operation)
	}
	return nil
}

// watched is a backend whose identify is held against the disk.
type watched struct {
	*fake.Backend
	stage *stage
}

func (w *watched) Launch(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
	if w.stage.dogged {
		ctx = context.WithoutCancel(ctx)
	}
	identify := birth.Identify
	birth.Identify = func(ref service.Ref) error {
		runs := w.stage.host.Runs(l.Name)
		err := identify(ref)
		if err == nil {
			err = w.stage.breathe() // else its end closes the gate
		}
		if err == nil && w.stage.slow > 0 {
			select {
			case <-time.After(w.stage.slow):
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		if r, _ := w.stage.disk.get(l.Name); err == nil && r.Ref != ref {
			w.stage.complain("identified as %+v, and on disk it is %+v", ref, r.Ref)
		}
		if w.stage.host.Runs(l.Name) != runs {
			w.stage.complain("it ran before it was identified")
		}
		return err
	}
	return w.Backend.Launch(ctx, l, birth)
}

func (s *stage) script(scripts ...fake.Script) { s.host.Script(web, scripts...) }

// spec is a definition that is ready as soon as it runs.
func spec(changes ...func(*service.Spec)) service.Spec {
	d := service.Defaults()
	d.Name, d.Exec = web, []string{"/bin/web"}
	for _, change := range changes {
		change(&d)
	}
	return d
}

func readyByTCP(d *service.Spec) { d.Ready.Type, d.Ready.Address = service.CheckTCP, "127.0.0.1:80" }
func never(d *service.Spec)      { d.Restart.When = service.RestartNever }
func always(d *service.Spec)     { d.Restart.When = service.RestartAlways }
func noForce(d *service.Spec)    { d.Stop.ForceKill = false }

func (s *stage) plan(changes ...func(*service.Spec)) Plan {
	d := spec(changes...)
	return Plan{Spec: d, Limits: d.Limits, Backend: s.backend, Actor: "alice"}
}

// call is a call under way.
type call struct {
	done chan struct{}
	err  error
}

// begin makes a call and lets everything happen that can at this moment.
func begin(f func() error) *call {
	c := &call{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = f()
	}()
	synctest.Wait()
	return c
}

func (c *call) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (s *stage) start(changes ...func(*service.Spec)) *call {
	plan := s.plan(changes...)
	return begin(func() error { return s.Start(context.Background(), web, plan) })
}

func (s *stage) stop() *call {
	return begin(func() error { return s.Stop(context.Background(), web, service.StopOptions{Actor: "bob"}) })
}

func (s *stage) kill() *call {
	return begin(func() error { return s.Stop(context.Background(), web, service.StopOptions{Actor: "bob", Force: true}) })
}

func (s *stage) restart(changes ...func(*service.Spec)) *call {
	plan := s.plan(changes...)
	plan.Actor = "carol"
	return begin(func() error {
		return s.Restart(context.Background(), web, plan, service.StopOptions{Actor: "carol"})
	})
}

// ok wants that a call has ended well by now.
func (s *stage) ok(c *call) {
	s.t.Helper()
	require.True(s.t, c.over(), "the call is not over")
	require.NoError(s.t, c.err)
}

// refused wants that a call has ended with such an error by now.
func (s *stage) refused(c *call, kind service.Kind, reason service.Reason) {
	s.t.Helper()
	require.True(s.t, c.over(), "the call is not over")
	require.Error(s.t, c.err)
	require.Equal(s.t, kind, service.KindOf(c.err), "%v", c.err)
	require.Equal(s.t, reason, service.ReasonOf(c.err), "%v", c.err)
}

func (s *stage) pending(c *call) {
	s.t.Helper()
	if c.over() {
		require.Fail(s.t, "the call is over", "%v", c.err)
	}
}

// pass lets time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// running starts the service and wants it to run.
func (s *stage) running(changes ...func(*service.Spec)) {
	s.t.Helper()
	s.ok(s.start(changes...))
	s.is(service.Running)
}

func (s *stage) status() *service.Status {
	status := s.disk.statusOf(web)
	return &status
}

// is wants the service in a state, for readers and on disk.
func (s *stage) is(state service.State) {
	s.t.Helper()
	require.Equal(s.t, state, s.status().Machine.State)
	r, _ := s.disk.get(web)
	require.Equal(s.t, state, r.Machine.State, "on disk")
	require.Equal(s.t, s.status().Machine, r.Machine, "on disk")
}

// saw wants that the states were these, in this order, for readers and on disk.
func (s *stage) saw(states string) {
	s.t.Helper()
	shown, written := s.disk.states(web)
	require.Equal(s.t, states, shown, "shown to readers")
	require.Equal(s.t, states, written, "written to disk")
}

// alive wants that so many incarnations have a process.
func (s *stage) alive(n int) {
	s.t.Helper()
	require.Equal(s.t, n, s.host.IncarnationsAlive(web))
	require.LessOrEqual(s.t, s.host.PeakAlive(web), 1, "two at once")
}

// lastExit is the latest exit record.
func (s *stage) lastExit() service.ExitRecord {
	s.t.Helper()
	exits := s.disk.exitsOf(web)
	require.NotEmpty(s.t, exits)
	last := exits[len(exits)-1]
	require.NotNil(s.t, s.status().LastExit)
	require.Equal(s.t, last, *s.status().LastExit)
	return last
}
