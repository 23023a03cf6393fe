package platform

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// fixture is a host made of files: path → content, a directory where the path
// ends in a slash, a listening socket where the content is "socket".
func fixture(t *testing.T, files map[string]string) string {
	t.Helper()
	root, err := os.MkdirTemp("", "host") // t.TempDir is too long for sockets
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(root) })
	for path, content := range files {
		full := filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
		switch {
		case strings.HasSuffix(path, "/"):
			require.NoError(t, os.MkdirAll(full, 0o755))
		case content == "socket":
			l, err := net.Listen("unix", full)
			require.NoError(t, err)
			t.Cleanup(func() { l.Close() })
		default:
			require.NoError(t, os.WriteFile(full, []byte(content), 0o644))
		}
	}
	return root
}

// able is a kernel that can do all, asked by root.
var able = kernel{
	uid:        func() int { return 0 },
	pidfd:      func() error { return nil },
	bornInside: func() error { return nil },
}

const (
	unifiedMount = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	hybridMounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)

// debian is a host where nothing is missing.
func debian() map[string]string {
	return map[string]string{
		"/proc/sys/kernel/hostname":             "hall\n",
		"/proc/sys/kernel/osrelease":            "6.12.57+deb13-cloud-amd64\n",
		"/proc/sys/kernel/random/boot_id":       "0ab4fd4c-2a5e-4d39-b4a3-0f3c6c54a7c1\n",
		"/proc/stat":                            "cpu  1 2 3\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\n",
		"/proc/pressure/memory":                 "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"/proc/self/mountinfo":                  "22 27 0:21 / /proc rw - proc proc rw\n" + unifiedMount,
		"/run/systemd/system/":                  "",
		"/run/systemd/private":                  "socket",
		"/run/dbus/system_bus_socket":           "socket",
		"/sys/fs/cgroup/cgroup.controllers":     "cpuset cpu io memory hugetlb pids rdma misc\n",
		"/sys/fs/cgroup/init.scope/cgroup.kill": "",
	}
}

func without(files map[string]string, paths ...string) map[string]string {
	for _, p := range paths {
		delete(files, p)
	}
	return files
}

func with(files map[string]string, path, content string) map[string]string {
	files[path] = content
	return files
}

func available(f Facts) (names []string) {
	for _, b := range f.Backends() {
		if b.Available {
			names = append(names, b.Name)
		}
	}
	return names
}

func reasons(f Facts) map[string]string {
	why := map[string]string{}
	for _, b := range f.Backends() {
		if !b.Available {
			why[b.Name] = b.Reason
		}
	}
	return why
}

func TestDetectWhereNothingIsMissing(t *testing.T) {
	f := detect(fixture(t, debian()), able)
	yes := Ability{Has: true}
	require.Equal(t, Facts{
		Hostname: "hall", Kernel: "6.12.57+deb13-cloud-amd64",
		Cgroups: CgroupUnified, CgroupRoot: "/sys/fs/cgroup",
		Controllers: []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"},
		Systemd:     yes, Bus: yes, Cgroup2: yes, BornInside: yes, CgroupKill: yes, Pidfd: yes, Pressure: yes,
	}, f)
	require.Equal(t, []string{"systemd", "cgroupfs", "exec"}, available(f))
	for _, finding := range f.Findings() {
		require.Equal(t, service.SeverityOK, finding.Level, finding.Title)
		require.Empty(t, finding.Fix)
	}
}

