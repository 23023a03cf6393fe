package exec

import (
	"context"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/backendtest"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/procfs"
)

const patience = 15 * time.Second

// soon is a second, or what it takes a host emulated in software.
func soon() time.Duration {
	if os.Getenv("GLADSHEIM_TEST_OFFERS") != "" {
		return patience
	}
	return time.Second
}

// plan is a launch of a shell script.
func plan(t testing.TB, script string) service.Launch {
	t.Helper()
	spec := service.Defaults()
	spec.Name = service.MustName("web")
	spec.Exec = []string{"/bin/sh", "-c", script}
	return service.Launch{Name: spec.Name, Incarnation: 7, Spec: spec, LogFile: filepath.Join(t.TempDir(), "web.log")}
}

func start(t testing.TB, b *Backend, l service.Launch) *handle {
	t.Helper()
	h, err := b.Launch(t.Context(), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := h.Release(ctx)
		require.NoError(t, err)
	})
	return h.(*handle)
}

// pids waits until want processes of h live, and lists them.
func pids(t testing.TB, h *handle, want int) []int {
	t.Helper()
	var found []int
	require.Eventually(t, func() bool {
		var err error
		found, err = h.pids()
		return err == nil && len(found) == want
	}, patience, 2*time.Millisecond, "%d processes", want)
	return found
}

func awaitExit(t testing.TB, h *handle) service.Exit {
	t.Helper()
	select {
	case <-h.Exited():
	case <-time.After(patience):
		require.Fail(t, "it did not end")
	}
	return h.Exit()
}

func TestBrand(t *testing.T) {
	b := newBackend(t)
	name := service.MustName("web")
	m := b.brand(name, 7)
	require.True(t, m.is())
	require.Equal(t, uint64(7), m.incarnation())
	require.Equal(t, b.hash(name), m.service())
	require.Less(t, uint64(m), uint64(1)<<63, "RLIM_INFINITY is another")
	require.NotEqual(t, m, b.brand(name, 8))
	require.NotEqual(t, m, b.brand(service.MustName("web2"), 7))
	other := &Backend{agentID: "another agent"}
	require.NotEqual(t, m, other.brand(name, 7))
	require.Equal(t, m, (&Backend{agentID: b.agentID}).brand(name, 7), "the same after a restart")
	require.Equal(t, brandBit|brand(m.service())<<32|0xffffffff, b.brand(name, 1<<32-1))
	for _, ordinary := range []brand{0, 1_000_000, 1<<62 - 1, ^brand(0)} {
		require.False(t, ordinary.is())
	}
}

func TestBrandIsReadFromProcWhereTheSystemCallMayNot(t *testing.T) {
	b := newBackend(t)
	l := plan(t, "exec sleep 1000")
	if os.Geteuid() == 0 {
		l.Spec.User = "nobody" // and where root lacks CAP_SYS_RESOURCE
	}
	h := start(t, b, l)
	m, err := b.brandOf(h.main.PID())
	require.NoError(t, err)
	require.Equal(t, h.brand, m)
	soft, hard, err := b.proc.RTTimeLimit(h.main.PID())
	require.NoError(t, err)
	require.Equal(t, h.brand, brand(hard))
	require.Equal(t, launch.Self(h.ref.PID, h.ref.StartTicks), soft)
	none, err := b.brandOf(1)
	require.NoError(t, err)
	require.Zero(t, none)
}

// Each of these leaves the process group, the session, or its parents.
func TestKillReachesWhatHasLeft(t *testing.T) {
	b := newBackend(t)
	for name, script := range map[string]string{
		"group":            "sleep 1000 & sleep 1000 & exec sleep 1000",
		"setsid":           "setsid sleep 1000 & setsid sleep 1000 & exec sleep 1000",
		"orphans":          "(sleep 1000 &) ; (sleep 1000 &) ; exec sleep 1000",
		"orphaned daemons": "(setsid sleep 1000 &) ; (setsid env -i sleep 1000 &) ; exec sleep 1000",
		"stopped":          "sleep 1000 & kill -STOP $!; sleep 1000 & kill -STOP $!; exec sleep 1000",
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, b, plan(t, script))
			pids(t, h, 3)
			require.NoError(t, h.Kill(t.Context()))
			require.Empty(t, pids(t, h, 0))
			require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, h.Exit())
			remains, err := h.Release(t.Context())
			require.NoError(t, err)
			require.Zero(t, remains.Leftovers, "the main process lived")
		})
	}
}

