package backendtest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

func besideLaws() []law {
	return []law{
		{says: "Run tells the exit code and the output of both streams", only: real, check: lawRunTells},
		{says: "Run has the program be what the main process is: user, environment, directory, umask, limits, cgroup", only: real, check: lawRunBorn},
		{says: "Run has nothing of the agent reach the program", only: real, alone: true, check: lawRunDescriptors},
		{says: "Run keeps the last 4 KiB of the output, and lets the program write on", only: real, check: lawRunOutput},
		{says: "Run tells that a program can not be executed", only: real, check: lawRunMissing},
		{says: "Run kills the program and all that it has started when its context ends", only: real, check: lawRunEnded},
		{says: "Run leaves nothing of a program that has ended", only: real, check: lawRunDaemon},
		{says: "Run ends with the main process, and is refused after it", check: lawRunOutlived},
		{says: "what Run runs is not left over, and does not keep Release from its end", only: real, check: lawRunLeftovers},
		{says: "its processes are known as its own, and nobody else's", check: lawOwns},
		{says: "many may Run at once, beside each other and a Kill", only: real, check: lawRunCrowd},
		{says: "Run refuses what is frozen", check: lawRunFrozen},
		{says: "an adopted incarnation can Run, as the one it was, and what an earlier agent ran is ended", only: real, check: lawRunAdopted},
	}
}

// beside is a command line of the workload with the token of i.
func (i *incarnation) beside(mode ...string) []string {
	return append([]string{i.bench.Workload, "-t", token(i.plan)}, mode...)
}

// run runs the workload beside the main process, which has to work.
func (i *incarnation) run(mode ...string) backends.Ran {
	i.bench.Helper()
	ran, err := i.Run(i.bench.within(), backends.Program{Argv: i.beside(mode...)})
	require.NoError(i.bench, err, "%s", ran.Output)
	return ran
}

// alone wants nothing to be there but the main process.
func (i *incarnation) alone() {
	i.bench.Helper()
	i.lives()
	require.Equal(i.bench, 1, i.bench.alive(i.plan), "something is left beside the main process")
	if i.bench.CgroupRoot != "" {
		inside, err := filepath.Glob(filepath.Join(i.bench.CgroupRoot, i.Ref().Cgroup, "*/cgroup.procs"))
		require.NoError(i.bench, err)
		require.Empty(i.bench, inside, "a cgroup is left")
	}
}

func lawRunTells(b *bench) {
	i := b.start("sleep")
	require.Equal(b, service.Exit{Code: 7}, i.run("exit", "7").Exit)
	require.Equal(b, service.Exit{Signal: syscall.SIGSEGV}, i.run("signal", "11").Exit)
	ran, err := i.Run(b.within(), backends.Program{Argv: []string{"/bin/sh", "-c", "echo one; echo two >&2; cat; exit 3"}})
	require.NoError(b, err)
	require.Equal(b, backends.Ran{Exit: service.Exit{Code: 3}, Output: []byte("one\ntwo\n")}, ran)
	i.alone()
}

// besideBirth runs the workload in its mode birth, whose output is longer than what is kept.
func (i *incarnation) besideBirth() birth {
	i.bench.Helper()
	place := filepath.Join(cmp.Or(i.plan.Spec.WorkingDirectory, i.bench.dir), "birth-"+random())
	ran, err := i.Run(i.bench.within(), backends.Program{Argv: []string{"/bin/sh", "-c", `exec "$0" "$@" >` + place, i.bench.Workload, "-t", token(i.plan), "birth"}})
	require.NoError(i.bench, err)
	require.True(i.bench, ran.Exit.Clean(), "%v: %s", ran.Exit, ran.Output)
	text, err := os.ReadFile(place)
	require.NoError(i.bench, err)
	require.NoError(i.bench, os.Remove(place))
	var told birth
	require.NoError(i.bench, json.Unmarshal(text, &told), "%s", text)
	return told
}

// odd is a plan of which much is not as it is by default.
func (b *bench) odd() service.Launch {
	l := b.plan("sleep")
	l.Limits[service.NoFile] = service.Of(321)
	l.Spec.Environment = map[string]string{"TZ": "UTC", "ODD": "a=b\nc d"}
	l.Spec.WorkingDirectory = filepath.Join(b.dir, "everybodys-"+random())
	require.NoError(b, os.Mkdir(l.Spec.WorkingDirectory, 0o777))
	require.NoError(b, os.Chmod(l.Spec.WorkingDirectory, 0o777))
	l.Spec.Umask, l.Spec.Nice, l.Spec.OOMScoreAdj = 0o027, 7, 321
	if b.asRoot() {
		l.Spec.User = b.User
	}
	return l
}

