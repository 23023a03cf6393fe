package offer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/platform"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

func TestChoose(t *testing.T) {
	has, lacks := platform.Ability{Has: true}, platform.Ability{Reason: "it is not there"}
	debian := platform.Facts{Systemd: has, Bus: has, Cgroup2: has, BornInside: has, Pidfd: has}
	old := debian // its kernel, or a seccomp filter, knows no clone3
	old.BornInside = lacks
	alpine := debian
	alpine.Systemd = lacks
	plain := alpine
	plain.Cgroup2 = lacks
	mute := debian // systemd runs and does not talk to us
	mute.Bus = lacks
	for _, tt := range []struct {
		name, wanted string
		facts        platform.Facts
		names        []string
		says         string
	}{
		{"systemd", "auto", debian, []string{"systemd", "cgroupfs"}, ""},
		{"systemd, cgroups first", "cgroupfs", debian, []string{"cgroupfs", "systemd"}, ""},
		{"systemd, named", "systemd", debian, []string{"systemd", "cgroupfs"}, ""},
		{"systemd, exec named", "exec", debian, []string{"exec"}, ""},
		{"old kernel", "auto", old, []string{"systemd"}, ""},
		{"old kernel, systemd named", "systemd", old, []string{"systemd"}, ""},
		{"old kernel, cgroups named", "cgroupfs", old, nil, "the cgroupfs backend is not to be had: it is not there"},
		{"no systemd", "auto", alpine, []string{"cgroupfs"}, ""},
		{"no systemd, but named", "systemd", alpine, nil, "the systemd backend is not to be had: it is not there"},
		{"neither", "auto", plain, []string{"exec"}, ""},
		{"systemd does not talk", "auto", mute, nil, "cgroups are systemd's on this host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			names, err := choose(tt.wanted, tt.facts)
			if tt.says != "" {
				require.ErrorContains(t, err, tt.says)
			}
			require.Equal(t, tt.names, names)
		})
	}
}

func TestOneAgentForATreeOfCgroups(t *testing.T) {
	path, other := inOpenDirectory(t), inOpenDirectory(t)
	first, second := without(t), without(t)
	require.NoError(t, own(first, path))
	err := own(second, path)
	require.Equal(t, service.Conflict, service.KindOf(err))
	require.ErrorContains(t, err, "another agent has its services in the cgroups of this host: it holds "+path)
	require.NoError(t, own(without(t), other))
	require.NoError(t, first.Close())
	require.NoError(t, own(without(t), path))
}

// Whoever may open a file may lock it, which is all that keeps an agent from starting.
func TestNobodyElseKeepsAnAgentOut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	path := inOpenDirectory(t)
	first := without(t)
	require.NoError(t, own(first, path))
	require.NoError(t, first.Close()) // what is left is the file
	asNobody(t, func() error {
		if _, err := os.Open(path); !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("the lock can be opened: %w", err)
		}
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = dir.Close() })
		return unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	})
	require.NoError(t, own(without(t), path))

	for what, change := range map[string]func(string) error{
		"mode 0644":  func(path string) error { return os.Chmod(path, 0o644) },
		"user 65534": func(path string) error { return os.Chown(path, 65534, 0) },
	} {
		path := inOpenDirectory(t)
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, change(path))
		err := own(without(t), path)
		require.ErrorContains(t, err, what)
		require.ErrorContains(t, err, "remove it, then start the agent")
	}
}

// asNobody runs f in a thread of another user, which ends with it.
func asNobody(t *testing.T, f func() error) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, 65534, 65534, 65534}, {unix.SYS_SETRESUID, 65534, 65534, 65534}} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- errno
				return
			}
		}
		done <- f()
	}()
	require.NoError(t, <-done)
}

// inOpenDirectory names a file that is not there, in a directory that everybody may open.
func inOpenDirectory(t *testing.T) string {
	dir, err := os.MkdirTemp("", "gladsheim-offer-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return filepath.Join(dir, "lock")
}

// without is an offer without a backend.
func without(t *testing.T) *Offer {
	w, err := watch.New()
	require.NoError(t, err)
	o := &Offer{watcher: w}
	t.Cleanup(func() { _ = o.Close() })
	return o
}

func own(o *Offer, path string) error { return o.own(procfs.FS{}, path, os.O_RDWR|os.O_CREATE) }