// One that has lowered its limits carries no brand any more, but stands in the
// session of those that do.
func TestKillReachesAMateWithoutABrand(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "prlimit --rttime=1000000:1000000 sleep 1000 & exec sleep 1000"))
	list := pids(t, h, 2)
	require.Equal(t, h.main.PID(), list[0], "the main process comes first")
	require.Eventually(t, func() bool {
		m, err := b.brandOf(list[1])
		return err == nil && m == 0
	}, patience, 2*time.Millisecond)
	pidfd, err := unix.PidfdOpen(list[1], 0)
	require.NoError(t, err)
	defer unix.Close(pidfd)
	main, err := b.proc.Process(h.main.PID())
	require.NoError(t, err)
	require.NoError(t, h.Kill(t.Context()))
	require.True(t, process.Ended(pidfd))
	require.Eventually(t, func() bool { return zombies(t, main.PPID) == 0 }, patience, time.Millisecond, "it was the shim's orphan, and is reaped")
}

// A number that only a session still bears, since its leader was reaped, is
// nobody, and no want of descriptors.
func TestKillPassesOverAReapedLeader(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "sleep 1000 & exec sleep 1000"))
	pids(t, h, 2)
	require.NoError(t, h.main.Signal(syscall.SIGKILL))
	awaitExit(t, h)
	_, err := unix.PidfdOpen(h.main.PID(), 0)
	require.Error(t, err)
	hunt := hunt{handle: h}
	hunt.strike(h.main.PID())
	require.False(t, hunt.full, "%v", err)
	require.NoError(t, hunt.killMate(mate{h.main.PID(), h.main.PID(), 1}))
}

func TestKillSaysThatItHasNoDescriptors(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "prlimit --rttime=1000000:1000000 sleep 1000 & exec sleep 1000"))
	list := pids(t, h, 2)
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}))
	hunt := hunt{handle: h}
	hunt.strike(list[0])
	err := hunt.killMate(mate{list[1], list[0], list[0]})
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	require.True(t, hunt.full)
	require.ErrorIs(t, err, unix.EMFILE)
	pids(t, h, 2)
}

// A launch that fails, or is given up, when the program runs already leaves none of
// what that has forked.
func TestFailedAtTheExecve(t *testing.T) {
	b := newBackend(t)
	for kind, givenUp := range map[service.Kind]bool{service.Cancelled: true, service.Unlaunchable: false} {
		h := start(t, b, plan(t, "sleep 1000 & setsid sleep 1000 & exec sleep 1000"))
		pids(t, h, 3)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		failed := &service.Error{Op: "start", Service: h.ref.Name, Kind: kind}
		err := h.begin(ctx, func(context.Context) error {
			if givenUp {
				cancel()
			}
			require.NoError(t, h.main.Signal(syscall.SIGKILL))
			awaitExit(t, h)
			return failed
		})
		require.Equal(t, error(failed), err)
		left, err := b.survey(h.brand, nil)
		require.NoError(t, err)
		require.Empty(t, left)
		b.forget(h.brand)
	}
}

// Rolling bombs, in which each member starts its successor and leaves, and
// growing ones. Each chain ends by itself after a while, lest a test that
// fails leaves a bomb behind.
func TestKillEndsForkBombs(t *testing.T) {
	b := newBackend(t)
	for name, body := range map[string]string{
		"hoppers":            "$0 $n &",
		"hoppers in session": "setsid $0 $n &",
		"busy parents":       "i=0; while [ $i -lt 1000 ]; do (:) & i=$((i+1)); done",
	} {
		t.Run(name, func(t *testing.T) {
			bomb := filepath.Join(t.TempDir(), "bomb")
			script := "#!/bin/sh\nn=$(($1+1)); [ $n -gt 500 ] && exit\n" + body + "\n"
			require.NoError(t, os.WriteFile(bomb, []byte(script), 0o755))
			h := start(t, b, plan(t, "i=0; while [ $i -lt 15 ]; do setsid "+bomb+" 0 & i=$((i+1)); done; exec sleep 1000"))
			var list []int
			require.Eventually(t, func() bool { list, _ = h.pids(); return len(list) > 8 }, patience, 5*time.Millisecond)
			began := time.Now()
			require.NoError(t, h.Kill(t.Context()))
			took := time.Since(began)
			t.Logf("%d lived; gone after %v", len(list), took)
			require.Less(t, took, soon())
			list, err := h.pids()
			require.NoError(t, err)
			require.Empty(t, list)
		})
	}
}

