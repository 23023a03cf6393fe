package backendtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func driftLaws() []law {
	return []law{
		{says: "what somebody else writes to a limit is told, and set back", only: caged, check: lawDriftRepaired},
		{says: "what somebody else writes to a limit is told once, and stays if it is to", only: caged, check: lawDriftTold},
		{says: "a memory_max that does not fit any more is not set back, the others are, and it is when it fits", only: caged, alone: true, check: lawDriftInUse},
		{says: "what we change ourselves is no drift", only: caged, check: lawNoDrift},
		{says: "what somebody else wrote while there was no agent is told and set back", only: caged, check: lawDriftAdopted},
	}
}

func always(service.Drift) service.OnDrift { return service.DriftBack }
func never(service.Drift) service.OnDrift  { return service.DriftStays }
func later(service.Drift) service.OnDrift  { return service.DriftLater }

func (i *incarnation) scribble(file, text string) {
	i.bench.Helper()
	require.NoError(i.bench, os.WriteFile(filepath.Join(i.bench.CgroupRoot, i.Ref().Cgroup, file), []byte(text), 0))
}

func (i *incarnation) drift(answer func(service.Drift) service.OnDrift) []service.Drift {
	i.bench.Helper()
	drifts, err := i.Drift(i.bench.within(), answer)
	require.NoError(i.bench, err)
	for _, d := range drifts {
		require.NoError(i.bench, d.Fault)
	}
	return drifts
}

func (b *bench) guarded() *incarnation {
	b.Helper()
	return b.guardedBy(b.launch)
}

func (b *bench) guardedBy(launch func(service.Launch) *incarnation) *incarnation {
	b.Helper()
	l := limited(b.plan("sleep"), service.Limits{
		service.MemoryMax: service.Of(64 * mebi), service.PidsMax: service.Of(77), service.CPUMax: service.Of(50 * service.UsecPerPercent),
	})
	if !b.enforces(l) {
		return nil
	}
	i := launch(l)
	i.ready()
	i.limits()
	return i
}

func lawDriftRepaired(b *bench) {
	i := b.guarded()
	if i == nil {
		return
	}
	for _, foreign := range []struct{ file, text string }{
		{"memory.max", "max"}, {"pids.max", "100"}, {"cpu.max", "20000 50000"}, {"memory.high", "33554432"}, {"cpu.weight", "333"}, {"cpu.max.burst", "1000"},
	} {
		before := b.cgroupFile(i.Ref(), foreign.file)
		i.scribble(foreign.file, foreign.text)
		drifts := i.drift(always)
		require.Len(b, drifts, 1, foreign.file)
		require.Equal(b, foreign.file, drifts[0].File)
		require.Equal(b, before, b.cgroupFile(i.Ref(), foreign.file))
		require.Empty(b, i.drift(always), foreign.file)
	}
	i.lives()
}

func lawDriftTold(b *bench) {
	i := b.guarded()
	if i == nil {
		return
	}
	i.scribble("pids.max", "100")
	require.Len(b, i.drift(later), 1)
	require.Len(b, i.drift(later), 1, "it is not taken for what is wanted")
	require.Equal(b, []service.Drift{{Resource: service.PidsMax, File: "pids.max", Was: service.Of(77), Is: service.Of(100)}}, i.drift(never))
	require.Empty(b, i.drift(always))
	require.Equal(b, "100", b.cgroupFile(i.Ref(), "pids.max"))
}

func lawDriftInUse(b *bench) {
	l := b.memoryLimited(64*mebi, "sleep")
	if !b.enforces(l) {
		return
	}
	word := filepath.Join(b.TempDir(), "grow")
	l.Spec.Exec = []string{"/bin/sh", "-c", fmt.Sprintf("echo ready; until [ -e %s ]; do sleep 0.1; done; %s hog-memory %d & wait; sleep 1000 # %s", word, b.Workload, 120*mebi, token(l))}
	i := b.launch(l)
	i.ready()
	i.limits()
	i.scribble("memory.max", "max")
	i.scribble("pids.max", "99")
	require.NoError(b, os.WriteFile(word, nil, 0o600))
	b.eventually(func() bool { return i.usage().Memory > 100*mebi }, "it does not grow")
	drifts, err := i.Drift(b.within(), always)
	require.NoError(b, err)
	require.Len(b, drifts, 2)
	for _, d := range drifts {
		if d.Resource == service.MemoryMax {
			require.Equal(b, service.ReasonLimitInUse, service.ReasonOf(d.Fault))
		} else {
			require.NoError(b, d.Fault)
		}
	}
	require.Equal(b, "max", b.cgroupFile(i.Ref(), "pids.max"))
	require.Equal(b, "max", b.cgroupFile(i.Ref(), "memory.max"))
	processes, err := i.Processes(b.within())
	require.NoError(b, err)
	for _, p := range processes {
		if strings.Contains(p.Command, "hog-memory") && p.PID != i.Ref().PID {
			require.NoError(b, syscall.Kill(p.PID, syscall.SIGKILL))
		}
	}
	b.eventually(func() bool { return i.usage().Memory < 60*mebi }, "it does not shrink")
	require.Len(b, i.drift(always), 1)
	require.Equal(b, fmt.Sprint(64*mebi), b.cgroupFile(i.Ref(), "memory.max"))
	i.lives()
}

func lawNoDrift(b *bench) {
	i := b.guarded()
	if i == nil {
		return
	}
	for _, l := range []service.Limits{
		{service.MemoryMax: service.Of(48 * mebi)}, {service.CPUMax: service.Of(20 * service.UsecPerPercent), service.CPUBurst: service.Of(10 * service.UsecPerPercent)},
		{service.CPUWeight: service.Of(50)}, {service.CPUIdle: service.Of(1)}, {service.CPUIdle: service.Of(0)}, {service.PidsMax: service.Of(service.Unlimited)},
	} {
		_, err := i.Limit(b.within(), l)
		require.NoError(b, err)
		require.Empty(b, i.drift(always), "%v", l)
	}
}

func lawDriftAdopted(b *bench) {
	i := b.guardedBy(b.abandon)
	if i == nil {
		return
	}
	i.scribble("memory.max", "max")
	again := i.adoptAnew()
	again.limits()
	drifts := again.drift(always)
	require.Len(b, drifts, 1)
	require.Equal(b, service.MemoryMax, drifts[0].Resource)
	require.Equal(b, "67108864", b.cgroupFile(i.Ref(), "memory.max"))
}
