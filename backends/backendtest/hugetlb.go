package backendtest

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func hugetlbLaws() []law {
	return []law{
		{says: "hugetlb_max has mmap fail beyond it, and nobody is killed", only: caged, alone: true, check: lawHugePages},
		{says: "hugetlb_max changes while the service runs, but not below what it has", only: caged, alone: true, check: lawHugePagesChange},
		{says: "pages of a size that the host has not are refused by it", only: caged, check: lawHugePagesRefused},
	}
}

// hugePages has the host keep that many huge pages of 2 MiB, until the law is done.
func (b *bench) hugePages(n int) {
	b.Helper()
	const file = "/proc/sys/vm/nr_hugepages"
	before, err := os.ReadFile(file)
	require.NoError(b, err)
	require.NoError(b, os.WriteFile(file, fmt.Append(nil, n), 0o600))
	b.Cleanup(func() { require.NoError(b, os.WriteFile(file, before, 0o600)) })
	now, err := os.ReadFile(file)
	require.NoError(b, err)
	require.Equal(b, fmt.Sprint(n), strings.TrimSpace(string(now)), "the host has not that many huge pages")
}

func (b *bench) hugeLimited(text string, mode ...string) service.Launch {
	return limited(b.plan(mode...), service.Limits{service.HugetlbMax: service.OfText(text)})
}

func lawHugePages(b *bench) {
	b.hugePages(16)
	l := b.hugeLimited("2MiB:8MiB", "hog-huge", fmt.Sprint(16*mebi))
	if !b.enforces(l) {
		require.Contains(b, b.agent.Enforces().Why[service.HugetlbMax], "hugetlb")
		return
	}
	i := b.launch(l)
	i.ready()
	i.says(fmt.Sprintf("held %d of %d: cannot allocate memory", 8*mebi, 16*mebi))
	i.lives()
	require.Equal(b, fmt.Sprint(8*mebi), b.cgroupFile(i.Ref(), "hugetlb.2MB.current"))
	require.Equal(b, fmt.Sprint(8*mebi), b.cgroupFile(i.Ref(), "hugetlb.2MB.rsvd.current"))
	report := i.limits()[service.HugetlbMax]
	q := service.OfText("2MiB:8MiB")
	require.Equal(b, service.LimitReport{Requested: q, Applied: q, Effective: q, Enforced: true}, report)
	i.release()

	free := b.start("hog-huge", fmt.Sprint(16*mebi))
	free.says(fmt.Sprintf("ready %d", 16*mebi))
	require.Equal(b, service.Of(service.Unlimited), free.limits()[service.HugetlbMax].Applied)
}

func lawHugePagesChange(b *bench) {
	b.hugePages(8)
	if !b.agent.Enforces().Limits[service.HugetlbMax] {
		l := b.hugeLimited("2MiB:0", "sleep")
		l.Spec.BestEffort = true
		i := b.launch(l)
		require.Equal(b, []service.Resource{service.HugetlbMax}, i.limits().Unenforced())
		_, err := i.Limit(b.within(), l.Limits)
		b.wantError(err, service.Unenforceable)
		return
	}
	i := b.start("hog-huge", fmt.Sprint(8*mebi))
	change := func(q service.Quota) error {
		applied, err := i.Limit(b.within(), service.Limits{service.HugetlbMax: q})
		if err == nil {
			require.Equal(b, q, applied[service.HugetlbMax].Applied)
		}
		return err
	}
	held := service.OfText("2MiB:12MiB")
	require.NoError(b, change(held))
	e := b.wantError(change(service.OfText("2MiB:4MiB")), service.Conflict)
	require.Equal(b, service.ReasonLimitInUse, service.ReasonOf(e))
	require.ErrorIs(b, e, syscall.EBUSY)
	require.ErrorContains(b, e, "it has more than 4MiB in pages of 2MiB")
	require.Equal(b, held, i.limits()[service.HugetlbMax].Applied)
	for _, file := range []string{"hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"} {
		require.Equal(b, fmt.Sprint(12*mebi), b.cgroupFile(i.Ref(), file))
	}
	require.NoError(b, change(service.Of(service.Unlimited)))
	i.lives()
}

func lawHugePagesRefused(b *bench) {
	if !b.agent.Enforces().Limits[service.HugetlbMax] {
		return // whatever the size
	}
	l := b.hugeLimited("16GiB:0", "sleep")
	_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	b.wantError(err, service.Unenforceable)
	require.ErrorContains(b, err, "hugetlb_max asks for pages of 16GiB, and the host has no such, only of ")
	b.nothingOf(l)
}
