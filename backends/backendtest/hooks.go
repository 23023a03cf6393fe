package backendtest

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

func hookLaws() []law {
	return []law{
		{says: "Prepare runs programs in the place of the incarnation and under its limits, before its own program", only: real, check: lawPrepare},
		{says: "when Prepare fails nothing has run, Undo may run programs, and nothing is left", only: real, check: lawPrepareFails},
		{says: "when the program can not be executed Undo may run programs, and nothing is left", only: real, check: lawUndo},
		{says: "what Prepare runs ends with the context of Launch, and nothing is left", only: real, check: lawPrepareEnded},
		{says: "what Prepare runs ends with the child at its gate, and nothing is left", only: real, check: lawPrepareChildKilled},
		{says: "others are launched while Prepare takes its time", only: real, check: lawPrepareSlow},
		{says: "others are launched while Undo takes its time", only: real, check: lawUndoSlow},
		{says: "nothing of a hook outlives a launch that failed, not even what hides", only: real, check: lawHookHides},
		{says: "after its end programs may be run in the place of the incarnation and under its limits, until Release", only: real, check: lawRunAfter},
		{says: "so may they when another agent has taken up what ended", only: real, check: lawRunAfterAdopted},
		{says: "what is run after the end is killed with its context, and not counted", only: real, check: lawRunAfterEnded},
		{says: "variables of a program count more than those of the definition", only: real, check: lawRunVariables},
	}
}

// hooked is a plan with limits, if the host has such.
func (b *bench) hooked(mode ...string) service.Launch {
	l := b.plan(mode...)
	for r, most := range map[service.Resource]uint64{service.MemoryMax: 128 << 20, service.PidsMax: 123} {
		if b.agent.Enforces().Limits[r] {
			l.Limits[r] = service.Of(most)
		}
	}
	return limited(l, l.Limits)
}

// confined wants a program that run runs to be where i is, or was, and under its limits.
func (b *bench) confined(run backends.Runner, ref service.Ref, l service.Launch, after bool) {
	b.Helper()
	ran, err := run(b.within(), backends.Program{Argv: []string{"/bin/cat", "/proc/self/cgroup"}, After: after})
	require.NoError(b, err, "%s", ran.Output)
	require.True(b, ran.Exit.Clean(), "%v: %s", ran.Exit, ran.Output)
	if b.CgroupRoot == "" {
		return
	}
	_, at, found := strings.Cut(strings.TrimSpace(string(ran.Output)), "0::")
	require.True(b, found, "%s", ran.Output)
	place := ref.Cgroup
	if after {
		place = strings.TrimSuffix(place, filepath.Base(place)) // of a scope the slice of its own is what is left
	}
	require.True(b, strings.HasPrefix(at, place), "%s is not in %s", at, place)
	// While it runs the files of the cgroups above it are there to be read.
	script := `p=/proc/self/cgroup; read -r line <$p; dir=` + b.CgroupRoot + `${line#0::}; while [ "$dir" != ` + b.CgroupRoot + ` ]; do
		for f in memory.max pids.max; do [ -e "$dir/$f" ] && echo "$f $(cat "$dir/$f")"; done; dir=${dir%/*}; done`
	ran, err = run(b.within(), backends.Program{Argv: []string{"/bin/sh", "-c", script}, After: after})
	require.NoError(b, err, "%s", ran.Output)
	for r, line := range map[service.Resource]string{service.MemoryMax: "memory.max 134217728\n", service.PidsMax: "pids.max 123\n"} {
		if l.Limits[r].Set {
			require.Contains(b, string(ran.Output), line)
		}
	}
}

func lawPrepare(b *bench) {
	mark := filepath.Join(b.dir, "ran")
	l := b.hooked("mark", mark, "sleep")
	var order []string
	h, err := b.agent.Launch(b.within(), l, backends.Birth{
		Identify: func(service.Ref) error { order = append(order, "identify"); return nil },
		Prepare: func(_ context.Context, run backends.Runner) error {
			order = append(order, "prepare")
			b.confined(run, b.agent.Plan(l), l, false)
			ran, err := run(b.within(), backends.Program{Argv: []string{"/bin/sh", "-c", "exit 3"}})
			require.NoError(b, err)
			require.Equal(b, service.Exit{Code: 3}, ran.Exit)
			require.Zero(b, b.alive(l), "the program runs already")
			require.NoFileExists(b, mark)
			return nil
		},
		Undo: func(backends.Runner, error) { order = append(order, "undo") },
	})
	require.NoError(b, err)
	i := b.keep(h, l)
	i.ready()
	require.FileExists(b, mark)
	require.Equal(b, []string{"identify", "prepare"}, order)
	i.alone()
}

