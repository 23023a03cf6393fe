package cgroupfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/backendtest"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/procfs"
)

// What the conformance suite can not ask, because only this backend has it.

func TestHostEnforcesEverything(t *testing.T) {
	e := newBackend(t, config(t)).Enforces()
	for r := range service.NumResources {
		require.True(t, e.Limits[r], "%s", r)
	}
	require.True(t, e.OOMVerdict)
}

// Of a parent with few controllers only those are claimed.
func TestHostEnforcesWhatTheParentHas(t *testing.T) {
	c := config(t)
	above := newBackend(t, c).parent.Child("few")
	require.NoError(t, above.Create(nil))
	t.Cleanup(func() { require.NoError(t, above.Remove()) })
	parent := above.Child("pids-only")
	require.NoError(t, parent.Create([]string{"pids"}))
	c.Parent, c.Ours = parent.Path(), false
	b := newBackend(t, c)
	want := service.Enforcement{KillAll: true, BornInside: true}
	want.Limits[service.PidsMax], want.Limits[service.NoFile] = true, true
	require.Equal(t, want, b.Enforces())

	_, err := b.Launch(within(t), limited(plan("/bin/sleep", "1000"), limits(service.MemoryMax, 64<<20)), nil)
	require.Equal(t, service.Unenforceable, service.KindOf(err))
	require.ErrorContains(t, err, "this host does not enforce [memory_max]: the controller is not available in "+parent.Path())

	r := start(t, b, limited(plan("/bin/sleep", "1000"), limits(service.PidsMax, 5)))
	u, err := r.Usage(within(t))
	require.NoError(t, err)
	require.NotZero(t, u.Memory, "added up from /proc")
	require.False(t, u.MemoryPeak.Set)
	require.False(t, u.OOMKills.Set)
	require.True(t, u.Pids.Set)
	require.NoError(t, r.Signal(within(t), syscall.SIGKILL))
	r.wait()
	require.Equal(t, service.OOMNone, r.release().OOM)
}

func limited(l service.Launch, limits service.Limits) service.Launch {
	l.Limits = limits
	return l
}

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
	_, err := b.Launch(within(t), plan("/bin/true"), nil)
	require.Equal(t, service.HostUnavailable, service.KindOf(err))
	require.ErrorContains(t, err, given.Path()+", in which services live, was removed")
}

// Limits that are too small for the gate hold for the program nonetheless.
func TestHostTinyLimits(t *testing.T) {
	b := newBackend(t, config(t))
	for range 10 {
		l := limited(plan("/bin/sleep", "1000"), limits(
			service.PidsMax, 1, service.CPUMax, service.UsecPerPercent, service.MemoryMax, 2<<20, service.MemoryHigh, 1<<20))
		l.LogFile = filepath.Join(t.TempDir(), "log")
		h, err := b.Launch(within(t), l, func(service.Ref) error { return nil })
		if err != nil {
			said, _ := os.ReadFile(l.LogFile)
			t.Fatalf("%v; the gate said %s", err, said)
		}
		r := keep(t, h, l)
		a, err := r.Limits(within(t))
		require.NoError(t, err)
		require.Equal(t, service.Of(1), a[service.PidsMax].Applied)
		require.Equal(t, service.Of(service.UsecPerPercent), a[service.CPUMax].Applied)
		require.Equal(t, service.Of(2<<20), a[service.MemoryMax].Applied)
		require.Equal(t, service.Of(1<<20), a[service.MemoryHigh].Applied)
		r.release()
	}
}

// A program that needs more than a tiny limit is killed for that, and it is
// told.
func TestHostTooLittleMemory(t *testing.T) {
	b := newBackend(t, config(t))
	l := hog(t, 8)
	l.Limits[service.MemoryMax] = service.Of(1 << 20)
	r := start(t, b, l)
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, r.wait())
	require.Equal(t, service.OOMOwn, r.release().OOM)
}

func hog(t *testing.T, megabytes int) service.Launch {
	l := plan(backendtest.Workload(t), "hog-memory", strconv.Itoa(megabytes<<20))
	l.Limits = limits(service.MemorySwapMax, 0)
	return l
}