// wantOdd wants a program to have been born as odd says.
func (i *incarnation) wantOdd(told birth) {
	b, main := i.bench, i.Ref().PID
	b.Helper()
	environment := slices.DeleteFunc(told.Environment, func(v string) bool { // the shell's own
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"PWD", "OLDPWD", "SHLVL", "_"}, name)
	})
	require.ElementsMatch(b, []string{
		"TZ=UTC", "ODD=a=b\nc d", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}, environment)
	require.Equal(b, i.plan.Spec.WorkingDirectory, told.Directory)
	require.Equal(b, uint32(0o027), told.Umask)
	require.Equal(b, 7, told.Nice)
	require.Equal(b, 321, told.OOMScoreAdj)
	require.True(b, told.NoNewPrivileges)
	require.True(b, strings.HasPrefix(told.Limits["nofile"], "321 "), "%v", told.Limits)
	require.Equal(b, told.PID, told.Session)
	require.NotEqual(b, main, told.PID)
	var stat syscall.Stat_t
	require.NoError(b, syscall.Stat(fmt.Sprintf("/proc/%d", main), &stat))
	require.Equal(b, int(stat.Uid), told.UIDs[1])
	require.Equal(b, int(stat.Gid), told.GIDs[1])
	if b.CgroupRoot != "" {
		require.True(b, strings.HasPrefix(told.Cgroup, i.Ref().Cgroup+"/"), "%s is not in %s", told.Cgroup, i.Ref().Cgroup)
	}
}

func lawRunBorn(b *bench) {
	i := b.launch(b.odd())
	i.ready()
	i.wantOdd(i.besideBirth())
	i.alone()
	i = b.launch(limited(b.plan("sleep"), service.Limits{service.NoFile: service.Of(321)}))
	i.ready()
	_, err := i.Limit(b.within(), service.Limits{service.NoFile: service.Of(123)})
	require.NoError(b, err)
	require.True(b, strings.HasPrefix(i.besideBirth().Limits["nofile"], "123 "), "a limit that was changed since")
	i.alone()
}

func lawRunDescriptors(b *bench) {
	low, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0)
	require.NoError(b, err)
	defer syscall.Close(low)
	require.NoError(b, syscall.Dup3(low, 777, 0))
	defer syscall.Close(777)
	signal.Ignore(syscall.SIGUSR2, syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGUSR2, syscall.SIGPIPE)
	i := b.start("sleep")
	open := slices.Sorted(maps.Keys(i.besideBirth().Descriptors))
	require.Equal(b, []string{"0", "1", "2"}, open)
	ran, err := i.Run(b.within(), backends.Program{Argv: []string{"/bin/sh", "-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status; env"}})
	require.NoError(b, err)
	require.Contains(b, string(ran.Output), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n")
	require.NotContains(b, string(ran.Output), "GLADSHEIM")
}

func lawRunOutput(b *bench) {
	i := b.start("sleep")
	ran, err := i.Run(b.within(), backends.Program{Argv: []string{"/bin/sh", "-c", "dd if=/dev/zero bs=1k count=1000 2>/dev/null | tr '\\0' x; echo end; exit 5"}})
	require.NoError(b, err)
	require.Equal(b, service.Exit{Code: 5}, ran.Exit)
	require.Equal(b, strings.Repeat("x", 4<<10-4)+"end\n", string(ran.Output))
}

func lawRunMissing(b *bench) {
	i := b.start("sleep")
	_, err := i.Run(b.within(), backends.Program{Argv: []string{filepath.Join(b.dir, "missing")}})
	e := b.wantError(err, service.Unlaunchable)
	require.Equal(b, service.ReasonExecNotFound, e.Reason)
	require.ErrorContains(b, err, filepath.Join(b.dir, "missing"))
	require.ErrorContains(b, err, i.plan.Name.String())
	i.alone()
}

func lawRunEnded(b *bench) {
	i := b.start("sleep")
	_, err := i.Run(b.ended(), backends.Program{Argv: i.beside("sleep")})
	b.wantError(err, service.Cancelled)
	i.alone()
	for _, mode := range [][]string{{"sleep"}, {"ignore-term"}, {"fork", "3"}, {"tree", "2"}, {"double-fork", "stay"}} {
		ctx, cancel := context.WithCancel(b.within())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err = i.Run(ctx, backends.Program{Argv: i.beside(mode...)})
		}()
		b.eventually(func() bool { return b.alive(i.plan) >= map[string]int{"fork": 5, "tree": 8, "double-fork": 3}[mode[0]] }, "%v never began", mode)
		cancel()
		<-done
		b.wantError(err, service.Cancelled)
		i.alone()
	}
	var said string
	for wait := soon(300 * time.Millisecond); said == "" && wait < patience; wait *= 2 { // a busy host takes its time
		ctx, cancel := context.WithTimeout(b.Context(), wait)
		ran, err := i.Run(ctx, backends.Program{Argv: []string{"/bin/sh", "-c", "echo begun; sleep 1000"}})
		cancel()
		b.wantError(err, service.Timeout)
		said = string(ran.Output)
		i.alone()
	}
	require.Equal(b, "begun\n", said, "what it has said until then")
}

