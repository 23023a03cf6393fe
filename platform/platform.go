// Package platform is what the agent stands on: the host, looked at once as
// Facts, each thing that is missing with the reason in a sentence; and the
// platforms' profiles, which say how much an agent nobody configured may use.
//
// What a kernel can do is found by trying it, never by its version.
package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Ability is something that a host has, or has not for a reason.
type Ability struct {
	Has    bool
	Reason string // why not, a sentence without its stop; "" where Has
}

func yes() Ability { return Ability{Has: true} }

func no(format string, args ...any) Ability { return Ability{Reason: fmt.Sprintf(format, args...)} }

// Layout is which versions of cgroups are mounted.
type Layout uint8

// The layouts.
const (
	CgroupNone    Layout = iota // none
	CgroupLegacy                // version 1 alone
	CgroupHybrid                // version 1 with the controllers, version 2 without
	CgroupUnified               // version 2
)

func (l Layout) String() string { return [...]string{"none", "v1", "hybrid", "v2"}[l] }

// Facts is what a host is and offers, as it was when Detect looked.
type Facts struct {
	Hostname  string
	Kernel    string // release
	UID       int    // effective, of this process
	Container string // what kind of container this is, such as "docker"; "" for none that is known

	Cgroups     Layout
	CgroupRoot  string   // where version 2 is mounted, "" where it is not
	Controllers []string // of version 2, as its root offers them

	Systemd    Ability // systemd is PID 1 (sd_booted(3))
	Bus        Ability // and takes calls from us
	Cgroup2    Ability // version 2 carries controllers, and we may write there
	BornInside Ability // clone3(2) with CLONE_INTO_CGROUP
	CgroupKill Ability // cgroup.kill
	Pidfd      Ability // pidfd_open(2), pidfd_send_signal(2), waitid(2) with P_PIDFD
	Pressure   Ability // PSI, /proc/pressure
}

// Detect looks at this host. It takes no more than a few system calls, and two
// seconds where systemd does not answer.
func Detect() Facts { return detect("/", thisKernel) }

// kernel are the questions that only a running kernel answers.
type kernel struct {
	uid        func() int
	pidfd      func() error
	bornInside func() error
}

// detect looks at the host whose files lie below root.
func detect(root string, k kernel) Facts {
	h := host{root}
	f := Facts{
		Hostname:  h.text("/proc/sys/kernel/hostname"),
		Kernel:    h.text("/proc/sys/kernel/osrelease"),
		UID:       k.uid(),
		Container: h.container(),
		Systemd:   h.systemd(),
		Pressure:  h.pressure(),
	}
	f.Bus = h.bus(f.Systemd)
	h.cgroups(&f)
	f.CgroupKill = h.cgroupKill(f)
	if err := k.pidfd(); err != nil {
		f.Pidfd = no("the kernel has no usable pidfds (%v)", err)
	} else {
		f.Pidfd = yes()
	}
	if err := k.bornInside(); err != nil {
		f.BornInside = no("the kernel does not start processes inside of a cgroup (%v)", err)
	} else {
		f.BornInside = yes()
	}
	return f
}

// host reads files below a root, which is a fixture in tests.
type host struct{ root string }

func (h host) path(path string) string { return filepath.Join(h.root, path) }

