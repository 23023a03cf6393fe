package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// fixture makes a tree of plain files; a name ending in / is a group.
func fixture(t *testing.T, files map[string]string) (Tree, string) {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		full := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
		if name[len(name)-1] == '/' {
			require.NoError(t, os.MkdirAll(full, 0o755))
			continue
		}
		require.NoError(t, os.WriteFile(full, []byte(text+"\n"), 0o644))
	}
	tree, err := OpenFixture(root)
	require.NoError(t, err)
	return tree, root
}

func content(t *testing.T, root, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return string(text)
}

func TestOpenRefusesWhatIsNotCgroup2(t *testing.T) {
	_, err := Open(t.TempDir())
	require.ErrorContains(t, err, "is not on a cgroup2 filesystem")
	_, err = Open("/proc")
	require.ErrorContains(t, err, "is not on a cgroup2 filesystem")
	_, err = Open("/nowhere")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Open("/etc/passwd")
	require.ErrorIs(t, err, unix.ENOTDIR)
}

func TestPathsStayInside(t *testing.T) {
	tree, _ := fixture(t, map[string]string{"a/cgroup.controllers": "cpu"})
	for given, want := range map[string]string{
		"": "/", "/": "/", "a": "/a", "/a/": "/a", "//a//b": "/a/b", "/../../etc": "/etc", "/a/../../b": "/b", ".": "/",
	} {
		require.Equal(t, want, tree.Group(given).Path(), given)
	}
	require.Equal(t, "/", tree.Group("/").Parent().Path())
	require.Equal(t, "/a", tree.Group("/a/b").Parent().Path())
	require.Equal(t, "/a/b", tree.Group("/a").Child("b").Path())
}

func TestLinksAreNotFollowed(t *testing.T) {
	tree, root := fixture(t, map[string]string{"a/cgroup.controllers": "cpu"})
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "memory.max"), nil, 0o644))
	require.NoError(t, os.Symlink(outside, filepath.Join(root, "link")))
	require.NoError(t, os.Symlink(filepath.Join(outside, "memory.max"), filepath.Join(root, "a", "memory.max")))
	var l service.Limits
	l[service.MemoryMax] = service.Of(1 << 20)

	require.ErrorIs(t, tree.Group("/link").Apply(l), unix.ENOTDIR)
	require.ErrorIs(t, tree.Group("/a").Apply(l), unix.ELOOP)
	require.Empty(t, content(t, outside, "memory.max"))
}

func TestOtherFilesystemsAreRefused(t *testing.T) {
	tree, _ := fixture(t, nil)
	tree.magic = unix.CGROUP2_SUPER_MAGIC
	err := tree.Group("/").Apply(service.Limits{})
	require.ErrorContains(t, err, "is not on a cgroup2 filesystem")
}

func TestControllers(t *testing.T) {
	tree, _ := fixture(t, map[string]string{"a/cgroup.controllers": "cpu io memory pids"})
	c, err := tree.Group("/a").Controllers()
	require.NoError(t, err)
	require.Equal(t, []string{"cpu", "io", "memory", "pids"}, c)
	_, err = tree.Group("/b").Controllers()
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestEnable(t *testing.T) {
	base := func(changes map[string]string) map[string]string {
		files := map[string]string{
			"cgroup.controllers":       "cpu io memory pids",
			"cgroup.subtree_control":   "cpu memory pids",
			"cgroup.procs":             "1\n2", // the root may have processes
			"g/cgroup.controllers":     "cpu memory pids",
			"g/cgroup.subtree_control": "memory pids",
			"g/cgroup.type":            "domain",
			"g/cgroup.procs":           "",
		}
		for name, text := range changes {
			files[name] = text
		}
		return files
	}
	for name, tc := range map[string]struct {
		changes     map[string]string
		controllers []string
		fault       string
	}{
		"all there": {nil, []string{"memory", "pids"}, ""},
		"none":      {nil, nil, ""},
		"not offered by the host": {nil, []string{"rdma"},
			"does not offer rdma: the kernel has it disabled"},
		"processes live there": {map[string]string{"g/cgroup.procs": "41\n42"}, []string{"cpu"},
			"g holds 2 processes, 41 the first: a cgroup that has processes of its own can not pass controllers on; move them into a leaf"},
		"processes live there, but nothing is missing": {map[string]string{"g/cgroup.procs": "41"}, []string{"memory"}, ""},
		"threaded": {map[string]string{"g/cgroup.type": "domain threaded"}, []string{"cpu"},
			`is "domain threaded", not "domain"`},
		// A plain file keeps what was written, "+cpu", as the kernel would not.
		"does not stick": {nil, []string{"cpu"}, "g/cgroup.subtree_control lacks cpu after they were written"},
	} {
		t.Run(name, func(t *testing.T) {
			tree, _ := fixture(t, base(tc.changes))
			err := tree.Group("/g").Enable(tc.controllers)
			if tc.fault == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tc.fault)
		})
	}
}

