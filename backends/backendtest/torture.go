package backendtest

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func tortureLaws() []law {
	return []law{
		{says: "who does not die of SIGKILL is named, holds up nobody else, and is gone once it dies", only: real, check: lawUnkillable},
		{says: "what outlived the main process and does not die is named by Release, which may be called again", only: real, check: lawUnkillableRest},
		{says: "who stopped itself dies of SIGTERM when it is told to go on", only: real, check: lawStoppedTerm},
		{says: "a storm of orphans is reaped, touches nobody's children and costs little", only: real, alone: true, check: lawOrphanStorm},
		{says: "zombies count under pids_max", only: real, check: lawZombiesBounded},
		{says: "a service without privileges can not leave its cgroup", only: caged, check: lawEscape},
		{says: "executing itself a thousand times a second is one process, from its start to its end", only: real, check: lawExecStorm},
	}
}

// hold keeps a process from ending, even by SIGKILL, as a disk would that does
// not answer, until let is called.
func (b *bench) hold(pid int) (let func()) {
	b.Helper()
	read, write, err := os.Pipe()
	require.NoError(b, err)
	defer read.Close()
	holder, err := os.StartProcess(b.Workload, []string{"workload", "hold", strconv.Itoa(pid)}, &os.ProcAttr{Files: []*os.File{nil, write, write}})
	write.Close()
	require.NoError(b, err)
	let = sync.OnceFunc(func() { _ = holder.Kill(); _, _ = holder.Wait() })
	b.Cleanup(let)
	said := make([]byte, 256)
	n, err := read.Read(said)
	require.NoError(b, err)
	require.Equal(b, "ready\n", string(said[:n]))
	return let
}

// shortly is a context for a call that has to give up.
func (b *bench) shortly() context.Context {
	ctx, cancel := context.WithTimeout(b.Context(), time.Second)
	b.Cleanup(cancel)
	return ctx
}

// wantUnkillable wants err to say that pid does not die.
func (b *bench) wantUnkillable(err error, pid int) {
	b.Helper()
	e := b.wantError(err, service.Timeout)
	require.Equal(b, service.ReasonUnkillable, service.ReasonOf(e))
	require.ErrorContains(b, err, strconv.Itoa(pid))
}

func lawUnkillable(b *bench) {
	i := b.start("fork", "1")
	pid := i.Ref().PID
	let := b.hold(pid)
	b.wantUnkillable(i.Kill(b.shortly()), pid)
	_, err := i.Release(b.shortly())
	b.wantUnkillable(err, pid)
	i.lives()
	require.Equal(b, []int{pid}, processesWith(token(i.plan)))

	b.start("sleep").release() // others are not held up

	let()
	require.NoError(b, i.Kill(b.within()))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	i.release()
	b.nothingOf(i.plan)
}

func lawUnkillableRest(b *bench) {
	i := b.start("fork", "2")
	main := i.Ref().PID
	var child int
	for _, pid := range processesWith(token(i.plan)) {
		if pid != main {
			child = pid
		}
	}
	let := b.hold(child)
	require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit(), "it is told although another one can not die")
	_, err := i.Release(b.shortly())
	b.wantUnkillable(err, child)
	let()
	require.Equal(b, 2, i.release().Leftovers)
	b.nothingOf(i.plan)
}

// inState waits until a process is in a state of proc_pid_stat(5).
func (b *bench) inState(pid int, state byte) {
	b.Helper()
	b.eventually(func() bool { s, ok := statOf(pid); return ok && s.state == state }, "process %d was never in state %c", pid, state)
}

func lawStoppedTerm(b *bench) {
	i := b.start("stop-self")
	b.inState(i.Ref().PID, 'T')
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	i.lives()
	require.NoError(b, i.Signal(b.within(), syscall.SIGCONT))
	require.Equal(b, service.Exit{Signal: syscall.SIGTERM}, i.exit())
}

