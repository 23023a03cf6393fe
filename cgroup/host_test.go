package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Tests in this file need a real cgroup v2 tree, as the test hosts have.

const hogVariable = "GLADSHEIM_TEST_HOG"

func TestMain(m *testing.M) {
	if size, err := strconv.Atoi(os.Getenv(hogVariable)); err == nil {
		hog(size)
	}
	goleak.VerifyTestMain(m)
}

// hog touches that many bytes of memory and then sleeps.
func hog(size int) {
	memory := make([]byte, size)
	for i := 0; i < size; i += os.Getpagesize() {
		memory[i] = 1
	}
	os.Stdout.WriteString("full\n")
	time.Sleep(time.Hour)
	os.Stdout.Write(memory[:1])
}

// hostGroup makes a group for the test, with every controller.
func hostGroup(t *testing.T) Group {
	t.Helper()
	if !slices.Contains(strings.Fields(os.Getenv("GLADSHEIM_TEST_OFFERS")), "cgroup2") {
		t.Skip("needs a host with cgroup v2: GLADSHEIM_TEST_OFFERS does not name it")
	}
	tree, err := Open("/sys/fs/cgroup")
	require.NoError(t, err)
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	g := tree.Group("/gladsheim-" + name)
	require.NoError(t, g.Create(Wanted))
	t.Cleanup(func() {
		require.NoError(t, g.Kill())
		require.NoError(t, g.WaitEmpty(context.Background()))
		require.NoError(t, g.Remove())
	})
	return g
}

// inside starts a command that is born in g.
func inside(t *testing.T, g Group, env []string, argv ...string) *exec.Cmd {
	t.Helper()
	dir, err := g.OpenDir()
	require.NoError(t, err)
	defer dir.Close()
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = append(os.Environ(), env...)
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Setpgid: true}
	require.NoError(t, c.Start())
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return c
}

func hogInside(t *testing.T, g Group, size int) *exec.Cmd {
	return inside(t, g, []string{hogVariable + "=" + strconv.Itoa(size)}, "/proc/self/exe")
}

func processes(t *testing.T, g Group) []int {
	t.Helper()
	pids, err := g.Processes()
	require.NoError(t, err)
	return pids
}

func eventually(t *testing.T, condition func() bool, what string) {
	t.Helper()
	require.Eventually(t, condition, time.Minute, 5*time.Millisecond, what)
}

func TestHostCreate(t *testing.T) {
	g := hostGroup(t)
	have, err := g.Controllers()
	require.NoError(t, err)
	require.Subset(t, have, Wanted)
	require.ErrorIs(t, g.Create(Wanted), os.ErrExist)

	child := g.Child("a")
	require.NoError(t, child.Create([]string{"memory", "pids"}))
	have, err = child.Controllers()
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"memory", "pids"}, have, "and no others")
	require.NoError(t, g.Enable(Wanted), "more may be enabled later")
	require.ErrorContains(t, g.Child("b").Create([]string{"memory", "nonsense"}), "does not offer nonsense")
	there, err := g.Child("b").Exists()
	require.NoError(t, err)
	require.False(t, there)

	names, err := g.Children()
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, names)
}

func TestHostInnerProcesses(t *testing.T) {
	g := hostGroup(t)
	c := inside(t, g, nil, "sleep", "1000")
	err := g.Child("a").Create([]string{"memory"})
	require.ErrorContains(t, err, "holds 1 processes, "+strconv.Itoa(c.Process.Pid)+" the first: a cgroup that has processes of its own")
	// For pids alone the kernel would not even refuse; see checkInner.
	require.ErrorContains(t, g.Enable([]string{"pids"}), "a cgroup that has processes of its own")
	kind, err := g.read("cgroup.type")
	require.NoError(t, err)
	require.Equal(t, "domain", kind)

	own, err := g.Own()
	require.NoError(t, err)
	require.Equal(t, []int{c.Process.Pid}, own)
	root, err := g.Root().Own()
	require.NoError(t, err)
	require.Empty(t, root, "the root of the host may have processes")

	// What it says to do helps.
	leaf := g.Child("leaf")
	require.NoError(t, leaf.Create(nil))
	require.NoError(t, g.Vacate(leaf))
	require.Equal(t, []int{c.Process.Pid}, processes(t, leaf))
	require.NoError(t, g.Child("a").Create(Wanted))
}