func TestHostOOMOfTheParent(t *testing.T) {
	c := config(t)
	parent := newBackend(t, c).parent.Child("tight")
	require.NoError(t, parent.Create(cgroup.Wanted))
	t.Cleanup(func() { require.NoError(t, parent.Remove()) })
	require.NoError(t, parent.Apply(limits(service.MemoryMax, 32<<20)))
	c.Parent, c.Ours = parent.Path(), false
	b := newBackend(t, c)

	bystander := start(t, b, plan("/bin/sleep", "1000"))
	r := start(t, b, hog(t, 96))
	a, err := r.Limits(within(t))
	require.NoError(t, err)
	require.Equal(t, service.Of(32<<20), a[service.MemoryMax].Effective)
	require.Equal(t, parent.Path(), a[service.MemoryMax].SetBy)
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, r.wait())
	remains := r.release()
	require.Equal(t, service.OOMAncestor, remains.OOM)
	require.Equal(t, parent.Path(), remains.OOMLevel)
	require.NotZero(t, remains.Usage.OOMKills.Value)

	require.NoError(t, bystander.Signal(within(t), syscall.SIGKILL))
	bystander.wait()
	require.Equal(t, service.OOMNone, bystander.release().OOM, "somebody else ran out of memory")

	// The parent's counter stands at one now; the next own OOM is its own.
	own := hog(t, 96)
	own.Limits[service.MemoryMax] = service.Of(16 << 20)
	r = start(t, b, own)
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, r.wait())
	remains = r.release()
	require.Equal(t, service.OOMOwn, remains.OOM)
	require.Equal(t, r.Ref().Cgroup, remains.OOMLevel)
}

// The kernel is told to behave as though the host had run out of memory; it
// takes the process with the highest oom_score_adj.
func TestHostOOMOfTheHost(t *testing.T) {
	b := newBackend(t, config(t))
	l := hog(t, 64)
	l.Spec.OOMScoreAdj = 1000
	l.LogFile = filepath.Join(t.TempDir(), "log")
	r := start(t, b, l)
	require.Eventually(t, func() bool {
		text, _ := os.ReadFile(l.LogFile)
		return strings.Contains(string(text), "ready")
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, os.WriteFile("/proc/sysrq-trigger", []byte("f"), 0))
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, r.wait())
	remains := r.release()
	require.Equal(t, service.OOMHost, remains.OOM)
	require.Empty(t, remains.OOMLevel)
}

// An agent that was away when memory ran out finds it in the counters.
func TestHostOOMWhileNobodyLooked(t *testing.T) {
	c := config(t)
	l := hog(t, 96)
	l.Limits[service.MemoryMax] = service.Of(16 << 20)
	first := newBackend(t, c)
	h, err := first.Launch(within(t), l, func(service.Ref) error { return nil })
	require.NoError(t, err)
	<-h.Exited()
	require.NoError(t, h.Close())
	require.NoError(t, first.Close())

	b := newBackend(t, c)
	refs, err := b.Leftovers(within(t), nil)
	require.NoError(t, err)
	require.Contains(t, refs, b.Plan(l), "a cgroup without a process is left over too")
	adopted, err := b.Adopt(within(t), h.Ref())
	require.NoError(t, err)
	r := keep(t, adopted, l)
	require.NotEmpty(t, r.wait().Unknown)
	remains := r.release()
	require.Equal(t, service.OOMOwn, remains.OOM)
	require.NotZero(t, remains.Usage.OOMKills.Value)
	_, err = b.Adopt(within(t), h.Ref())
	require.ErrorIs(t, err, backends.ErrGone)
}

// CPU time as the cgroup counts it, over some seconds.
func TestHostCPU(t *testing.T) {
	b := newBackend(t, config(t))
	r := start(t, b, limited(plan("/bin/sh", "-c", "while :; do :; done"), limits(service.CPUMax, 20*service.UsecPerPercent)))
	measure := func() float64 {
		before, err := r.Usage(within(t))
		require.NoError(t, err)
		began := time.Now()
		time.Sleep(5 * time.Second) // what is measured needs its time
		after, err := r.Usage(within(t))
		require.NoError(t, err)
		return 100 * float64(after.CPUTime-before.CPUTime) / float64(time.Since(began))
	}
	for _, want := range []int{20, 40} {
		_, err := r.Limit(within(t), limits(service.CPUMax, want*service.UsecPerPercent))
		require.NoError(t, err)
		// Never more; less only while the machine itself gets no CPU time.
		require.Eventually(t, func() bool {
			percent := measure()
			t.Logf("asked for %d%%, got %.2f%%", want, percent)
			require.Less(t, percent, float64(want+2))
			return percent > float64(want-2)
		}, time.Minute, time.Millisecond)
	}
}

func TestHostForkBomb(t *testing.T) {
	b := newBackend(t, config(t))
	r := start(t, b, limited(plan(backendtest.Workload(t), "fork-bomb", "setsid", "0"), limits(service.PidsMax, 200)))
	require.Eventually(t, func() bool {
		pids, err := r.group().Processes()
		require.NoError(t, err)
		return len(pids) > 100
	}, time.Minute, 10*time.Millisecond)
	began := time.Now()
	require.NoError(t, r.Kill(within(t)))
	took := time.Since(began)
	t.Logf("200 tasks were gone after %v", took)
	require.Less(t, took, 10*time.Second, "a second, and the machine is emulated")
	list, err := r.Processes(within(t))
	require.NoError(t, err)
	require.Empty(t, list)
}