func TestEnableWritesOnlyWhatIsMissing(t *testing.T) {
	tree, root := fixture(t, map[string]string{
		"cgroup.controllers":     "cpu io memory pids",
		"cgroup.subtree_control": "memory",
		"cgroup.procs":           "1",
	})
	// The read-back fails on a plain file; what was written is to be seen.
	require.Error(t, tree.Group("/").Enable([]string{"cpu", "memory", "pids"}))
	require.Equal(t, "+cpu +pids", content(t, root, "cgroup.subtree_control"))
}

func TestApply(t *testing.T) {
	page := uint64(os.Getpagesize())
	for name, tc := range map[string]struct {
		r     service.Resource
		value uint64
		text  string
		want  uint64
	}{
		"memory":             {service.MemoryMax, 1 << 20, "1048576", 1 << 20},
		"rounded to a page":  {service.MemoryHigh, 1<<20 + 1, "1048577", (1<<20 + 1) / page * page},
		"no swap":            {service.MemorySwapMax, 0, "0", 0},
		"memory unlimited":   {service.MemoryMax, service.Unlimited, "max", service.Unlimited},
		"20 percent":         {service.CPUMax, 200_000, "20000 100000", 200_000},
		"two cores and half": {service.CPUMax, 2_500_000, "250000 100000", 2_500_000},
		"least cpu":          {service.CPUMax, 10_000, "1000 100000", 10_000},
		"below least cpu":    {service.CPUMax, 1_000, "1000 100000", 10_000},
		"odd cpu":            {service.CPUMax, 333_333, "33333 100000", 333_330},
		"cpu unlimited":      {service.CPUMax, service.Unlimited, "max 100000", service.Unlimited},
		"cpu weight":         {service.CPUWeight, 10, "10", 10},
		"pids":               {service.PidsMax, 7, "7", 7},
		"io weight":          {service.IOWeight, 250, "default 250", 250},
		"protected":          {service.MemoryLow, 1 << 20, "1048576", 1 << 20},
		"all protected":      {service.MemoryMin, service.Unlimited, "max", service.Unlimited},
		"idle":               {service.CPUIdle, 1, "1", 1},
		"not idle":           {service.CPUIdle, 0, "0", 0},
		"no burst":           {service.CPUBurst, 0, "0", 0},
	} {
		t.Run(name, func(t *testing.T) {
			text, want := encode(tc.r, service.Of(tc.value))
			require.Equal(t, tc.text, text)
			require.Equal(t, service.Of(tc.want), want)
			got, err := decode(tc.r, text)
			require.NoError(t, err)
			if name != "rounded to a page" { // the kernel rounds, decode does not
				require.Equal(t, want, got)
			}

			file := limitFiles[tc.r].name
			tree, root := fixture(t, map[string]string{"g/": "", "g/" + file: ""})
			var l service.Limits
			l[tc.r] = service.Of(tc.value)
			err = tree.Group("/g").Apply(l)
			require.Equal(t, tc.text, content(t, root, "g/"+file)[:len(tc.text)])
			if got != want {
				require.ErrorContains(t, err, "after \""+tc.text+"\" was written")
			}
		})
	}
}

// What was idle has no weight, and no quota is below what was saved of another.
func TestApplyInTurn(t *testing.T) {
	tree, root := fixture(t, map[string]string{"g/cpu.max": "50000 100000", "g/cpu.max.burst": "40000", "g/cpu.idle": "1", "g/cpu.weight": "0"})
	var calls []string
	tree = tree.WithFault(func(call, path string) error {
		if call == "write" {
			calls = append(calls, filepath.Base(path))
		}
		return nil
	})
	_ = tree.Group("/g").Apply(service.Limits{ // a plain file keeps more than was written
		service.CPUMax: service.Of(200_000), service.CPUBurst: service.Of(100_000), service.CPUIdle: service.Of(0), service.CPUWeight: service.Of(70),
	})
	require.Equal(t, []string{"cpu.max.burst", "cpu.idle", "cpu.max", "cpu.weight", "cpu.max.burst"}, calls)
	require.Equal(t, "10000", content(t, root, "g/cpu.max.burst")[:5])
}