func TestHostThreaded(t *testing.T) {
	g := hostGroup(t)
	child := g.Child("a")
	require.NoError(t, child.Create(nil))
	require.NoError(t, child.write("cgroup.type", "threaded"))
	require.ErrorContains(t, g.Enable([]string{"memory"}), `is "domain threaded", not "domain"`)
	require.ErrorContains(t, g.Child("b").Create(nil), `is "domain invalid", not "domain"`)
	there, err := g.Child("b").Exists()
	require.NoError(t, err)
	require.False(t, there, "a group that can not be used is not left behind")
	c := inside(t, g, nil, "sleep", "1000")
	require.Equal(t, []int{c.Process.Pid}, processes(t, g), "a threaded child's list can not be read, and need not")
}

func TestHostLimits(t *testing.T) {
	parent := hostGroup(t)
	g := parent.Child("a")
	require.NoError(t, g.Create(Wanted))
	can, err := g.Enforceable()
	require.NoError(t, err)
	want := service.Limits{
		service.MemoryMax: service.Of(64<<20 + 1), service.MemoryHigh: service.Of(48 << 20), service.MemorySwapMax: service.Of(0),
		service.CPUMax: service.Of(205_003), service.CPUWeight: service.Of(7), service.PidsMax: service.Of(33),
	}
	for _, r := range []service.Resource{service.MemoryMax, service.MemoryHigh, service.MemorySwapMax, service.CPUMax, service.CPUWeight, service.PidsMax} {
		require.True(t, can[r], "%s", r)
	}
	if can[service.IOWeight] {
		want[service.IOWeight] = service.Of(250)
	}
	t.Logf("io.weight is there: %v", can[service.IOWeight])
	require.NoError(t, g.Apply(want))

	got := want
	got[service.MemoryMax] = service.Of(64 << 20)
	got[service.CPUMax] = service.Of(205_000)
	a, err := g.Limits(want)
	require.NoError(t, err)
	for r, q := range got {
		if q.Set {
			require.Equal(t, service.LimitReport{Requested: want[r], Applied: q, Effective: q, Enforced: true}, a[r], "%s", service.Resource(r))
		}
	}

	require.NoError(t, parent.Apply(service.Limits{
		service.MemoryMax: service.Of(32 << 20), service.CPUMax: service.Of(10_000), service.PidsMax: service.Of(50),
	}))
	a, err = g.Limits(want)
	require.NoError(t, err)
	require.Equal(t, service.Of(32<<20), a[service.MemoryMax].Effective)
	require.Equal(t, parent.Path(), a[service.MemoryMax].SetBy)
	require.Equal(t, service.Of(10_000), a[service.CPUMax].Effective)
	require.Equal(t, parent.Path(), a[service.CPUMax].SetBy)
	require.Equal(t, service.Of(33), a[service.PidsMax].Effective)
	require.Empty(t, a[service.PidsMax].SetBy)

	var lifted service.Limits
	for r, q := range want {
		if q.Set && service.Resource(r) != service.CPUWeight && service.Resource(r) != service.IOWeight {
			lifted[r] = service.Of(service.Unlimited)
		}
	}
	require.NoError(t, g.Apply(lifted))
	a, err = g.Limits(lifted)
	require.NoError(t, err)
	require.Equal(t, service.Of(service.Unlimited), a[service.CPUMax].Applied)
	require.Equal(t, service.Of(service.Unlimited), a[service.MemoryMax].Applied)
}

// The kernel's own refusals are told with file and value.
func TestHostLimitRefusedByKernel(t *testing.T) {
	g := hostGroup(t)
	err := g.Apply(service.Limits{service.CPUWeight: service.Of(20000)})
	require.ErrorIs(t, err, unix.ERANGE)
	require.ErrorContains(t, err, g.file("cpu.weight"))
	require.ErrorContains(t, err, `"20000"`)
}