// lawOrphanStorm has orphans die while this process, which may be their
// subreaper, has a child of its own to wait for.
func lawOrphanStorm(b *bench) {
	orphans := 500
	if emulated() {
		orphans = 150
	}
	read, write, err := os.Pipe()
	require.NoError(b, err)
	defer read.Close()
	foreign, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "read line; exit 42"}, &os.ProcAttr{Files: []*os.File{read, nil, nil}})
	require.NoError(b, err)
	// Who was let go of by one law and killed by its place is reaped by nobody.
	stale := zombies()
	unreaped := func() []string {
		return slices.DeleteFunc(zombies(), func(pid string) bool { return slices.Contains(stale, pid) })
	}
	before, began := cpuTime(b), time.Now()
	i := b.start("orphans", strconv.Itoa(orphans))
	b.eventually(func() bool { return b.alive(i.plan) == 1 && len(unreaped()) == 0 }, "orphans are left unreaped: %v", lazy(func() string { return strings.Join(unreaped(), " ") }))
	b.Logf("%d orphans in %v, for %v of CPU time", orphans, time.Since(began), cpuTime(b)-before)
	if !emulated() {
		require.Less(b, cpuTime(b)-before, time.Duration(orphans)*10*time.Millisecond, "ten milliseconds for each are plenty: nothing is looked for")
	}
	i.lives()
	require.NoError(b, write.Close())
	state, err := foreign.Wait()
	require.NoError(b, err, "somebody else has waited for it")
	require.Equal(b, 42, state.ExitCode())
	i.release()
	b.nothingOf(i.plan)
}

// zombies lists the dead children of this process.
func zombies() (dead []string) {
	for _, pid := range children() {
		if s, ok := statOf(pid); ok && s.state == 'Z' {
			dead = append(dead, strconv.Itoa(pid))
		}
	}
	return dead
}

// cpuTime is what this process has used.
func cpuTime(b *bench) time.Duration {
	b.Helper()
	var used syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func lawZombiesBounded(b *bench) {
	l := limited(b.plan("zombies", "300"), service.Limits{service.PidsMax: service.Of(100)})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	require.Equal(b, service.Exit{Code: 2}, i.exit())
	require.Contains(b, i.log(), "resource temporarily unavailable")
	require.Zero(b, i.release().Leftovers)
	b.nothingOf(l)
}

// lawEscape has a service try to get into the root of all cgroups, and into
// that of another service.
func lawEscape(b *bench) {
	other := b.start("sleep")
	for _, target := range []string{b.CgroupRoot, filepath.Join(b.CgroupRoot, other.Ref().Cgroup)} {
		l := b.plan("escape", target)
		l.Spec.User, l.Spec.Group = b.User, b.Group
		i := b.launch(l)
		i.ready()
		require.Contains(b, i.log(), "permission denied")
		pids := processesWith(token(l))
		require.Len(b, pids, 2)
		for _, pid := range pids {
			require.Equal(b, i.Ref().Cgroup, cgroupOf(b, pid))
		}
		require.NoError(b, i.Kill(b.within()))
		b.eventually(func() bool { return b.alive(l) == 0 }, "it has escaped")
	}
	other.lives()
}

// lawExecStorm looks by the number: in the midst of an exec a process has no
// command line.
func lawExecStorm(b *bench) {
	i := b.start("exec-self", "1000")
	ref := i.Ref()
	for range 50 {
		i.lives()
		// While a thread that executes takes the place of the first one, nobody
		// has the number.
		var s stat
		b.eventually(func() (ok bool) { s, ok = statOf(ref.PID); return ok }, "it is gone")
		require.Equal(b, ref.StartTicks, s.start)
		processes, err := i.Processes(b.within())
		require.NoError(b, err)
		require.LessOrEqual(b, len(processes), 1)
		require.LessOrEqual(b, b.alive(i.plan), 1)
	}
	require.Equal(b, ref, i.Ref())
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	require.Equal(b, service.Exit{Signal: syscall.SIGTERM}, i.exit())
	require.Zero(b, i.release().Leftovers)
}
