package backendtest

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

func limitLaws() []law {
	return []law{
		{says: "a backend claims no less than the host offers", check: lawClaims},
		{says: "limits are reported as requested, as applied and as effective", check: lawLimits},
		{says: "what is reported as applied is what the kernel holds", only: real, check: lawLimitsTrue},
		{says: "what nobody asked for is not reported as requested, and still told", check: lawLimitsUnasked},
		{says: "a limit changes while the service runs, and the others stay", check: lawLimitChange},
		{says: "a limit can be lifted", check: lawLimitLift},
		{says: "what the agent sets for its own sake is not what was asked for", check: lawThrottle},
		{says: "a change that the kernel refuses half way leaves all as it was, and is no drift", only: caged, check: lawLimitWhole},
		{says: "limits of processes are changed all or none, and with them the others", only: real, check: lawLimitWholeOfProcesses},
		{says: "a change of the open files reaches the running process", only: real, check: lawLimitFiles},
		{says: "a change that the host can not enforce is refused before anything is changed", check: lawLimitRefused},
		{says: "a launch with a limit that the host can not enforce is refused and leaves nothing", check: lawLimitUnlaunchable},
		{says: "with best effort such a launch runs, and says what is not enforced", check: lawLimitBestEffort},
		{says: "the limits of one service do not touch another's", check: lawLimitApart},
		{says: "who has ended gets no limits", check: lawLimitEnded},
	}
}

func lawClaims(b *bench) {
	claims := b.agent.Enforces()
	for r, offered := range b.Offers.Limits {
		if offered {
			require.True(b, claims.Limits[r], "%s", service.Resource(r))
		}
	}
	require.True(b, claims.OOMVerdict || !b.Offers.OOMVerdict, "OOMVerdict")
	require.True(b, claims.KillAll || !b.Offers.KillAll, "KillAll")
	require.True(b, claims.BornInside || !b.Offers.BornInside, "BornInside")
	require.True(b, claims.Freeze || !b.Offers.Freeze, "Freeze")
	require.Equal(b, claims, b.newAgent().Enforces(), "another agent on the same host")
}

// enforced gives an amount of every resource that this host enforces.
func (b *bench) enforced() service.Limits {
	var limits service.Limits
	claims := b.agent.Enforces()
	for _, f := range cgroupFiles {
		if claims.Limits[f.resource] {
			limits[f.resource] = service.Of(f.value)
		}
	}
	if claims.Limits[service.NoFile] {
		limits[service.NoFile] = service.Of(321)
	}
	return limits
}

// unenforced gives an amount of one resource that this host does not enforce.
func (b *bench) unenforced() (l service.Limits, ok bool) {
	claims := b.agent.Enforces()
	for _, f := range cgroupFiles {
		if !claims.Limits[f.resource] {
			l[f.resource] = service.Of(f.value)
			return l, true
		}
	}
	return l, false
}

func (i *incarnation) limits() service.Applied {
	i.bench.Helper()
	applied, err := i.Limits(i.bench.within())
	require.NoError(i.bench, err)
	return applied
}

func lawLimits(b *bench) {
	asked := b.enforced()
	i := b.launch(limited(b.plan("sleep"), asked))
	i.ready()
	for r, report := range i.limits() {
		if !asked[r].Set {
			continue
		}
		name := service.Resource(r).String()
		require.Equal(b, asked[r], report.Requested, name)
		require.Equal(b, asked[r], report.Applied, name)
		require.True(b, report.Enforced, name)
		require.True(b, report.Effective.Set, name)
		require.LessOrEqual(b, report.Effective.Value, report.Applied.Value, name)
		require.Equal(b, report.Effective.Value < report.Applied.Value, report.SetBy != "", "%s is %v, set by %q", name, report.Effective, report.SetBy)
	}
	require.Empty(b, i.limits().Unenforced())
}

// lawLimitsTrue looks into the cgroup.
func lawLimitsTrue(b *bench) {
	i := b.launch(limited(b.plan("sleep"), b.enforced()))
	i.ready()
	b.kernelHolds(i)
	if b.agent.Enforces().Limits[service.CPUMax] {
		_, err := i.Limit(b.within(), service.Limits{service.CPUMax: service.Of(33 * service.UsecPerPercent)})
		require.NoError(b, err)
		b.kernelHolds(i)
		require.Equal(b, "330000", inUnit("cpu.max", b.cgroupFile(i.Ref(), "cpu.max")))
	}
}

func (b *bench) kernelHolds(i *incarnation) {
	b.Helper()
	applied := i.limits()
	for _, f := range cgroupFiles {
		if !b.agent.Enforces().Limits[f.resource] {
			continue
		}
		held := inUnit(f.file, b.cgroupFile(i.Ref(), f.file))
		told := strconv.FormatUint(applied[f.resource].Applied.Value, 10)
		if applied[f.resource].Applied.Value == service.Unlimited {
			told = "max"
		}
		require.Equal(b, held, told, f.file)
	}
}