func TestDetectWhatIsMissing(t *testing.T) {
	asUser := able
	asUser.uid = func() int { return 1000 }
	old := able
	old.bornInside = func() error { return unix.EINVAL }
	ancient := able
	ancient.pidfd = func() error { return unix.ENOSYS }
	noSystemd := "systemd is not PID 1: there is no directory /run/systemd/system"
	hybrid := "cgroup v2 at /sys/fs/cgroup/unified lacks the controllers memory, cpu, pids, which cgroup v1 holds"
	for name, c := range map[string]struct {
		files     map[string]string
		kernel    kernel
		available []string
		reasons   map[string]string
		problems  []string // titles of findings that are not OK
	}{
		"no systemd": {
			files: without(debian(), "/run/systemd/system/", "/run/systemd/private", "/run/dbus/system_bus_socket"), kernel: able,
			available: []string{"cgroupfs", "exec"}, reasons: map[string]string{"systemd": noSystemd},
		},
		"a plain user": {
			files: without(debian(), "/run/systemd/private"), kernel: asUser, available: []string{"cgroupfs", "exec"},
			reasons:  map[string]string{"systemd": "systemd takes orders from root only, and this is user 1000"},
			problems: []string{"the agent is user 1000, not root"},
		},
		"systemd out of reach": {
			files: without(debian(), "/run/systemd/private", "/run/dbus/system_bus_socket"), kernel: able, available: []string{"cgroupfs", "exec"},
			reasons: map[string]string{"systemd": "systemd can not be reached (/run/systemd/private: no such file or directory; " +
				"/run/dbus/system_bus_socket: no such file or directory)"},
			problems: []string{"systemd can not be reached (/run/systemd/private: no such file or directory; /run/dbus/system_bus_socket: no such file or directory)"},
		},
		"nobody listens": {
			files: with(without(debian(), "/run/systemd/private"), "/run/dbus/system_bus_socket", ""), kernel: able, available: []string{"cgroupfs", "exec"},
			reasons: map[string]string{"systemd": "systemd can not be reached (/run/systemd/private: no such file or directory; " +
				"/run/dbus/system_bus_socket: connection refused)"},
			problems: []string{"systemd can not be reached (/run/systemd/private: no such file or directory; /run/dbus/system_bus_socket: connection refused)"},
		},
		"hybrid": {
			files: with(with(without(debian(), "/run/systemd/system/"), "/proc/self/mountinfo", hybridMounts),
				"/sys/fs/cgroup/unified/cgroup.controllers", "hugetlb\n"), kernel: able, available: []string{"exec"},
			reasons: map[string]string{"systemd": noSystemd, "cgroupfs": hybrid}, problems: []string{hybrid},
		},
		"version 1": {
			files: with(debian(), "/proc/self/mountinfo", strings.SplitAfter(hybridMounts, "rw,memory\n")[0]), kernel: able, available: []string{"exec"},
			reasons:  map[string]string{"systemd": "only cgroup v1 is mounted", "cgroupfs": "only cgroup v1 is mounted"},
			problems: []string{"only cgroup v1 is mounted"},
		},
		"no cgroups": {
			files: without(debian(), "/proc/self/mountinfo"), kernel: able, available: []string{"exec"},
			reasons:  map[string]string{"systemd": "cgroup v2 is not mounted", "cgroupfs": "cgroup v2 is not mounted"},
			problems: []string{"cgroup v2 is not mounted"},
		},
		"nothing delegated": {
			files: with(debian(), "/sys/fs/cgroup/cgroup.controllers", "\n"), kernel: able, available: []string{"exec"},
			reasons: map[string]string{
				"systemd":  "cgroup v2 at /sys/fs/cgroup offers none of the controllers memory, cpu, pids",
				"cgroupfs": "cgroup v2 at /sys/fs/cgroup offers none of the controllers memory, cpu, pids",
			},
			problems: []string{"cgroup v2 at /sys/fs/cgroup offers none of the controllers memory, cpu, pids"},
		},
		"no memory controller": {
			files: with(debian(), "/sys/fs/cgroup/cgroup.controllers", "cpu pids\n"), kernel: able, available: []string{"systemd", "cgroupfs", "exec"},
			reasons: map[string]string{}, problems: []string{"cgroup v2 lacks the controllers memory, io"},
		},
		"no PSI": {
			files: without(debian(), "/proc/pressure/memory"), kernel: able, available: []string{"systemd", "cgroupfs", "exec"}, reasons: map[string]string{},
			problems: []string{"the kernel was built without pressure stall information (CONFIG_PSI)"},
		},
		"an old kernel": {
			files: without(debian(), "/sys/fs/cgroup/init.scope/cgroup.kill"), kernel: old, available: []string{"systemd", "exec"},
			reasons: map[string]string{"cgroupfs": "the kernel does not start processes inside of a cgroup (invalid argument)"},
			problems: []string{
				"the kernel does not start processes inside of a cgroup (invalid argument)",
				"the kernel has no cgroup.kill; processes are frozen and killed one by one",
			},
		},
		"an ancient kernel": {
			files: debian(), kernel: ancient,
			reasons: map[string]string{
				"systemd":  "the kernel has no usable pidfds (function not implemented)",
				"cgroupfs": "the kernel has no usable pidfds (function not implemented)",
				"exec":     "the kernel has no usable pidfds (function not implemented)",
			},
			problems: []string{"the kernel has no usable pidfds (function not implemented)"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := detect(fixture(t, c.files), c.kernel)
			require.Equal(t, c.available, available(f))
			require.Equal(t, c.reasons, reasons(f))
			var problems []string
			for _, finding := range f.Findings() {
				if finding.Level != service.SeverityOK {
					require.NotEmpty(t, finding.Detail)
					require.NotEmpty(t, finding.Fix)
					problems = append(problems, finding.Title)
				}
			}
			require.Equal(t, c.problems, problems)
		})
	}
}

