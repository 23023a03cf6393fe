package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// TestFreeze: frozen by its caller, or by others behind the agent's back, a service that
// can not answer its checks is neither blamed nor restarted, not over the death of the
// agent either; thawed it goes on, and when it is stopped it heeds the signal. Where
// there is no cgroup a freeze is refused.
func TestFreeze(t *testing.T) {
	for i, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) { newWorld(t).freeze(mode, port(15070+i)) })
	}
}

func (w *world) freeze(mode string, at int) {
	t, d := w.t, byGRPC{w}
	address := fmt.Sprintf("127.0.0.1:%d", at)
	w.register(workload(t, "still", "still", "http", address).with(fields{
		"launch":  mode,
		"ready":   fields{"type": "tcp", "address": address},
		"health":  fields{"type": "http", "url": "http://" + address + "/health", "interval": "200ms", "timeout": "2s", "threshold": 1},
		"restart": fields{"policy": "always"},
		"stop":    fields{"timeout": "1m"},
	}))
	was := d.start("still")
	if !limited(t) {
		refused := w.cli("freeze", "still")
		require.NotZero(t, refused.code)
		require.Contains(t, refused.stderr, "cgroup v2")
		w.unharmed(was)
		return
	}
	group := was.Cgroup
	used := func() uint64 { return cgroupKey(t, group, "cpu.stat", "usage_usec") }
	frozen := func(by string) {
		t.Helper()
		eventually(t, "it is frozen by "+by, func() bool { return d.status("still").FrozenBy == by })
		s := d.status("still")
		require.Equal(t, by != "", s.Frozen)
		require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, s.State)
		require.Equal(t, was.ProcessId, s.ProcessId)
	}
	longer := func() { // than a check may take
		t.Helper()
		before := used()
		time.Sleep(3 * time.Second)
		require.Equal(t, before, used(), "it runs")
		require.Equal(t, group, cgroupOf(int(was.ProcessId)), "it has ended")
	}

	token := w.sequence()
	require.Contains(t, w.mustCLI("freeze", "still"), "frozen")
	frozen(group)
	require.Contains(t, w.mustCLI("list"), "frozen")
	require.Contains(t, w.mustCLI("status", "still"), "; frozen\n")
	require.Equal(t, gladsheimv1.HealthStatus_HEALTH_STATUS_UNKNOWN, d.health("still").Status)
	longer()
	w.leave(syscall.SIGKILL)
	longer()
	w.begin()
	frozen(group)
	longer()
	d.usage("still")
	d.set("still", bounds{memory: 64 * mebibyte, cpu: 50, pids: 40})
	require.Equal(t, "40", cgroupFile(t, group, "pids.max"))
	require.Equal(t, 9, w.cli("start", "still").code, "it runs")
	w.mustCLI("thaw", "still")
	frozen("")
	w.unharmed(was)
	require.Equal(t, "40", cgroupFile(t, group, "pids.max"))

	for _, by := range w.others(was) {
		by.freeze()
		frozen(group)
		longer()
		by.thaw()
		frozen("")
		w.unharmed(was)
	}
	kinds, _ := w.resume(token)
	require.Equal(t, 1+len(w.others(was)), count(kinds, "frozen"), "%v", kinds)
	require.Equal(t, 1+len(w.others(was)), count(kinds, "thawed"), "%v", kinds)
	require.Empty(t, d.exits("still").Exits)

	w.mustCLI("freeze", "still")
	require.Less(t, stopwatch(func() { d.stop("still") }), time.Minute)
	x := d.exits("still").Exits[0]
	require.Equal(t, gladsheimv1.Verdict_VERDICT_STOPPED, x.Verdict)
	require.False(t, x.KilledAfterTimeout, "it could heed the signal")
	require.EqualValues(t, syscall.SIGTERM, x.GetSignal())

	d.start("still")
	w.mustCLI("freeze", "still")
	w.mustCLI("kill", "still")
	require.EqualValues(t, syscall.SIGKILL, d.exits("still").Exits[0].GetSignal())
	require.Equal(t, 3, w.cli("freeze", "still").code, "it does not run")
	require.Equal(t, 4, w.cli("thaw", "nobody").code)
}

// others are the ways in which others freeze and thaw.
func (w *world) others(s *gladsheimv1.ServiceStatus) []freezer {
	file := filepath.Join("/sys/fs/cgroup", s.Cgroup, "cgroup.freeze")
	write := func(value string) func() {
		return func() { require.NoError(w.t, os.WriteFile(file, []byte(value), 0)) }
	}
	all := []freezer{{write("1"), write("0")}}
	if s.Unit == "" {
		return all
	}
	systemctl := func(verb, state string) func() {
		return func() {
			out, err := exec.Command("systemctl", verb, s.Unit).CombinedOutput()
			require.NoError(w.t, err, "%s", out)
			told, err := exec.Command("systemctl", "show", "--property=FreezerState", "--value", s.Unit).Output()
			require.NoError(w.t, err)
			require.Equal(w.t, state, strings.TrimSpace(string(told)))
		}
	}
	return append(all, freezer{systemctl("freeze", "frozen"), systemctl("thaw", "running")})
}

type freezer struct{ freeze, thaw func() }

func count(words []string, word string) (n int) {
	for _, w := range words {
		if w == word {
			n++
		}
	}
	return n
}