func lawLimitsUnasked(b *bench) {
	i := b.start("sleep")
	for r, report := range i.limits() {
		require.False(b, report.Requested.Set, "%s", service.Resource(r))
		if report.Enforced {
			require.True(b, report.Applied.Set, "%s", service.Resource(r))
		}
	}
}

func lawLimitChange(b *bench) {
	asked := b.enforced()
	i := b.launch(limited(b.plan("sleep"), asked))
	i.ready()
	for r, q := range asked {
		if !q.Set {
			continue
		}
		q.Value = q.Value / 2
		if service.Resource(r) == service.MemoryMax { // must stay above memory_high
			q.Value = asked[service.MemoryHigh].Value + 4<<20
		}
		var change service.Limits
		change[r] = q
		asked[r] = q
		applied, err := i.Limit(b.within(), change)
		require.NoError(b, err, "%s", service.Resource(r))
		for other := range asked {
			if asked[other].Set {
				require.Equal(b, asked[other], applied[other].Applied, "%s after %s", service.Resource(other), service.Resource(r))
				require.Equal(b, asked[other], applied[other].Requested, "%s after %s", service.Resource(other), service.Resource(r))
			}
		}
		require.Equal(b, applied, i.limits())
	}
	i.lives()
}

func lawLimitLift(b *bench) {
	asked := b.enforced()
	i := b.launch(limited(b.plan("sleep"), asked))
	i.ready()
	for _, r := range []service.Resource{service.MemoryHigh, service.MemoryMax, service.MemorySwapMax, service.CPUMax, service.PidsMax} {
		if !asked[r].Set {
			continue
		}
		var lifted service.Limits
		lifted[r] = service.Of(service.Unlimited)
		applied, err := i.Limit(b.within(), lifted)
		require.NoError(b, err)
		require.Equal(b, service.Of(service.Unlimited), applied[r].Applied, "%s", r)
	}
}

func lawThrottle(b *bench) {
	set := service.Limits{service.MemoryHigh: service.Of(40 * mebi), service.CPUMax: service.Of(20 * service.UsecPerPercent)}
	asked := service.Limits{service.MemoryMax: service.Of(96 * mebi), service.CPUMax: service.Of(50 * service.UsecPerPercent)}
	if len(b.agent.Enforces().Missing(set)) > 0 {
		i := b.start("sleep")
		_, err := i.Throttle(b.within(), set)
		b.wantError(err, service.Unenforceable)
		return
	}
	i := b.launch(limited(b.plan("sleep"), asked))
	i.ready()
	before := i.limits()
	applied, err := i.Throttle(b.within(), set)
	require.NoError(b, err)
	require.Equal(b, applied, i.limits())
	for _, r := range []service.Resource{service.MemoryHigh, service.CPUMax} {
		require.Equal(b, asked[r], applied[r].Requested, r)
		require.Equal(b, set[r], applied[r].Instead, r)
		require.Equal(b, set[r], applied[r].Applied, r)
	}
	require.Empty(b, i.drift(always))
	applied, err = i.Throttle(b.within(), service.Limits{service.MemoryHigh: service.Of(service.Unlimited), service.CPUMax: asked[service.CPUMax]})
	require.NoError(b, err)
	require.Equal(b, before, applied)

	_, err = i.Throttle(b.within(), set)
	require.NoError(b, err)
	applied, err = i.Limit(b.within(), service.Limits{service.CPUMax: set[service.CPUMax]})
	require.NoError(b, err)
	require.Equal(b, set[service.CPUMax], applied[service.CPUMax].Requested)
	require.False(b, applied[service.CPUMax].Instead.Set)
	require.Equal(b, set[service.MemoryHigh], applied[service.MemoryHigh].Instead)
}

// lawLimitWhole asks for a burst above the quota, which the kernel refuses when the others
// are written already.
func lawLimitWhole(b *bench) {
	l := limited(b.plan("sleep"), service.Limits{
		service.MemoryMax: service.Of(96 * mebi), service.CPUMax: service.Of(50 * service.UsecPerPercent), service.CPUBurst: service.Of(10 * service.UsecPerPercent),
	})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	i.ready()
	before := i.limits()
	files := []string{"memory.max", "memory.high", "memory.low", "cpu.max", "cpu.max.burst", "cpu.weight", "cpu.idle", "pids.max"}
	held := map[string]string{}
	for _, file := range files {
		held[file] = b.cgroupFile(i.Ref(), file)
	}
	for _, apply := range []func(context.Context, service.Limits) (service.Applied, error){i.Limit, i.Force} {
		_, err := apply(b.within(), service.Limits{
			service.MemoryMax: service.Of(48 * mebi), service.MemoryHigh: service.Of(40 * mebi), service.MemoryLow: service.Of(8 * mebi), service.PidsMax: service.Of(33),
			service.CPUMax: service.Of(20 * service.UsecPerPercent), service.CPUBurst: service.Of(40 * service.UsecPerPercent),
			service.CPUWeight: service.Of(333),
		})
		require.ErrorIs(b, err, syscall.EINVAL)
		require.ErrorContains(b, err, "all is as before again")
		for _, file := range files {
			require.Equal(b, held[file], b.cgroupFile(i.Ref(), file), file)
		}
		require.Equal(b, before, i.limits())
		require.Empty(b, i.drift(never))
	}
	i.lives()
}