// Who may use one percent of a core still dies at once.
func TestHostKillThrottled(t *testing.T) {
	b := newBackend(t, config(t))
	r := start(t, b, limited(plan(backendtest.Workload(t), "hog-cpu", "8"), limits(service.CPUMax, service.UsecPerPercent)))
	require.Eventually(t, func() bool {
		u, err := r.Usage(within(t))
		require.NoError(t, err)
		return u.ThrottledPeriods.Value > 3
	}, time.Minute, 10*time.Millisecond)
	began := time.Now()
	require.NoError(t, r.Kill(within(t)))
	t.Logf("gone after %v", time.Since(began))
	require.Less(t, time.Since(began), 5*time.Second)
}

func TestHostPreviousInstance(t *testing.T) {
	b := newBackend(t, config(t))
	r := start(t, b, plan("/bin/sleep", "1000"))
	for _, incarnation := range []uint64{r.launch.Incarnation, r.launch.Incarnation + 1} {
		again := r.launch
		again.Incarnation = incarnation
		_, err := newBackend(t, config(t)).Launch(within(t), again, nil)
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

// Somebody moves the main process elsewhere, and a helper in.
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
	h, err := newBackend(t, config(t)).Adopt(within(t), r.Ref())
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

// crowd runs f n times at once and fails with its errors.
func crowd(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var wait sync.WaitGroup
	failed := make([]error, n)
	for i := range n {
		wait.Go(func() { failed[i] = f(i) })
	}
	wait.Wait()
	require.NoError(t, errors.Join(failed...))
}

func TestHostHundredAtOnce(t *testing.T) {
	const n = 100
	b := newBackend(t, config(t))
	handles, plans := make([]backends.Handle, n), make([]service.Launch, n)
	for i := range plans {
		plans[i] = limited(plan("/bin/sleep", "1000"), limits(service.MemoryMax, 64<<20, service.PidsMax, 10, service.CPUMax, 500_000))
	}
	began := time.Now()
	crowd(t, n, func(i int) (err error) {
		handles[i], err = b.Launch(t.Context(), plans[i], func(service.Ref) error { return nil })
		return err
	})
	t.Logf("%d launches at once took %v", n, time.Since(began))
	for _, h := range handles {
		a, err := h.Limits(within(t))
		require.NoError(t, err)
		require.Equal(t, service.Of(64<<20), a[service.MemoryMax].Applied)
		require.Equal(t, service.Of(10), a[service.PidsMax].Applied)
	}
	began = time.Now()
	crowd(t, n, func(i int) error {
		_, err := handles[i].Release(context.Background())
		return errors.Join(err, handles[i].Close())
	})
	t.Logf("%d releases at once took %v", n, time.Since(began))
	refs, err := b.Leftovers(within(t), nil)
	require.NoError(t, err)
	require.Empty(t, refs)
}

func TestHostCyclesLeaveNothing(t *testing.T) {
	c := config(t)
	b := newBackend(t, c)
	count := func() (fds, goroutines, dirs int) {
		list, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		names, err := b.parent.Children()
		require.NoError(t, err)
		return len(list), runtime.NumGoroutine(), len(names)
	}
	cycle := func(argv ...string) {
		l := limited(plan(argv...), limits(service.MemoryMax, 64<<20))
		h, err := b.Launch(t.Context(), l, func(service.Ref) error { return nil })
		if err == nil {
			_, err = h.Release(t.Context())
			require.NoError(t, h.Close())
			require.NoError(t, err)
		}
	}
	cycle("/bin/sleep", "1000")
	cycle("/nowhere")
	fds, goroutines, dirs := count()
	began := time.Now()
	for range 50 {
		cycle("/bin/sleep", "1000")
	}
	t.Logf("a cycle takes %v", time.Since(began)/50)
	for range 20 {
		cycle("/nowhere")
	}
	var f, g, d int
	for patience := time.Now().Add(10 * time.Second); time.Now().Before(patience); runtime.Gosched() {
		if f, g, d = count(); f <= fds && g <= goroutines && d == dirs {
			break
		}
	}
	require.LessOrEqual(t, f, fds, "descriptors")
	require.LessOrEqual(t, g, goroutines, "goroutines")
	require.Equal(t, dirs, d, "cgroups")
}

// Two numbers, for the record: a launch with limits against a plain fork.
func TestHostLaunchTime(t *testing.T) {
	b := newBackend(t, config(t))
	const n = 30
	began := time.Now()
	for range n {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		require.NoError(t, err)
		_, err = p.Wait()
		require.NoError(t, err)
	}
	plain := time.Since(began) / n
	var launch, release, limit time.Duration
	for range n {
		l := limited(plan("/bin/true"), limits(service.MemoryMax, 64<<20, service.PidsMax, 10, service.CPUMax, 500_000))
		began = time.Now()
		h, err := b.Launch(t.Context(), l, func(service.Ref) error { return nil })
		require.NoError(t, err)
		launch += time.Since(began)
		<-h.Exited()
		began = time.Now()
		_, err = h.Release(t.Context())
		require.NoError(t, err)
		release += time.Since(began)
		require.NoError(t, h.Close())
	}
	r := start(t, b, limited(plan("/bin/sleep", "1000"), limits(service.MemoryMax, 64<<20)))
	began = time.Now()
	for range n {
		_, err := r.Limit(t.Context(), limits(service.MemoryMax, 128<<20))
		require.NoError(t, err)
	}
	limit = time.Since(began)
	t.Logf("plain fork, exec and wait %v; launch %v; release %v; limit and read all back %v", plain, launch/n, release/n, limit/n)
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
	} {
		ref := r.Ref()
		change(&ref)
		_, err := b.Adopt(within(t), ref)
		require.Equal(t, service.Invalid, service.KindOf(err), name)
	}
	closed := newBackend(t, c)
	require.NoError(t, closed.Close())
	_, err := closed.Launch(within(t), plan("/bin/true"), nil)
	require.Equal(t, service.HostUnavailable, service.KindOf(err))
	require.ErrorContains(t, err, "the backend is closed")
}

// The backend works natively up to where the kernel is needed.
func TestFixture(t *testing.T) {
	root := t.TempDir()
	for file, text := range map[string]string{
		"cgroup.controllers": "cpu memory pids", "cgroup.subtree_control": "cpu memory pids", "cgroup.procs": "1",
		"g/cgroup.controllers": "cpu memory pids", "g/cgroup.subtree_control": "cpu memory pids", "g/cgroup.type": "domain",
		"g/memory.max": "max", "g/memory.events": "oom_kill 0", "g/memory.events.local": "oom 0", "g/cpu.max": "max 100000",
		"g/svc-web-0000001f/cgroup.procs": "", "g/svc-web-1f/cgroup.procs": "", "g/pause/cgroup.procs": "7",
	} {
		full := filepath.Join(root, file)
		require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
		require.NoError(t, os.WriteFile(full, []byte(text+"\n"), 0o644))
	}
	tree, err := cgroup.OpenFixture(root)
	require.NoError(t, err)
	fs, err := procfs.New("/proc")
	require.NoError(t, err)
	b := newBackend(t, Config{Tree: tree, Procfs: fs, Parent: "/g"})
	require.Equal(t, "cgroupfs", b.Name())
	want := service.Enforcement{OOMVerdict: true, KillAll: true, BornInside: true}
	want.Limits[service.MemoryMax], want.Limits[service.CPUMax], want.Limits[service.NoFile] = true, true, true
	require.Equal(t, want, b.Enforces())
	ref := service.Ref{Backend: "cgroupfs", Name: service.MustName("web"), Incarnation: 31, Cgroup: "/g/svc-web-0000001f"}
	require.Equal(t, ref, b.Plan(service.Launch{Name: ref.Name, Incarnation: 31}))
	refs, err := b.Leftovers(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, []service.Ref{ref}, refs)

	ref.Incarnation, ref.Cgroup = 32, "/g/svc-web-00000020"
	_, err = b.Adopt(t.Context(), ref)
	require.ErrorIs(t, err, backends.ErrGone)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = b.Adopt(ended, ref)
	require.Equal(t, service.Cancelled, service.KindOf(err))
	_, err = b.Leftovers(ended, nil)
	require.Equal(t, service.Cancelled, service.KindOf(err))
	_, err = b.Launch(ended, service.Launch{Name: ref.Name}, nil)
	require.Equal(t, service.Cancelled, service.KindOf(err))
	_, err = b.Launch(t.Context(), limited(plan("/bin/true"), limits(service.PidsMax, 5)), nil)
	require.Equal(t, service.Unenforceable, service.KindOf(err))
}

func TestRoomForGate(t *testing.T) {
	asked := limits(service.MemoryMax, 1<<20, service.MemorySwapMax, 0, service.PidsMax, 5, service.CPUMax, 10_000, service.CPUWeight, 5)
	now, atOpening, afterwards := roomForGate(asked)
	require.Equal(t, limits(service.MemoryMax, gateMemory, service.MemorySwapMax, 0, service.PidsMax, gateTasks, service.CPUMax, gateCPU, service.CPUWeight, 5), now)
	require.Equal(t, limits(service.PidsMax, 5), atOpening)
	require.Equal(t, limits(service.MemoryMax, 1<<20, service.CPUMax, 10_000), afterwards)
	require.Equal(t, asked, afterwards.Over(atOpening.Over(now)))
}
