package cgroup

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestCPUSet(t *testing.T) {
	tree, root := fixture(t, map[string]string{
		"cpuset.cpus.effective":   "0-3",
		"p/cpuset.cpus":           "0-1",
		"p/cpuset.cpus.effective": "0-1",
		"p/h/cpuset.cpus":         "", "p/h/cpuset.cpus.effective": "0-1",
		"p/g/cpuset.cpus": "0-2", "p/g/cpuset.cpus.effective": "0-1",
		"p/none/cpuset.cpus": "", "p/none/cpuset.cpus.effective": "0-1",
		"p/own/cpuset.cpus": "1", "p/own/cpuset.cpus.effective": "1",
		"all/cpuset.cpus": "", "all/cpuset.cpus.effective": "0-3",
		"p/bad/cpuset.cpus": "1", "p/bad/cpuset.cpus.effective": "x",
	})
	report := func(group string) service.LimitReport {
		a, err := tree.Group(group).Limits(service.Limits{})
		require.NoError(t, err)
		return a[service.CPUSetCPUs]
	}
	require.Equal(t, service.LimitReport{Applied: service.OfText("0-2"), Effective: service.OfText("0-1"), SetBy: "/p", Enforced: true}, report("/p/g"))
	require.Equal(t, service.LimitReport{
		Applied: service.Of(service.Unlimited), Effective: service.OfText("0-1"), SetBy: "/p", Enforced: true,
	}, report("/p/none"))
	require.Equal(t, service.LimitReport{Applied: service.Of(service.Unlimited), Effective: service.OfText("0-3"), Enforced: true}, report("/all"), "nobody sets it")
	require.Equal(t, service.LimitReport{Applied: service.OfText("1"), Effective: service.OfText("1"), Enforced: true}, report("/p/own"))
	_, err := tree.Group("/p/bad").Limits(service.Limits{})
	require.ErrorContains(t, err, `bad/cpuset.cpus.effective holds "x"`)

	set := func(group string, q service.Quota) error {
		return tree.Group(group).Apply(service.Limits{service.CPUSetCPUs: q})
	}
	require.ErrorContains(t, set("/p/h", service.OfText("3")), "grants 0-1 after 3 was asked for")
	require.NoError(t, set("/p/own", service.OfText("1")))
	require.NoError(t, set("/p/own", service.Of(service.Unlimited)))
	require.Empty(t, strings.TrimSpace(content(t, root, "p/own/cpuset.cpus")))

	require.Equal(t, []Lack{{service.CPUSetCPUs, "cpuset_cpus asks for 3-5, and the host has no 4-5, only 0-3"}},
		tree.Lacks(service.Limits{service.CPUSetCPUs: service.OfText("3-5"), service.CPUSetMems: service.OfText("7"), service.MemoryMax: service.Of(1)}))
	require.Empty(t, tree.Lacks(service.Limits{service.CPUSetCPUs: service.Of(service.Unlimited)}))
}

func TestDemanded(t *testing.T) {
	require.Empty(t, Demanded(service.Limits{service.MemoryMax: service.Of(1), service.CPUSetCPUs: service.Of(service.Unlimited)}))
	require.Equal(t, []string{"cpuset"}, Demanded(service.Limits{service.CPUSetCPUs: service.OfText("1"), service.CPUSetMems: service.OfText("0")}))
}

// systemd takes the cpuset controller away at any moment when nobody needs it.
func TestFileGoesWhileItIsRead(t *testing.T) {
	tree, _ := fixture(t, map[string]string{"cpuset.cpus.effective": "0-1", "g/cpuset.cpus": "1", "g/cpuset.cpus.effective": "1", "g/pids.max": "7"})
	for _, file := range []string{"cpuset.cpus", "cpuset.cpus.effective"} {
		torn := tree.WithFault(func(call, path string) error {
			if call == "read" && strings.HasSuffix(path, "/g/"+file) {
				return unix.ENODEV
			}
			return nil
		})
		a, err := torn.Group("/g").Limits(service.Limits{})
		require.NoError(t, err, file)
		require.Zero(t, a[service.CPUSetCPUs], file)
		require.Equal(t, service.Of(7), a[service.PidsMax].Applied)
		require.NoError(t, torn.Group("/g").Apply(service.Limits{service.CPUSetCPUs: service.Of(service.Unlimited)}))
	}
}
