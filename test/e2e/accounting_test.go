package e2e

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// loadTime is how long the books are compared.
func loadTime() time.Duration {
	if soak {
		return time.Minute
	}
	return 20 * time.Second
}

// TestAccountingAgrees: what the command line tells of a service that uses CPU, memory
// and the disk is what the kernel's files say and, of a scope, what systemd does, within
// 2 % all the time; and so is what it tells of all services together.
func TestAccountingAgrees(t *testing.T) {
	oneOfAKind(t)
	w := newWorld(t)
	cli := byCLI{w}
	if !limited(t) {
		info := read(cli, &gladsheimv1.HostInfo{}, "system")
		require.Nil(t, info.ServicesUsage)
		require.Contains(t, info.ServicesUncounted, "no cgroup holds them")
		return
	}
	mode := modes(t)[0]
	program, token := workload(t, "", "books")["exec"].([]string)[0], mine("books")
	// They live until the end, or for long, so that the number of tasks is steady.
	script := fmt.Sprintf("%[1]s -t %[2]s hog-memory %[3]d & %[1]s -t %[2]s pulse 60ms 140ms & while dd if=%[4]s of=/dev/null bs=4k iflag=direct; do :; done",
		program, token, 64*mebibyte, disk(t))
	w.register(fields{"name": "books", "launch": mode, "exec": []string{"/bin/sh", "-c", script},
		"restart": fields{"policy": "never"}, "limits": fields{"cpu_percent": 60, "memory_max": "256MiB"}})
	s := cli.start("books")
	checkPlace(t, s, mode)
	eventually(t, "it has its memory", func() bool { return cgroupKey(t, s.Cgroup, "memory.stat", "anon") > 64*mebibyte })

	books := map[string]func() (figures, bool){"the kernel": func() (figures, bool) { return kernelFigures(t, s.Cgroup), true }}
	if mode == "scope" {
		books["systemd"] = func() (figures, bool) { return systemdFigures(t, filepath.Base(s.Cgroup)) }
	}
	all, leaves := "/gladsheim", []string{"shim"}
	if mode == "scope" {
		all, leaves = "/gladsheim.slice", []string{"gladsheim-cgroups.scope/pause"}
	}
	worst, rounds := map[string]float64{}, 0
	for end := time.Now().Add(loadTime()); time.Now().Before(end); rounds++ {
		for who, book := range books {
			before, ok := book()
			u := cli.usage("books")
			after, _ := book()
			require.True(t, ok, who)
			figuresOf(u).between(t, who, before, after, worst)
		}
		before := togetherFigures(t, all, leaves)
		u := read(cli, &gladsheimv1.HostInfo{}, "system").ServicesUsage
		require.NotNil(t, u)
		figuresOf(u).between(t, "all together", before, togetherFigures(t, all, leaves), worst)
	}
	last := figuresOf(cli.usage("books"))
	t.Logf("%d rounds, at the end %v; furthest off, in percent: %v", rounds, last, worst)
	require.Greater(t, last["cpu"], 3e6, "in µs: the load was none")
	require.Greater(t, last["read"], float64(mebibyte), "the disk was not used")
	w.mustCLI("stop", "books")
	text := w.mustCLI("system")
	require.Contains(t, text, "Services: ")
	t.Log(text)
}

// figures are what the books hold of one cgroup, by name. What is not counted is missing.
type figures map[string]float64

func figuresOf(u *gladsheimv1.ResourceUsage) figures {
	f := figures{"memory": float64(u.MemoryBytes), "cpu": float64(u.CpuTimeUsec)}
	if u.PidsCurrent != nil {
		f["tasks"] = float64(*u.PidsCurrent)
	}
	if io := u.Io; io != nil {
		f["read"], f["written"] = float64(io.GetReadBytes()), float64(io.GetWriteBytes())
	}
	return f
}

// between holds that each figure is between those that were read before and after it, or
// off by 2 % at most; worst is how far off, in percent.
func (f figures) between(t *testing.T, who string, before, after figures, worst map[string]float64) {
	t.Helper()
	for name, was := range before {
		is, has := after[name]
		ours, told := f[name]
		require.True(t, has && told, "%s: nobody tells %s", who, name)
		off := 100 * max(min(was, is)-ours, ours-max(was, is), 0) / math.Max(ours, 1)
		key := who + ": " + name
		worst[key] = max(worst[key], off)
		require.LessOrEqual(t, off, 2.0, "%s: %s was %.0f, then %.0f; told was %.0f", who, name, was, is, ours)
	}
}

// kernelFigures reads the files of a cgroup.
func kernelFigures(t *testing.T, group string) figures {
	t.Helper()
	f := figures{"cpu": float64(cgroupKey(t, group, "cpu.stat", "usage_usec"))}
	for name, file := range map[string]string{"memory": "memory.current", "tasks": "pids.current"} {
		n, err := strconv.ParseFloat(cgroupFile(t, group, file), 64)
		require.NoError(t, err)
		f[name] = n
	}
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, "io.stat"))
	if os.IsNotExist(err) {
		return f
	}
	require.NoError(t, err)
	f["read"], f["written"] = 0, 0
	for field := range strings.FieldsSeq(string(text)) {
		for key, name := range map[string]string{"rbytes=": "read", "wbytes=": "written"} {
			if value, ok := strings.CutPrefix(field, key); ok {
				n, err := strconv.ParseFloat(value, 64)
				require.NoError(t, err)
				f[name] += n
			}
		}
	}
	return f
}

// togetherFigures are those of all services: what is in no leaf of others.
func togetherFigures(t *testing.T, group string, leaves []string) figures {
	t.Helper()
	f := kernelFigures(t, group)
	for _, leaf := range leaves {
		for name, n := range kernelFigures(t, filepath.Join(group, leaf)) {
			f[name] -= n
		}
	}
	return f
}

// systemdFigures asks systemd of a unit; false if it does not answer with the first.
func systemdFigures(t *testing.T, unit string) (f figures, ok bool) {
	t.Helper()
	f = figures{}
	for name, property := range map[string]string{"memory": "MemoryCurrent", "cpu": "CPUUsageNSec", "tasks": "TasksCurrent", "read": "IOReadBytes", "written": "IOWriteBytes"} {
		n, err := strconv.ParseUint(systemctl(t, unit, property), 10, 64)
		if err != nil || n == math.MaxUint64 { // "[not set]", where it does not count that
			continue
		}
		f[name] = float64(n)
		if name == "cpu" {
			f[name] /= 1000
		}
	}
	return f, f["memory"] > 0 && f["cpu"] > 0 && f["tasks"] > 0
}

// disk is the largest of this host's disks.
func disk(t *testing.T) (device string) {
	t.Helper()
	sizes, err := filepath.Glob("/sys/block/[a-z]*/size")
	require.NoError(t, err)
	most := uint64(0)
	for _, file := range sizes {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		sectors, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		require.NoError(t, err)
		if sectors > most {
			device, most = "/dev/"+filepath.Base(filepath.Dir(file)), sectors
		}
	}
	require.NotEmpty(t, device, "this host has no disk to read")
	return device
}
