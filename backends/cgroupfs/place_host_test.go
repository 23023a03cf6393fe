package cgroupfs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/cgroup"
)

func TestHostUnusableParents(t *testing.T) {
	c := config(t)
	b := newBackend(t, c)
	c.Ours = false

	c.Parent = "/"
	_, err := New(c)
	require.ErrorContains(t, err, "the root of the tree can not be the parent")

	c.Parent = "/gladsheim-nowhere"
	_, err = New(c)
	require.Equal(t, service.HostUnavailable, service.KindOf(err))
	require.ErrorIs(t, err, os.ErrNotExist)

	// The cgroup of a service: processes live in it.
	r := start(t, b, plan("/bin/sleep", "1000"))
	c.Parent = r.Ref().Cgroup
	_, err = New(c)
	require.Equal(t, service.HostUnavailable, service.KindOf(err))
	require.ErrorContains(t, err, "move them into a leaf below it first")
	require.ErrorContains(t, err, strconv.Itoa(r.Ref().PID))
}

// In a container the root of the tree is a cgroup in which everything lives.
func TestHostRootOfAContainer(t *testing.T) {
	c := config(t)
	box := newBackend(t, c).parent.Child("box")
	require.NoError(t, box.Create(cgroup.Wanted))
	t.Cleanup(func() { require.NoError(t, box.Remove()) })
	init := exec.Command("/bin/sleep", "1000")
	require.NoError(t, init.Start())
	t.Cleanup(func() { _ = init.Process.Kill(); _ = init.Wait() })
	require.NoError(t, box.Add(init.Process.Pid))

	var err error
	c.Tree, err = cgroup.Open(cgroupRoot + box.Path())
	require.NoError(t, err)
	c.Parent, c.Ours = "/gladsheim", true
	for range 2 {
		e := newBackend(t, c).Enforces()
		require.True(t, e.Limits[service.MemoryMax] && e.Limits[service.PidsMax])
		pids, err := box.Child("gladsheim").Child("supervisor").Processes()
		require.NoError(t, err)
		require.Equal(t, []int{init.Process.Pid}, pids)
	}
}

// A parent that somebody has removed is made again.
func TestHostParentIsMadeAgain(t *testing.T) {
	c := config(t)
	base := newBackend(t, c).parent.Child("base")
	require.NoError(t, base.Create(cgroup.Wanted))
	t.Cleanup(func() { require.NoError(t, base.Remove()) })
	again := func(c Config) {
		t.Helper()
		b := newBackend(t, c)
		for range 2 {
			r := start(t, b, limited(plan("/bin/sleep", "1000"), limits(service.MemoryMax, 64<<20)))
			r.release()
			require.NoError(t, b.parent.Remove())
		}
	}
	c.Ours, c.Parent = true, base.Child("ours").Child("deeper").Path()
	again(c)

	given := base.Child("given")
	c.Ours, c.Parent = false, given.Path()
	require.NoError(t, given.Create(cgroup.Wanted))
	c.Restore = func(context.Context) error { return given.Create(cgroup.Wanted) }
	again(c)

	require.NoError(t, given.Create(cgroup.Wanted))
	c.Restore = nil
	b := newBackend(t, c)
	require.NoError(t, given.Remove())
	_, err := b.Launch(within(t), plan("/bin/true"), backends.Birth{})
	require.Equal(t, service.HostUnavailable, service.KindOf(err))
	require.ErrorContains(t, err, given.Path()+", in which services live, was removed")
}

func TestHostPreviousInstance(t *testing.T) {
	b := newBackend(t, config(t))
	r := start(t, b, plan("/bin/sleep", "1000"))
	for _, incarnation := range []uint64{r.launch.Incarnation, r.launch.Incarnation + 1} {
		again := r.launch
		again.Incarnation = incarnation
		_, err := newBackend(t, config(t)).Launch(within(t), again, backends.Birth{})
		require.Equal(t, service.Exists, service.KindOf(err))
		require.Equal(t, service.ReasonPreviousAlive, service.ReasonOf(err))
		require.ErrorContains(t, err, fmt.Sprintf("processes [%d] of an earlier instance live in %s", r.Ref().PID, r.Ref().Cgroup))
	}
	select {
	case <-r.Exited():
		t.Fatal("it was touched")
	default:
	}

	// An empty cgroup in the way is one that a dead agent has left.
	l := plan("/bin/sleep", "1000")
	require.NoError(t, b.group(l).Create(nil))
	require.NoError(t, b.group(l).Child("of-its-own").Create(nil))
	start(t, b, limited(l, limits(service.PidsMax, 7)))
}

// What is born into a frozen cgroup stops before its execve, and the fork with
// it; so it is not tried.
func TestHostFrozenParent(t *testing.T) {
	c := config(t)
	ice := newBackend(t, c).parent.Child("ice")
	require.NoError(t, ice.Create(cgroup.Wanted))
	t.Cleanup(func() { require.NoError(t, ice.Remove()) })
	c.Parent, c.Ours = ice.Path(), false
	b := newBackend(t, c)
	freeze := func(frozen string) {
		require.NoError(t, os.WriteFile(cgroupRoot+ice.Path()+"/cgroup.freeze", []byte(frozen), 0))
	}
	freeze("1")
	l := plan("/bin/sleep", "1000")
	_, err := b.Launch(within(t), l, backends.Birth{})
	freeze("0")
	require.Equal(t, service.HostUnavailable, service.KindOf(err))
	require.ErrorContains(t, err, ice.Path()+" is frozen")
	there, err := b.group(l).Exists()
	require.NoError(t, err)
	require.False(t, there)
	start(t, b, l).release()
}

