package backendtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

func adoptLaws() []law {
	return []law{
		{says: "a fresh agent adopts what an earlier one launched, and has full power over it", check: lawAdopt},
		{says: "an exit after the adoption is told exactly, or as unknown where the kernel keeps none, never invented", check: lawAdoptExit},
		{says: "an exit while no agent was there is told exactly or as unknown, never invented", check: lawAdoptExitMissed},
		{says: "an exit while no agent was there is told also when somebody has removed the cgroup meanwhile", only: caged, check: lawAdoptUncaged},
		{says: "what is gone is not adopted", check: lawAdoptGone},
		{says: "what was never launched is not adopted, and a bystander with its number lives", check: lawAdoptBystander},
		{says: "a plain process with the number, the ticks and the boot id of the record is no incarnation", only: real, check: lawAdoptPlainProcess},
		{says: "a process that got the number of one that ended is left alone", only: real, alone: true, check: lawNumberUsedAgain},
		{says: "when the main process is gone its exit is told at once, exactly or as unknown, and Release removes the rest", check: lawAdoptRest},
		{says: "a main process that somebody has moved out of its cgroup is adopted, and killed", only: caged, check: lawAdoptMoved},
		{says: "a main process that somebody has moved out of its cgroup is told of, and stays in hand when that cgroup is removed", only: caged, check: lawDisplaced},
		{says: "an adoption whose context has ended adopts nothing and harms nothing", check: lawAdoptEnded},
		{says: "closing a handle does not touch the incarnation, and another may adopt it", check: lawHandleClose},
		{says: "closing the backend does not touch a single service", check: lawBackendClose},
		{says: "limits that were set before the adoption still hold after it, and are told as before", check: lawAdoptLimits},
	}
}

// adoptAnew lets an agent that has just started adopt what the first one
// launched, after the first has left.
func (i *incarnation) adoptAnew() *incarnation {
	b := i.bench
	b.Helper()
	require.NoError(b, i.Close())
	require.NoError(b, b.agent.Close())
	fresh := b.newAgent()
	h, err := fresh.Adopt(b.within(), i.Ref(), i.plan)
	require.NoError(b, err)
	b.agent = fresh
	return b.keep(h, i.plan)
}

// abandoned launches with an agent that leaves without a word; what it
// launched is for the next agent to clean up.
func (b *bench) abandoned(mode ...string) *incarnation {
	b.Helper()
	return b.abandon(b.plan(mode...))
}

func (b *bench) abandon(l service.Launch) *incarnation {
	b.Helper()
	b.ownAgent()
	h, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	require.NoError(b, err)
	i := &incarnation{Handle: h, bench: b, plan: l}
	i.ready()
	b.Cleanup(func() { b.sweep(i) })
	return i
}

