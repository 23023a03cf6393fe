package backendtest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

func leftoverLaws() []law {
	return []law{
		{says: "what runs is listed by a fresh agent, as it was launched", check: lawLeftovers},
		{says: "what outlived its main process is listed too, and none of it is taken for that", check: lawLeftoversRest},
		{says: "what is listed can be adopted with nothing else known of it, as if there were a record", check: lawLeftoversAdopted},
		{says: "what is listed can be removed by its place alone", check: lawLeftoversRemoved},
	}
}

// leftover looks for an incarnation in what a fresh agent lists.
func (b *bench) leftover(l service.Launch) (found service.Ref, ok bool) {
	b.Helper()
	refs, err := b.newAgent().Leftovers(b.within(), []service.Name{service.MustName("somebody-else"), l.Name})
	require.NoError(b, err)
	for _, ref := range refs {
		if ref.Name == l.Name && ref.Incarnation == l.Incarnation {
			require.False(b, ok, "it is listed twice: %+v", refs)
			found, ok = ref, true
		}
	}
	return found, ok
}

func lawLeftovers(b *bench) {
	l := b.plan("fork", "2")
	l.Incarnation = 0xabcdef
	_, ok := b.leftover(l)
	require.False(b, ok, "before it was launched")
	i := b.launch(l)
	ref, ok := b.leftover(l)
	require.True(b, ok)
	require.Equal(b, i.Ref(), ref)
	i.release()
	_, ok = b.leftover(l)
	require.False(b, ok, "after its release")
}

func lawLeftoversRest(b *bench) {
	i := b.start("double-fork")
	i.exit()
	var ref service.Ref
	b.eventually(func() (ok bool) { // within the tick in which it began another may still get its identity
		ref, ok = b.leftover(i.plan)
		require.True(b, ok)
		return ref.PID != 0
	}, "nothing tells who led it")
	require.Equal(b, i.Ref(), ref)
}

func lawLeftoversAdopted(b *bench) {
	i := b.abandoned("fork", "2")
	require.NoError(b, i.Close())
	require.NoError(b, b.agent.Close())
	ref, ok := b.leftover(i.plan)
	require.True(b, ok)
	h, err := b.newAgent().Adopt(b.within(), ref, i.plan)
	require.NoError(b, err)
	found := b.keep(h, i.plan)
	found.lives()
	require.Equal(b, 3, b.alive(i.plan))
	require.NoError(b, found.Signal(b.within(), syscall.SIGTERM))
	b.exact(service.Exit{Signal: syscall.SIGTERM}, found.exit())
	require.Equal(b, 2, found.release().Leftovers)
	b.nothingOf(i.plan)
}

func lawLeftoversRemoved(b *bench) {
	i := b.abandoned("fork", "2")
	require.NoError(b, i.Close())
	ref, ok := b.leftover(i.plan)
	require.True(b, ok)
	ref.PID, ref.StartTicks, ref.BootID = 0, 0, ""
	h, err := b.newAgent().Adopt(b.within(), ref, service.Launch{})
	require.NoError(b, err)
	found := b.keep(h, i.plan)
	found.release()
	b.nothingOf(i.plan)
}

func crowdLaws() []law {
	return []law{
		{says: "the same incarnation can not be launched twice", check: lawOneIncarnation},
		{says: "the next incarnation beside a living one is refused or apart, never under one identity", check: lawNextBeside},
		{says: "a hundred launches at once are a hundred services", alone: true, check: lawHundred},
		{says: "launches and releases, failing ones too, thirty in all, leak nothing", alone: true, check: lawNoLeak},
	}
}

func lawOneIncarnation(b *bench) {
	i := b.start("sleep")
	l := b.plan("sleep")
	l.Name, l.Spec.Name = i.plan.Name, i.plan.Name
	for _, agent := range []backends.Backend{b.agent, b.newAgent()} { // which knows of no other launch
		h, err := agent.Launch(b.within(), l, nothingToIdentify)
		require.Nil(b, h)
		b.wantPreviousAlive(err)
		require.Zero(b, b.alive(l))
		i.lives()
		require.Equal(b, 1, b.alive(i.plan))
	}
}

