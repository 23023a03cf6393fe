// Package rlimit reads and changes the limit on open files of processes that
// run (prlimit(2)). No cgroup carries that limit; each process has its own and
// hands it to its children.
package rlimit

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// NoFile is the soft limit of the process pid, the one that holds.
func NoFile(pid int) (uint64, error) {
	var now unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &now); err != nil {
		return 0, fmt.Errorf("read the limit on open files of process %d: %w", pid, err)
	}
	return now.Cur, nil
}

// passes is how often SetNoFile looks for processes that were forked by one
// which it had not reached yet. Each pass reaches a whole generation.
const passes = 100

// SetNoFile gives every process that members lists the limit n, soft and hard,
// until it finds none with another, so that what is forked meanwhile has it
// too. Raising the hard limit needs CAP_SYS_RESOURCE. A process that ends
// meanwhile is passed over.
func SetNoFile(members func() ([]int, error), n uint64) error {
	for range passes {
		changed, err := setAll(members, n)
		if err != nil || changed == 0 {
			return err
		}
	}
	return fmt.Errorf("processes are forked faster than their limit on open files can be set to %d", n)
}

func setAll(members func() ([]int, error), n uint64) (changed int, err error) {
	pids, err := members()
	if err != nil {
		return 0, err
	}
	// prlimit takes a number. A pidfd that was opened before the number was
	// seen among the members tells whether it still is that member's.
	pidfds := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range pidfds {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue // it has ended; EINVAL when its session lives on
		}
		if err != nil {
			return changed, fmt.Errorf("pidfd_open %d: %w", pid, err)
		}
		pidfds[pid] = fd
	}
	still, err := members()
	if err != nil {
		return changed, err
	}
	for pid, fd := range pidfds {
		if !slices.Contains(still, pid) || unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
			continue
		}
		set, err := setOne(pid, n)
		if err != nil {
			return changed, err
		}
		if set {
			changed++
		}
	}
	return changed, nil
}

func setOne(pid int, n uint64) (changed bool, err error) {
	want := unix.Rlimit{Cur: n, Max: n}
	var now unix.Rlimit
	err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &now)
	if err == nil && now != want {
		changed = true
		err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &want, nil)
	}
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("set the limit on open files of process %d to %d: %w", pid, n, err)
	}
	return changed, nil
}
