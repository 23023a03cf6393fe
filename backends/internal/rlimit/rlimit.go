// Package rlimit reads and changes the limits that each process has of its own
// (prlimit(2)). No cgroup carries those; a process hands them to its children.
package rlimit

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
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

// Wanted lists what is to be set for l on processes that have the limits before: those
// that were asked for then and are not any more become what a start gives.
func Wanted(l, before service.Limits) ([]service.Rlimit, error) {
	list := l.OfProcesses()
	if !l[service.Rlimits].Set {
		return list, nil
	}
	had, err := service.ParseRlimits(before[service.Rlimits].Text)
	if err != nil {
		return nil, err
	}
	const ourselves = 0
	for _, old := range had {
		if slices.ContainsFunc(list, func(l service.Rlimit) bool { return l.Kind == old.Kind }) {
			continue
		}
		own, err := read(ourselves, old.Kind)
		if err != nil {
			return nil, err
		}
		own.Soft, own.Hard = gate.Unasked(int(old.Kind), own.Hard)
		list = append(list, own)
	}
	return list, nil
}

// passes is how often Set looks for processes that were forked by one
// which it had not reached yet. Each pass reaches a whole generation.
const passes = 100

// Set gives every process that members lists these limits, until it finds none with
// others, so that what is forked meanwhile has them
// too. Raising a hard limit needs CAP_SYS_RESOURCE. A process that ends
// meanwhile is passed over. When one can not be set, those that were are set to what they
// were, and the error tells which could not be: those that were lowered, without
// CAP_SYS_RESOURCE.
func Set(members func() ([]int, error), limits []service.Rlimit) error {
	if len(limits) == 0 {
		return nil
	}
	s := &setting{pidfds: map[int]int{}}
	defer s.close()
	for range passes {
		changed, err := s.all(members, limits)
		if err != nil {
			return errors.Join(err, s.undo())
		}
		if changed == 0 {
			return nil
		}
	}
	return errors.Join(errors.New("processes are forked faster than their limits can be set"), s.undo())
}

// setting is what a Set has done so far. prlimit takes a number: a pidfd that was opened
// before the number was seen among the members tells whether it still is that member's.
type setting struct {
	pidfds map[int]int
	done   []done
}

type done struct {
	pid, pidfd int
	kind       service.RlimitKind
	was        unix.Rlimit
}

func (s *setting) close() {
	for _, fd := range s.pidfds {
		unix.Close(fd)
	}
}

func lives(pidfd int) bool { return unix.PidfdSendSignal(pidfd, 0, nil, 0) == nil }

// hold opens the process that has a number now, unless it is held already.
func (s *setting) hold(pid int) error {
	if fd, held := s.pidfds[pid]; held {
		if lives(fd) {
			return nil
		}
		unix.Close(fd)
		delete(s.pidfds, pid)
		s.done = slices.DeleteFunc(s.done, func(d done) bool { return d.pidfd == fd })
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil // it has ended; EINVAL when its session lives on
	}
	if err != nil {
		return fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	s.pidfds[pid] = fd
	return nil
}

func (s *setting) all(members func() ([]int, error), limits []service.Rlimit) (changed int, err error) {
	pids, err := members()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if err := s.hold(pid); err != nil {
			return 0, err
		}
	}
	still, err := members()
	if err != nil {
		return 0, err
	}
	before := len(s.done)
	for pid, fd := range s.pidfds {
		if !slices.Contains(still, pid) || !lives(fd) {
			continue
		}
		for _, limit := range limits {
			if err := s.one(pid, fd, limit); err != nil {
				return 0, err
			}
		}
	}
	return len(s.done) - before, nil
}

func (s *setting) one(pid, pidfd int, limit service.Rlimit) error {
	want := unix.Rlimit{Cur: limit.Soft, Max: limit.Hard}
	var now unix.Rlimit
	err := unix.Prlimit(pid, int(limit.Kind), nil, &now)
	if err == nil && now != want {
		if err = unix.Prlimit(pid, int(limit.Kind), &want, nil); err == nil {
			s.done = append(s.done, done{pid, pidfd, limit.Kind, now})
		}
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("set the limit %s of process %d to %s: %w", limit.Kind, pid, limit.Value(), err)
	}
	return nil
}

// undo sets what was set to what it was.
func (s *setting) undo() error {
	var failed []error
	for _, d := range slices.Backward(s.done) {
		if !lives(d.pidfd) {
			continue
		}
		if err := unix.Prlimit(d.pid, int(d.kind), &d.was, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = append(failed, fmt.Errorf("the limit %s of process %d stays changed: %w", d.kind, d.pid, err))
		}
	}
	return errors.Join(failed...)
}