// undone is an Undo that runs a program where nothing else lives, and keeps what it wrote.
func (b *bench) undone(l service.Launch, why *error) func(backends.Runner, error) {
	return func(run backends.Runner, err error) {
		*why = err
		require.Zero(b, b.alive(l))
		b.confined(run, b.agent.Plan(l), l, true)
	}
}

func lawPrepareFails(b *bench) {
	mark := filepath.Join(b.dir, "ran")
	l := b.hooked("mark", mark, "sleep")
	var why error
	h, err := b.agent.Launch(b.within(), l, backends.Birth{
		Identify: nothingToIdentify.Identify,
		Prepare: func(context.Context, backends.Runner) error {
			return &service.Error{Op: "start", Service: l.Name, Kind: service.Unlaunchable, Reason: service.ReasonHookFailed, Err: errors.New("no disk")}
		},
		Undo: b.undone(l, &why),
	})
	require.Nil(b, h)
	e := b.wantError(err, service.Unlaunchable)
	require.Equal(b, service.ReasonHookFailed, e.Reason)
	require.ErrorContains(b, err, "no disk")
	require.ErrorContains(b, why, "no disk")
	require.NoFileExists(b, mark)
	b.nothingOf(l)
}

func lawUndo(b *bench) {
	l := b.hooked("sleep")
	missing := l
	missing.Spec.Exec = []string{filepath.Join(b.dir, "missing")}
	var why error
	h, err := b.agent.Launch(b.within(), missing, backends.Birth{Identify: nothingToIdentify.Identify, Undo: func(run backends.Runner, err error) {
		why = err
		b.confined(run, b.agent.Plan(l), l, true)
	}})
	require.Nil(b, h)
	b.wantError(err, service.Unlaunchable)
	require.ErrorContains(b, why, "missing")
	b.nothingOf(l)
}

func lawPrepareEnded(b *bench) {
	l := b.hooked("sleep")
	ctx, cancel := context.WithCancel(b.within())
	defer cancel()
	undone := false
	_, err := b.agent.Launch(ctx, l, backends.Birth{
		Identify: nothingToIdentify.Identify,
		Prepare: func(ctx context.Context, run backends.Runner) error {
			go func() {
				b.eventually(func() bool { return b.alive(l) == 7 }, "it never began")
				cancel()
			}()
			_, err := run(ctx, backends.Program{Argv: []string{b.Workload, "-t", token(l), "tree", "2"}})
			return err
		},
		Undo: func(run backends.Runner, _ error) {
			undone = true
			b.confined(run, b.agent.Plan(l), l, true)
		},
	})
	b.wantError(err, service.Cancelled)
	require.True(b, undone)
	b.nothingOf(l)
}

func lawPrepareChildKilled(b *bench) {
	l := b.hooked("sleep")
	var ref service.Ref
	_, err := b.agent.Launch(b.within(), l, backends.Birth{
		Identify: func(r service.Ref) error { ref = r; return nil },
		Prepare: func(ctx context.Context, run backends.Runner) error {
			go func() {
				b.eventually(func() bool { return b.alive(l) == 1 }, "it never began")
				_ = syscall.Kill(ref.PID, syscall.SIGKILL)
			}()
			_, err := run(ctx, backends.Program{Argv: []string{b.Workload, "-t", token(l), "sleep"}})
			return err
		},
	})
	b.wantError(err, service.NotRunning)
	b.nothingOf(l)
}

func lawPrepareSlow(b *bench) {
	// More than any backend makes at once.
	const many = 24
	ready, goOn := make(chan struct{}, many), make(chan struct{})
	results := make(chan error, many)
	for range many {
		l := b.plan("sleep")
		go func() {
			h, err := b.agent.Launch(b.within(), l, backends.Birth{
				Identify: nothingToIdentify.Identify,
				Prepare: func(context.Context, backends.Runner) error {
					ready <- struct{}{}
					<-goOn
					return nil
				},
			})
			if err == nil {
				b.keep(h, l)
			}
			results <- err
		}()
	}
	over := time.After(patience)
	for n := range many {
		select {
		case <-ready:
		case err := <-results:
			require.NoError(b, err)
		case <-over:
			b.Errorf("%d of %d are prepared at once, and the others wait for them", n, many)
			over = nil
		}
		if over == nil {
			break
		}
	}
	close(goOn)
	for range many {
		require.NoError(b, <-results)
	}
}