// wantPreviousAlive wants a launch to be refused because of who lives already.
func (b *bench) wantPreviousAlive(err error) {
	b.Helper()
	require.Error(b, err)
	require.Contains(b, []service.Kind{service.Exists, service.Conflict, service.AlreadyRunning}, service.KindOf(err), "%v", err)
	require.Equal(b, service.ReasonPreviousAlive, service.ReasonOf(err), "%v", err)
}

func lawNextBeside(b *bench) {
	i := b.start("fork", "2")
	l := b.plan("fork", "2")
	l.Name, l.Spec.Name, l.Incarnation = i.plan.Name, i.plan.Name, i.plan.Incarnation+1
	h, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	if err != nil {
		b.wantPreviousAlive(err)
		require.Zero(b, b.alive(l))
	} else {
		next := b.keep(h, l)
		next.ready()
		require.NotEqual(b, i.Ref(), next.Ref())
		require.NoError(b, next.Kill(b.within()))
		require.Zero(b, b.alive(l))
	}
	i.lives()
	require.Equal(b, 3, b.alive(i.plan))
}

// lawHundred gives all of them one token, and names that begin alike, so that
// one look finds them all.
func lawHundred(b *bench) {
	const n = 100
	common := b.plan("sleep")
	handles := make([]backends.Handle, n)
	ctx, cancel := context.WithTimeout(b.Context(), 3*patience)
	defer cancel()
	var wait sync.WaitGroup
	for k := range n {
		l := common
		l.Name = service.MustName(fmt.Sprintf("%s-%d", common.Name, k))
		l.Spec.Name = l.Name
		wait.Go(func() {
			var err error
			if handles[k], err = b.agent.Launch(ctx, l, nothingToIdentify); err != nil {
				b.Errorf("launch %d: %v", k, err)
			}
		})
	}
	wait.Wait()
	require.Equal(b, n, b.alive(common))
	pids := map[int]bool{}
	for _, h := range handles {
		if h != nil {
			pids[h.Ref().PID] = true
			wait.Go(func() {
				if _, err := h.Release(ctx); err != nil {
					b.Error(err)
				}
				if err := h.Close(); err != nil {
					b.Error(err)
				}
			})
		}
	}
	wait.Wait()
	require.Len(b, pids, n)
	b.nothingOf(common)
}

// lawNoLeak makes one round first, for what is opened once and kept.
func lawNoLeak(b *bench) {
	b.cycle()
	goroutines, open, kin := runtime.NumGoroutine(), descriptors(), children()
	var last []service.Launch
	for range 10 {
		last = b.cycle()
	}
	b.eventually(func() bool { return runtime.NumGoroutine() <= goroutines }, "there were %d goroutines; now: %v", goroutines, lazy(stacks))
	b.eventually(func() bool { return len(children()) <= len(kin) }, "there were the children %v; now: %v", kin, lazy(func() string { return fmt.Sprint(children()) }))
	for _, l := range last {
		b.nothingOf(l)
	}
	now := descriptors()
	require.LessOrEqual(b, len(now), len(open), "open before: %v; now: %v", open, now)
}

func stacks() string {
	text := make([]byte, 1<<20)
	return string(text[:runtime.Stack(text, true)])
}

// cycle launches and releases what runs well, what fails to launch, and what
// fails at the gate.
func (b *bench) cycle() []service.Launch {
	b.Helper()
	well := b.plan("fork", "2")
	h, err := b.agent.Launch(b.within(), well, nothingToIdentify)
	require.NoError(b, err)
	_, err = h.Release(b.within())
	require.NoError(b, err)
	require.NoError(b, h.Close())

	gate := b.plan("sleep")
	_, err = b.agent.Launch(b.within(), gate, backends.Birth{Identify: func(service.Ref) error { return errors.New("no") }})
	require.Error(b, err)

	ended := b.plan("exit", "1")
	if b.Workload != "" {
		ended.Spec.Exec[0] = filepath.Join(b.dir, "nowhere")
		_, err = b.agent.Launch(b.within(), ended, nothingToIdentify)
		require.Error(b, err)
	}
	return []service.Launch{well, gate, ended}
}
