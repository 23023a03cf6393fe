package cgroupfs

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/backendtest"
	"github.com/gladsheim/gladsheim/cgroup"
)

// What the conformance suite can not ask, because only this backend has it.

func TestHostEnforcesEverything(t *testing.T) {
	b := newBackend(t, config(t))
	e := b.Enforces()
	for r := range service.NumResources {
		has := true
		if r == service.MemoryZswapMax { // a kernel may be built without
			_, err := os.Stat(filepath.Join(cgroupRoot, b.parent.Path(), cgroup.File(r)))
			has = err == nil
		}
		if r == service.HugetlbMax { // systemd hands the controller to nobody
			offered, err := b.parent.Controllers()
			require.NoError(t, err)
			has = slices.Contains(offered, cgroup.Controller(r))
		}
		require.Equal(t, has, e.Limits[r], "%s", r)
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
	want := service.Enforcement{KillAll: true, BornInside: true, Freeze: true}
	want.Limits[service.PidsMax], want.Limits[service.NoFile], want.Limits[service.Rlimits] = true, true, true
	can := b.Enforces()
	for _, r := range can.Missing(limits(service.MemoryMax, 1, service.CPUMax, 1, service.IOWeight, 1)) {
		require.Contains(t, can.Why[r], "ends in "+above.Path()+", which does not pass it on: write +")
		require.Contains(t, can.Why[r], cgroupRoot+above.Path()+"/cgroup.subtree_control")
	}
	require.Empty(t, can.Why[service.PidsMax])
	can.Why = want.Why
	require.Equal(t, want, can)

	_, err := b.Launch(within(t), limited(plan("/bin/sleep", "1000"), limits(service.MemoryMax, 64<<20)), backends.Birth{})
	require.Equal(t, service.Unenforceable, service.KindOf(err))
	require.ErrorContains(t, err, "memory_max (the controller memory ends in "+above.Path())

	l := limited(plan("/bin/sleep", "1000"), limits(service.PidsMax, 7, service.MemoryMax, 64<<20))
	l.Spec.BestEffort = true
	with := start(t, b, l)
	applied, err := with.Limits(within(t))
	require.NoError(t, err)
	require.Equal(t, []service.Resource{service.MemoryMax}, applied.Unenforced())
	require.Equal(t, service.Of(7), applied[service.PidsMax].Applied)
	with.release()

	r := start(t, b, limited(plan("/bin/sleep", "1000"), limits(service.PidsMax, 5)))
	before, err := r.Limits(within(t))
	require.NoError(t, err)
	_, err = r.Limit(within(t), limits(service.PidsMax, 3, service.MemoryMax, 64<<20))
	require.Equal(t, service.Unenforceable, service.KindOf(err))
	after, err := r.Limits(within(t))
	require.NoError(t, err)
	require.Equal(t, before, after, "nothing of a change is made that can not be made as a whole")
	var u service.Usage
	require.Eventually(t, func() bool { // nothing while it is still on its way through exec
		u, err = r.Usage(within(t))
		require.NoError(t, err)
		return u.Memory != 0
	}, 10*time.Second, time.Millisecond, "added up from /proc")
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

// Limits that are too small for the gate hold for the program nonetheless.
func TestHostTinyLimits(t *testing.T) {
	b := newBackend(t, config(t))
	for range 3 {
		l := limited(plan("/bin/sleep", "1000"), limits(
			service.PidsMax, 1, service.CPUMax, service.UsecPerPercent, service.MemoryMax, 8<<20, service.MemoryHigh, 6<<20))
		l.LogFile = filepath.Join(t.TempDir(), "log")
		h, err := b.Launch(within(t), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
		if err != nil {
			said, _ := os.ReadFile(l.LogFile)
			t.Fatalf("%v; the gate said %s", err, said)
		}
		r := keep(t, h, l)
		a, err := r.Limits(within(t))
		require.NoError(t, err)
		require.Equal(t, service.Of(1), a[service.PidsMax].Applied)
		require.Equal(t, service.Of(service.UsecPerPercent), a[service.CPUMax].Applied)
		require.Equal(t, service.Of(8<<20), a[service.MemoryMax].Applied)
		require.Equal(t, service.Of(6<<20), a[service.MemoryHigh].Applied)
		r.release()
	}
}

// Memory in which not even the gate can wait is too little to start with, and
// nothing of the attempt is left.
func TestHostTooLittleMemory(t *testing.T) {
	b := newBackend(t, config(t))
	l := limited(plan("/bin/sleep", "1000"), limits(service.MemoryMax, 128<<10))
	_, err := b.Launch(within(t), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
	require.Equal(t, service.Unlaunchable, service.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "its memory limit is too small to start in, which takes about 4MiB: ")
	there, err := b.group(l).Exists()
	require.NoError(t, err)
	require.False(t, there)
}

// CPU time as the cgroup counts it, over some seconds. How much less it is than
// the limit depends on how much CPU the machine itself gets, so what is asked is
// that nobody was throttled before the quota of the period was used up. More than
// the limit it is only when the machine's own clock falters; then once more.
func TestHostCPU(t *testing.T) {
	b := newBackend(t, config(t))
	r := start(t, b, plan("/bin/sh", "-c", "while :; do :; done"))
	usage := func() service.Usage {
		u, err := r.Usage(within(t))
		require.NoError(t, err)
		return u
	}
	measure := func(percent int) (got float64) {
		before, began := usage(), time.Now()
		time.Sleep(5 * time.Second) // what is measured needs its time
		after, elapsed := usage(), time.Since(began)

		used := after.CPUTime - before.CPUTime
		throttled := after.ThrottledPeriods.Value - before.ThrottledPeriods.Value
		got = 100 * float64(used) / float64(elapsed)
		t.Logf("asked for %d%%, got %.2f%%, throttled in %d of %d periods", percent, got, throttled, elapsed/(100*time.Millisecond))
		require.NotZero(t, throttled)
		// The kernel hands quotas out to CPUs in slices of 5 ms, of which one
		// may go to waste.
		quota := time.Duration(percent) * time.Millisecond
		require.Greater(t, used, time.Duration(throttled)*(quota-6*time.Millisecond))
		return got
	}
	for _, percent := range []int{20, 40} {
		_, err := r.Limit(within(t), limits(service.CPUMax, percent*service.UsecPerPercent))
		require.NoError(t, err)
		most := float64(percent + 2)
		tries := 1
		for ; measure(percent) > most && tries < 4; tries++ {
		}
		require.Less(t, tries, 4, "it gets more than it may")
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