func lawUndoSlow(b *bench) {
	const many = 24
	undoing, goOn := make(chan struct{}, many), make(chan struct{})
	results := make(chan error, many)
	for range many {
		l := b.plan("sleep")
		l.Spec.Exec = []string{filepath.Join(b.dir, "missing")}
		go func() {
			_, err := b.agent.Launch(b.within(), l, backends.Birth{Identify: nothingToIdentify.Identify, Undo: func(backends.Runner, error) {
				undoing <- struct{}{}
				<-goOn
			}})
			results <- err
		}()
	}
	over := time.After(patience)
	for n := range many {
		select {
		case <-undoing:
			continue
		case <-over:
			b.Errorf("%d of %d are undone at once, and the others wait for them", n, many)
		}
		break
	}
	close(goOn)
	for range many {
		b.wantError(<-results, service.Unlaunchable)
	}
}

// lawHookHides: a descendant that has left the session and, on a host without cgroups, has
// given up the mark by which hooks are told from the service.
func lawHookHides(b *bench) {
	l := b.plan("sleep")
	hide := `setsid sh -c 'ulimit -R 1000000 2>/dev/null; exec "$0" "$@"' ` + b.Workload + ` -t ` + token(l) + ` sleep >/dev/null 2>&1 &`
	_, err := b.agent.Launch(b.within(), l, backends.Birth{
		Identify: nothingToIdentify.Identify,
		Prepare: func(ctx context.Context, run backends.Runner) error {
			go func() { _, _ = run(ctx, backends.Program{Argv: []string{"/bin/bash", "-c", hide + " sleep 1000"}}) }()
			b.eventually(func() bool { return b.alive(l) == 1 }, "it never began")
			return errors.New("enough")
		},
	})
	require.ErrorContains(b, err, "enough")
	b.nothingOf(l)
}

func lawRunAfter(b *bench) {
	l := b.hooked("sleep")
	i := b.launch(l)
	i.ready()
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	i.exit()
	remains, err := i.Finish(b.within())
	require.NoError(b, err)
	b.confined(i.Run, i.Ref(), l, true)
	ran, err := i.Run(b.within(), backends.Program{Argv: []string{b.Workload, "-t", token(l), "double-fork"}, After: true})
	require.NoError(b, err)
	require.True(b, ran.Exit.Clean())
	require.Zero(b, b.alive(l), "what it has left behind")
	require.Equal(b, remains, i.release(), "what was told at the end")
	b.nothingOf(l)
}

func lawRunAfterAdopted(b *bench) {
	l := b.hooked("sleep")
	agent := b.agentApart(l, false)
	agent.die()
	require.NoError(b, syscall.Kill(agent.ref.PID, syscall.SIGTERM))
	b.eventually(func() bool { return b.alive(l) == 0 }, "it lives on")
	h, err := b.agent.Adopt(b.within(), agent.ref, l)
	if errors.Is(err, backends.ErrGone) { // nobody could tell, as when nobody was its parent
		b.nothingOf(l)
		return
	}
	require.NoError(b, err)
	i := b.keep(h, l)
	i.exit()
	_, err = i.Finish(b.within())
	require.NoError(b, err)
	b.confined(i.Run, i.Ref(), l, true)
	i.release()
	b.nothingOf(l)
}

func lawRunAfterEnded(b *bench) {
	l := b.hooked("sleep")
	i := b.launch(l)
	i.ready()
	require.NoError(b, i.Kill(b.within()))
	i.exit()
	remains, err := i.Finish(b.within())
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.within())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err = i.Run(ctx, backends.Program{Argv: []string{b.Workload, "-t", token(l), "tree", "2"}, After: true})
	}()
	b.eventually(func() bool { return b.alive(l) == 7 }, "it never began")
	cancel()
	<-done
	b.wantError(err, service.Cancelled)
	require.Zero(b, b.alive(l))
	require.Equal(b, remains, i.release())
	b.nothingOf(l)
}

func lawRunVariables(b *bench) {
	l := b.plan("sleep")
	l.Spec.Environment = map[string]string{"KEPT": "a", "TAKEN": "b"}
	i := b.launch(l)
	i.ready()
	ran, err := i.Run(b.within(), backends.Program{Argv: []string{"/bin/sh", "-c", `echo "$KEPT $TAKEN $NEW"`}, Environment: map[string]string{"TAKEN": "c", "NEW": "d"}})
	require.NoError(b, err)
	require.Equal(b, "a c d\n", string(ran.Output))
	require.Equal(b, map[string]string{"KEPT": "a", "TAKEN": "b"}, l.Spec.Environment, "the definition is nobody's to change")
}