func TestHostUsage(t *testing.T) {
	g := hostGroup(t)
	require.NoError(t, g.Apply(service.Limits{service.CPUMax: service.Of(500_000)}))
	const size = 20 << 20
	hogInside(t, g, size)
	var u service.Usage
	eventually(t, func() bool {
		var err error
		u, err = g.Usage()
		require.NoError(t, err)
		return u.Memory > size && u.Anon.Value >= size && u.Throttled.Value > 0
	}, "the hog was never counted; the kernel adds memory.stat up every other second")
	require.NotZero(t, u.CPUTime)
	require.GreaterOrEqual(t, u.MemoryPeak.Value, u.Anon.Value)
	require.True(t, u.Swap.Set)
	require.True(t, u.File.Set)
	require.True(t, u.Kernel.Set)
	require.NotZero(t, u.ThrottledPeriods.Value)
	require.GreaterOrEqual(t, u.Periods.Value, u.ThrottledPeriods.Value)
	require.NotZero(t, u.Pids.Value)
	require.InDelta(t, u.CPUTime.Microseconds(), u.User.Value+u.System.Value, 2)
	require.True(t, u.CPUPressure.Some.Set)
	require.NotZero(t, u.CPUPressure.Some.Total, "one that is throttled waits for the CPU")
	require.True(t, u.MemoryPressure.Full.Set)
	require.True(t, u.IOPressure.Full.Set)
	require.Equal(t, service.Of(0), u.OOMKills)

	bare := g.Parent().Child(strings.TrimPrefix(g.Path(), "/") + "-bare")
	require.NoError(t, bare.Create(nil))
	defer func() { require.NoError(t, bare.Remove()) }()
	plain := bare.Child("plain") // its parent passes no controllers on
	require.NoError(t, plain.Create(nil))
	u, err := plain.Usage()
	require.NoError(t, err)
	require.True(t, u.User.Set)
	require.True(t, u.CPUPressure.Some.Set, "the kernel tells of pressure in every group")
	u.User, u.System = service.Quota{}, service.Quota{}
	u.CPUPressure, u.MemoryPressure, u.IOPressure = service.Pressure{}, service.Pressure{}, service.Pressure{}
	require.Equal(t, service.Usage{Source: "cgroup"}, u, "absent is not zero")
	a, err := plain.Limits(service.Limits{})
	require.NoError(t, err)
	require.Equal(t, service.LimitReport{Effective: service.Of(service.Unlimited)}, a[service.MemoryMax])
}

func TestHostOOM(t *testing.T) {
	swapless := service.Limits{service.MemoryMax: service.Of(24 << 20), service.MemorySwapMax: service.Of(0)}
	for _, where := range []string{"own", "ancestor"} {
		t.Run(where, func(t *testing.T) {
			parent := hostGroup(t)
			g, sibling := parent.Child("a"), parent.Child("b")
			require.NoError(t, g.Create(Wanted))
			require.NoError(t, sibling.Create(Wanted))
			require.NoError(t, g.Apply(service.Limits{service.OOMGroup: service.Of(1)}))
			base, err := g.OOMCounts()
			require.NoError(t, err)
			require.True(t, base.TellsLevel())
			limited := g
			if where == "ancestor" {
				limited = parent
			}
			require.NoError(t, limited.Apply(swapless))

			err = hogInside(t, g, 64<<20).Wait()
			exit, ok := errors.AsType[*exec.ExitError](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal())
			verdict, level, kills, err := g.OOMSince(base)
			require.NoError(t, err)
			require.NotZero(t, kills)
			require.Equal(t, limited.Path(), level)
			want := service.OOMOwn
			if where == "ancestor" {
				want = service.OOMAncestor
			}
			require.Equal(t, want, verdict)

			verdict, _, kills, err = sibling.OOMSince(OOMCounts{})
			require.NoError(t, err)
			require.Zero(t, kills, "nobody was killed there")
			require.Equal(t, service.OOMNone, verdict)
		})
	}
}

// forest starts a tree of shells in g that ignore SIGTERM, some in sessions of
// their own and some stopped.
func forest(t *testing.T, g Group) *exec.Cmd {
	t.Helper()
	c := inside(t, g, nil, "sh", "-c", `trap "" TERM; setsid sh -c 'trap "" TERM; sleep 1000 & sleep 1000' &
		sleep 1000 & kill -STOP $!; sleep 1000 & wait`)
	eventually(t, func() bool { return len(processes(t, g)) == 6 }, "the forest never grew")
	return c
}

func TestHostKill(t *testing.T) {
	for name, kill := range ways {
		t.Run(name, func(t *testing.T) {
			g := hostGroup(t)
			require.NoError(t, g.Child("a").Create(nil))
			deep := g.Child("a").Child("b")
			require.NoError(t, deep.Create(nil))
			c := forest(t, deep)
			yes, err := g.Populated()
			require.NoError(t, err)
			require.True(t, yes)
			require.Len(t, processes(t, g), 6)

			began := time.Now()
			require.NoError(t, kill(g))
			require.NoError(t, g.WaitEmpty(t.Context()))
			t.Logf("killed and empty after %v", time.Since(began))
			require.Empty(t, processes(t, g))
			c.Wait()
			require.Equal(t, syscall.SIGKILL, c.ProcessState.Sys().(syscall.WaitStatus).Signal())
			frozen, err := g.read("cgroup.freeze")
			require.NoError(t, err)
			require.Equal(t, "0", frozen)
			require.NoError(t, g.Child("a").Remove())
		})
	}
}

