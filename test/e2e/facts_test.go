package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// What the kernel and systemd say, asked without the agent.

// marked lists the processes whose command line holds token, with no token those
// of all workloads. It asks /proc, and nobody else.
func marked(t require.TestingT, token string) []int {
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && bytes.Contains(line, []byte(mine(token))) {
			out = append(out, pid)
		}
	}
	return out
}

// cgroupOf is the v2 path of a process, as /proc has it, and nothing when it is
// gone.
func cgroupOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return path
		}
	}
	return ""
}

// parentOf is the parent of a process, field 4 of proc_pid_stat(5).
func parentOf(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	parent, err := strconv.Atoi(fields[1])
	require.NoError(t, err)
	return parent
}

// cgroupFile reads a file of a cgroup as the kernel shows it.
func cgroupFile(t *testing.T, group, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, name))
	require.NoError(t, err)
	return strings.TrimSpace(string(text))
}

// cgroupKey reads one line of a flat-keyed cgroup file.
func cgroupKey(t *testing.T, group, name, key string) uint64 {
	t.Helper()
	for line := range strings.SplitSeq(cgroupFile(t, group, name), "\n") {
		if value, ok := strings.CutPrefix(line, key+" "); ok {
			n, err := strconv.ParseUint(value, 10, 64)
			require.NoError(t, err)
			return n
		}
	}
	require.Fail(t, "missing", "%s in %s of %s", key, name, group)
	return 0
}

// ourCgroups lists the cgroups of services, wherever they lie.
func ourCgroups(t *testing.T) []string {
	t.Helper()
	var out []string
	if !limited(t) {
		return nil
	}
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went away while we looked
		}
		name := filepath.Base(path)
		if strings.HasPrefix(name, "svc-") || strings.HasPrefix(name, "gladsheim-") && strings.HasSuffix(name, ".scope") && name != "gladsheim-cgroups.scope" {
			out = append(out, path)
		}
		return nil
	})
	require.NoError(t, err)
	return out
}

// ourUnits lists the units of services, whatever their state.
func ourUnits(t *testing.T) []string {
	t.Helper()
	if !offers(t, "systemd") {
		return nil
	}
	out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "gladsheim-*").Output()
	require.NoError(t, err)
	var units []string
	for line := range strings.Lines(string(out)) {
		if unit := strings.Fields(line)[0]; unit != "gladsheim-cgroups.scope" {
			units = append(units, unit)
		}
	}
	return units
}

// relative is a process that must end with its service. Its start time tells it
// from a later one of the same number.
type relative struct {
	pid   int
	start string
}

func (r relative) lives() bool {
	stat, err := statOf(r.pid)
	return err == nil && stat[19] == r.start
}

// statOf is /proc/PID/stat from the state on, its third field (proc_pid_stat(5)).
func statOf(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])), nil
}

