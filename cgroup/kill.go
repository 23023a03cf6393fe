package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Populated tells whether a process lives in the group or below it. Of a group
// that is gone it says no.
func (g Group) Populated() (bool, error) {
	text, err := g.read("cgroup.events")
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return event(text, "populated")
}

// event reads one line "key 0" or "key 1" of cgroup.events.
func event(text, key string) (bool, error) {
	for line := range strings.Lines(text) {
		switch strings.TrimSpace(line) {
		case key + " 0":
			return false, nil
		case key + " 1":
			return true, nil
		}
	}
	return false, fmt.Errorf("cgroup.events holds %q, without %q", text, key)
}

// Processes lists the processes in the group and below it. Of a group that is
// gone it lists none.
func (g Group) Processes() ([]int, error) {
	var pids []int
	err := g.walk(func(d *dir) error {
		here, err := d.processes()
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // a threaded group: its processes are listed in the domain above
		}
		pids = append(pids, here...)
		return err
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}

// processes lists those in d itself.
func (d *dir) processes() (pids []int, err error) {
	text, err := d.read("cgroup.procs")
	if err != nil {
		return nil, err
	}
	for field := range strings.FieldsSeq(text) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("%s/cgroup.procs holds %q", d.Name(), field)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// walk calls f on the group and every one below it, parents first. Groups that
// go away meanwhile are passed over.
func (g Group) walk(f func(*dir) error) error {
	d, err := g.open()
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := f(d); err != nil && !gone(err) {
		return err
	}
	names, err := d.children()
	if err != nil && !gone(err) {
		return err
	}
	for _, name := range names {
		if err := g.Child(name).walk(f); err != nil {
			return err
		}
	}
	return nil
}

// deathCPU is more CPU time than any machine has. It is not Unlimited because
// lifting the last such limit of a host makes the kernel patch its scheduler.
const deathCPU = 100 * service.UsecPerPercent * 4096

// Unthrottle raises the group's limit on CPU time above all need, for those who
// are to be killed: dying takes some too, and who is out of it would wait for
// the next period. If that fails they die more slowly, so it tells no error.
func (g Group) Unthrottle() {
	now, err := g.Limits(service.Limits{})
	if cpu := now[service.CPUMax].Applied; err == nil && cpu.Set && cpu.Value < deathCPU {
		_ = g.Apply(service.Limits{service.CPUMax: service.Of(deathCPU)})
	}
}

// Kill sends SIGKILL to every process in the group and below it, those being
// forked at that moment included: through cgroup.kill, or where the kernel lacks
// it (before 5.14) by freezing the group, killing each and thawing. It does not
// wait for their end; see WaitEmpty. It refuses a group that the caller lives in.
// A group that is gone has nothing to kill.
func (g Group) Kill() error {
	pids, err := g.Processes()
	if err != nil {
		return err
	}
	if slices.Contains(pids, os.Getpid()) {
		return fmt.Errorf("kill %s: this process lives in it", g.file(""))
	}
	err = g.write("cgroup.kill", "1")
	if !errors.Is(err, unix.ENOENT) {
		return ignoreGone(err)
	}
	if there, err := g.Exists(); err != nil || !there {
		return err
	}
	return g.killFrozen()
}

const freezePatience = 2 * time.Second

// killFrozen kills each process while none can fork. A process in
// uninterruptible sleep does not freeze; after freezePatience the rest are
// killed nonetheless, and the caller, who waits for emptiness, kills again.
func (g Group) killFrozen() error {
	if err := g.write("cgroup.freeze", "1"); err != nil {
		return ignoreGone(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), freezePatience)
	defer cancel()
	err := g.waitEvent(ctx, "frozen", true)
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	if err == nil {
		err = g.killEach()
	}
	return errors.Join(ignoreGone(err), ignoreGone(g.write("cgroup.freeze", "0")))
}

// killEach holds each process by a pidfd before it looks whether it is still in
// the group, so a number that was given to another process meanwhile is safe.
func (g Group) killEach() error {
	pids, err := g.Processes()
	if err != nil {
		return err
	}
	held := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range held {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		var fd int
		err := g.tree.call("open a pidfd", fmt.Sprint(pid), func() (err error) { fd, err = unix.PidfdOpen(pid, 0); return err })
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue // it has ended; EINVAL when its session lives on
		}
		if err != nil {
			return err
		}
		held[pid] = fd
	}
	members, err := g.Processes()
	if err != nil {
		return err
	}
	for _, pid := range members {
		fd, ok := held[pid]
		if !ok {
			continue
		}
		err := g.tree.call("kill", fmt.Sprint(pid), func() error { return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// WaitEmpty returns when no process lives in the group or below it, or with the
// error of ctx when that ends first. It waits for the kernel's notification and
// costs no thread. A group that is gone is empty.
func (g Group) WaitEmpty(ctx context.Context) error {
	return g.waitEvent(ctx, "populated", false)
}

// waitEvent waits until key in cgroup.events has the value wanted. It looks once
// even when ctx has ended.
func (g Group) waitEvent(ctx context.Context, key string, want bool) error {
	f, err := g.OpenEvents()
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var done bool
	var failed error
	look := func(fd uintptr) bool {
		done, failed = g.eventIs(int(fd), key, want)
		return done || failed != nil
	}
	if err := raw.Control(func(fd uintptr) { look(fd) }); err != nil || done || failed != nil {
		return errors.Join(err, failed)
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// The runtime's poller wakes Read on every notification of the file (kernfs
	// raises EPOLLPRI and EPOLLERR); look then looks again.
	err = raw.Read(look)
	switch {
	case failed != nil:
		return failed
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	}
	return err
}

// eventIs reads cgroup.events from its start.
func (g Group) eventIs(fd int, key string, want bool) (bool, error) {
	var buf [256]byte
	var n int
	err := g.tree.call("read", g.file("cgroup.events"), func() (err error) { n, err = unix.Pread(fd, buf[:], 0); return err })
	switch {
	case errors.Is(err, unix.ENODEV):
		return true, nil
	case err != nil:
		return false, err
	case n == 0:
		return false, io.ErrUnexpectedEOF
	}
	is, err := event(string(buf[:n]), key)
	return err == nil && is == want, err
}

const removePatience = time.Second

// Remove removes the group and every one below it, the deepest first. A group
// in which processes are still ending is waited for a moment; one in which they
// live on is an error that is EBUSY. A group that is gone is removed.
func (g Group) Remove() error {
	err := g.removeTree()
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), removePatience)
	defer cancel()
	if g.WaitEmpty(ctx) != nil {
		pids, _ := g.Processes()
		return fmt.Errorf("%w: processes %v live in it", err, pids)
	}
	return g.removeTree()
}

func (g Group) removeTree() error {
	names, err := g.Children()
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := g.Child(name).removeTree(); err != nil {
			return err
		}
	}
	parent, err := g.Parent().open()
	if err != nil {
		return ignoreGone(err)
	}
	defer parent.Close()
	return rmdir(parent, g)
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}

func rmdir(parent *dir, g Group) error {
	return ignoreGone(g.tree.call("rmdir", g.file(""), func() error {
		return unix.Unlinkat(int(parent.Fd()), path.Base(g.path), unix.AT_REMOVEDIR)
	}))
}
