package cgroupfs

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/backendtest"
	"github.com/gladsheim/gladsheim/cgroup"
)

// A program that needs more than a tiny limit is killed for that, and it is
// told.
func TestHostOOMInTheSmallest(t *testing.T) {
	b := newBackend(t, config(t))
	l := hog(t, 16)
	l.Limits[service.MemoryMax] = service.Of(6 << 20)
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
	h, err := first.Launch(within(t), l, backends.Birth{Identify: func(service.Ref) error { return nil }})
	require.NoError(t, err)
	<-h.Exited()
	require.NoError(t, h.Close())
	require.NoError(t, first.Close())

	b := newBackend(t, c)
	refs, err := b.Leftovers(within(t), nil)
	require.NoError(t, err)
	require.Contains(t, refs, h.Ref(), "a cgroup without a process is left over too, and tells whose it was")
	adopted, err := b.Adopt(within(t), h.Ref(), service.Launch{})
	require.NoError(t, err)
	r := keep(t, adopted, l)
	require.Equal(t, service.Exit{Signal: syscall.SIGKILL}, r.wait())
	remains := r.release()
	require.Equal(t, service.OOMOwn, remains.OOM)
	require.NotZero(t, remains.Usage.OOMKills.Value)
	_, err = b.Adopt(within(t), h.Ref(), service.Launch{})
	require.ErrorIs(t, err, backends.ErrGone)
}
