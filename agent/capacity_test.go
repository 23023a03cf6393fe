package agent

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// In a container the host is what is left of it, and so are the limits that fit on it.
func TestHostOfAContainer(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.write("cgroup/memory.max", "536870912\n")
		h.write("cgroup/memory.current", "300000000\n")
		h.write("cgroup/memory.stat", "anon 100\ninactive_file 100000000\n")
		h.write("cgroup/cpuset.cpus.effective", "1\n")
		h.settings.MemoryOvercommit = 50
		h.open()
		h.register(web, `"limits": {"cpu_percent": 100}`)
		pass(10 * time.Second)
		h.write("proc/stat", "cpu  1250 0 100 800 0 0 0 0 0 0\ncpu0 1000 0 50 400 0 0 0 0 0 0\ncpu1 250 0 50 400 0 0 0 0 0 0\n")
		info, err := h.Host(t.Context())
		require.NoError(t, err)
		require.Equal(t, service.SystemUsage{
			MemoryTotal: 512 << 20, MemoryAvailable: 512<<20 - 200_000_000, MemoryBy: h.path("cgroup/memory.max"),
			Cores: 1, CoresBy: h.path("cgroup/cpuset.cpus.effective"), CPUPercent: info.System.CPUPercent, Measured: time.Now(),
		}, info.System)
		require.InDelta(t, 20, info.System.CPUPercent, 0.1, "2 s of the one CPU in 10 s; what others do on the other is not ours")
		require.EqualValues(t, 256<<20, info.Budget)
		_, err = h.Register(t.Context(), "db.json", []byte(doc(db, `"limits": {"cpu_percent": 101}`)), false, "alice")
		refused(t, err, service.Invalid, "101% is more than this host has: 1 cores are 100%")

		// Somebody gives more.
		h.write("cgroup/cpuset.cpus.effective", "0-1\n")
		h.write("cgroup/memory.max", "max\n")
		h.register(db, `"limits": {"cpu_percent": 200}`)
		info, err = h.Host(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 4096000<<10, info.System.MemoryTotal)
		require.Equal(t, 2, info.System.Cores)
		require.Empty(t, info.System.MemoryBy+info.System.CoresBy)
		require.InDelta(t, 115, info.System.CPUPercent, 0.1, "since the start: both")

		h.write("cgroup/memory.max", "much\n")
		_, err = h.Host(t.Context())
		refused(t, err, service.HostUnavailable, "memory.max", "much")
		_, err = h.Start(t.Context(), web, service.StartOptions{})
		refused(t, err, service.HostUnavailable, "memory.max", "much")
	})
}

// A limit above what the machine has says nothing.
func TestHostOfALooseContainer(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.write("cgroup/memory.max", "99999999999\n")
		h.write("cgroup/memory.current", "99999999000\n")
		h.write("cgroup/cpuset.cpus.effective", "0-7\n") // with a /proc/stat that was made up for two
		h.open()
		info, err := h.Host(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 4096000<<10, info.System.MemoryTotal)
		require.EqualValues(t, 2048000<<10, info.System.MemoryAvailable)
		require.Equal(t, 2, info.System.Cores)
		require.Empty(t, info.System.MemoryBy+info.System.CoresBy)
	})
}

// counting is a backend that counts all services together.
type counting struct {
	backends.Backend
	total func() (service.Usage, error)
}

func (c counting) Total() (service.Usage, error) { return c.total() }

func TestHostCountsAllServices(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		used, fault := service.Usage{Source: "cgroup", Memory: 5, CPUTime: time.Hour, Pids: service.Of(3)}, error(nil)
		one := fake.New(fake.Config{Host: h.host})
		h.backends = []backends.Backend{one, counting{one, func() (service.Usage, error) { return used, fault }}}
		h.open()
		all := func() (service.Usage, string) {
			t.Helper()
			info, err := h.Host(t.Context())
			require.NoError(t, err)
			return info.All, info.Uncounted
		}
		pass(10 * time.Second)
		used.CPUTime += 5 * time.Second
		u, unknown := all()
		require.Empty(t, unknown)
		require.InDelta(t, 50, u.CPUPercent, 0.1, "not what was before the agent")
		u.CPUPercent = 0
		require.Equal(t, used, u)

		pass(10 * time.Second)
		used.CPUTime = time.Second // the cgroup was made anew
		u, _ = all()
		require.Zero(t, u.CPUPercent)
		pass(10 * time.Second)
		used.CPUTime += 20 * time.Second
		u, _ = all()
		require.InDelta(t, 200, u.CPUPercent, 0.1)

		fault = &service.Error{Op: "measure all services", Kind: service.HostUnavailable, Err: errors.New("memory.current: permission denied")}
		u, unknown = all()
		require.Equal(t, service.Usage{}, u)
		require.Contains(t, unknown, "memory.current: permission denied")
		fault = &service.Error{Op: "measure all services", Kind: service.HostUnavailable, Err: fs.ErrNotExist}
		_, unknown = all()
		require.Equal(t, "no service has a cgroup now", unknown)

		h.close()
		h.open() // before the first service
		fault = nil
		used.CPUTime = time.Second
		pass(10 * time.Second)
		u, _ = all()
		require.InDelta(t, 10, u.CPUPercent, 0.1)
	})
	opened(t, func(t *testing.T, h *house) {
		info, err := h.Host(t.Context())
		require.NoError(t, err)
		require.Equal(t, service.Usage{}, info.All)
		require.Contains(t, info.Uncounted, "no cgroup holds them")
	})
}
