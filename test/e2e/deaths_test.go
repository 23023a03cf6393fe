package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// death is a way to end, and what has to be on record of it.
type death struct {
	name    string
	mode    []string                         // of the workload
	more    fields                           // of its definition
	before  func(home string) (after func()) // nil, or done to where the services lie
	kill    func(*gladsheimv1.ServiceStatus)
	verdict gladsheimv1.Verdict
	signal  syscall.Signal
	by      string // requested_by, "" for any
	level   func(*gladsheimv1.ServiceStatus) string
}

// TestSevenDeaths: seven services die in seven ways, and each record says in which.
func TestSevenDeaths(t *testing.T) {
	oneOfAKind(t)
	if !limited(t) {
		t.Skip("this belongs on hosts with cgroup v2, by whose counters they are told apart")
	}
	eachMode(t, func(t *testing.T, w *world, mode string) {
		home := "" // where they lie, known from the first one on
		for _, d := range w.deaths(mode) {
			after := func() {}
			if d.before != nil {
				after = d.before(home)
			}
			w.register(workload(t, d.name, d.name, d.mode...).with(fields{"launch": mode}).with(d.more))
			w.cli("start", d.name) // which it may outlive, or not
			s := byGRPC{w}.status(d.name)
			home = homeOf(s)
			if d.kill != nil {
				eventually(t, d.name+" is complete", func() bool {
					return len(byGRPC{w}.exits(d.name).Exits) > 0 || strings.Contains(w.mustCLI("logs", d.name), "ready")
				})
				d.kill(s)
			}
			x := w.ended(d.name)
			after()
			require.Equal(t, d.verdict, x.Verdict, "%s: %v", d.name, x)
			require.EqualValues(t, d.signal, x.GetSignal(), "%s: %v", d.name, x)
			if d.by != "" {
				require.Contains(t, x.RequestedBy, d.by, "%s: %v", d.name, x)
			}
			if d.level != nil {
				require.Equal(t, d.level(s), x.OomLevel, "%s: %v", d.name, x)
			}
			require.Empty(t, marked(t, d.name), d.name)
		}
	})
}

// homeOf is the cgroup in which those of the services lie.
func homeOf(s *gladsheimv1.ServiceStatus) string {
	if s.Unit != "" {
		return path.Dir(path.Dir(s.Cgroup))
	}
	return path.Dir(s.Cgroup)
}

func (w *world) deaths(mode string) []death {
	t := w.t
	hog := []string{"hog-memory", fmt.Sprint(96 * mebibyte)}
	noSwap := fields{"limits": fields{"memory_swap_max": "0"}}
	return []death{
		{
			name: "own-limit", mode: hog, more: fields{"limits": fields{"memory_max": "32MiB", "memory_swap_max": "0"}},
			verdict: gladsheimv1.Verdict_VERDICT_OWN_LIMIT_OOM, signal: syscall.SIGKILL,
			level: func(s *gladsheimv1.ServiceStatus) string { return s.Cgroup },
		},
		{
			name: "ancestor", mode: hog, more: noSwap,
			before: func(home string) func() {
				at := filepath.Join("/sys/fs/cgroup", home, "memory.max")
				set := func(value string) { require.NoError(t, os.WriteFile(at, []byte(value), 0)) }
				set(strconv.Itoa(64 * mebibyte))
				return func() { set("max") }
			},
			verdict: gladsheimv1.Verdict_VERDICT_ANCESTOR_OOM, signal: syscall.SIGKILL, level: homeOf,
		},
		{
			name: "host", mode: hog, more: noSwap,
			kill: func(s *gladsheimv1.ServiceStatus) { // the kernel behaves as though memory had run out
				require.NoError(t, os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", s.ProcessId), []byte("1000"), 0))
				require.NoError(t, os.WriteFile("/proc/sysrq-trigger", []byte("f"), 0))
			},
			verdict: gladsheimv1.Verdict_VERDICT_HOST_OOM, signal: syscall.SIGKILL,
		},
		{name: "crash", mode: []string{"signal", "11"}, verdict: gladsheimv1.Verdict_VERDICT_CRASH, signal: syscall.SIGSEGV},
		{
			name: "outside", mode: []string{"fork", "2"},
			kill: func(s *gladsheimv1.ServiceStatus) {
				require.NoError(t, syscall.Kill(int(s.ProcessId), syscall.SIGKILL))
			},
			verdict: gladsheimv1.Verdict_VERDICT_KILLED_FROM_OUTSIDE, signal: syscall.SIGKILL,
		},
		{
			name: "user", mode: []string{"fork", "2"},
			kill:    func(*gladsheimv1.ServiceStatus) { w.mustCLI("stop", "user") },
			verdict: gladsheimv1.Verdict_VERDICT_STOPPED, signal: syscall.SIGTERM, by: "root",
		},
		w.byTheHost(mode),
	}
}

// byTheHost is an end that whoever rules the host brings about: where it is systemd a
// stop of the scope, else a kill of the cgroup, as by an OOM killer in user space.
func (w *world) byTheHost(mode string) death {
	d := death{
		name: "by-the-host", mode: []string{"fork", "2"}, verdict: gladsheimv1.Verdict_VERDICT_KILLED_FROM_OUTSIDE, signal: syscall.SIGKILL,
	}
	if mode == "scope" {
		d.signal, d.by = syscall.SIGTERM, "systemd"
	}
	d.kill = func(s *gladsheimv1.ServiceStatus) {
		if s.Unit == "" {
			require.NoError(w.t, os.WriteFile(filepath.Join("/sys/fs/cgroup", s.Cgroup, "cgroup.kill"), []byte("1"), 0))
			return
		}
		out, err := exec.Command("systemctl", "stop", s.Unit).CombinedOutput()
		require.NoError(w.t, err, "%s", out)
	}
	return d
}
