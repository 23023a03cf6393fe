package backendtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func freezeLaws() []law {
	return []law{
		{says: "a backend that can not freeze refuses to, and the service runs on", check: lawFreezeRefused},
		{says: "what is frozen says so until it is thawed, and both may be asked for twice", check: lawFreeze},
		{says: "the frozen take no CPU time, and go on when they are thawed", only: caged, check: lawFrozenHog},
		{says: "a signal waits for the thaw, but for SIGKILL", check: lawFrozenSignal},
		{says: "Kill ends a fork bomb that is frozen", only: caged, alone: true, check: lawFrozenBomb},
		{says: "the end of what is frozen is told", check: lawFrozenEnd},
		{says: "what is frozen stays so over the end of the agent, and the next one knows", check: lawFrozenAdopt},
		{says: "a freeze and a thaw behind the agent's back are told", only: caged, check: lawFrozenByOthers},
		{says: "what a cgroup above keeps frozen is told as that, not thawed, and can be killed", only: caged, alone: true, check: lawFrozenAbove},
		{says: "limits and usage of what is frozen can be read, and limits changed", check: lawFrozenLimits},
		{says: "who has ended is neither frozen nor thawed", check: lawFreezeEnded},
	}
}

// freezes tells whether freezing is to be had here; the law of those where it is not is
// lawFreezeRefused.
func (b *bench) freezes() bool { return b.agent.Enforces().Freeze }

// by wants that the kernel says by which cgroup it is frozen, "" for none.
func (i *incarnation) by(cgroup string) {
	i.bench.Helper()
	got, err := i.FrozenBy()
	require.NoError(i.bench, err)
	require.Equal(i.bench, cgroup, got)
}

// frozen freezes what was started so, and wants it to be.
func (b *bench) frozen(mode ...string) *incarnation {
	b.Helper()
	i := b.start(mode...)
	require.NoError(b, i.Freeze(b.within()))
	i.by(i.Ref().Cgroup)
	return i
}

func lawFreezeRefused(b *bench) {
	if b.freezes() {
		return
	}
	i := b.start("sleep")
	b.wantError(i.Freeze(b.within()), service.Unenforceable)
	b.wantError(i.Thaw(b.within()), service.Unenforceable)
	i.by("")
	i.lives()
}

func lawFreeze(b *bench) {
	if !b.freezes() {
		return
	}
	i := b.start("fork", "3")
	i.by("")
	require.NoError(b, i.Thaw(b.within()), "it runs already")
	for range 2 {
		require.NoError(b, i.Freeze(b.within()))
		i.by(i.Ref().Cgroup)
	}
	for range 2 {
		require.NoError(b, i.Thaw(b.within()))
		i.by("")
	}
	b.wantError(i.Freeze(b.ended()), service.Cancelled)
	i.by("")
	i.lives()
}

// cpuUsec is usage_usec of the cgroup of i, see cgroup-v2.rst.
func (i *incarnation) cpuUsec() uint64 {
	i.bench.Helper()
	line, _, _ := strings.Cut(i.bench.cgroupFile(i.Ref(), "cpu.stat"), "\n")
	n, err := strconv.ParseUint(strings.TrimPrefix(line, "usage_usec "), 10, 64)
	require.NoError(i.bench, err)
	return n
}

func lawFrozenHog(b *bench) {
	if !b.freezes() {
		return
	}
	i := b.frozen("hog-cpu", "1")
	before := i.cpuUsec()
	<-time.After(time.Second) // it is what is measured
	require.Equal(b, before, i.cpuUsec())
	require.NoError(b, i.Thaw(b.within()))
	b.eventually(func() bool { return i.cpuUsec() > before+100_000 }, "it never went on")
}

func lawFrozenSignal(b *bench) {
	if !b.freezes() {
		return
	}
	i := b.frozen("fork", "0")
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	i.lives()
	i.by(i.Ref().Cgroup)
	require.NoError(b, i.Thaw(b.within()))
	require.Equal(b, syscall.SIGTERM, i.exit().Signal)

	i = b.frozen("fork", "0")
	require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
	require.Equal(b, syscall.SIGKILL, i.exit().Signal)
}

