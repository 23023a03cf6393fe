package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestUsage(t *testing.T) {
	const used = "usage_usec 5000000\nuser_usec 4000000\nsystem_usec 1000000\nnice_usec 7"
	files := map[string]string{
		"g/memory.current":      "1000",
		"g/memory.peak":         "2000",
		"g/memory.swap.current": "30",
		"g/memory.stat":         "anon 600\nfile 300\nkernel 101\nkernel_stack 100\ninactive_file 200\nactive_file 100",
		"g/memory.events":       "low 0\nhigh 0\nmax 4\noom 3\noom_kill 2\noom_group_kill 1",
		"g/memory.pressure":     "some avg10=1.50 avg60=0.25 avg300=9.00 total=3000000\nfull avg10=0.50 avg60=0.00 avg300=9.00 total=1",
		"g/cpu.pressure":        "some avg10=0.00 avg60=0.00 avg300=0.00 total=5",
		"g/cpu.stat":            used + "\nnr_periods 9\nnr_throttled 7\nthrottled_usec 6000\nnr_bursts 0",
		"g/io.stat": "8:0 rbytes=100 wbytes=20 rios=3 wios=4 dbytes=50 dios=6\n253:1 \n" +
			"259:7 rbytes=1 wbytes=2 rios=1 wios=1 dbytes=0 dios=0 cost.vrate=100.00",
		"g/pids.current":     "12",
		"g/pids.peak":        "15",
		"bare/cpu.stat":      used,
		"bare/cgroup.procs":  "",
		"idle/cpu.stat":      "usage_usec 0\nuser_usec 0\nsystem_usec 0",
		"idle/io.stat":       "",
		"going/cgroup.procs": "",
	}
	tree, _ := fixture(t, files)
	of := service.Of
	u, err := tree.Group("/g").Usage()
	require.NoError(t, err)
	require.Equal(t, service.Usage{
		Source: "cgroup", Memory: 1000, MemoryPeak: of(2000), Swap: of(30), Anon: of(600), File: of(300), Inactive: of(200), Kernel: of(101),
		CPUTime: 5 * time.Second, User: of(4_000_000), System: of(1_000_000), Throttled: of(6000), ThrottledPeriods: of(7), Periods: of(9),
		IO: service.IO{ReadBytes: of(101), WriteBytes: of(22), Reads: of(4), Writes: of(5)},
		Devices: []service.DeviceIO{
			{Device: "8:0", IO: service.IO{ReadBytes: of(100), WriteBytes: of(20), Reads: of(3), Writes: of(4)}},
			{Device: "259:7", IO: service.IO{ReadBytes: of(1), WriteBytes: of(2), Reads: of(1), Writes: of(1)}},
		},
		Pids: of(12), PidsPeak: of(15), OOMKills: of(2),
		MemoryPressure: service.Pressure{
			Some: service.Stall{Set: true, Avg10: 1.5, Avg60: 0.25, Total: 3 * time.Second},
			Full: service.Stall{Set: true, Avg10: 0.5, Total: time.Microsecond},
		},
		CPUPressure: service.Pressure{Some: service.Stall{Set: true, Total: 5 * time.Microsecond}},
	}, u)

	u, err = tree.Group("/bare").Usage()
	require.NoError(t, err)
	require.Equal(t, service.Usage{Source: "cgroup", CPUTime: 5 * time.Second, User: of(4_000_000), System: of(1_000_000)}, u, "absent is not zero")
	u, err = tree.Group("/idle").Usage()
	require.NoError(t, err)
	require.Equal(t, service.IO{ReadBytes: of(0), WriteBytes: of(0), Reads: of(0), Writes: of(0)}, u.IO, "nothing was used, and that is known")

	_, err = tree.Group("/gone").Usage()
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = tree.Group("/going").Usage()
	require.ErrorIs(t, err, os.ErrNotExist, "one that was removed meanwhile has not used nothing")
}

// What a file should not hold is an error with the file and the line.
func TestUsageOfBrokenFiles(t *testing.T) {
	for name, text := range map[string]string{
		"memory.current":  "much",
		"memory.stat":     "anon 1\nfile -3",
		"cpu.stat":        "usage_usec many",
		"io.stat":         "8:0 rbytes=x",
		"memory.pressure": "some avg10=zero avg60=0.00 total=3",
		"cpu.pressure":    "full avg10=0.00 avg60=0.00 total=1.5",
	} {
		files := map[string]string{"g/cpu.stat": "usage_usec 1"}
		files["g/"+name] = text
		tree, _ := fixture(t, files)
		_, err := tree.Group("/g").Usage()
		require.ErrorContains(t, err, "read the counters of", name)
		require.ErrorContains(t, err, name+" holds")
	}
}