func TestKillTouchesNoNeighbour(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "exec sleep 1000"))
	next := plan(t, "exec sleep 1000")
	next.Incarnation++
	other := start(t, b, next)
	bystander := osexec.Command("sleep", "1000")
	bystander.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(t, bystander.Start())
	defer func() { _ = bystander.Process.Kill(); _ = bystander.Wait() }()

	require.NoError(t, h.Kill(t.Context()))
	require.Len(t, pids(t, other, 1), 1)
	require.NoError(t, bystander.Process.Signal(syscall.Signal(0)))
	found, err := b.proc.Process(bystander.Process.Pid)
	require.NoError(t, err)
	require.True(t, found.Alive())
}

func TestSurvivorsAreNamed(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "exec sleep 1000"))
	require.Eventually(t, func() bool { return b.proc.Command(h.main.PID()) == "sleep 1000" }, patience, time.Millisecond)
	err := b.survivors(h.ref.Name, "kill", h.brand, h.main, context.DeadlineExceeded)
	require.Equal(t, service.Timeout, service.KindOf(err))
	require.Equal(t, service.ReasonUnkillable, service.ReasonOf(err))
	require.Regexp(t, "^cannot kill web: 1 processes have not ended: "+strconv.Itoa(h.main.PID())+
		" sleep 1000 .state [SRD].: context deadline exceeded$", err.Error())
}

func TestOrphansAreReapedAndTheirTimeCounts(t *testing.T) {
	b := newBackend(t)
	// Two orphans each, one with a child that it waits for.
	burn := "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"
	h := start(t, b, plan(t, "(sh -c '"+burn+"' &); (sh -c \"sh -c '"+burn+"'; true\" &); exec sleep 1000"))
	pids(t, h, 1)
	require.Eventually(t, func() bool { return h.buriedTime() > 0 }, patience, 5*time.Millisecond)
	main, err := b.proc.Process(h.main.PID())
	require.NoError(t, err)
	require.Eventually(t, func() bool { return zombies(t, main.PPID) == 0 }, patience, time.Millisecond)
	buried := h.buriedTime() // so far: the other may still run
	u, err := h.Usage(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, u.CPUTime, buried)
	require.NoError(t, h.Kill(t.Context()))
	remains, err := h.Release(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, remains.Usage.CPUTime, u.CPUTime)
	require.Equal(t, service.Of(0), remains.Usage.Pids)
	require.True(t, remains.Usage.MemoryPeak.Set)
}

// zombies counts the children of a process that have ended.
func zombies(t testing.TB, parent int) int {
	t.Helper()
	fs, err := procfs.New("/proc")
	require.NoError(t, err)
	list, err := fs.Processes()
	require.NoError(t, err)
	n := 0
	for _, p := range list {
		if p.PPID == parent && !p.Alive() {
			n++
		}
	}
	return n
}

func TestUsageCountsTheTree(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "sleep 1000 & setsid sleep 1000 & exec sleep 1000"))
	pids(t, h, 3)
	u, err := h.Usage(t.Context())
	require.NoError(t, err)
	require.Equal(t, "procfs", u.Source)
	require.Equal(t, service.Of(3), u.Pids)
	require.NotZero(t, u.Memory)
	require.GreaterOrEqual(t, u.MemoryPeak.Value, u.Memory)
	require.Equal(t, service.Quota{}, u.OOMKills, "nobody counts that here")
	require.True(t, u.Swap.Set)
	require.NotZero(t, u.Anon.Value)
	require.NotZero(t, u.File.Value)
	require.Equal(t, service.Of(3), u.PidsPeak)
	require.Equal(t, service.Usage{}.IOPressure, u.IOPressure)
	require.Equal(t, service.Quota{}, u.IO.Reads, "operations are not counted by process")
}