// Somebody moves the main process elsewhere.
func TestHostMovedByOthers(t *testing.T) {
	b := newBackend(t, config(t))
	elsewhere := b.parent.Child("elsewhere")
	require.NoError(t, elsewhere.Create(nil))
	t.Cleanup(func() { require.NoError(t, elsewhere.Remove()) })
	r := start(t, b, plan("/bin/sh", "-c", "sleep 1000 & exec sleep 1000"))
	r.processes(2)
	require.NoError(t, elsewhere.Add(r.Ref().PID))
	require.NoError(t, r.Kill(within(t)))
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, r.Exit(), "Kill reaches it there as well")
	pids, err := elsewhere.Processes()
	require.NoError(t, err)
	require.Empty(t, pids)
}

// A service of root writes the mark of its cgroup anew: who lives elsewhere is not
// taken for its main process.
func TestHostMarkThatLies(t *testing.T) {
	b := newBackend(t, config(t))
	r := start(t, b, plan("/bin/sh", "-c", "sleep 1000 & exec sleep 1000"))
	told := func(mark string) service.Ref {
		t.Helper()
		require.NoError(t, r.group().SetMark(mark))
		refs, err := newBackend(t, config(t)).Leftovers(within(t), nil)
		require.NoError(t, err)
		i := slices.IndexFunc(refs, func(ref service.Ref) bool { return ref.Cgroup == r.Ref().Cgroup })
		require.NotEqual(t, -1, i)
		return refs[i]
	}
	for _, stranger := range []int{1, os.Getpid()} {
		ticks, err := b.procfs.StartTicks(stranger)
		require.NoError(t, err)
		require.Equal(t, b.Plan(r.launch), told(process.Mark(stranger, ticks)))
	}
	inner := r.group().Child("of-its-own")
	require.NoError(t, inner.Create(nil))
	require.NoError(t, inner.Add(r.Ref().PID))
	require.Equal(t, r.Ref(), told(process.Mark(r.Ref().PID, r.Ref().StartTicks)), "it lives below")
	require.NoError(t, inner.Kill())
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, r.wait())
	require.Equal(t, r.Ref(), told(process.Mark(r.Ref().PID, r.Ref().StartTicks)), "it has ended")
}

// Somebody removes the cgroup as soon as it is empty.
func TestHostRemovedByOthers(t *testing.T) {
	b := newBackend(t, config(t))
	r := start(t, b, plan("/bin/sh", "-c", "exit 3"))
	require.Equal(t, service.Exit{Code: 3}, r.wait())
	require.NoError(t, r.group().Remove())
	_, err := r.Usage(within(t))
	require.Equal(t, service.NotRunning, service.KindOf(err))
	_, err = r.Limits(within(t))
	require.Equal(t, service.NotRunning, service.KindOf(err))
	remains := r.release()
	require.Equal(t, service.Remains{Usage: service.Usage{Source: "cgroup"}}, remains)
}

// A service that runs as root makes cgroups of its own and lives in them.
func TestHostCgroupsOfItsOwn(t *testing.T) {
	b := newBackend(t, config(t))
	l := plan("/bin/sh", "-c", `cd /sys/fs/cgroup"$(cut -d: -f3 /proc/self/cgroup)" && mkdir a a/b && echo $$ > a/b/cgroup.procs && sleep 1000 & wait`)
	r := start(t, b, l)
	require.Eventually(t, func() bool {
		pids, err := r.group().Child("a").Processes()
		require.NoError(t, err)
		return len(pids) > 0
	}, time.Minute, 10*time.Millisecond)
	h, err := newBackend(t, config(t)).Adopt(within(t), r.Ref(), service.Launch{})
	require.NoError(t, err)
	require.Equal(t, r.Ref(), h.Ref())
	require.NoError(t, h.Close())
	r.release()
	there, err := r.group().Exists()
	require.NoError(t, err)
	require.False(t, there)
}

func TestHostUnkillable(t *testing.T) {
	b := newBackend(t, config(t))
	r := start(t, b, plan("/bin/sleep", "1000"))
	// Our own process in its cgroup is refused, and so the kill as a whole.
	home, err := homeOf(b)
	require.NoError(t, err)
	require.NoError(t, r.group().Add(os.Getpid()))
	err = r.Kill(within(t))
	require.NoError(t, home.Add(os.Getpid()))
	require.Equal(t, service.HostUnavailable, service.KindOf(err))
	require.ErrorContains(t, err, "this process lives in it")
	_, err = r.Limits(within(t))
	require.NoError(t, err, "it lives on")
}

func homeOf(b *Backend) (cgroup.Group, error) {
	at, err := b.procfs.Cgroup(os.Getpid())
	return b.tree.Group(at), err
}

func TestHostForeignRefs(t *testing.T) {
	c := config(t)
	b := newBackend(t, c)
	r := start(t, b, plan("/bin/sleep", "1000"))
	for name, change := range map[string]func(*service.Ref){
		"backend":     func(ref *service.Ref) { ref.Backend = "systemd" },
		"incarnation": func(ref *service.Ref) { ref.Incarnation++ },
		"cgroup":      func(ref *service.Ref) { ref.Cgroup = b.parent.Path() },
		"root":        func(ref *service.Ref) { ref.Cgroup = "/" },
		"elsewhere":   func(ref *service.Ref) { ref.Cgroup = "/elsewhere/" + path.Base(ref.Cgroup) },
	} {
		ref := r.Ref()
		change(&ref)
		_, err := b.Adopt(within(t), ref, service.Launch{})
		require.Equal(t, service.Invalid, service.KindOf(err), name)
	}
	closed := newBackend(t, c)
	require.NoError(t, closed.Close())
	_, err := closed.Launch(within(t), plan("/bin/true"), backends.Birth{})
	require.Equal(t, service.HostUnavailable, service.KindOf(err))
	require.ErrorContains(t, err, "the backend is closed")
}