// What is saved up is told by the period in which it is spent.
func TestBurstOfAPeriod(t *testing.T) {
	tree, _ := fixture(t, map[string]string{
		"g/cpu.max": "10000 50000", "g/cpu.max.burst": "5000", "h/cpu.max": "nonsense", "h/cpu.max.burst": "5000",
	})
	a, err := tree.Group("/g").Limits(service.Limits{})
	require.NoError(t, err)
	require.Equal(t, service.Of(100_000), a[service.CPUBurst].Applied)
	_, err = tree.Group("/h").Limits(service.Limits{})
	require.ErrorContains(t, err, `h/cpu.max holds "nonsense"`)
}

// What is idle has no weight.
func TestIdleHasNoWeight(t *testing.T) {
	tree, _ := fixture(t, map[string]string{"g/cpu.idle": "1", "g/cpu.weight": "0"})
	a, err := tree.Group("/g").Limits(service.Limits{})
	require.NoError(t, err)
	require.Equal(t, service.LimitReport{Enforced: true}, a[service.CPUWeight])
	require.Equal(t, service.Of(1), a[service.CPUIdle].Effective)
}

func TestUnprotected(t *testing.T) {
	tree, _ := fixture(t, map[string]string{
		"p/memory.low": "4096", "p/memory.min": "0",
		"p/a/memory.low": "8192", "p/a/memory.min": "0",
		"p/b/memory.low": "4096", "p/b/memory.min": "max",
		"p/c/memory.low": "0", "p/c/memory.min": "4096",
		"same/memory.low": "4096", "same/a/memory.low": "4096",
		"none/a/cgroup.procs": "",
		"bad/memory.low":      "0", "bad/a/memory.low": "much",
	})
	lacks := func(group string) service.Limits {
		lacks, err := tree.Group(group).Unprotected()
		require.NoError(t, err)
		return lacks
	}
	require.Equal(t, service.Limits{service.MemoryLow: service.Of(12288), service.MemoryMin: service.Of(service.Unlimited)}, lacks("/p"))
	require.Equal(t, service.Limits{}, lacks("/same"), "as it is, and no file of memory.min")
	require.Equal(t, service.Limits{}, lacks("/none"))
	require.Equal(t, service.Limits{service.MemoryLow: service.Of(0), service.MemoryMin: service.Of(0)}, func() service.Limits {
		tree, _ := fixture(t, map[string]string{"p/memory.low": "4096", "p/memory.min": "4096"})
		lacks, err := tree.Group("/p").Unprotected()
		require.NoError(t, err)
		return lacks
	}(), "nothing is in it any more")
	_, err := tree.Group("/bad").Unprotected()
	require.ErrorContains(t, err, `bad/a/memory.low holds "much"`)
	_, err = tree.Group("/gone").Unprotected()
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestApplyMissingFile(t *testing.T) {
	tree, _ := fixture(t, map[string]string{"g/pids.max": "max"})
	var l service.Limits
	l[service.MemoryMax] = service.Of(1 << 20)
	err := tree.Group("/g").Apply(l)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "g/memory.max")

	l[service.MemoryMax] = service.Of(service.Unlimited)
	l[service.NoFile] = service.Of(64)
	require.NoError(t, tree.Group("/g").Apply(l))
	require.ErrorIs(t, tree.Group("/gone").Apply(l), os.ErrNotExist)
}