// Of all processes, and of those that have ended too.
func TestUsageCountsWhatADiskDid(t *testing.T) {
	const moved = 3 << 20
	b := newBackend(t)
	dir := t.TempDir()
	does, count := "dd if=/dev/zero of="+dir+"/written bs=1M count=3 conv=fsync", func(io service.IO) service.Quota { return io.WriteBytes }
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &fs))
	if fs.Type == unix.TMPFS_MAGIC { // then there is no disk to write to
		does, count = "dd if="+backendtest.Disk(t)+" of=/dev/null bs=1M count=3 iflag=direct", func(io service.IO) service.Quota { return io.ReadBytes }
	}
	h := start(t, b, plan(t, does+"; sleep 1000 & exec sleep 1000"))
	require.Eventually(t, func() bool {
		u, err := h.Usage(t.Context())
		require.NoError(t, err)
		return u.Pids == service.Of(2) && count(u.IO).Value >= moved
	}, 10*time.Second, 10*time.Millisecond, "the main process waited for who read or wrote")
}

func TestLimitOfOpenFilesReachesTheWholeTree(t *testing.T) {
	b := newBackend(t)
	l := plan(t, "sleep 1000 & setsid sleep 1000 & exec sleep 1000")
	l.Limits[service.NoFile] = service.Of(300)
	h := start(t, b, l)
	list := pids(t, h, 3)
	for _, pid := range list {
		files, err := b.proc.NoFileLimit(pid)
		require.NoError(t, err)
		require.Equal(t, uint64(300), files)
	}
	applied, err := h.Limit(t.Context(), service.Limits{service.NoFile: service.Of(200)})
	require.NoError(t, err)
	want := service.LimitReport{Requested: service.Of(200), Applied: service.Of(200), Effective: service.Of(200), Enforced: true}
	require.Equal(t, want, applied[service.NoFile])
	for _, pid := range list {
		files, err := b.proc.NoFileLimit(pid)
		require.NoError(t, err)
		require.Equal(t, uint64(200), files)
	}

	_, err = h.Limit(t.Context(), service.Limits{service.NoFile: service.Of(100), service.MemoryMax: service.Of(64 << 20), service.PidsMax: service.Of(5)})
	require.Equal(t, service.Unenforceable, service.KindOf(err))
	require.ErrorContains(t, err, "cannot limit web: the exec backend, which uses no cgroups, can not enforce memory_max, pids_max")
	applied, err = h.Limits(t.Context())
	require.NoError(t, err)
	require.Equal(t, want, applied[service.NoFile], "nothing was changed")
}

func TestBestEffortSaysWhatIsNotEnforced(t *testing.T) {
	b := newBackend(t)
	l := plan(t, "exec sleep 1000")
	l.Limits[service.MemoryMax] = service.Of(64 << 20)
	l.Limits[service.CPUMax] = service.Of(service.Unlimited)
	_, err := b.Launch(t.Context(), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
	require.Equal(t, service.Unenforceable, service.KindOf(err))
	require.ErrorContains(t, err, "cannot start web")
	require.ErrorContains(t, err, "memory_max")
	require.NotContains(t, err.Error(), "cpu_percent", "unlimited asks for nothing")

	l.Spec.BestEffort = true
	h := start(t, b, l)
	applied, err := h.Limits(t.Context())
	require.NoError(t, err)
	require.Equal(t, []service.Resource{service.MemoryMax}, applied.Unenforced())
	require.Equal(t, service.LimitReport{Requested: service.Of(64 << 20)}, applied[service.MemoryMax])
}

func TestOneIncarnationRunsOnce(t *testing.T) {
	b := newBackend(t)
	l := plan(t, "exec sleep 1000")
	h := start(t, b, l)
	_, err := b.Launch(t.Context(), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
	require.Equal(t, service.ReasonPreviousAlive, service.ReasonOf(err))
	_, err = h.Release(t.Context())
	require.NoError(t, err)
	start(t, b, l)
}

// So do programs that use real-time priorities.
func TestAdoptionOfOneThatGaveUpItsBrand(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "sleep 1000 & exec sleep 1000"))
	pids(t, h, 2)
	require.NoError(t, unix.Prlimit(h.main.PID(), unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: 200_000, Max: 200_000}, nil))
	again := newBackend(t)
	adopted, err := again.Adopt(t.Context(), h.Ref(), service.Launch{})
	require.NoError(t, err)
	require.False(t, over(adopted.Exited()))
	list, err := adopted.Processes(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, h.main.PID(), list[0].PID)
	require.NoError(t, adopted.Kill(t.Context()))
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, awaitExit(t, h))
	require.NoError(t, adopted.Close())
}

