package backendtest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func cpusetLaws() []law {
	return []law{
		{says: "cpuset_cpus keeps every thread on those CPUs, though it wants another", only: real, alone: true, check: lawCPUSet},
		{says: "cpuset_cpus changes and is lifted while the service runs, and the threads move", only: caged, check: lawCPUSetChange},
		{says: "cpuset_mems has memory come from those nodes", only: real, check: lawMemorySet},
		{says: "CPUs and memory nodes that the host has not are refused by their numbers", only: caged, check: lawSetsRefused},
	}
}

func lawCPUSet(b *bench) {
	l := limited(b.plan("hog-cpu", fmt.Sprint(runtime.NumCPU())), service.Limits{service.CPUSetCPUs: service.OfText("0")})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	i.ready()
	i.runsOn("0")
	if runtime.NumCPU() > 1 {
		var other unix.CPUSet
		other.Set(1)
		require.ErrorIs(b, unix.SchedSetaffinity(i.Ref().PID, &other), syscall.EINVAL, "the kernel lets it go elsewhere")
	}
	b.getsCPU(i.Ref().PID, 100) // of one core, however many it wants
	report := i.limits()[service.CPUSetCPUs]
	require.Equal(b, service.OfText("0"), report.Applied)
	require.Equal(b, service.OfText("0"), report.Effective)
	require.Empty(b, report.SetBy)
}

// runsOn wants all threads to be allowed these CPUs and no others, as the scheduler
// tells it.
func (i *incarnation) runsOn(cpus string) {
	b := i.bench
	b.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", i.Ref().PID))
	require.NoError(b, err)
	require.NotEmpty(b, threads)
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		require.NoError(b, err)
		require.Contains(b, string(text), "\nCpus_allowed_list:\t"+cpus+"\n", thread)
	}
}

func lawCPUSetChange(b *bench) {
	if !b.agent.Enforces().Limits[service.CPUSetCPUs] {
		return
	}
	i := b.start("hog-cpu", "1")
	before := i.limits()[service.CPUSetCPUs]
	require.Equal(b, service.LimitReport{Applied: service.Of(service.Unlimited), Effective: before.Effective, SetBy: before.SetBy, Enforced: true}, before)
	most := runtime.NumCPU() - 1
	last := fmt.Sprint(most)
	for _, cpus := range []string{last, "0", last} {
		applied, err := i.Limit(b.within(), service.Limits{service.CPUSetCPUs: service.OfText(cpus)})
		require.NoError(b, err)
		require.Equal(b, service.OfText(cpus), applied[service.CPUSetCPUs].Applied)
		i.runsOn(cpus)
	}
	applied, err := i.Limit(b.within(), service.Limits{service.CPUSetCPUs: service.Of(service.Unlimited)})
	require.NoError(b, err)
	all := service.Numbers{{First: 0, Last: most}}
	if held := applied[service.CPUSetCPUs].Applied; held != service.Of(service.Unlimited) {
		require.Equal(b, service.OfText(all.String()), held) // the kernel forgets no list as long as somebody is in it
	}
	i.runsOn(all.String())
}

// The hosts have one node, so that no other can be wanted.
func lawMemorySet(b *bench) {
	l := limited(b.plan("hog-memory", fmt.Sprint(4*mebi)), service.Limits{service.CPUSetMems: service.OfText("0")})
	if !b.enforces(l) {
		return
	}
	i := b.launch(l)
	i.ready()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.Ref().PID))
	require.NoError(b, err)
	require.Contains(b, string(text), "\nMems_allowed_list:\t0\n")
	text, err = os.ReadFile(fmt.Sprintf("/proc/%d/numa_maps", i.Ref().PID))
	require.NoError(b, err)
	require.NotContains(b, string(text), " N1=")
	require.Equal(b, service.OfText("0"), i.limits()[service.CPUSetMems].Effective)
}

func lawSetsRefused(b *bench) {
	for r, has := range map[service.Resource]string{service.CPUSetCPUs: "CPU", service.CPUSetMems: "node"} {
		if !b.agent.Enforces().Limits[r] {
			continue
		}
		var beyond service.Limits
		beyond[r] = service.OfText("0,4000")
		l := limited(b.plan("sleep"), beyond)
		_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
		e := b.wantError(err, service.Unenforceable)
		require.Equal(b, service.ReasonLimitUnenforceable, service.ReasonOf(e))
		require.ErrorContains(b, err, fmt.Sprintf("%s asks for 0,4000, and the host has no 4000", r), has)
		b.nothingOf(l)

		l.Spec.BestEffort = true
		i := b.launch(l)
		require.Equal(b, []service.Resource{r}, i.limits().Unenforced())
		_, err = i.Limit(b.within(), beyond)
		b.wantError(err, service.Unenforceable)
		require.NotContains(b, strings.Split(i.limits()[r].Effective.Text, ","), "4000")
	}
}
