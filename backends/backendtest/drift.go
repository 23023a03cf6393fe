package backendtest

import (
	"os"
	"path/filepath"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func driftLaws() []law {
	return []law{
		{says: "what somebody else writes to a limit is told, and set back", only: caged, check: lawDriftRepaired},
		{says: "what somebody else writes to a limit is told once, and stays if it is to", only: caged, check: lawDriftTold},
		{says: "what we change ourselves is no drift", only: caged, check: lawNoDrift},
		{says: "what somebody else wrote while there was no agent is told and set back", only: caged, check: lawDriftAdopted},
	}
}

func always(service.Drift) bool { return true }
func never(service.Drift) bool  { return false }

func (i *incarnation) scribble(file, text string) {
	i.bench.Helper()
	require.NoError(i.bench, os.WriteFile(filepath.Join(i.bench.CgroupRoot, i.Ref().Cgroup, file), []byte(text), 0))
}

func (i *incarnation) drift(repair func(service.Drift) bool) []service.Drift {
	i.bench.Helper()
	drifts, err := i.Drift(i.bench.within(), repair)
	require.NoError(i.bench, err)
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
	require.Equal(b, []service.Drift{{Resource: service.PidsMax, File: "pids.max", Was: service.Of(77), Is: service.Of(100)}}, i.drift(never))
	require.Empty(b, i.drift(always))
	require.Equal(b, "100", b.cgroupFile(i.Ref(), "pids.max"))
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