// lawLimitWholeOfProcesses asks for more open files than any process may have (proc(5),
// nr_open).
func lawLimitWholeOfProcesses(b *bench) {
	i := b.start("fork", "3")
	before, files := i.limits(), b.rlimited(i.Ref().PID, "Max file size")
	change := service.Limits{service.NoFile: service.Of(1 << 30), service.Rlimits: service.OfText("fsize=1GiB:max")}
	if b.agent.Enforces().Limits[service.PidsMax] {
		change[service.PidsMax] = service.Of(99)
	}
	applied, err := i.Limit(b.within(), change)
	text, readErr := os.ReadFile("/proc/sys/fs/nr_open")
	require.NoError(b, readErr)
	most, readErr := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	require.NoError(b, readErr)
	if asked := change[service.NoFile]; most >= asked.Value { // a host that allows all that may be asked for
		require.NoError(b, err)
		require.Equal(b, asked, applied[service.NoFile].Applied)
		require.Equal(b, change[service.Rlimits], applied[service.Rlimits].Applied)
		return
	}
	require.ErrorIs(b, err, syscall.EPERM)
	require.Equal(b, before, i.limits())
	processes, err := i.Processes(b.within())
	require.NoError(b, err)
	for _, p := range processes {
		require.Equal(b, files, b.rlimited(p.PID, "Max file size"))
	}
}

func lawLimitFiles(b *bench) {
	i := b.launch(limited(b.plan("sleep"), service.Limits{service.NoFile: service.Of(512)}))
	i.ready()
	change := service.Limits{service.NoFile: service.Of(256)}
	if !b.agent.Enforces().Limits[service.NoFile] {
		_, err := i.Limit(b.within(), change)
		b.wantError(err, service.Unenforceable)
		return
	}
	applied, err := i.Limit(b.within(), change)
	require.NoError(b, err)
	require.Equal(b, service.Of(256), applied[service.NoFile].Applied)
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(i.Ref().PID), "limits"))
	require.NoError(b, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			require.Equal(b, []string{"256", "256", "files"}, strings.Fields(rest))
		}
	}
}

// lawLimitRefused asks for two changes at once: one that is possible, where
// there is such, and one that is not.
func lawLimitRefused(b *bench) {
	change, ok := b.unenforced()
	i := b.launch(limited(b.plan("sleep"), b.enforced()))
	i.ready()
	before := i.limits()
	if !ok { // every limit is enforced, so nothing is refused
		_, err := i.Limit(b.within(), service.Limits{service.PidsMax: service.Of(300)})
		require.NoError(b, err)
		return
	}
	for r, q := range b.enforced() {
		if q.Set {
			change[r] = service.Of(q.Value / 2)
		}
	}
	_, err := i.Limit(b.within(), change)
	e := b.wantError(err, service.Unenforceable)
	require.Equal(b, service.ReasonLimitUnenforceable, service.ReasonOf(e))
	require.Equal(b, before, i.limits())
	i.lives()
}

func lawLimitUnlaunchable(b *bench) {
	limits, ok := b.unenforced()
	if !ok {
		b.launch(limited(b.plan("sleep"), b.enforced())).ready()
		return
	}
	l := limited(b.plan("sleep"), limits)
	h, err := b.agent.Launch(b.within(), l, backends.Birth{Identify: func(service.Ref) error {
		b.Error("identify was called")
		return nil
	}})
	require.Nil(b, h)
	e := b.wantError(err, service.Unenforceable)
	require.Equal(b, service.ReasonLimitUnenforceable, service.ReasonOf(e))
	require.ErrorContains(b, err, b.agent.Enforces().Missing(limits)[0].String())
	b.nothingOf(l)
}

func lawLimitBestEffort(b *bench) {
	limits, _ := b.unenforced()
	l := limited(b.plan("sleep"), limits.Over(b.enforced()))
	l.Spec.BestEffort = true
	i := b.launch(l)
	i.ready()
	applied := i.limits()
	require.Equal(b, b.agent.Enforces().Missing(l.Limits), applied.Unenforced())
	for r, q := range l.Limits {
		require.Equal(b, q, applied[r].Requested, "%s", service.Resource(r))
	}
}

func lawLimitApart(b *bench) {
	asked := b.enforced()
	one, other := b.launch(limited(b.plan("sleep"), asked)), b.launch(limited(b.plan("sleep"), asked))
	one.ready()
	other.ready()
	before := other.limits()
	for r, q := range asked {
		if q.Set && service.Resource(r) != service.MemoryMax {
			var change service.Limits
			change[r] = service.Of(q.Value / 2)
			_, err := one.Limit(b.within(), change)
			require.NoError(b, err)
		}
	}
	require.Equal(b, before, other.limits())
}

func lawLimitEnded(b *bench) {
	i := b.launch(limited(b.plan("exit", "0"), b.enforced()))
	i.exit()
	i.release()
	_, err := i.Limit(b.within(), b.enforced())
	b.wantError(err, service.NotRunning)
}