func lawRunDaemon(b *bench) {
	i := b.start("sleep")
	ran := i.run("double-fork")
	require.Equal(b, service.Exit{}, ran.Exit)
	i.alone()
	ran = i.run("hand-stdout")
	require.Equal(b, service.Exit{}, ran.Exit)
	i.alone()
}

func lawRunOutlived(b *bench) {
	i := b.start("sleep")
	if b.Workload != "" {
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err = i.Run(b.within(), backends.Program{Argv: i.beside("tree", "2")})
		}()
		b.eventually(func() bool { return b.alive(i.plan) == 8 }, "it never began")
		require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
		<-done
		b.wantError(err, service.NotRunning)
		require.Zero(b, b.alive(i.plan))
	} else {
		require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
	}
	i.exit()
	_, err := i.Run(b.within(), backends.Program{Argv: []string{"/bin/true"}})
	b.wantError(err, service.NotRunning)
	require.Zero(b, i.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawRunLeftovers(b *bench) {
	i := b.start("fork", "2")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = i.Run(b.within(), backends.Program{Argv: i.beside("tree", "2")})
	}()
	b.eventually(func() bool { return b.alive(i.plan) == 10 }, "it never began")
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	i.exit()
	require.Equal(b, 2, i.release().Leftovers, "the children of the main process alone")
	<-done
	b.nothingOf(i.plan)
}

func lawRunCrowd(b *bench) {
	i := b.start("sleep")
	var wait sync.WaitGroup
	for code := range 8 {
		wait.Go(func() {
			ran, err := i.Run(b.within(), backends.Program{Argv: i.beside("exit", fmt.Sprint(code))})
			if err != nil || ran.Exit != (service.Exit{Code: code}) {
				b.Errorf("%d ended with %v, %v", code, ran, err)
			}
		})
	}
	wait.Wait()
	i.alone()
	for range 4 {
		wait.Go(func() { _, _ = i.Run(b.within(), backends.Program{Argv: i.beside("fork", "3")}) })
	}
	b.eventually(func() bool { return b.alive(i.plan) > 4 }, "they never began")
	require.NoError(b, i.Kill(b.within()))
	wait.Wait()
	require.Zero(b, i.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawRunFrozen(b *bench) {
	i := b.start("sleep")
	if !b.agent.Enforces().Freeze {
		return
	}
	require.NoError(b, i.Freeze(b.within()))
	_, err := i.Run(b.within(), backends.Program{Argv: []string{"/bin/true"}})
	b.wantError(err, service.Conflict)
	require.NoError(b, i.Thaw(b.within()))
	if b.Workload != "" {
		require.Equal(b, service.Exit{}, i.run("exit", "0").Exit)
		i.alone()
	}
}

func lawRunAdopted(b *bench) {
	i := b.launch(b.odd())
	i.ready()
	running, cancel := context.WithCancel(b.within())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = i.Run(running, backends.Program{Argv: i.beside("tree", "2")})
	}()
	b.eventually(func() bool { return b.alive(i.plan) == 8 }, "it never began")
	h, err := b.newAgent().Adopt(b.within(), i.Ref(), i.plan)
	require.NoError(b, err)
	defer h.Close()
	i.alone()
	<-done
	again := &incarnation{Handle: h, bench: b, plan: i.plan}
	again.wantOdd(again.besideBirth())
	i.alone()
}

func lawOwns(b *bench) {
	i, other := b.start("fork", "2"), b.start("fork", "2")
	for _, of := range []*incarnation{i, other} {
		processes, err := of.Processes(b.within())
		require.NoError(b, err)
		require.Len(b, processes, 3)
		for _, p := range processes {
			owns, err := i.Owns(p.PID)
			require.NoError(b, err)
			require.Equal(b, of == i, owns, "%v", p)
		}
	}
	for _, pid := range []int{1, os.Getpid(), 1 << 22} {
		owns, err := i.Owns(pid)
		require.NoError(b, err)
		require.False(b, owns, "%d", pid)
	}
	i.release()
	owns, err := i.Owns(i.Ref().PID)
	require.NoError(b, err)
	require.False(b, owns, "nobody is left")
}
