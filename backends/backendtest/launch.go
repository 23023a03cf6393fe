package backendtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

func launchLaws() []law {
	return []law{
		{says: "a plan tells the place and no identity, and touches nothing", check: lawPlan},
		{says: "two incarnations are planned into two places", check: lawPlanApart},
		{says: "the Ref is the plan with the identity of the main process", check: lawRef},
		{says: "the identity is true, seen from outside", only: real, check: lawRefTrue},
		{says: "identify is called once, with the complete Ref", check: lawIdentify},
		{says: "the program runs only after identify has returned", check: lawGate},
		{says: "when identify fails, nothing has run and nothing is left", check: lawIdentifyFails},
		{says: "a launch whose context has ended leaves nothing", check: lawLaunchEnded},
		{says: "a launch whose context ends at the gate leaves nothing or a service that runs", check: lawLaunchCancelled},
		{says: "a child that dies at the gate is a launch that failed, and leaves nothing", only: real, check: lawDeathAtGate},
		{says: "the end of the launch's context does not end the service", check: lawContextAfterLaunch},
		{says: "after a launch that failed, the same incarnation can be launched", check: lawLaunchAgain},
	}
}

func lawPlan(b *bench) {
	l := b.plan("sleep")
	ref := b.agent.Plan(l)
	require.Equal(b, b.agent.Name(), ref.Backend)
	require.Equal(b, l.Name, ref.Name)
	require.Equal(b, l.Incarnation, ref.Incarnation)
	require.Zero(b, ref.PID)
	require.Zero(b, ref.StartTicks)
	require.Empty(b, ref.BootID)
	require.Equal(b, ref, b.agent.Plan(l), "it plans the same again")
	require.Equal(b, ref, b.newAgent().Plan(l), "another agent plans the same")
	b.nothingOf(l)
}

func lawPlanApart(b *bench) {
	l := b.plan("sleep")
	first := b.agent.Plan(l)
	l.Incarnation++
	second := b.agent.Plan(l)
	require.NotEqual(b, first, second)
	if first.Unit != "" {
		require.NotEqual(b, first.Unit, second.Unit)
	}
	if first.Cgroup != "" {
		require.NotEqual(b, first.Cgroup, second.Cgroup)
	}
}

func lawRef(b *bench) {
	i := b.start("sleep")
	ref, planned := i.Ref(), b.agent.Plan(i.plan)
	require.NotZero(b, ref.PID)
	require.NotZero(b, ref.StartTicks)
	require.NotEmpty(b, ref.BootID)
	ref.PID, ref.StartTicks, ref.BootID = 0, 0, ""
	require.Equal(b, planned, ref)
}

func lawRefTrue(b *bench) {
	i := b.start("sleep")
	ref := i.Ref()
	require.Equal(b, []int{ref.PID}, processesWith(token(i.plan)))
	s, ok := statOf(ref.PID)
	require.True(b, ok)
	require.Equal(b, s.start, ref.StartTicks)
	require.Equal(b, bootID(), ref.BootID)
	if b.CgroupRoot != "" {
		require.Equal(b, ref.Cgroup, cgroupOf(b, ref.PID), "the cgroup that /proc tells")
	}
}

func lawIdentify(b *bench) {
	l := b.plan("sleep")
	var seen []service.Ref
	h, err := b.agent.Launch(b.within(), l, backends.Birth{Identify: func(r service.Ref) error {
		seen = append(seen, r)
		return nil
	}})
	require.NoError(b, err)
	i := b.keep(h, l)
	require.Equal(b, []service.Ref{i.Ref()}, seen)
}

func lawGate(b *bench) {
	mark := filepath.Join(b.dir, "ran")
	l := b.plan("mark", mark, "sleep")
	h, err := b.agent.Launch(b.within(), l, backends.Birth{Identify: func(service.Ref) error {
		if n := b.alive(l); n != 0 {
			b.Errorf("%d processes of the program run before the gate is open", n)
		}
		if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
			b.Errorf("the program has done something before the gate was open: %v", err)
		}
		return nil
	}})
	require.NoError(b, err)
	i := b.keep(h, l)
	require.Equal(b, 1, b.alive(l), "it runs when Launch has returned")
	i.ready()
	if b.Workload != "" {
		require.FileExists(b, mark)
	}
}

func lawIdentifyFails(b *bench) {
	mark := filepath.Join(b.dir, "ran")
	l := b.plan("mark", mark, "sleep")
	h, err := b.agent.Launch(b.within(), l, backends.Birth{Identify: func(service.Ref) error { return errors.New("the disk is full") }})
	require.Nil(b, h)
	require.ErrorContains(b, err, "the disk is full")
	require.ErrorContains(b, err, l.Name.String())
	require.NoFileExists(b, mark)
	b.nothingOf(l)
}

func lawLaunchEnded(b *bench) {
	mark := filepath.Join(b.dir, "ran")
	l := b.plan("mark", mark, "sleep")
	h, err := b.agent.Launch(b.ended(), l, backends.Birth{Identify: func(service.Ref) error {
		b.Error("identify was called although the context has ended")
		return nil
	}})
	require.Nil(b, h)
	b.wantError(err, service.Cancelled)
	require.NoFileExists(b, mark)
	b.nothingOf(l)
}

func lawLaunchCancelled(b *bench) {
	l := b.plan("sleep")
	ctx, cancel := context.WithCancel(b.Context())
	h, err := b.agent.Launch(ctx, l, backends.Birth{Identify: func(service.Ref) error {
		cancel()
		return nil
	}})
	if err == nil {
		i := b.keep(h, l)
		i.ready()
		i.lives()
		return
	}
	b.wantError(err, service.Cancelled)
	require.Nil(b, h)
	b.nothingOf(l)
}

func lawDeathAtGate(b *bench) {
	mark := filepath.Join(b.dir, "ran")
	l := b.plan("mark", mark, "sleep")
	h, err := b.agent.Launch(b.within(), l, backends.Birth{Identify: func(ref service.Ref) error {
		return syscall.Kill(ref.PID, syscall.SIGKILL)
	}})
	require.Nil(b, h)
	e := b.wantError(err, service.Unlaunchable)
	require.False(b, e.Permanent, "another try may go well: %v", err)
	require.NoFileExists(b, mark)
	b.nothingOf(l)
}

func lawContextAfterLaunch(b *bench) {
	l := b.plan("ignore-term")
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	h, err := b.agent.Launch(ctx, l, nothingToIdentify)
	require.NoError(b, err)
	i := b.keep(h, l)
	i.ready()
	cancel()
	// A second launch gives whatever the cancellation may have begun its time.
	b.start("sleep")
	i.lives()
	require.Equal(b, 1, b.alive(l))
}

func lawLaunchAgain(b *bench) {
	l := b.plan("sleep")
	_, err := b.agent.Launch(b.within(), l, backends.Birth{Identify: func(service.Ref) error { return errors.New("no") }})
	require.Error(b, err)
	i := b.launch(l)
	i.ready()
	require.Equal(b, 1, b.alive(l))
}
