package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func TestHost(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.backends = []backends.Backend{execNamed{fake.New(fake.Config{Host: h.host})}}
		h.open()
		started := time.Now()
		h.register(web)
		h.register(db)
		h.start(db)
		pass(10 * time.Second)
		h.write("proc/stat", "cpu  1100 0 100 800 0 0 0 0 0 0\ncpu0 550 0 50 400 0 0 0 0 0 0\ncpu1 550 0 50 400 0 0 0 0 0 0\n")
		info, err := h.Host(t.Context())
		require.NoError(t, err)
		require.Equal(t, "valhalla", info.Hostname)
		require.Equal(t, "6.12.0", info.Kernel)
		require.Equal(t, "1.2.3", info.Version)
		require.Equal(t, "asgard", info.Platform)
		require.Equal(t, 25, info.MaxServices)
		require.Equal(t, [service.NumPublic]int{service.PublicRunning: 1, service.PublicStopped: 1}, info.States)
		require.Equal(t, db, h.List(service.PublicRunning, service.PublicCrashed)[0].Name)
		require.Equal(t, started, info.Started)
		require.EqualValues(t, 4096000<<10, info.System.MemoryTotal)
		require.EqualValues(t, 2048000<<10, info.System.MemoryAvailable)
		require.Equal(t, 2, info.System.Cores)
		require.InDelta(t, 100, info.System.CPUPercent, 0.1, "10 s of CPU time in 10 s")
		require.Len(t, info.Backends, 3)
		for _, b := range info.Backends {
			require.Equal(t, b.Name == "exec", b.Selected, b.Name)
			require.Equal(t, b.Selected, len(b.Capabilities) > 0)
			require.True(t, b.Available || b.Reason != "", b.Name)
		}
		require.Contains(t, info.Backends[2].Capabilities, "memory_max")
		require.Contains(t, info.Backends[2].Capabilities, "oom-verdict")

		h.remove("proc/meminfo")
		_, err = h.Host(t.Context())
		refused(t, err, service.HostUnavailable, "meminfo")
	})
}

type execNamed struct{ backends.Backend }

func (execNamed) Name() string { return "exec" }

func TestConfiguration(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		var whole map[string]any
		require.NoError(t, json.Unmarshal(h.Configuration().Document, &whole))
		require.Contains(t, whole, "gladsheim")
		again, faults := config.ParseAgent("x", h.Configuration().Document, h.settings)
		require.Empty(t, faults)
		require.Equal(t, h.settings, again)

		h.settings.Source, h.settings.Loaded = "/etc/gladsheim/gladsheim.json", time.Now()
		h.reload()
		require.Equal(t, h.settings.Source, h.Configuration().Source)
		h.Reload(t.Context(), config.Agent{}, errors.New("no such key"))
		require.Equal(t, h.settings.Loaded, h.Configuration().Loaded)
		require.Equal(t, "no such key", h.Configuration().Refused)
		require.Contains(t, h.doctor()[0], "no such key")
		h.reload()
		require.Empty(t, h.Configuration().Refused)
		require.Empty(t, h.doctor())
	})
}

func TestDoctor(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.findings = []service.Finding{{Level: service.SeverityProblem, Title: "no anchor"}}
		h.open()
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "no anchor")
		h.register(web, `"restart": {"policy": "never"}`)
		h.start(web)
		h.crash(web)
		require.Len(t, h.doctor(), 2)
		require.Contains(t, h.doctor()[1], "web has crashed")
		require.Contains(t, h.doctor()[1], "exit code 1")
		for _, f := range h.Doctor(t.Context()) {
			require.NotEmpty(t, f.Title)
			require.NotZero(t, f.Level)
		}
	})
}