func (h host) text(path string) string {
	data, err := os.ReadFile(h.path(path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func (h host) exists(path string) bool {
	_, err := os.Lstat(h.path(path))
	return err == nil
}

// container guesses from the marks that container managers leave
// (https://systemd.io/CONTAINER_INTERFACE; the others by their own custom).
func (h host) container() string {
	if kind := h.text("/run/systemd/container"); kind != "" {
		return kind
	}
	for entry := range strings.SplitSeq(h.text("/proc/1/environ"), "\x00") {
		if kind, ok := strings.CutPrefix(entry, "container="); ok && kind != "" {
			return kind
		}
	}
	switch {
	case h.exists("/.dockerenv"):
		return "docker"
	case h.exists("/run/.containerenv"):
		return "podman"
	}
	return ""
}

func (h host) systemd() Ability {
	if info, err := os.Lstat(h.path("/run/systemd/system")); err != nil || !info.IsDir() {
		return no("systemd is not PID 1: there is no directory /run/systemd/system")
	}
	return yes()
}

// sockets are systemd's own, which needs no message bus but is open to root
// only, and the bus.
var sockets = []string{"/run/systemd/private", "/run/dbus/system_bus_socket"}

func (h host) bus(systemd Ability) Ability {
	if !systemd.Has {
		return systemd
	}
	var failures []string
	for _, socket := range sockets {
		conn, err := net.DialTimeout("unix", h.path(socket), time.Second)
		if err == nil {
			conn.Close()
			return yes()
		}
		failures = append(failures, fmt.Sprintf("%s: %v", socket, cause(err)))
	}
	return no("systemd can not be reached (%s)", strings.Join(failures, "; "))
}

// cause is the errno in err, without the paths around it.
func cause(err error) error {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return err
}

func (h host) pressure() Ability {
	_, err := os.ReadFile(h.path("/proc/pressure/memory"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return no("the kernel was built without pressure stall information (CONFIG_PSI)")
	case errors.Is(err, unix.EOPNOTSUPP):
		return no("pressure stall information is switched off; the kernel's parameter psi=1 switches it on")
	case err != nil:
		return no("/proc/pressure/memory can not be read (%v)", cause(err))
	}
	return yes()
}

// cgroups finds out which versions are mounted, and whether version 2 is of use.
func (h host) cgroups(f *Facts) {
	legacy := false
	for line := range strings.SplitSeq(h.text("/proc/self/mountinfo"), "\n") {
		kind, at := mount(line)
		switch {
		case kind == "cgroup":
			legacy = true
		case kind == "cgroup2" && f.CgroupRoot == "":
			f.CgroupRoot = at
		}
	}
	if f.CgroupRoot == "" {
		f.Cgroup2 = no("cgroup v2 is not mounted")
		if legacy {
			f.Cgroups = CgroupLegacy
			f.Cgroup2 = no("only cgroup v1 is mounted")
		}
		return
	}
	f.Controllers = strings.Fields(h.text(f.CgroupRoot + "/cgroup.controllers"))
	f.Cgroups = CgroupUnified
	useful := slices.ContainsFunc(f.Controllers, func(c string) bool { return slices.Contains(needed, c) })
	switch {
	case legacy && !useful:
		f.Cgroups = CgroupHybrid
		f.Cgroup2 = no("cgroup v2 at %s lacks the controllers %s, which cgroup v1 holds", f.CgroupRoot, strings.Join(needed, ", "))
		return
	case !useful:
		f.Cgroup2 = no("cgroup v2 at %s offers none of the controllers %s", f.CgroupRoot, strings.Join(needed, ", "))
		return
	}
	err := unix.Faccessat(unix.AT_FDCWD, h.path(f.CgroupRoot), unix.W_OK, unix.AT_EACCESS)
	if err != nil {
		f.Cgroup2 = no("cgroup v2 at %s can not be written (%v)", f.CgroupRoot, err)
		return
	}
	f.Cgroup2 = yes()
}

// needed are the controllers behind the limits that services have by default.
var needed = []string{"memory", "cpu", "pids"}

// mount reads a line of mountinfo (proc_pid_mountinfo(5)): the filesystem's
// type and where it is mounted.
func mount(line string) (kind, at string) {
	before, after, ok := strings.Cut(line, " - ")
	fields := strings.Fields(before)
	kind, _, _ = strings.Cut(after, " ")
	if !ok || len(fields) < 5 {
		return "", ""
	}
	return kind, strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
}

// cgroupKill looks for cgroup.kill in some cgroup, since the root has none. It
// makes one where there is none yet to look at.
func (h host) cgroupKill(f Facts) Ability {
	if !f.Cgroup2.Has {
		return f.Cgroup2
	}
	root := h.path(f.CgroupRoot)
	entries, err := os.ReadDir(root)
	if err != nil {
		return no("%s can not be read (%v)", f.CgroupRoot, cause(err))
	}
	group := filepath.Join(root, fmt.Sprintf("gladsheim-probe-%d", os.Getpid()))
	if i := slices.IndexFunc(entries, fs.DirEntry.IsDir); i >= 0 {
		group = filepath.Join(root, entries[i].Name())
	} else if err := os.Mkdir(group, 0o755); err != nil {
		return no("no cgroup can be made in %s (%v)", f.CgroupRoot, cause(err))
	} else {
		defer os.Remove(group)
	}
	if _, err := os.Lstat(filepath.Join(group, "cgroup.kill")); err != nil {
		return no("the kernel has no cgroup.kill; processes are frozen and killed one by one")
	}
	return yes()
}

// Backends tells which backends the host offers, in the order of preference,
// and why it does not offer the others. Capabilities are for a backend itself
// to tell.
func (f Facts) Backends() []service.BackendInfo {
	return []service.BackendInfo{
		backend("systemd", f.Systemd, f.rootOnly(), f.Bus, f.Cgroup2, f.Pidfd),
		backend("cgroupfs", f.Cgroup2, f.BornInside, f.Pidfd),
		backend("exec", f.Pidfd),
	}
}

// backend needs all of the abilities; the first that is missing is the reason.
func backend(name string, needs ...Ability) service.BackendInfo {
	for _, a := range needs {
		if !a.Has {
			return service.BackendInfo{Name: name, Reason: a.Reason}
		}
	}
	return service.BackendInfo{Name: name, Available: true}
}

// rootOnly: systemd makes scopes of the system for root alone.
func (f Facts) rootOnly() Ability {
	if f.UID != 0 {
		return no("systemd takes orders from root only, and this is user %d", f.UID)
	}
	return yes()
}
