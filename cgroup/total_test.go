package cgroup

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestTotal(t *testing.T) {
	tree, _ := fixture(t, map[string]string{
		"all/cpu.stat":            "usage_usec 9000\nuser_usec 6000\nsystem_usec 3000",
		"all/memory.current":      "900",
		"all/memory.peak":         "1000",
		"all/memory.stat":         "anon 500\nfile 300\nkernel 100",
		"all/memory.events":       "low 0\nhigh 0\nmax 0\noom 2\noom_kill 3\noom_group_kill 1",
		"all/memory.pressure":     "some avg10=1.50 avg60=0.25 avg300=9.00 total=3000000\nfull avg10=0.50 avg60=0.00 avg300=9.00 total=1",
		"all/cpu.pressure":        "some avg10=2.00 avg60=1.00 avg300=0.00 total=5",
		"all/pids.current":        "12",
		"all/io.stat":             "8:0 rbytes=100 wbytes=20 rios=3 wios=4 dbytes=50 dios=6\n253:1 \n259:7 rbytes=1 wbytes=2 rios=1 wios=1 dbytes=0 dios=0",
		"all/shim/cpu.stat":       "usage_usec 1000\nuser_usec 900\nsystem_usec 100",
		"all/shim/memory.current": "100",
		"all/shim/memory.stat":    "anon 50\nfile 30\nkernel 10",
		"all/shim/pids.current":   "2",
		"all/shim/io.stat":        "8:0 rbytes=1 wbytes=30 rios=1 wios=1 dbytes=0 dios=0",
		"all/shim/memory.events":  "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0",
		"bare/cpu.stat":           "usage_usec 7\nuser_usec 7\nsystem_usec 0",
		"going/cgroup.procs":      "",
		"broken/cpu.stat":         "usage_usec many",
	})
	of := service.Of
	want := service.Usage{
		Source: "cgroup", Memory: 900, Anon: of(500), File: of(300), CPUTime: 9 * time.Millisecond, User: of(6000), System: of(3000),
		IO:   service.IO{ReadBytes: of(101), WriteBytes: of(22), Reads: of(4), Writes: of(5)},
		Pids: of(12), OOMKills: of(3),
		MemoryPressure: service.Pressure{
			Some: service.Stall{Set: true, Avg10: 1.5, Avg60: 0.25, Total: 3 * time.Second},
			Full: service.Stall{Set: true, Avg10: 0.5, Total: time.Microsecond},
		},
		CPUPressure: service.Pressure{Some: service.Stall{Set: true, Avg10: 2, Avg60: 1, Total: 5 * time.Microsecond}},
	}
	all := tree.Group("/all")
	u, err := all.Total()
	require.NoError(t, err)
	require.Equal(t, want, u, "there is no swap to count, and no peak of the services alone")

	u, err = all.Total(all.Child("shim"), all.Child("supervisor"), tree.Group("/going"))
	require.NoError(t, err)
	want.Memory, want.Anon, want.File, want.CPUTime, want.User, want.System = 800, of(450), of(270), 8*time.Millisecond, of(5100), of(2900)
	want.Pids, want.IO = of(10), service.IO{ReadBytes: of(100), WriteBytes: of(0), Reads: of(3), Writes: of(4)}
	require.Equal(t, want, u)

	u, err = tree.Group("/bare").Total()
	require.NoError(t, err)
	require.Equal(t, service.Usage{Source: "cgroup", CPUTime: 7 * time.Microsecond, User: of(7), System: of(0)}, u, "absent is not zero")

	for _, group := range []string{"/gone", "/going"} {
		_, err = tree.Group(group).Total()
		require.ErrorIs(t, err, os.ErrNotExist, group)
	}
	_, err = tree.Group("/broken").Total()
	require.ErrorContains(t, err, "cpu.stat")
	_, err = all.Total(tree.Group("/broken"))
	require.Error(t, err)
}

// Containerd's package takes no notice of either.
func TestTotalOfWhatCanNotBeRead(t *testing.T) {
	tree, root := fixture(t, map[string]string{"g/cpu.stat": "usage_usec 1", "g/memory.current": "5"})
	denied := tree.WithFault(func(call, path string) error {
		if call == "open" && filepath.Base(path) == "memory.current" {
			return unix.EACCES
		}
		return nil
	})
	_, err := denied.Group("/g").Total()
	require.ErrorIs(t, err, unix.EACCES)
	require.ErrorContains(t, err, "memory.current")

	removed := tree.WithFault(func(call, path string) error {
		if call == "open" && filepath.Base(path) == "io.stat" { // the last that is looked at
			return os.RemoveAll(filepath.Join(root, "g"))
		}
		return nil
	})
	_, err = removed.Group("/g").Total()
	require.ErrorIs(t, err, os.ErrNotExist)
}

// The two ways to read the counters agree on a real kernel, and what is without is out.
func TestHostTotal(t *testing.T) {
	g := hostGroup(t)
	one, other := g.Child("a"), g.Child("b")
	require.NoError(t, one.Create(Wanted))
	require.NoError(t, other.Create(Wanted))
	const size = 20 << 20
	hogInside(t, one, size)
	inside(t, other, nil, "sleep", "1000")
	var total, part, usage service.Usage
	eventually(t, func() bool {
		var err error
		usage, err = one.Usage()
		require.NoError(t, err)
		total, err = g.Total()
		require.NoError(t, err)
		part, err = g.Total(one, g.Child("none"))
		require.NoError(t, err)
		return usage.Anon.Value >= size && total.Anon.Value >= usage.Anon.Value
	}, "the hog was never counted")
	require.GreaterOrEqual(t, total.Memory, usage.Memory)
	require.Less(t, part.Memory, uint64(size), "sleep(1) alone")
	require.GreaterOrEqual(t, total.CPUTime, usage.CPUTime)
	require.Equal(t, usage.Pids.Value+1, total.Pids.Value)
	require.Equal(t, service.Of(1), part.Pids)
	require.Equal(t, service.Of(0), total.OOMKills)
	require.Equal(t, usage.Swap.Set, total.Swap.Set)
	require.Equal(t, usage.IO.ReadBytes.Set, total.IO.ReadBytes.Set)
	require.True(t, total.MemoryPressure.Full.Set)
	require.True(t, total.CPUPressure.Some.Set)
}
