package cgroup

import (
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestHostFreeze: what is frozen takes no CPU time, and who keeps it so is told.
func TestHostFreeze(t *testing.T) {
	house := hostGroup(t)
	g := house.Child("frozen")
	require.NoError(t, g.Create(nil))
	c := inside(t, g, nil, "sh", "-c", "while :; do :; done")
	by := func(want Group) {
		t.Helper()
		got, frozen, err := g.FrozenBy()
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, want != Group{}, frozen)
	}
	by(Group{})
	for range 2 {
		require.NoError(t, g.Freeze(t.Context()))
		by(g)
	}
	before, err := g.Usage()
	require.NoError(t, err)
	<-time.After(200 * time.Millisecond) // it is what is measured
	after, err := g.Usage()
	require.NoError(t, err)
	require.Equal(t, before.CPUTime, after.CPUTime)

	require.NoError(t, house.write("cgroup.freeze", "1"))
	by(g)
	above, held, err := g.Thaw(t.Context())
	require.NoError(t, err)
	require.True(t, held)
	require.Equal(t, house, above)
	by(house)
	require.NoError(t, house.write("cgroup.freeze", "0"))
	require.NoError(t, g.waitEvent(t.Context(), "frozen", false))
	_, held, err = g.Thaw(t.Context())
	require.NoError(t, err)
	require.False(t, held)
	eventually(t, func() bool { u, err := g.Usage(); return err == nil && u.CPUTime > after.CPUTime }, "it goes on")

	require.NoError(t, g.Kill())
	require.NoError(t, g.WaitEmpty(t.Context()))
	c.Wait()
	require.NoError(t, g.Remove())
	require.ErrorIs(t, g.Freeze(t.Context()), fs.ErrNotExist)
	_, _, err = g.Thaw(t.Context())
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, _, err = g.FrozenBy()
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// TestHostFreezeFails: what could not be seen to freeze runs on.
func TestHostFreezeFails(t *testing.T) {
	g := hostGroup(t)
	inside(t, g, nil, "sleep", "1000")
	blind := g.tree.WithFault(func(call, path string) error {
		if call == "read" && strings.HasSuffix(path, "cgroup.events") {
			return unix.EIO
		}
		return nil
	}).Group(g.Path())
	require.ErrorIs(t, blind.Freeze(t.Context()), unix.EIO)
	told, err := g.read("cgroup.freeze")
	require.NoError(t, err)
	require.Equal(t, "0", told)
	require.NoError(t, g.waitEvent(t.Context(), "frozen", false))
}
