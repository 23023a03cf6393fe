package backendtest

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

// What follows reads /proc and the cgroup tree with code of its own: a judge
// does not borrow the eyes of the accused.

// processesWith lists the processes whose command line holds token. A zombie
// has no command line.
func processesWith(token string) []int {
	var found []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		panic(fmt.Sprintf("cannot look at the processes: %v", err))
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && bytes.Contains(line, []byte(token)) {
			found = append(found, pid)
		}
	}
	return found
}

// stat is what /proc/PID/stat tells.
type stat struct {
	state           byte
	parent, session int
	ticks           uint64 // CPU time in 1/100 s, of all threads
	start           uint64
}

// statOf reads /proc/PID/stat; ok is false when there is no such process.
func statOf(pid int) (s stat, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, false
	}
	// The name, field 2, may hold anything; the last parenthesis closes it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	number := func(field int) uint64 {
		n, err := strconv.ParseUint(fields[field-3], 10, 64)
		if err != nil {
			panic(fmt.Sprintf("cannot read field %d of %q: %v", field, text, err))
		}
		return n
	}
	// Being reaped at this moment, or giving its number to the thread that
	// executes: half of it is gone.
	if fields[0][0] == 'X' || fields[6-3] == "-1" {
		return stat{}, false
	}
	return stat{
		state: fields[0][0], parent: int(number(4)), session: int(number(6)),
		ticks: number(14) + number(15), start: number(22),
	}, true
}

// children lists the children of this process, zombies included.
func children() []int {
	var found []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		panic(fmt.Sprintf("cannot look at the processes: %v", err))
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if s, ok := statOf(pid); ok && s.parent == os.Getpid() {
				found = append(found, pid)
			}
		}
	}
	return found
}

// descriptors lists what this process has open.
func descriptors() []string {
	var open []string
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(fmt.Sprintf("cannot look at the descriptors: %v", err))
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			open = append(open, e.Name()+" "+target)
		}
	}
	return open
}

func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		panic(fmt.Sprintf("cannot read the boot id: %v", err))
	}
	return strings.TrimSpace(string(text))
}

// kernelKeepsExits tells whether the kernel keeps how a process ended for
// those who hold its pidfd, as it does from 6.15 on.
func kernelKeepsExits() bool {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		panic(fmt.Sprintf("cannot read the kernel's version: %v", err))
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(text), "%d.%d", &major, &minor); err != nil {
		panic(fmt.Sprintf("cannot read the kernel's version from %q: %v", text, err))
	}
	return major > 6 || major == 6 && minor >= 15
}

// cgroupsOf lists the cgroups below root whose name holds that of a service.
func cgroupsOf(root string, name service.Name) []string {
	var found []string
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil: // removed while we walked
			return nil
		case d.IsDir() && strings.Contains(d.Name(), name.String()):
			found = append(found, path)
		}
		return nil
	})
	return found
}

// cgroupFile reads a file of the cgroup that ref names.
func (b *bench) cgroupFile(ref service.Ref, file string) string {
	b.Helper()
	text, err := os.ReadFile(filepath.Join(b.CgroupRoot, ref.Cgroup, file))
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// cgroupOf is the cgroup v2 of a process, as /proc tells it.
func cgroupOf(b *bench, pid int) string {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path
		}
	}
	b.Fatalf("process %d is in no cgroup v2: %q", pid, text)
	return ""
}

// usualAffinity is the CPUs that this process, whose own affinity nobody has
// changed, may use.
func usualAffinity() string {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(fmt.Sprintf("cannot read the affinity: %v", err))
	}
	_, list, _ := strings.Cut(string(text), "Cpus_allowed_list:")
	list, _, _ = strings.Cut(list, "\n")
	return strings.TrimSpace(list)
}