func TestAdoptionNeedsIdentityAndBrand(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "exec sleep 1000"))
	again := newBackend(t)
	adopted, err := again.Adopt(t.Context(), h.Ref(), service.Launch{})
	require.NoError(t, err)
	require.NoError(t, adopted.Close())

	for name, change := range map[string]func(*service.Ref){
		"name":        func(r *service.Ref) { r.Name = service.MustName("other") },
		"incarnation": func(r *service.Ref) { r.Incarnation++ },
	} {
		ref := h.Ref()
		change(&ref)
		_, err := again.Adopt(t.Context(), ref, service.Launch{})
		require.ErrorIs(t, err, backends.ErrGone, name)
	}
	// The incarnation lives, but the record names another process of it: the
	// main one is not known then, and all of it can be removed.
	ref := h.Ref()
	ref.StartTicks--
	rest, err := again.Adopt(t.Context(), ref, service.Launch{})
	require.NoError(t, err)
	require.NotEmpty(t, rest.Exit().Unknown)
	remains, err := rest.Release(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, remains.Leftovers)
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, awaitExit(t, h))
}

func TestLeftoversNeedTheName(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "sleep 1000 & exec sleep 1000"))
	refs, err := b.Leftovers(t.Context(), []service.Name{service.MustName("other")})
	require.NoError(t, err)
	require.Empty(t, refs)
	refs, err = b.Leftovers(t.Context(), []service.Name{service.MustName("other"), h.ref.Name})
	require.NoError(t, err)
	require.Equal(t, []service.Ref{h.ref}, refs)
}

// What no name fits is listed, whoever's it is; the dead are not.
func TestUnclaimed(t *testing.T) {
	b := newBackend(t)
	h := start(t, b, plan(t, "sleep 1000 & exec sleep 1000"))
	all := pids(t, h, 2)
	unclaimed := func(known ...service.Name) []int {
		t.Helper()
		found, err := b.Unclaimed(t.Context(), known)
		require.NoError(t, err)
		return slices.DeleteFunc(found, func(pid int) bool { return !slices.Contains(all, pid) }) // the host may have others
	}
	require.ElementsMatch(t, all, unclaimed(service.MustName("other")))
	require.Empty(t, unclaimed(service.MustName("other"), h.ref.Name))
	require.NoError(t, h.Kill(t.Context()))
	require.Empty(t, unclaimed())
}

// Who the main process is must be told by all who tell anything.
func TestMainProcessIsNotGuessed(t *testing.T) {
	b := newBackend(t)
	found := func(h *handle) service.Ref {
		t.Helper()
		refs, err := b.Leftovers(t.Context(), []service.Name{h.ref.Name})
		require.NoError(t, err)
		require.Len(t, refs, 1)
		return refs[0]
	}
	nobody := func(h *handle) service.Ref {
		return service.Ref{Backend: "exec", Name: h.ref.Name, Incarnation: h.ref.Incarnation}
	}
	h := start(t, b, plan(t, "sleep 1000 & setsid sleep 1000 & exec sleep 1000"))
	all := pids(t, h, 3)
	soft := func(pid int, value uint64) {
		require.NoError(t, unix.Prlimit(pid, unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: value, Max: uint64(h.brand)}, nil))
	}
	child := all[1]
	soft(h.ref.PID, 1_000_000)
	require.Equal(t, h.ref, found(h), "its children tell")
	soft(child, launch.Self(child, 1))
	require.Equal(t, nobody(h), found(h), "one of them lies")
	soft(child, 1_000_000)
	require.Equal(t, h.ref, found(h), "one still tells")
	require.NoError(t, h.Signal(t.Context(), syscall.SIGKILL))
	awaitExit(t, h)
	require.Equal(t, h.ref, found(h), "the main process has ended")
	for _, pid := range all[1:] {
		soft(pid, 1_000_000)
	}
	require.Equal(t, nobody(h), found(h), "nobody tells")
}