// TestReadOnlyCgroups: a container whose cgroups are there to look at.
func TestReadOnlyCgroups(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write every fixture")
	}
	root := fixture(t, debian())
	cgroups := filepath.Join(root, "/sys/fs/cgroup")
	require.NoError(t, os.Chmod(cgroups, 0o555))
	t.Cleanup(func() { os.Chmod(cgroups, 0o755) })
	f := detect(root, able)
	require.Equal(t, Ability{Reason: "cgroup v2 at /sys/fs/cgroup can not be written (permission denied)"}, f.Cgroup2)
}

func TestProbeCgroupIsRemoved(t *testing.T) {
	root := fixture(t, without(debian(), "/sys/fs/cgroup/init.scope/cgroup.kill"))
	require.NoError(t, os.RemoveAll(filepath.Join(root, "/sys/fs/cgroup/init.scope")))
	require.False(t, detect(root, able).CgroupKill.Has)
	entries, err := os.ReadDir(filepath.Join(root, "/sys/fs/cgroup"))
	require.NoError(t, err)
	require.False(t, slices.ContainsFunc(entries, os.DirEntry.IsDir), "the probe is gone")
}

func TestContainers(t *testing.T) {
	for path, c := range map[string]struct{ content, want string }{
		"/run/systemd/container": {"systemd-nspawn\n", "systemd-nspawn"},
		"/proc/1/environ":        {"PATH=/bin\x00container=lxc\x00", "lxc"},
		"/.dockerenv":            {"", "docker"},
		"/run/.containerenv":     {"", "podman"},
		"/proc/1/comm":           {"init", ""},
	} {
		f := detect(fixture(t, map[string]string{path: c.content}), able)
		require.Equal(t, c.want, f.Container, path)
	}
}

func TestMount(t *testing.T) {
	for line, want := range map[string][2]string{
		unifiedMount: {"cgroup2", "/sys/fs/cgroup"},
		`41 31 0:38 / /mnt/a\040b\134c rw shared:1 master:2 - cgroup2 none rw`: {"cgroup2", `/mnt/a b\c`},
		"": {"", ""}, "41 31 - cgroup2": {"", ""}, "nonsense": {"", ""},
	} {
		kind, at := mount(line)
		require.Equal(t, want, [2]string{kind, at}, line)
	}
}

// TestThisHost: the kernel's own answers, on whatever runs the test, must agree
// with what the host is declared to offer.
func TestThisHost(t *testing.T) {
	f := Detect()
	require.NotEmpty(t, f.Kernel)
	require.Equal(t, os.Geteuid(), f.UID)
	t.Logf("%+v", f)
	for _, finding := range f.Findings() {
		t.Logf("%s: %s", finding.Level, finding.Title)
	}
	offers := strings.Fields(os.Getenv("GLADSHEIM_TEST_OFFERS"))
	if len(offers) == 0 {
		t.Skip("GLADSHEIM_TEST_OFFERS is unset: nothing is declared about this host")
	}
	backend := map[string]string{"systemd": "systemd", "cgroup2": "cgroupfs", "exec": "exec"}
	for _, offer := range offers {
		if name, ok := backend[offer]; ok {
			require.Contains(t, available(f), name, "%v", reasons(f))
		}
	}
	if !slices.Contains(offers, "systemd") {
		require.NotContains(t, available(f), "systemd")
	}
	if slices.Contains(offers, "cgroup2") {
		require.True(t, f.BornInside.Has, f.BornInside.Reason)
		require.True(t, f.CgroupKill.Has, f.CgroupKill.Reason)
		require.Equal(t, CgroupUnified, f.Cgroups)
	}
}

func TestLayoutNames(t *testing.T) {
	require.Equal(t, "none v1 hybrid v2", strings.Join([]string{
		CgroupNone.String(), CgroupLegacy.String(), CgroupHybrid.String(), CgroupUnified.String(),
	}, " "))
}

func TestFixes(t *testing.T) {
	missing := func(f Facts) string { return f.cgroupFinding().Fix }
	require.Contains(t, missing(Facts{Cgroups: CgroupUnified, UID: 1}), "as root")
	require.Contains(t, missing(Facts{Cgroups: CgroupUnified, Container: "docker"}), "delegate")
	require.Contains(t, missing(Facts{Cgroups: CgroupNone}), "mount")
	require.Contains(t, missing(Facts{Cgroups: CgroupHybrid}), "cgroup_no_v1=all")
}

func TestCause(t *testing.T) {
	err := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.ECONNREFUSED)}
	require.Equal(t, unix.ECONNREFUSED, cause(err))
	other := errors.New("other")
	require.Equal(t, other, cause(other))
}
