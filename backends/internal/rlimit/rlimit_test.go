package rlimit

import (
	"errors"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func files(n uint64) []service.Rlimit {
	return []service.Rlimit{{Kind: service.RlimitNoFile, Soft: n, Hard: n}}
}

// sleepers starts processes that do nothing until the test ends.
func sleepers(t *testing.T, n int) []int {
	t.Helper()
	pids := make([]int, n)
	for i := range pids {
		c := exec.Command("sleep", "1000")
		require.NoError(t, c.Start())
		t.Cleanup(func() { c.Process.Kill(); c.Wait() })
		pids[i] = c.Process.Pid
	}
	return pids
}

func TestSet(t *testing.T) {
	pids := sleepers(t, 3)
	asked := 0
	members := func() ([]int, error) {
		asked++
		if asked <= 2 { // the third is born after the first pass
			return pids[:2], nil
		}
		return append(pids, 1<<22), nil // and one is gone already
	}
	require.NoError(t, Set(members, files(321)))
	for _, pid := range pids {
		n, err := NoFile(pid)
		require.NoError(t, err)
		require.Equal(t, uint64(321), n)
		var limit unix.Rlimit
		require.NoError(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit))
		require.Equal(t, uint64(321), limit.Max)
	}
	require.Equal(t, 6, asked, "the last pass finds nothing to change")
}

func TestSetLeavesOthersAlone(t *testing.T) {
	pid := sleepers(t, 1)[0]
	before, err := NoFile(pid)
	require.NoError(t, err)
	asked := 0
	require.NoError(t, Set(func() ([]int, error) {
		asked++
		if asked == 1 {
			return []int{pid}, nil
		}
		return nil, nil // it is no member any more once its pidfd is held
	}, files(123)))
	after, err := NoFile(pid)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestSetFailures(t *testing.T) {
	lost := errors.New("lost")
	require.ErrorIs(t, Set(func() ([]int, error) { return nil, lost }, files(5)), lost)
	_, err := NoFile(1 << 22)
	require.ErrorIs(t, err, unix.ESRCH)
	pid := sleepers(t, 1)[0]
	// More than fs.nr_open is refused to root, too.
	err = Set(func() ([]int, error) { return []int{pid}, nil }, files(1<<40))
	require.ErrorIs(t, err, unix.EPERM)
}

func TestReport(t *testing.T) {
	pid := sleepers(t, 1)[0]
	asked, err := service.Rlimits.Parse("stack=1MiB:2MiB core=0")
	require.NoError(t, err)
	require.NoError(t, Set(func() ([]int, error) { return []int{pid}, nil }, service.Limits{service.Rlimits: asked}.OfProcesses()))
	report, err := Report(pid, asked)
	require.NoError(t, err)
	require.Equal(t, service.LimitReport{
		Requested: asked, Applied: service.OfText("core=0 stack=1MiB:2MiB"), Effective: service.OfText("core=0 stack=1MiB:2MiB"), Enforced: true,
	}, report)
	report, err = Report(pid, service.Quota{})
	require.NoError(t, err)
	require.Contains(t, report.Applied.Text, "stack=1MiB:2MiB")
	require.NotContains(t, report.Applied.Text, "fsize", "what does not limit is left out")
	require.NoError(t, service.Rlimits.Check(report.Applied))
}

// What can not be set as a whole is not set at all.
func TestSetIsUndone(t *testing.T) {
	pids := sleepers(t, 2)
	before := map[int]service.LimitReport{}
	for _, pid := range pids {
		report, err := Report(pid, service.OfText("fsize=1MiB"))
		require.NoError(t, err)
		before[pid] = report
	}
	limits := append([]service.Rlimit{{Kind: unix.RLIMIT_FSIZE, Soft: 1 << 20, Hard: service.Unlimited}}, files(1<<40)...)
	require.ErrorIs(t, Set(func() ([]int, error) { return pids, nil }, limits), unix.EPERM)
	for _, pid := range pids {
		report, err := Report(pid, service.OfText("fsize=1MiB"))
		require.NoError(t, err)
		require.Equal(t, before[pid], report)
	}
}

// What is asked for no more becomes what a start gives.
func TestWanted(t *testing.T) {
	free := func(kind service.RlimitKind, soft uint64) service.Rlimit {
		return service.Rlimit{Kind: kind, Soft: soft, Hard: service.Unlimited}
	}
	before := service.Limits{service.Rlimits: service.OfText("core=1MiB fsize=1MiB stack=1MiB")}
	for _, c := range []struct {
		now  service.Limits
		want []service.Rlimit
	}{
		{service.Limits{service.NoFile: service.Of(7)}, files(7)},
		{service.Limits{service.Rlimits: service.OfText("core=7")}, []service.Rlimit{
			{Kind: unix.RLIMIT_CORE, Soft: 7, Hard: 7}, free(unix.RLIMIT_FSIZE, service.Unlimited), free(unix.RLIMIT_STACK, 8<<20),
		}},
		{service.Limits{service.Rlimits: service.Of(service.Unlimited)}, []service.Rlimit{
			{Kind: unix.RLIMIT_CORE}, free(unix.RLIMIT_FSIZE, service.Unlimited), free(unix.RLIMIT_STACK, 8<<20),
		}},
	} {
		got, err := Wanted(c.now, before)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
}