// A service of any user may name whom it likes; a stranger who leads a session and
// carries no brand looks like a main process that gave its own up.
func TestALeftoverNamesNoStranger(t *testing.T) {
	b := newBackend(t)
	stranger := osexec.Command("sleep", "1000")
	stranger.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(t, stranger.Start())
	t.Cleanup(func() {
		_ = stranger.Process.Kill()
		_ = stranger.Wait()
	})
	pid := stranger.Process.Pid
	ticks, err := b.proc.StartTicks(pid)
	require.NoError(t, err)
	h := start(t, b, plan(t, "exec sleep 1000"))
	lie := func(self uint64) service.Ref {
		t.Helper()
		require.NoError(t, unix.Prlimit(h.ref.PID, unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: self, Max: uint64(h.brand)}, nil))
		refs, err := b.Leftovers(t.Context(), []service.Name{h.ref.Name})
		require.NoError(t, err)
		require.Len(t, refs, 1)
		return refs[0]
	}
	nobody := service.Ref{Backend: "exec", Name: h.ref.Name, Incarnation: h.ref.Incarnation}
	require.Equal(t, nobody, lie(launch.Self(pid, ticks)), "a stranger that lives")
	unborn := uint64((procfs.SinceBoot() + time.Hour) / procfs.Ticks(1))
	require.Equal(t, nobody, lie(launch.Self(pid, unborn)), "one that may still be born")
	require.Equal(t, h.ref, lie(launch.Self(h.ref.PID, h.ref.StartTicks)), "itself")

	adopted, err := newBackend(t).Adopt(t.Context(), lie(launch.Self(pid, ticks)), service.Launch{})
	require.NoError(t, err)
	require.Equal(t, service.NotRunning, service.KindOf(adopted.Signal(t.Context(), syscall.SIGTERM)))
	_, err = adopted.Release(t.Context())
	require.NoError(t, err)
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, awaitExit(t, h))
	now, err := b.proc.Process(pid)
	require.NoError(t, err)
	require.True(t, now.Alive(), "the stranger lives")
}

func TestAnAgentThatMayNotBrandIsTold(t *testing.T) {
	if os.Getenv("GLADSHEIM_TEST_LIMITED") == "" {
		line := []string{"--rttime=1000000:1000000", "/proc/self/exe"}
		if os.Geteuid() == 0 {
			line = append([]string{"--rttime=1000000:1000000", "setpriv", "--reuid=65534", "--bounding-set=-all"}, "/proc/self/exe")
		}
		binary := filepath.Join("/proc", strconv.Itoa(os.Getpid()), "exe")
		line[len(line)-1] = binary
		cmd := osexec.Command("prlimit", append(line, "-test.run=^"+t.Name()+"$", "-test.v")...)
		cmd.Env = append(os.Environ(), "GLADSHEIM_TEST_LIMITED=1")
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "failed to execute") {
			t.Skip("the test binary can not be executed by another user here")
		}
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "--- PASS")
		return
	}
	require.ErrorContains(t, canBrand(), "start it without that limit")
}

func BenchmarkLaunch(b *testing.B) {
	backend := newBackend(b)
	var launch, kill []time.Duration
	l := plan(b, "")
	l.Spec.Exec = []string{"/bin/sleep", "1000"}
	for b.Loop() {
		l.Incarnation++
		began := time.Now()
		h, err := backend.Launch(b.Context(), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
		require.NoError(b, err)
		launched := time.Now()
		launch = append(launch, launched.Sub(began))
		require.NoError(b, h.Kill(b.Context()))
		kill = append(kill, time.Since(launched))
		_, err = h.Release(b.Context())
		require.NoError(b, err)
	}
	for name, times := range map[string][]time.Duration{"launch": launch, "kill": kill} {
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/10].Microseconds()), name+"-p10-µs")
		b.ReportMetric(float64(times[len(times)/2].Microseconds()), name+"-p50-µs")
	}
}