// sweep removes what a law that failed may have left of i.
func (b *bench) sweep(i *incarnation) {
	if b.Alive != nil {
		return
	}
	for pids := processesWith(token(i.plan)); len(pids) > 0; pids = processesWith(token(i.plan)) {
		b.Errorf("%d processes had to be killed by the suite", len(pids))
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// unknownOr wants exit to be what happened, or unknown with a reason.
func (b *bench) unknownOr(want, exit service.Exit) {
	b.Helper()
	if exit.Unknown != "" {
		want = service.Exit{Unknown: exit.Unknown}
	}
	require.Equal(b, want, exit)
}

// exact wants exit to be what happened. Of a process that an earlier agent has
// launched it may be unknown, but not where the kernel keeps it for those who
// hold the pidfd.
func (b *bench) exact(want, exit service.Exit) {
	b.Helper()
	if b.KeepsExits || b.Workload != "" && kernelKeepsExits() {
		require.Equal(b, want, exit)
		return
	}
	b.unknownOr(want, exit)
}

// missed wants exit to be what happened while no agent was there, or unknown where
// nobody keeps that.
func (b *bench) missed(want, exit service.Exit) {
	b.Helper()
	if b.KeepsExits {
		require.Equal(b, want, exit)
		return
	}
	b.unknownOr(want, exit)
}

func lawAdopt(b *bench) {
	first := b.abandoned("fork", "3")
	i := first.adoptAnew()
	require.Equal(b, first.Ref(), i.Ref())
	i.lives()
	require.Equal(b, 4, b.alive(i.plan))
	require.NotZero(b, i.usage().Memory)
	processes, err := i.Processes(b.within())
	require.NoError(b, err)
	require.Len(b, processes, 4)
	require.Equal(b, i.Ref().PID, processes[0].PID)
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	b.exact(service.Exit{Signal: syscall.SIGTERM}, i.exit())
	require.Equal(b, 3, b.alive(i.plan))
	require.NoError(b, i.Kill(b.within()))
	require.Zero(b, b.alive(i.plan))
	require.Equal(b, 3, i.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawAdoptExit(b *bench) {
	i := b.abandoned("fork", "0").adoptAnew()
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	b.exact(service.Exit{Signal: syscall.SIGTERM}, i.exit())
	require.Equal(b, i.Exit(), i.Exit())
	b.wantError(i.Signal(b.within(), syscall.SIGTERM), service.NotRunning)
}

func lawAdoptExitMissed(b *bench) {
	began := time.Now()
	first := b.abandoned("hand-stdout", "100ms")
	require.NoError(b, first.Close())
	require.NoError(b, b.agent.Close())
	b.eventually(func() bool { return b.alive(first.plan) == 1 }, "it never ended")
	if b.KeepsExits {
		b.eventually(func() bool { _, there := statOf(first.Ref().PID); return !there }, "nobody reaps it")
	}
	ended := time.Now()
	i := first.adoptAnew()
	b.missed(service.Exit{}, i.exit())
	if b.KeepsExits {
		require.WithinRange(b, i.ExitedAt(), began, ended)
	}
	require.Equal(b, 1, i.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawAdoptUncaged(b *bench) {
	first := b.abandoned("sleep")
	require.NoError(b, first.Signal(b.within(), syscall.SIGTERM))
	first.exit()
	require.NoError(b, first.Close())
	require.NoError(b, b.agent.Close())
	b.eventually(func() bool {
		err := os.Remove(filepath.Join(b.CgroupRoot, first.Ref().Cgroup))
		return err == nil || errors.Is(err, fs.ErrNotExist)
	}, "somebody lives in it")
	i := first.adoptAnew()
	b.missed(service.Exit{Signal: syscall.SIGTERM}, i.exit())
	i.release()
	b.nothingOf(i.plan)
}

func lawAdoptGone(b *bench) {
	i := b.start("sleep")
	ref := i.Ref()
	i.release()
	_, err := b.agent.Adopt(b.within(), ref, service.Launch{})
	require.ErrorIs(b, err, backends.ErrGone)
	// One that comes at this moment may still hear of the end.
	b.eventually(func() bool {
		h, err := b.newAgent().Adopt(b.within(), ref, service.Launch{})
		if err == nil {
			require.NoError(b, h.Close())
		}
		return errors.Is(err, backends.ErrGone)
	}, "it is adopted")
	never := b.agent.Plan(b.plan("sleep"))
	_, err = b.agent.Adopt(b.within(), never, service.Launch{})
	require.ErrorIs(b, err, backends.ErrGone)
}

// lawAdoptBystander records, for an incarnation that never was, the process of
// another service: the same number with other ticks, of another boot, and the
// true identity.
func lawAdoptBystander(b *bench) {
	bystander := b.start("sleep")
	is := bystander.Ref()
	ref := b.agent.Plan(b.plan("sleep"))
	ref.PID, ref.StartTicks, ref.BootID = is.PID, is.StartTicks, is.BootID
	ticks, boot := ref, ref
	ticks.StartTicks--
	boot.BootID = "00000000-0000-4000-8000-000000000000"
	for _, record := range []service.Ref{ticks, boot, ref} {
		h, err := b.newAgent().Adopt(b.within(), record, service.Launch{})
		require.Nil(b, h)
		require.ErrorIs(b, err, backends.ErrGone, "%+v", record)
		bystander.lives()
		require.Equal(b, 1, b.alive(bystander.plan))
	}
}

func lawAdoptPlainProcess(b *bench) {
	l := b.plan("sleep")
	p, err := os.StartProcess(b.Workload, l.Spec.Exec, &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
	require.NoError(b, err)
	defer func() { _ = p.Kill(); _, _ = p.Wait() }()
	// In the midst of its execve it has no command line.
	b.eventually(func() bool { return len(processesWith(token(l))) == 1 }, "it never came")
	s, ok := statOf(p.Pid)
	require.True(b, ok)
	ref := b.agent.Plan(l)
	ref.PID, ref.StartTicks, ref.BootID = p.Pid, s.start, bootID()
	_, err = b.agent.Adopt(b.within(), ref, service.Launch{})
	require.ErrorIs(b, err, backends.ErrGone)
	require.Equal(b, []int{p.Pid}, processesWith(token(l)))
}

// lawNumberUsedAgain gives a bystander the number of a main process that has
// ended, before anybody has let go of that one.
func lawNumberUsedAgain(b *bench) {
	i := b.start("fork", "0")
	ref := i.Ref()
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	i.exit()
	bystander := b.withNumber(ref.PID)
	b.wantError(i.Signal(b.within(), syscall.SIGTERM), service.NotRunning)
	require.NoError(b, i.Kill(b.within()))
	h, err := b.newAgent().Adopt(b.within(), ref, service.Launch{})
	if err == nil { // its cgroup is there
		b.missed(service.Exit{Signal: syscall.SIGTERM}, b.exitOf(h))
		require.Error(b, h.Signal(b.within(), syscall.SIGTERM))
		require.NoError(b, h.Kill(b.within()))
		require.NoError(b, h.Close())
	} else {
		require.ErrorIs(b, err, backends.ErrGone)
	}
	i.release()
	s, ok := statOf(ref.PID)
	require.True(b, ok, "the bystander is gone")
	require.Equal(b, bystander, s.start)
	require.NotContains(b, "ZX", string(s.state), "the bystander is dead")
}

// withNumber starts a process under a number that is free, and gives its start
// ticks. The kernel is told which number it gave last (proc_sys_kernel(5)).
func (b *bench) withNumber(pid int) uint64 {
	b.Helper()
	const last = "/proc/sys/kernel/ns_last_pid"
	for range 200 {
		if err := os.WriteFile(last, []byte(strconv.Itoa(pid-1)), 0); err != nil {
			b.Skipf("this kernel does not let us choose numbers: %v", err)
		}
		p, err := os.StartProcess(b.Workload, b.plan("sleep").Spec.Exec, &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
		require.NoError(b, err)
		b.Cleanup(func() { _ = p.Kill(); _, _ = p.Wait() })
		if p.Pid == pid {
			s, ok := statOf(pid)
			require.True(b, ok)
			return s.start
		}
		require.NoError(b, p.Kill())
	}
	b.Fatalf("number %d never came", pid)
	return 0
}

func lawAdoptRest(b *bench) {
	first := b.abandoned("fork", "3")
	require.NoError(b, first.Signal(b.within(), syscall.SIGTERM))
	first.exit()
	i := first.adoptAnew()
	select {
	case <-i.Exited():
	default:
		b.Fatal("the exit is not told at once")
	}
	b.missed(service.Exit{Signal: syscall.SIGTERM}, i.Exit())
	b.wantError(i.Signal(b.within(), syscall.SIGTERM), service.NotRunning)
	require.Equal(b, 3, b.alive(i.plan))
	require.Equal(b, 3, i.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawAdoptMoved(b *bench) {
	i := b.abandoned("fork", "2")
	elsewhere := filepath.Join(b.CgroupRoot, "elsewhere-"+random())
	require.NoError(b, os.Mkdir(elsewhere, 0o755))
	require.NoError(b, os.WriteFile(filepath.Join(elsewhere, "cgroup.procs"), []byte(strconv.Itoa(i.Ref().PID)), 0))
	i = i.adoptAnew()
	i.lives()
	require.NoError(b, i.Kill(b.within()))
	b.unknownOr(service.Exit{Signal: syscall.SIGKILL}, i.exit())
	require.Zero(b, b.alive(i.plan))
	i.release()
	b.eventually(func() bool { return os.Remove(elsewhere) == nil }, "somebody lives elsewhere")
}

// lawDisplaced moves all there is of an incarnation, and removes where it was.
func lawDisplaced(b *bench) {
	i := b.abandoned("sleep")
	displaced := func() bool {
		select {
		case <-i.Displaced():
			return true
		default:
			return false
		}
	}
	require.False(b, displaced())
	home := filepath.Join(b.CgroupRoot, i.Ref().Cgroup)
	elsewhere := filepath.Join(b.CgroupRoot, "elsewhere-"+random())
	require.NoError(b, os.Mkdir(elsewhere, 0o755))
	require.NoError(b, os.WriteFile(filepath.Join(elsewhere, "cgroup.procs"), []byte(strconv.Itoa(i.Ref().PID)), 0))
	began := time.Now()
	b.eventually(displaced, "nobody tells that it was moved")
	b.Logf("told after %v", time.Since(began))
	more := service.Limits{service.PidsMax: service.Of(99)}
	_, err := i.Limit(b.within(), more)
	b.wantError(err, service.Unenforceable)
	require.ErrorContains(b, err, "somebody has moved process")

	b.eventually(func() bool { _ = os.Remove(home); _, err := os.Stat(home); return err != nil }, "its cgroup stays")
	_ = os.Remove(filepath.Dir(home)) // it may be one that others live in
	i.lives()
	i = i.adoptAnew()
	i.lives()
	b.eventually(displaced, "the next agent does not tell that it was moved")
	_, err = i.Limit(b.within(), more)
	b.wantError(err, service.Unenforceable)
	require.NoError(b, i.Kill(b.within()))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	require.Zero(b, b.alive(i.plan))
	i.release()
	b.nothingOf(i.plan)
	b.eventually(func() bool { return os.Remove(elsewhere) == nil }, "somebody lives elsewhere")
}

func lawAdoptEnded(b *bench) {
	i := b.start("sleep")
	h, err := b.newAgent().Adopt(b.ended(), i.Ref(), service.Launch{})
	if err != nil {
		require.Nil(b, h)
		require.NotErrorIs(b, err, backends.ErrGone, "it is not gone, we only did not look")
	} else {
		require.NoError(b, h.Close())
	}
	i.lives()
	require.Equal(b, 1, b.alive(i.plan))
}

func lawHandleClose(b *bench) {
	i := b.abandoned("fork", "2")
	require.NoError(b, i.Close())
	require.NoError(b, i.Close(), "closing is idempotent")
	require.Equal(b, 3, b.alive(i.plan))
	h, err := b.newAgent().Adopt(b.within(), i.Ref(), service.Launch{})
	require.NoError(b, err)
	again := b.keep(h, i.plan)
	again.lives()
}

func lawBackendClose(b *bench) {
	one, other := b.abandoned("fork", "2"), b.abandoned("ignore-term")
	require.NoError(b, b.agent.Close())
	require.Equal(b, 3, b.alive(one.plan))
	require.Equal(b, 1, b.alive(other.plan))
	fresh := b.newAgent()
	for _, i := range []*incarnation{one, other} {
		h, err := fresh.Adopt(b.within(), i.Ref(), service.Launch{})
		require.NoError(b, err)
		b.keep(h, i.plan).lives()
	}
}

func lawAdoptLimits(b *bench) {
	asked := b.enforced()
	more, _ := b.unenforced()
	l := limited(b.plan("sleep"), more.Over(asked))
	l.Spec.BestEffort = true
	i := b.abandon(l)
	before := i.limits()
	i = i.adoptAnew()
	applied := i.limits()
	require.Equal(b, before, applied)
	for r, q := range asked {
		if q.Set {
			require.Equal(b, q, applied[r].Applied, "%s", service.Resource(r))
		}
	}
	if asked[service.PidsMax].Set {
		applied, err := i.Limit(b.within(), service.Limits{service.PidsMax: service.Of(77)})
		require.NoError(b, err)
		require.Equal(b, service.Of(77), applied[service.PidsMax].Applied)
	}
}
