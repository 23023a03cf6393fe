package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// refrigerator is where the kernel has tasks wait that a cgroup of version 1 or a
// suspend keeps frozen: that looks as if they waited for a disk.
const refrigerator = "__refrigerator"

// Threads looks at the threads of pid. Unless the first of them is stopped, waits in the
// kernel or has ended, the others are not looked at: then not all can be.
func (f FS) Threads(pid int) (service.Threads, error) {
	first, err := f.Process(pid)
	if err != nil {
		return service.Threads{}, err
	}
	t := service.Threads{Busy: first.State == 'R' || first.State == 'D'}
	if !strings.ContainsRune("TDZ", rune(first.State)) {
		return t, nil
	}
	tasks, err := f.tasks(pid)
	if err != nil {
		return service.Threads{}, err
	}
	stopped, waiting := 0, 0
	for _, task := range tasks {
		switch state, err := f.state(pid, task); {
		case err != nil:
			return service.Threads{}, err
		case state == 'T':
			stopped++
		case state == 'D':
			waiting++
		case state != 'Z' && state != 'X':
			return t, nil
		}
	}
	if waiting == 0 {
		t.Stopped, t.Held = stopped > 0, stopped > 0
		return t, nil
	}
	if wait, err := f.read(pid, "wchan"); err == nil && string(wait) != "0" {
		t.Waits = string(wait)
	}
	if t.Waits == refrigerator {
		return service.Threads{}, nil
	}
	for _, task := range tasks {
		turns, err := f.turns(pid, task)
		if err != nil {
			return service.Threads{}, err
		}
		t.Turns += turns
	}
	t.Held = true
	return t, nil
}

// tasks lists the numbers of pid's threads.
func (f FS) tasks(pid int) ([]int, error) {
	path := f.path(pid, "task")
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, processError(path, err)
	}
	var all []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, n)
		}
	}
	return all, nil
}

// state is that of one thread, 'X' of one that is no more.
func (f FS) state(pid, task int) (byte, error) {
	data, err := f.read(pid, fmt.Sprintf("task/%d/stat", task))
	if errors.Is(err, ErrNoProcess) {
		return 'X', nil
	}
	if err != nil {
		return 0, err
	}
	p, err := parseStat(data)
	if errors.Is(err, errReleased) {
		return 'X', nil
	}
	return p.State, err
}

// turns is how often one thread has given up the CPU, by itself or not.
func (f FS) turns(pid, task int) (sum uint64, err error) {
	data, err := f.read(pid, fmt.Sprintf("task/%d/status", task))
	if errors.Is(err, ErrNoProcess) {
		return 0, nil
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.HasSuffix(name, "voluntary_ctxt_switches") {
			n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("cannot read %s: %w", f.path(pid, "status"), err)
			}
			sum += n
		}
	}
	return sum, err
}

// Load is how many tasks of the host ran, wanted to, or waited in the kernel (D) in the
// latest minute, at an average that forgets (proc_loadavg(5)).
func (f FS) Load() (float64, error) {
	data, err := os.ReadFile(f.root + "/loadavg")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(data), " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("cannot read loadavg: %w", err)
	}
	return load, nil
}

// HoldersOf lists the processes that have a socket open, by its inode. Those whose files
// we may not see are left out. It looks at all files of all processes.
func (f FS) HoldersOf(socket uint64) (pids []int, err error) {
	link := []byte("socket:[" + strconv.FormatUint(socket, 10) + "]")
	target := make([]byte, len(link)+1)
	err = f.EachPID(func(pid int) {
		files, err := os.ReadDir(f.path(pid, "fd"))
		if err != nil {
			return // it is gone, or not for us to see
		}
		if slices.ContainsFunc(files, func(e os.DirEntry) bool {
			n, err := unix.Readlink(f.path(pid, "fd/"+e.Name()), target)
			return err == nil && bytes.Equal(target[:n], link)
		}) {
			pids = append(pids, pid)
		}
	})
	return pids, err
}