// A file may be longer than the buffer that reading begins with.
func TestUsageOfLongFiles(t *testing.T) {
	tree, _ := fixture(t, map[string]string{
		"g/cpu.stat": "usage_usec 1", "g/memory.stat": strings.Repeat("something_of_no_interest 12345\n", 1000) + "kernel 7",
	})
	u, err := tree.Group("/g").Usage()
	require.NoError(t, err)
	require.Equal(t, service.Of(7), u.Kernel)
}

func TestOOMLevels(t *testing.T) {
	// What the kernel counts: oom where the limit fired (.local) and in every
	// group above it; oom_kill where the victim was and in every group above.
	events := func(oom, kills string) string {
		return "low 0\nhigh 0\nmax 0\noom " + oom + "\noom_kill " + kills + "\noom_group_kill 0"
	}
	before := map[string]string{
		"a/memory.events":         events("5", "9"),
		"a/memory.events.local":   events("2", "0"),
		"a/b/memory.events":       events("3", "9"),
		"a/b/memory.events.local": events("1", "0"),
		"a/b/c/memory.events":     events("0", "0"),
	}
	for name, tc := range map[string]struct {
		changes map[string]string
		verdict service.OOM
		level   string
		kills   uint64
	}{
		"nothing happened": {nil, service.OOMNone, "", 0},
		"own limit": {map[string]string{
			"a/b/c/memory.events":       events("1", "2"),
			"a/b/c/memory.events.local": events("1", "2"),
		}, service.OOMOwn, "/a/b/c", 2},
		"limit of a group of its own below": {map[string]string{
			"a/b/c/memory.events":       events("1", "1"),
			"a/b/c/memory.events.local": events("0", "0"),
		}, service.OOMOwn, "/a/b/c", 1},
		"hit the limit without a kill": {map[string]string{
			"a/b/c/memory.events":       events("4", "0"),
			"a/b/c/memory.events.local": events("4", "0"),
		}, service.OOMNone, "", 0},
		"parent": {map[string]string{
			"a/b/c/memory.events":       events("0", "3"),
			"a/b/c/memory.events.local": events("0", "3"),
			"a/b/memory.events.local":   events("2", "0"),
		}, service.OOMAncestor, "/a/b", 3},
		"grandparent": {map[string]string{
			"a/b/c/memory.events":       events("0", "1"),
			"a/b/c/memory.events.local": events("0", "1"),
			"a/memory.events.local":     events("3", "0"),
		}, service.OOMAncestor, "/a", 1},
		"host": {map[string]string{
			"a/b/c/memory.events":       events("0", "1"),
			"a/b/c/memory.events.local": events("0", "1"),
			"a/memory.events":           events("5", "10"),
		}, service.OOMHost, "", 1},
		"root of a cgroup namespace, whose limit is the container's": {map[string]string{
			"a/b/c/memory.events":       events("0", "1"),
			"a/b/c/memory.events.local": events("0", "1"),
			"memory.events.local":       events("1", "0"),
		}, service.OOMAncestor, "/", 1},
		"parent's counter is missing": {map[string]string{
			"a/b/c/memory.events":     events("0", "1"),
			"a/b/memory.events.local": "",
		}, service.OOMNone, UnknownLevel, 1},
		"own counters are missing": {map[string]string{"a/b/c/memory.events": ""}, service.OOMNone, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			tree, root := fixture(t, before)
			g := tree.Group("/a/b/c")
			base, err := g.OOMCounts()
			require.NoError(t, err)
			for file, text := range tc.changes {
				if text == "" {
					require.NoError(t, os.Remove(filepath.Join(root, file)))
					continue
				}
				require.NoError(t, os.WriteFile(filepath.Join(root, file), []byte(text), 0o644))
			}
			verdict, level, kills, err := g.OOMSince(base)
			require.NoError(t, err)
			require.Equal(t, tc.verdict, verdict)
			require.Equal(t, tc.level, level)
			require.Equal(t, tc.kills, kills)
		})
	}
}