// family is every process of a running service: the main process, everything
// that descends from it, and whatever else its cgroup holds.
func family(t *testing.T, s *gladsheimv1.ServiceStatus) []relative {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	children, starts := map[int][]int{}, map[int]string{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if stat, err := statOf(pid); err == nil {
			parent, err := strconv.Atoi(stat[1])
			require.NoError(t, err)
			children[parent], starts[pid] = append(children[parent], pid), stat[19]
		}
	}
	pids := []int{int(s.ProcessId)}
	for i := 0; i < len(pids); i++ {
		pids = append(pids, children[pids[i]]...)
	}
	if s.Cgroup != "" {
		for field := range strings.FieldsSeq(cgroupFile(t, s.Cgroup, "cgroup.procs")) {
			pid, err := strconv.Atoi(field)
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	var out []relative
	for _, pid := range slices.Compact(pids) {
		out = append(out, relative{pid, starts[pid]})
	}
	return out
}

// systemctl asks systemd for one property of a unit.
func systemctl(t *testing.T, unit, property string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", unit, "-p", property, "--value").Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

// checkPlace holds that a service was launched in that mode: where it is, and
// all of its processes with it.
func checkPlace(t *testing.T, s *gladsheimv1.ServiceStatus, mode string) {
	t.Helper()
	backend, launch := "exec", "exec"
	switch mode {
	case "scope":
		backend, launch = "systemd", "scope"
	case "cgroup":
		backend, launch = "cgroupfs", "cgroup"
	}
	require.Equal(t, []string{backend, launch}, []string{s.Backend, s.Launch})
	if mode == "auto" {
		require.Empty(t, s.Unit)
		require.Empty(t, s.Cgroup)
		return
	}
	require.NotEmpty(t, s.Cgroup)
	for _, p := range family(t, s) {
		if group := cgroupOf(p.pid); p.lives() {
			require.Equal(t, s.Cgroup, group, "of process %d", p.pid)
		}
	}
	if mode == "cgroup" {
		require.Empty(t, s.Unit)
		checkCell(t, s.Cgroup, s.ServiceName)
		require.Equal(t, offers(t, "systemd"), strings.HasPrefix(s.Cgroup, "/gladsheim.slice/gladsheim-cgroups.scope/"), s.Cgroup)
		return
	}
	require.Equal(t, s.Unit, path.Base(s.Cgroup))
	require.True(t, strings.HasPrefix(s.Cgroup, "/gladsheim.slice/"), s.Cgroup)
	require.Equal(t, "active", systemctl(t, s.Unit, "ActiveState"))
	require.Equal(t, s.Cgroup, systemctl(t, s.Unit, "ControlGroup"))
}

// bounds are limits as a story has set them.
type bounds struct {
	memory, cpu, pids uint64 // bytes, percent of a core, tasks
}

// checkCell holds that a path is that of a service's own cgroup or scope.
func checkCell(t *testing.T, group, name string) {
	t.Helper()
	require.Regexp(t, `^/.*/(svc-`+name+`-[0-9a-f]{8}|gladsheim-`+name+`-[0-9a-f]{8}\.scope)$`, group)
}

// checkLimits holds the limits of a running service against what the kernel and
// systemd say, and so what the agent says of them.
func checkLimits(t *testing.T, s *gladsheimv1.ServiceStatus, want bounds) {
	t.Helper()
	if !limited(t) {
		require.ElementsMatch(t, []string{"memory_max", "memory_swap_max", "cpu_percent", "pids_max"}, s.UnenforcedLimits)
		return
	}
	require.Empty(t, s.UnenforcedLimits)
	require.Equal(t, fmt.Sprint(want.memory), cgroupFile(t, s.Cgroup, "memory.max"))
	require.Equal(t, "0", cgroupFile(t, s.Cgroup, "memory.swap.max"))
	require.Equal(t, fmt.Sprintf("%d 100000", want.cpu*1000), cgroupFile(t, s.Cgroup, "cpu.max"))
	require.Equal(t, fmt.Sprint(want.pids), cgroupFile(t, s.Cgroup, "pids.max"))
	require.Equal(t, "1", cgroupFile(t, s.Cgroup, "memory.oom.group"))
	reports := map[string]*gladsheimv1.LimitReport{}
	for _, r := range s.Limits {
		reports[r.Name] = r
	}
	for name, value := range map[string]uint64{"memory_max": want.memory, "memory_swap_max": 0, "cpu_percent": want.cpu, "pids_max": want.pids} {
		r := reports[name]
		require.NotNil(t, r, "%s in %v", name, s.Limits)
		require.True(t, r.Enforced, "%v", r)
		for _, told := range []*float64{r.Requested, r.Applied, r.Effective} {
			require.NotNil(t, told, "%v", r)
			require.EqualValues(t, value, *told, "%v", r)
		}
		require.Empty(t, r.SetBy, "it is its own: %v", r)
	}
	if s.Unit == "" {
		return
	}
	require.Equal(t, fmt.Sprint(want.memory), systemctl(t, s.Unit, "MemoryMax"))
	require.Equal(t, time.Duration(want.cpu*uint64(10*time.Millisecond)), systemdTime(t, systemctl(t, s.Unit, "CPUQuotaPerSecUSec")))
	require.Equal(t, fmt.Sprint(want.pids), systemctl(t, s.Unit, "TasksMax"))
}

// systemdTime reads a time as systemctl prints it, such as 1.500000s or 900ms.
func systemdTime(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	require.NoError(t, err)
	return d
}

// checkUsage holds what the agent tells of a service's use against its cgroup.
func checkUsage(t *testing.T, s *gladsheimv1.ServiceStatus, read func() *gladsheimv1.ResourceUsage) {
	t.Helper()
	if !limited(t) {
		u := read()
		require.Greater(t, u.MemoryBytes, uint64(mebibyte))
		require.Equal(t, "procfs", u.Source)
		return
	}
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(cgroupFile(t, s.Cgroup, name), 10, 64)
		require.NoError(t, err)
		return n
	}
	cpu := func() uint64 { return cgroupKey(t, s.Cgroup, "cpu.stat", "usage_usec") }
	before := cpu()
	u := read()
	require.Equal(t, "cgroup", u.Source)
	require.GreaterOrEqual(t, u.CpuTimeUsec, before)
	require.LessOrEqual(t, u.CpuTimeUsec, cpu())
	require.InEpsilon(t, number("memory.current"), u.MemoryBytes, 0.25)
	require.InDelta(t, float64(u.MemoryBytes)/mebibyte, u.MemoryMb, 0.01)
	require.InDelta(t, number("pids.current"), u.GetPidsCurrent(), 2)
}

// checkGone holds that nothing of an incarnation is left.
func checkGone(t *testing.T, s *gladsheimv1.ServiceStatus, before []relative) {
	t.Helper()
	require.NotEmpty(t, before)
	for _, r := range before {
		require.False(t, r.lives(), "process %d", r.pid)
	}
	if s.Cgroup != "" {
		require.NoDirExists(t, filepath.Join("/sys/fs/cgroup", s.Cgroup))
	}
	if s.Unit != "" {
		require.Equal(t, "not-found", systemctl(t, s.Unit, "LoadState"))
	}
}