func TestLimitsEffective(t *testing.T) {
	tree, _ := fixture(t, map[string]string{
		"a/memory.max":          "1073741824",
		"a/cpu.max":             "150000 100000",
		"a/pids.max":            "max",
		"a/cpu.weight":          "1",
		"a/b/memory.max":        "max",
		"a/b/memory.high":       "536870912",
		"a/b/cpu.max":           "max 100000",
		"a/b/c/memory.max":      "2147483648",
		"a/b/c/memory.high":     "268435456",
		"a/b/c/cpu.max":         "10000 5000",
		"a/b/c/cpu.weight":      "100",
		"a/b/c/pids.max":        "64",
		"a/b/c/io.weight":       "default 50\n8:0 200",
		"x/memory.max":          "4096",
		"x/cpu.max":             "nonsense",
		"x/b/cpu.max":           "max 100000",
		"y/io.weight":           "8:0 200",
		"z/memory.swap.max":     "4096",
		"z/n/cgroup.procs":      "",
		"same/pids.max":         "64",
		"same/n/pids.max":       "64",
		"memory.max":            "1", // a root inside a cgroup namespace has the files too
		"q/n/memory.swap.max":   "max",
		"q/memory.swap.max":     "max",
		"q/memory.max":          "max",
		"q/n/memory.max":        "max",
		"q/n/cgroup.procs":      "",
		"a/b/c/cgroup.procs":    "",
		"a/memory.swap.max":     "0",
		"a/b/memory.swap.max":   "max",
		"a/b/c/memory.swap.max": "max",
	})
	var asked service.Limits
	asked[service.MemoryMax] = service.Of(2 << 30)
	asked[service.NoFile] = service.Of(99)
	a, err := tree.Group("/a/b/c").Limits(asked)
	require.NoError(t, err)
	of := service.Of
	require.Equal(t, service.Applied{
		service.MemoryMax:      {Requested: of(2 << 30), Applied: of(2 << 30), Effective: of(1), SetBy: "/", Enforced: true},
		service.MemoryHigh:     {Applied: of(256 << 20), Effective: of(256 << 20), Enforced: true},
		service.MemorySwapMax:  {Applied: of(service.Unlimited), Effective: of(0), SetBy: "/a", Enforced: true},
		service.CPUMax:         {Applied: of(2_000_000), Effective: of(1_500_000), SetBy: "/a", Enforced: true},
		service.CPUWeight:      {Applied: of(100), Effective: of(100), Enforced: true},
		service.PidsMax:        {Applied: of(64), Effective: of(64), Enforced: true},
		service.IOWeight:       {Applied: of(50), Effective: of(50), Enforced: true},
		service.IODeviceWeight: {Applied: service.OfText("8:0:200"), Effective: service.OfText("8:0:200"), Enforced: true},
		service.NoFile:         {Requested: of(99)},
	}, a)

	a, err = tree.Group("/same/n").Limits(service.Limits{})
	require.NoError(t, err)
	require.Equal(t, service.LimitReport{Applied: of(64), Effective: of(64), Enforced: true}, a[service.PidsMax])

	a, err = tree.Group("/z/n").Limits(service.Limits{})
	require.NoError(t, err)
	require.Equal(t, service.LimitReport{Effective: of(4096), SetBy: "/z"}, a[service.MemorySwapMax])

	_, err = tree.Group("/x/b").Limits(service.Limits{})
	require.ErrorContains(t, err, `x/cpu.max holds "nonsense"`)
	_, err = tree.Group("/y").Limits(service.Limits{})
	require.ErrorContains(t, err, `y/io.weight holds "8:0 200"`)
	_, err = tree.Group("/gone").Limits(service.Limits{})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestDecodeCPU(t *testing.T) {
	n, err := decode(service.CPUMax, "18446744073709551614 1000000")
	require.NoError(t, err)
	require.Equal(t, service.Of(math.MaxUint64-1), n)
	for _, text := range []string{"", "1", "1 0", "-1 100000", "18446744073709551614 1", "a b", "1 2 3", "1 max x"} {
		_, err := decode(service.CPUMax, text)
		require.Error(t, err, text)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint8(service.CPUMax), "20000 100000")
	f.Add(uint8(service.IOWeight), "default 100\n8:0 200")
	f.Add(uint8(service.MemoryMax), "max")
	f.Fuzz(func(t *testing.T, r uint8, text string) {
		decode(service.Resource(r%uint8(service.NumResources)), text)
	})
}

func TestEnforceable(t *testing.T) {
	tree, _ := fixture(t, map[string]string{"g/memory.max": "max", "g/cpu.weight": "100", "g/pids.max": "max"})
	can, err := tree.Group("/g").Enforceable()
	require.NoError(t, err)
	require.Equal(t, [service.NumResources]bool{
		service.MemoryMax: true, service.CPUWeight: true, service.PidsMax: true,
	}, can)
	_, err = tree.Group("/gone").Enforceable()
	require.ErrorIs(t, err, os.ErrNotExist)
}
