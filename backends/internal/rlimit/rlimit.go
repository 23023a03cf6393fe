// Package rlimit reads and changes the limits that each process has of its own
// (prlimit(2)). No cgroup carries those; a process hands them to its children.
package rlimit

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// NoFile is the soft limit on open files of the process pid, the one that holds.
func NoFile(pid int) (uint64, error) {
	l, err := read(pid, service.RlimitNoFile)
	return l.Soft, err
}

func read(pid int, kind service.RlimitKind) (service.Rlimit, error) {
	var now unix.Rlimit
	if err := unix.Prlimit(pid, int(kind), nil, &now); err != nil {
		return service.Rlimit{}, fmt.Errorf("read the limit %s of process %d: %w", kind, pid, err)
	}
	return service.Rlimit{Kind: kind, Soft: now.Cur, Hard: now.Max}, nil
}

// Report reads from the process pid what holds of service.Rlimits: those that were
// asked for, or where none were those that limit it; but for those in but, which are
// somebody else's.
func Report(pid int, asked service.Quota, but ...service.RlimitKind) (service.LimitReport, error) {
	report := service.LimitReport{Requested: asked, Enforced: true}
	wanted, err := service.ParseRlimits(asked.Text)
	if err != nil {
		return report, err
	}
	var holds []service.Rlimit
	for _, kind := range service.RlimitKinds() {
		if slices.Contains(but, kind) || len(wanted) > 0 && !slices.ContainsFunc(wanted, func(l service.Rlimit) bool { return l.Kind == kind }) {
			continue
		}
		l, err := read(pid, kind)
		if err != nil {
			return report, err
		}
		if len(wanted) > 0 || l.Soft != service.Unlimited {
			holds = append(holds, l)
		}
	}
	report.Applied = service.OfRlimits(holds)
	report.Effective = report.Applied
	return report, nil
}

// passes is how often Set looks for processes that were forked by one
// which it had not reached yet. Each pass reaches a whole generation.
const passes = 100

// Set gives every process that members lists these limits, until it finds none with
// others, so that what is forked meanwhile has them
// too. Raising a hard limit needs CAP_SYS_RESOURCE. A process that ends
// meanwhile is passed over.
func Set(members func() ([]int, error), limits []service.Rlimit) error {
	if len(limits) == 0 {
		return nil
	}
	for range passes {
		changed, err := setAll(members, limits)
		if err != nil || changed == 0 {
			return err
		}
	}
	return errors.New("processes are forked faster than their limits can be set")
}

func setAll(members func() ([]int, error), limits []service.Rlimit) (changed int, err error) {
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
		for _, limit := range limits {
			set, err := setOne(pid, limit)
			if err != nil {
				return changed, err
			}
			if set {
				changed++
			}
		}
	}
	return changed, nil
}

func setOne(pid int, limit service.Rlimit) (changed bool, err error) {
	want := unix.Rlimit{Cur: limit.Soft, Max: limit.Hard}
	var now unix.Rlimit
	err = unix.Prlimit(pid, int(limit.Kind), nil, &now)
	if err == nil && now != want {
		changed = true
		err = unix.Prlimit(pid, int(limit.Kind), &want, nil)
	}
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("set the limit %s of process %d to %s: %w", limit.Kind, pid, limit.Value(), err)
	}
	return changed, nil
}