func TestOOMCountsKills(t *testing.T) {
	tree, _ := fixture(t, map[string]string{"g/memory.events": "oom_kill 3", "h/": "", "bad/memory.events": "oom_kill x"})
	c, err := tree.Group("/g").OOMCounts()
	require.NoError(t, err)
	require.Equal(t, service.Of(3), c.Kills())
	c, err = tree.Group("/h").OOMCounts()
	require.NoError(t, err)
	require.False(t, c.Kills().Set, "absent is not zero")
	require.Equal(t, service.Of(0), OOMCounts{}.Kills())
	_, err = tree.Group("/bad").OOMCounts()
	require.ErrorContains(t, err, "bad/memory.events holds")
	_, err = tree.Group("/gone").OOMCounts()
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestPopulatedAndProcesses(t *testing.T) {
	tree, _ := fixture(t, map[string]string{
		"g/cgroup.events":   "populated 1\nfrozen 0",
		"g/cgroup.procs":    "9\n3",
		"g/a/cgroup.procs":  "7\n3",
		"g/a/b/":            "",
		"h/cgroup.events":   "frozen 0\npopulated 0",
		"bad/cgroup.events": "populated",
		"bad/cgroup.procs":  "x",
	})
	yes, err := tree.Group("/g").Populated()
	require.NoError(t, err)
	require.True(t, yes)
	no, err := tree.Group("/h").Populated()
	require.NoError(t, err)
	require.False(t, no)
	no, err = tree.Group("/gone").Populated()
	require.NoError(t, err)
	require.False(t, no)
	_, err = tree.Group("/bad").Populated()
	require.Error(t, err)

	pids, err := tree.Group("/g").Processes()
	require.NoError(t, err)
	require.Equal(t, []int{3, 7, 9}, pids)
	pids, err = tree.Group("/gone").Processes()
	require.NoError(t, err)
	require.Empty(t, pids)
	_, err = tree.Group("/bad").Processes()
	require.Error(t, err)

	require.NoError(t, tree.Group("/h").WaitEmpty(t.Context()))
	require.NoError(t, tree.Group("/gone").WaitEmpty(t.Context()))
}

func TestKillRefusesItsOwnGroup(t *testing.T) {
	tree, root := fixture(t, map[string]string{"g/a/cgroup.procs": "", "g/cgroup.kill": ""})
	procs := filepath.Join(root, "g/a/cgroup.procs")
	require.NoError(t, os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0o644))
	require.ErrorContains(t, tree.Group("/g").Kill(), "this process lives in it")
	require.Equal(t, "\n", content(t, root, "g/cgroup.kill"))

	require.NoError(t, os.WriteFile(procs, nil, 0o644))
	require.NoError(t, tree.Group("/g").Kill())
	require.Equal(t, "1\n"[:1], content(t, root, "g/cgroup.kill")[:1])
	require.NoError(t, tree.Group("/gone").Kill())
}

// When the counts from before are lost, an ancestor's may tell of something that
// happened long before the kill.
func TestVerdictWithoutABase(t *testing.T) {
	for name, tc := range map[string]struct {
		own, ownLocal, parentLocal string
		verdict                    service.OOM
		level                      string
	}{
		"own":     {"oom 1\noom_kill 1", "oom 1", "oom 7", service.OOMOwn, "/p/g"},
		"host":    {"oom 0\noom_kill 1", "oom 0", "oom 0", service.OOMHost, ""},
		"unknown": {"oom 0\noom_kill 1", "oom 0", "oom 7", service.OOMNone, UnknownLevel},
		"none":    {"oom 0\noom_kill 0", "oom 0", "oom 7", service.OOMNone, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range map[string]string{
				"p/memory.events.local": tc.parentLocal, "p/g/memory.events": tc.own, "p/g/memory.events.local": tc.ownLocal,
			} {
				full := filepath.Join(root, file)
				require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
				require.NoError(t, os.WriteFile(full, []byte(text+"\n"), 0o644))
			}
			tree, err := OpenFixture(root)
			require.NoError(t, err)
			g := tree.Group("/p/g")
			found, err := g.OOMCounts()
			require.NoError(t, err)
			verdict, level, _, err := g.OOMSince(found.Base())
			require.NoError(t, err)
			require.Equal(t, tc.verdict, verdict)
			require.Equal(t, tc.level, level)
		})
	}
}
