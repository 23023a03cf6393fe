package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// pages makes the host one with folders of these names for huge pages.
func pages(t *testing.T, names ...string) {
	t.Helper()
	root := t.TempDir()
	for _, name := range names {
		require.NoError(t, os.Mkdir(filepath.Join(root, name), 0o755))
	}
	before := hugePageSizes
	hugePageSizes = func() ([]uint64, error) { return hugePageSizesIn(root) }
	t.Cleanup(func() { hugePageSizes = before })
}

func TestHugePages(t *testing.T) {
	pages(t, "hugepages-2048kB", "hugepages-1048576kB", "hugepages-64kB", "other")
	const r = service.HugetlbMax
	unlimited := map[string]string{}
	for _, size := range []string{"64KB", "2MB", "1GB"} {
		for _, which := range hugetlbLimits {
			unlimited["p/g/hugetlb."+size+"."+which] = "max"
			unlimited["p/hugetlb."+size+"."+which] = "max"
		}
	}
	unlimited["p/hugetlb.1GB.max"], unlimited["p/g/hugetlb.2MB.rsvd.max"], unlimited["p/n/io.max"] = "0", "4194304", ""
	tree, _ := fixture(t, unlimited)
	g := tree.Group("/p/g")
	a, err := g.Limits(service.Limits{})
	require.NoError(t, err)
	require.Equal(t, service.LimitReport{
		Applied: service.OfText("2MiB:4MiB"), Effective: service.OfText("2MiB:4MiB 1GiB:0"), SetBy: "/p", Enforced: true,
	}, a[r], "the lesser of both limits, and what is above")
	a, err = tree.Group("/p/n").Limits(service.Limits{})
	require.NoError(t, err)
	require.False(t, a[r].Enforced)

	can, err := g.Enforceable()
	require.NoError(t, err)
	require.True(t, can[r])
	can, err = tree.Group("/p/n").Enforceable()
	require.NoError(t, err)
	require.False(t, can[r])
}

// What can not be set is as it was.
func TestHugePagesInUse(t *testing.T) {
	pages(t, "hugepages-2048kB")
	tree, root := fixture(t, map[string]string{"g/hugetlb.2MB.max": "8388608", "g/hugetlb.2MB.rsvd.max": "8388608"})
	first := true
	busy := tree.WithFault(func(call, path string) error {
		if call == "write" && filepath.Base(path) == "hugetlb.2MB.max" && first {
			first = false
			return unix.EBUSY
		}
		return nil
	})
	err := busy.Group("/g").Apply(service.Limits{service.HugetlbMax: service.OfText("2MiB:4MiB")})
	var inUse *HugePagesInUseError
	require.ErrorAs(t, err, &inUse)
	require.ErrorContains(t, err, "it has more than 4MiB in pages of 2MiB: write ")
	require.Equal(t, "8388608\n", content(t, root, "g/hugetlb.2MB.rsvd.max"))
	require.Equal(t, "8388608\n", content(t, root, "g/hugetlb.2MB.max"))

	// Before Linux 5.7 there are no reservations.
	require.NoError(t, os.Remove(filepath.Join(root, "g/hugetlb.2MB.rsvd.max")))
	require.NoError(t, tree.Group("/g").Apply(service.Limits{service.HugetlbMax: service.OfText("2MiB:4MiB")}))
	require.Equal(t, "4194304\n", content(t, root, "g/hugetlb.2MB.max"))
}

func TestLackOfHugePages(t *testing.T) {
	pages(t, "hugepages-2048kB", "hugepages-1048576kB")
	tree, _ := fixture(t, nil)
	require.Empty(t, tree.Lacks(service.Limits{service.HugetlbMax: service.OfText("2MiB:4MiB 1GiB:0")}))
	require.Equal(t, []Lack{{service.HugetlbMax, "hugetlb_max asks for pages of 64KiB, 16GiB, and the host has no such, only of 2MiB, 1GiB"}},
		tree.Lacks(service.Limits{service.HugetlbMax: service.OfText("64KiB:0 2MiB:4MiB 16GiB:0")}))
	pages(t)
	_, err := tree.Group("/").Limits(service.Limits{})
	require.NoError(t, err)
}