func lawFrozenBomb(b *bench) {
	if !b.freezes() {
		return
	}
	l := limited(b.plan("fork-bomb", "churn", "0"), service.Limits{service.PidsMax: service.Of(100)})
	i := b.launch(l)
	b.eventually(func() bool { return b.alive(l) > 10 }, "the bomb never went off")
	require.NoError(b, i.Freeze(b.within()))
	require.NoError(b, i.Kill(b.within()))
	require.Zero(b, b.alive(l))
	i.release()
	b.nothingOf(l)
}

func lawFrozenEnd(b *bench) {
	if !b.freezes() {
		return
	}
	i := b.frozen("sleep")
	if b.Workload != "" { // somebody else does it
		require.NoError(b, syscall.Kill(i.Ref().PID, syscall.SIGKILL))
	} else {
		require.NoError(b, i.Signal(b.within(), syscall.SIGKILL))
	}
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	i.release()
	i.by("")
	b.nothingOf(i.plan)
}

func lawFrozenAdopt(b *bench) {
	if !b.freezes() {
		return
	}
	first := b.abandoned("fork", "1")
	require.NoError(b, first.Freeze(b.within()))
	i := first.adoptAnew()
	i.lives()
	i.by(i.Ref().Cgroup)
	select {
	case <-i.Froze():
	case <-b.within().Done():
		b.Fatal("nobody was told to look")
	}
	require.NoError(b, i.Thaw(b.within()))
	i.by("")
}

// freezer writes cgroup.freeze of a cgroup.
func (b *bench) freezer(cgroup, value string) {
	b.Helper()
	require.NoError(b, os.WriteFile(filepath.Join(b.CgroupRoot, cgroup, "cgroup.freeze"), []byte(value), 0))
}

// told waits for news until the kernel says that cgroup keeps i frozen.
func (i *incarnation) told(cgroup string) {
	i.bench.Helper()
	for over := i.bench.within().Done(); ; {
		select {
		case <-i.Froze():
		case <-over:
			by, err := i.FrozenBy()
			i.bench.Fatalf("it was not told that it is frozen by %q; it is by %q (%v)", cgroup, by, err)
		}
		if by, err := i.FrozenBy(); err == nil && by == cgroup {
			return
		}
	}
}

func lawFrozenByOthers(b *bench) {
	if !b.freezes() {
		return
	}
	i := b.start("fork", "2")
	place := i.Ref().Cgroup
	i.told("") // as it began
	for range 2 {
		b.freezer(place, "1")
		i.told(place)
		b.freezer(place, "0")
		i.told("")
	}
	b.freezer(place, "1")
	i.told(place)
	require.NoError(b, i.Thaw(b.within()), "whoever froze it")
	i.told("")
}

func lawFrozenAbove(b *bench) {
	if !b.freezes() {
		return
	}
	i := b.start("fork", "2")
	above := filepath.Dir(i.Ref().Cgroup)
	b.freezer(above, "1")
	b.Cleanup(func() {
		if err := os.WriteFile(filepath.Join(b.CgroupRoot, above, "cgroup.freeze"), []byte("0"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.Error(err)
		}
	})
	i.told(above)
	b.wantError(i.Thaw(b.within()), service.Conflict)
	i.by(above)
	require.NoError(b, i.Freeze(b.within()), "by itself as well")
	i.by(i.Ref().Cgroup)
	e := b.wantError(i.Thaw(b.within()), service.Conflict)
	require.ErrorContains(b, e, above)
	i.by(above)
	require.NoError(b, i.Kill(b.within()))
	i.release()
	b.nothingOf(i.plan)
}

func lawFrozenLimits(b *bench) {
	if !b.freezes() {
		return
	}
	i := b.frozen("fork", "1")
	_, err := i.Usage(b.within())
	require.NoError(b, err)
	applied, err := i.Limit(b.within(), service.Limits{service.PidsMax: service.Of(17)})
	require.NoError(b, err)
	require.Equal(b, service.Of(17), applied[service.PidsMax].Applied)
	processes, err := i.Processes(b.within())
	require.NoError(b, err)
	require.Len(b, processes, 2)
	i.by(i.Ref().Cgroup)
}

func lawFreezeEnded(b *bench) {
	i := b.launch(b.plan("exit", "0"))
	i.exit()
	b.wantError(i.Freeze(b.within()), service.NotRunning)
	b.wantError(i.Thaw(b.within()), service.NotRunning)
	i.by("")
}