func TestHostKillFrozen(t *testing.T) {
	g := hostGroup(t)
	forest(t, g)
	require.NoError(t, g.write("cgroup.freeze", "1"))
	require.NoError(t, g.waitEvent(t.Context(), "frozen", true))
	require.NoError(t, g.Kill())
	require.NoError(t, g.WaitEmpty(t.Context()), "SIGKILL reaches the frozen")
}

// ways are the two ways to kill a group.
var ways = map[string]func(Group) error{"cgroup.kill": Group.Kill, "freezer": Group.killFrozen}

// TestHostForkBomb wants every bomb gone soon, and one of the first three within
// a second: a machine with other work may be slow once.
func TestHostForkBomb(t *testing.T) {
	for name, kill := range ways {
		t.Run(name, func(t *testing.T) {
			house := hostGroup(t)
			neighbour := house.Child("neighbour")
			require.NoError(t, neighbour.Create(Wanted))
			inside(t, neighbour, nil, "sleep", "1000")
			best := time.Duration(math.MaxInt64)
			for try := 0; try < 3 && best > time.Second; try++ {
				best = min(best, killBomb(t, house.Child("bomb"), kill))
				require.Len(t, processes(t, neighbour), 1)
			}
			require.NoError(t, neighbour.Kill())
			require.NoError(t, neighbour.WaitEmpty(t.Context()))
			require.NoError(t, neighbour.Remove())
			require.LessOrEqual(t, best, time.Second)
		})
	}
}

func killBomb(t *testing.T, g Group, kill func(Group) error) (took time.Duration) {
	t.Helper()
	require.NoError(t, g.Create(Wanted))
	require.NoError(t, g.Apply(service.Limits{service.PidsMax: service.Of(100)}))
	inside(t, g, nil, "sh", "-c", `f() { f 2>/dev/null & f 2>/dev/null & sleep 1; }; while :; do f; done 2>/dev/null`)
	eventually(t, func() bool { return len(processes(t, g)) > 60 }, "the bomb never went off")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	began := time.Now()
	require.NoError(t, kill(g))
	require.NoError(t, g.WaitEmpty(ctx))
	took = time.Since(began)
	t.Logf("the bomb was gone after %v", took)
	require.Empty(t, processes(t, g))
	require.NoError(t, g.Remove())
	return took
}

func TestHostKillRefusesOwnGroup(t *testing.T) {
	g := hostGroup(t)
	text, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	_, home, _ := strings.Cut(string(bytes.TrimSpace(text)), "0::")
	require.NoError(t, g.Add(os.Getpid()))
	defer func() { require.NoError(t, g.tree.Group(home).Add(os.Getpid())) }()
	require.ErrorContains(t, g.Kill(), "this process lives in it")
}