// A limit that the host does not enforce is named by who refuses a start for it, and by
// the doctor, with what is missing.
func TestWhatIsNotEnforcedIsExplained(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		can := fake.Everything()
		const why = "the controller io ends in /, which does not pass it on"
		can.Limits[service.IOWeight], can.Why[service.IOWeight] = false, why
		can.Limits[service.NoFile] = false
		h.backends = []backends.Backend{fake.New(fake.Config{Host: h.host, Enforces: &can})}
		h.open()
		found := h.Doctor(t.Context())
		f := found[slices.IndexFunc(found, func(f service.Finding) bool { return strings.Contains(f.Title, "io_weight") })]
		require.Equal(t, service.Finding{Level: service.SeverityOK, Title: "the fake backend does not enforce io_weight, and no definition asks for that", Detail: why + "."}, f)
		require.Empty(t, h.doctor())
		_, err := h.Register(t.Context(), "web.json", []byte(doc(web, `"limits": {"io_weight": 50}`)), false, "alice")
		refused(t, err, service.Unenforceable, "io_weight ("+why+") on this host")
		h.register(web)
		asked := service.Limits{service.IOWeight: service.Of(50), service.NoFile: service.Of(100), service.PidsMax: service.Of(7)}
		_, err = h.Start(t.Context(), web, service.StartOptions{Limits: asked})
		refused(t, err, service.Unenforceable, "io_weight ("+why+"), nofile on this host")

		// What a stopped one would ask for is told all the same.
		h.register(db, `"limits": {"io_weight": 50, "pids_max": 7, "best_effort": true}`)
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "the fake backend does not enforce io_weight: ")
		require.Contains(t, h.doctor()[0], why)
		applied, err := h.Limits(t.Context(), db)
		require.NoError(t, err)
		require.Equal(t, service.LimitReport{Requested: service.Of(50)}, applied[service.IOWeight])
		require.Equal(t, service.LimitReport{Requested: service.Of(7), Enforced: true}, applied[service.PidsMax])
	})
}

// What has left the cgroup of its service is named (P24).
func TestDoctorNamesWhatHasLeftItsCgroup(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.register(db)
		h.start(db)
		s := h.start(web)
		process := func(pid, parent int, state, cgroup string) {
			h.write(fmt.Sprintf("proc/%d/stat", pid), fmt.Sprintf("%d (web) %s %d 1 1 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 1 0 100100 1000 10", pid, state, parent)+
				" 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n")
			h.write(fmt.Sprintf("proc/%d/cgroup", pid), "0::"+cgroup+"\n")
		}
		process(s.PID(), 1, "S", s.Ref.Cgroup)
		process(9001, s.PID(), "S", s.Ref.Cgroup+"/of-its-own")
		process(9002, 1, "S", "/elsewhere") // of somebody else
		process(9003, 9001, "Z", "/elsewhere")
		require.Empty(t, h.doctor())
		process(9004, 9001, "S", "/elsewhere")
		process(9005, 9004, "S", s.Ref.Cgroup+"0")
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], fmt.Sprintf("processes of web have left its cgroup: 9004 in /elsewhere, 9005 in %s0:", s.Ref.Cgroup))
		h.remove("proc/9004/stat")
		h.remove("proc/9005/stat")
		process(s.PID(), 1, "S", "/")
		require.Contains(t, h.doctor()[0], fmt.Sprintf("have left its cgroup: %d in /:", s.PID()))
	})
}

// What one backend lacks is no fault when those who ask for it are launched by another.
func TestWhatAnotherBackendEnforcesIsNotMissed(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		can := fake.Everything()
		can.Limits[service.HugetlbMax], can.Why[service.HugetlbMax] = false, "systemd has no setting for huge pages"
		h.backends = []backends.Backend{
			called{fake.New(fake.Config{Host: h.host, Enforces: &can}), "systemd"},
			called{fake.New(fake.Config{Host: h.host}), "cgroupfs"},
		}
		h.open()
		const huge = `"limits": {"hugetlb_max": [{"page_size": "2MiB", "max": "2MiB"}], "best_effort": true}`
		h.register(web, `"launch": "cgroup"`, huge)
		require.Empty(t, h.doctor())
		h.register(db, huge)
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "the systemd backend does not enforce hugetlb_max: ")
	})
}

// called is a backend by another name.
type called struct {
	backends.Backend
	name string
}

func (c called) Name() string { return c.name }
