package power

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// TestPause: a host that is stopped for a while, set right by its clock or not, or
// that suspends itself, finds its services as they were: none is restarted, none is
// blamed for a check that it could not answer.
func TestPause(t *testing.T) {
	m := switchOn(t, "systemd", programs(t), "")
	m.install()
	m.awaitAgent()
	for _, def := range []map[string]any{
		{"name": "checked", "launch": "scope", "exec": m.workload("http", "127.0.0.1:8080"), "restart": map[string]any{"policy": "always"},
			"ready":  map[string]any{"type": "http", "url": "http://127.0.0.1:8080/health", "timeout": "5m"},
			"health": map[string]any{"type": "http", "url": "http://127.0.0.1:8080/health", "interval": "500ms", "timeout": "3s", "threshold": 1}},
		{"name": "quiet", "launch": "cgroup", "exec": []string{"/bin/sleep", "infinity"}, "restart": map[string]any{"policy": "always"}},
	} {
		doc, err := json.Marshal(def)
		require.NoError(t, err)
		_, err = m.catalog().Register(contextFor(t), &gladsheimv1.RegisterRequest{Definition: doc, File: "test.json"})
		require.NoError(t, err)
		_, err = m.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: def["name"].(string)})
		require.NoError(t, err)
	}
	m.healthy()
	before := map[string]*gladsheimv1.ServiceStatus{"checked": m.status("checked"), "quiet": m.status("quiet")}
	for _, c := range []struct {
		name  string
		pause func(d time.Duration)
	}{
		{"paused", m.pause},
		{"paused and set right", func(d time.Duration) {
			m.pause(d)
			m.sh(fmt.Sprintf("date -s @%d", time.Now().Unix()))
		}},
		{"suspended", m.suspend},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, d := range []time.Duration{3 * time.Second, 10 * time.Second} {
				was := m.clocks()
				began := time.Now()
				c.pause(d)
				is := m.clocks()
				t.Logf("%v here were %.1f s since its boot and %.1f s by its wall clock there",
					time.Since(began).Round(100*time.Millisecond), is[0]-was[0], is[1]-was[1])
				m.healthy()
				for name, was := range before {
					is := m.status(name)
					require.Equal(t, was.ProcessId, is.ProcessId, name)
					require.Equal(t, was.Incarnation, is.Incarnation, name)
					require.Zero(t, is.RestartCount, name)
				}
			}
		})
	}
	require.Regexp(t, "(?m)^0 findings$", m.sh("gladsheim fsck"))
}

// suspend has the machine suspend itself until its own alarm clock wakes it.
func (m *machine) suspend(d time.Duration) {
	m.t.Helper()
	m.sh(fmt.Sprintf("echo 0 >/sys/class/rtc/rtc0/wakealarm; echo +%d >/sys/class/rtc/rtc0/wakealarm; echo mem >/sys/power/state", int(d.Seconds())))
}

// clocks are the seconds since the machine's boot, suspended ones included, and
// those of its wall clock.
func (m *machine) clocks() (seconds [2]float64) {
	m.t.Helper()
	words := strings.Fields(m.sh("cut -d' ' -f1 /proc/uptime; date +%s.%N"))
	require.Len(m.t, words, len(seconds))
	for i, word := range words {
		var err error
		seconds[i], err = strconv.ParseFloat(word, 64)
		require.NoError(m.t, err)
	}
	return seconds
}

// healthy waits until a check that begins now has found the checked service well.
func (m *machine) healthy() {
	m.t.Helper()
	health := func() *gladsheimv1.ServiceHealth {
		h, err := m.services().GetServiceHealth(contextFor(m.t), &gladsheimv1.ServiceHealthRequest{ServiceName: "checked"})
		require.NoError(m.t, err)
		return h
	}
	last := health().LastCheckUnix
	var is *gladsheimv1.ServiceHealth
	well := func() bool {
		is = health()
		return is.LastCheckUnix != last && is.Status == gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY
	}
	for end := time.Now().Add(patience); !well(); time.Sleep(pause) {
		require.True(m.t, time.Now().Before(end), "it is not checked again and found well: %v\n%s", is, m.agentLog())
	}
}

func (m *machine) status(name string) *gladsheimv1.ServiceStatus {
	m.t.Helper()
	s, err := m.services().GetServiceStatus(contextFor(m.t), &gladsheimv1.ServiceStatusRequest{ServiceName: name})
	require.NoError(m.t, err)
	return s
}

// workload is the torture program in a mode.
func (m *machine) workload(mode ...string) []string {
	m.t.Helper()
	return append([]string{m.sh("command -v workload")}, mode...)
}
