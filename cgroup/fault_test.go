package cgroup

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// errnos are what the kernel may say to a call.
var errnos = []syscall.Errno{unix.ENOMEM, unix.EIO, unix.EACCES, unix.EBUSY, unix.ENOSPC, unix.EMFILE, unix.EINTR}

// countdown lets the nth call fail.
type countdown struct {
	left       int
	errno      syscall.Errno
	call, path string // that failed
	old        bool   // a kernel without cgroup.kill
}

func (c *countdown) fault(call, path string) error {
	if c.old && strings.HasSuffix(path, "/cgroup.kill") {
		return unix.ENOENT
	}
	if c.left--; c.left != 0 {
		return nil
	}
	c.call, c.path = call, path
	return c.errno
}

// overcome tells of a call that it may be made again when it fails so, or that
// another one serves as well.
func (c *countdown) overcome() bool {
	switch c.errno {
	case unix.EINTR:
		return true
	case unix.EBUSY:
		return true // while a group is removed: somebody is about to end
	case unix.EACCES:
		return c.call == "mark" || c.call == "read the mark of"
	}
	return false
}

// life is all that happens to a group until its removal. born puts a process into
// it, and ended waits for its end.
func life(g Group, born, ended func()) error {
	for _, step := range []func() error{
		func() error { return g.RefuseFrozen() },
		func() error {
			return g.Apply(service.Limits{
				service.MemoryMax: service.Of(64 << 20), service.PidsMax: service.Of(20), service.OOMGroup: service.Of(1),
			})
		},
		func() error { _, err := g.Limit(service.OOMGroup); return err },
		func() error { _, err := g.Enforceable(); return err },
		func() error { return g.SetMark("1 2") },
		func() error { _, err := g.Mark(); return err },
		func() error {
			d, err := g.OpenDir()
			if err == nil {
				err = d.Close()
			}
			return err
		},
		func() error { _, err := g.Limits(service.Limits{}); return err },
		func() error { _, err := g.Usage(); return err },
		func() error {
			base, err := g.OOMCounts()
			if err == nil {
				_, _, _, err = g.OOMSince(base)
			}
			return err
		},
		func() error { _, err := g.Populated(); return err },
		func() error { _, err := g.Parent().Children(); return err },
		func() error { _, err := g.CanFreeze(); return err },
		func() error { return g.Freeze(context.Background()) },
		func() error { _, _, err := g.FrozenBy(); return err },
		func() error { _, _, err := g.Thaw(context.Background()); return err },
		func() error { born(); return nil },
		g.Kill,
		func() error { ended(); return nil },
		func() error { return g.WaitEmpty(context.Background()) },
		g.Remove,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

// Whatever call fails in the life of a group: the error says which, of what file and
// why, no descriptor stays open, a group that could not be made whole is not left
// behind, and afterwards it can be made, or removed.
func TestHostEveryCallFails(t *testing.T) {
	if slices.Contains(strings.Fields(os.Getenv("GLADSHEIM_TEST_OFFERS")), "systemd") {
		t.Skip("takes its time, and is the same with systemd: the host without it is enough")
	}
	parent := hostGroup(t)
	first := 1 // call that is to fail: of an old kernel, of those that kill
	for _, old := range []bool{false, true} {
		calls := []string{"open", "statfs", "stat", "read", "write", "list", "mkdir", "rmdir", "mark", "read the mark of"}
		if old {
			calls = []string{"open a pidfd", "kill", "rmdir"}
		}
		failed, killing := map[string]int{}, 0
		reached := func() bool {
			return !slices.ContainsFunc(calls, func(call string) bool { return failed[call] == 0 })
		}
		// How often it is looked whether a group is frozen or empty is different each time,
		// so that one pass may miss a call.
		for n, passes := first, 1; ; n++ {
			c := &countdown{left: n, errno: errnos[n%len(errnos)], old: old}
			clean := parent.Child("every")
			var end *exec.Cmd
			group := clean.tree.WithFault(c.fault).Group(clean.Path())
			files := openFiles(t)
			made := group.Create([]string{"memory", "pids"})
			err := made
			if made == nil {
				err = life(group, func() {
					killing = n - c.left + 1
					end = inside(t, clean, nil, "/bin/sleep", "1000")
				}, func() { _ = end.Wait() })
			}
			if c.left > 0 {
				require.NoError(t, err)
				if reached() || passes == 5 {
					break
				}
				n, passes = first-1, passes+1
				continue
			}
			failed[c.call]++
			if err != nil || !c.overcome() {
				require.ErrorIs(t, err, c.errno, "%s of %s", c.call, c.path)
				require.ErrorContains(t, err, c.call+" "+c.path)
			}
			require.NoError(t, clean.Kill())
			if end != nil {
				_ = end.Wait()
			}
			require.Equal(t, files, openFiles(t), "after %s of %s", c.call, c.path)
			there, err := clean.Exists()
			require.NoError(t, err)
			require.False(t, made != nil && there, "after %s of %s", c.call, c.path)
			require.NoError(t, clean.WaitEmpty(t.Context()))
			require.NoError(t, clean.Remove())
		}
		require.Subset(t, slices.Collect(maps.Keys(failed)), calls)
		first = killing
	}
}