func TestHostWaitEmpty(t *testing.T) {
	g := hostGroup(t)
	c := inside(t, g, nil, "sleep", "1000")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, g.WaitEmpty(ctx), context.DeadlineExceeded)
	require.ErrorIs(t, g.WaitEmpty(ctx), context.DeadlineExceeded, "already over")

	const waiters = 50
	threads := func() int {
		list, err := os.ReadDir("/proc/self/task")
		require.NoError(t, err)
		return len(list)
	}
	before := threads()
	var wait sync.WaitGroup
	for range waiters {
		wait.Go(func() {
			if err := g.WaitEmpty(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, func() bool {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(fds) >= waiters
	}, "nobody waits")
	require.Less(t, threads()-before, waiters/2, "waiting costs no thread")
	require.NoError(t, c.Process.Kill())
	wait.Wait()
	require.NoError(t, g.WaitEmpty(ctx), "an ended context does not hide that it is empty")
}

func TestHostRemove(t *testing.T) {
	g := hostGroup(t)
	require.NoError(t, g.Child("a").Create(nil))
	inner := g.Child("a").Child("b")
	require.NoError(t, inner.Create(nil))
	c := inside(t, inner, nil, "sleep", "1000")
	err := g.Child("a").Remove()
	require.ErrorIs(t, err, unix.EBUSY)
	require.ErrorContains(t, err, "processes ["+strconv.Itoa(c.Process.Pid)+"] live in it")

	events, err := inner.OpenEvents()
	require.NoError(t, err)
	defer events.Close()
	dir, err := inner.open()
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, g.Child("a").Kill())
	require.NoError(t, g.Child("a").Remove(), "those who are ending are waited for")
	require.NoError(t, g.Child("a").Remove(), "it is gone")
	is, err := g.eventIs(int(events.Fd()), "populated", false)
	require.NoError(t, err)
	require.True(t, is, "through a descriptor from before, gone is empty")
	_, err = dir.read("cgroup.procs")
	require.True(t, gone(err), "%v", err)
	require.NoError(t, inner.Kill())
	require.Empty(t, processes(t, inner))
}

func TestHostOpenRefusesOthers(t *testing.T) {
	g := hostGroup(t)
	_, err := OpenFixture(g.tree.root)
	require.ErrorContains(t, err, "is a real cgroup2 filesystem")
}

// A mark stays as long as its group and no longer, whoever may set which.
func TestHostMark(t *testing.T) {
	g := hostGroup(t)
	for _, admin := range []bool{true, false} {
		t.Run(fmt.Sprintf("admin=%t", admin), func(t *testing.T) {
			if !admin {
				withoutAdmin(t)
			}
			child := g.Child("marked")
			require.ErrorIs(t, child.SetMark("x"), os.ErrNotExist)
			_, err := child.Mark()
			require.ErrorIs(t, err, os.ErrNotExist)
			require.NoError(t, child.Create(nil))
			mark, err := child.Mark()
			require.NoError(t, err)
			require.Empty(t, mark)
			require.NoError(t, child.SetMark("4711 1234567"))
			require.NoError(t, child.SetMark("4712 7654321"))
			mark, err = child.Mark()
			require.NoError(t, err)
			require.Equal(t, "4712 7654321", mark)
			require.NoError(t, child.Remove())
			require.NoError(t, child.Create(nil))
			mark, err = child.Mark()
			require.NoError(t, err)
			require.Empty(t, mark, "it was another group's")
			require.NoError(t, child.Remove())
		})
	}
}

// withoutAdmin takes CAP_SYS_ADMIN from the test's thread, as root in a container
// lacks it.
func withoutAdmin(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	require.NoError(t, unix.Capget(&header, &had[0]))
	less := had
	less[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	require.NoError(t, unix.Capset(&header, &less[0]))
	t.Cleanup(func() {
		require.NoError(t, unix.Capset(&header, &had[0]))
		runtime.UnlockOSThread()
	})
}

// What others make of the same files, of a group that nobody is in any more and whose
// counters stand still.
func TestHostUsageAgreesWithContainerd(t *testing.T) {
	g := hostGroup(t)
	require.NoError(t, inside(t, g, nil, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; cat /bin/sh >/dev/null").Wait())
	m, err := cgroup2.Load(g.Path(), cgroup2.WithMountpoint("/sys/fs/cgroup"))
	require.NoError(t, err)
	u, err := g.Usage()
	require.NoError(t, err)
	s, err := m.Stat()
	require.NoError(t, err)
	require.NotZero(t, s.CPU.UsageUsec)
	require.EqualValues(t, s.CPU.UsageUsec, u.CPUTime.Microseconds())
	require.Equal(t, service.Of(s.CPU.UserUsec), u.User)
	require.Equal(t, service.Of(s.CPU.SystemUsec), u.System)
	require.Equal(t, service.Of(s.Memory.MaxUsage), u.MemoryPeak)
	require.Equal(t, service.Of(s.Pids.Current), u.Pids)
	require.Equal(t, service.Of(s.MemoryEvents.OomKill), u.OOMKills)
	require.EqualValues(t, s.CPU.PSI.Some.Total, u.CPUPressure.Some.Total.Microseconds())
	var read uint64
	for _, d := range s.Io.Usage {
		read += d.Rbytes
	}
	require.Equal(t, service.Of(read), u.IO.ReadBytes)
}

// BenchmarkHostUsage is one reading of all counters, and what containerd's package
// takes to read its own.
func BenchmarkHostUsage(b *testing.B) {
	if !slices.Contains(strings.Fields(os.Getenv("GLADSHEIM_TEST_OFFERS")), "cgroup2") {
		b.Skip("needs a host with cgroup v2: GLADSHEIM_TEST_OFFERS does not name it")
	}
	tree, err := Open("/sys/fs/cgroup")
	require.NoError(b, err)
	g := tree.Group("/gladsheim-benchmark")
	require.NoError(b, g.Create(Wanted))
	b.Cleanup(func() { require.NoError(b, g.Remove()) })
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, err := g.Usage()
			require.NoError(b, err)
		}
	})
	b.Run("containerd", func(b *testing.B) {
		m, err := cgroup2.Load(g.Path(), cgroup2.WithMountpoint("/sys/fs/cgroup"))
		require.NoError(b, err)
		b.ReportAllocs()
		for b.Loop() {
			_, err := m.StatFiltered(cgroup2.StatCPU | cgroup2.StatMemory | cgroup2.StatMemoryEvents | cgroup2.StatPids | cgroup2.StatIO)
			require.NoError(b, err)
		}
	})
}
