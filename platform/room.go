package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Room is what all that runs beside us may use together, where that may be less than
// the machine has.
type Room struct {
	// Memory is the memory.max of the root of the cgroup namespace that we are in
	// (cgroup_namespaces(7)), in bytes; unset where there is none. The root of a host has
	// none, nor has a container that shares the host's namespace.
	Memory   service.Quota
	Used     uint64 // bytes of Memory that are not to be had: files that nobody has used lately are
	MemoryBy string // the file that says so

	// CPUs are cpuset.cpus.effective of that root, or else those that the agent may run
	// on (sched_getaffinity(2)), and what it starts; none where neither tells.
	CPUs   service.Numbers
	CPUsBy string // the file that says so, or the call
}

// Room asks anew each time, for somebody may change it at any time. It may be called by
// many goroutines at once. An error names the file.
func (f Facts) Room() (Room, error) { return roomBelow(f.CgroupRoot, affinity) }

// roomBelow looks at the cgroup at root, "" for none.
func roomBelow(root string, affinity func() service.Numbers) (r Room, err error) {
	if root != "" {
		if err := r.lookAtMemory(root); err != nil {
			return Room{}, err
		}
		if err := r.lookAtCPUs(root); err != nil {
			return Room{}, err
		}
	}
	if len(r.CPUs) == 0 {
		if r.CPUs = affinity(); len(r.CPUs) > 0 {
			r.CPUsBy = "sched_getaffinity"
		}
	}
	return r, nil
}

func (r *Room) lookAtMemory(root string) error {
	limit := filepath.Join(root, "memory.max")
	text, err := read(limit)
	if text == "" || text == "max" {
		return err
	}
	bytes, err := number(limit, text)
	if err != nil {
		return err
	}
	r.Memory, r.MemoryBy = service.Of(bytes), limit
	current := filepath.Join(root, "memory.current")
	if text, err = read(current); err != nil {
		return err
	}
	if r.Used, err = number(current, text); err != nil {
		return err
	}
	stat := filepath.Join(root, "memory.stat")
	if text, err = read(stat); err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "inactive_file "); ok {
			inactive, err := number(stat, strings.TrimSpace(value))
			r.Used -= min(r.Used, inactive)
			return err
		}
	}
	return nil
}

func (r *Room) lookAtCPUs(root string) error {
	file := filepath.Join(root, "cpuset.cpus.effective")
	text, err := read(file)
	if err != nil {
		return err
	}
	if r.CPUs, err = service.ParseNumbers(text); err != nil {
		return fmt.Errorf("%s holds %q: %w", file, text, err)
	}
	r.CPUsBy = file
	return nil
}

// read is what a file holds, "" if there is none.
func read(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return strings.TrimSpace(string(data)), nil
}

func number(file, text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s holds %q: %w", file, text, err)
	}
	return n, nil
}

// affinity are the CPUs that this process may run on; none if the kernel does not tell,
// as with more of them than there is room for here.
func affinity() (cpus service.Numbers) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &set); err != nil {
		return nil
	}
	for i, left := 0, set.Count(); left > 0; i++ {
		if set.IsSet(i) {
			cpus, left = append(cpus, service.Span{First: i, Last: i}), left-1
		}
	}
	return cpus.Joined()
}
