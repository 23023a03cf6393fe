package e2e

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// TestAnOutageOfTheDatabase: twenty clients that need a database live through its
// outage. None gives up, none spends its attempts, and all are back soon after it.
func TestAnOutageOfTheDatabase(t *testing.T) {
	anywhere(t)
	w := newWorld(t)
	outage := 20 * time.Second
	if soak {
		outage = 2 * time.Minute
	}
	down := w.path("down")
	server := fmt.Sprintf("[ -e %s ] && exit 1; exec redis-server --port %s --bind 127.0.0.1 --save '' --dir %s", down, redisPort, w.dir)
	ping := []string{"/usr/bin/redis-cli", "-e", "-p", redisPort, "ping"}
	w.register(fields{
		"name": "db", "exec": []string{"/bin/sh", "-c", server}, "environment": fields{"PATH": os.Getenv("PATH")},
		"ready":   fields{"type": "exec", "exec": ping, "timeout": "1m"},
		"health":  fields{"type": "exec", "exec": ping, "interval": "1s", "timeout": "10s"},
		"restart": fields{"policy": "always", "max_attempts": 1000, "backoff": "200ms", "max_backoff": "1s", "deterministic": 0},
	})
	const many, attempts = 20, 3
	var names []string
	for n := range many {
		name := fmt.Sprintf("client-%d", n)
		names = append(names, name)
		w.register(fields{ // ends with its connection
			"name": name, "exec": []string{"/usr/bin/redis-cli", "-e", "-p", redisPort, "subscribe", "news"}, "log": "null",
			"requires": []fields{{"service": "db", "condition": "healthy"}},
			"restart":  fields{"policy": "always", "max_attempts": attempts, "backoff": "100ms", "max_backoff": "1s"},
		})
	}
	w.mustCLI(append([]string{"--timeout", "3m", "start"}, names...)...)
	before := w.clients(names)
	require.Len(t, before, many)

	writeFile(t, down, nil)
	require.NoError(t, syscall.Kill(int(byGRPC{w}.status("db").ProcessId), syscall.SIGKILL))
	for end := time.Now().Add(outage); time.Now().Before(end); <-time.After(time.Second) {
		for _, s := range (byGRPC{w}).list().Services {
			require.NotEqual(t, gladsheimv1.ServiceState_SERVICE_STATE_CRASHED, s.State, "%v", s)
		}
	}
	for _, name := range names {
		s := byGRPC{w}.status(name)
		require.NotEqual(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, s.State, "%v", s)
		require.EqualValues(t, attempts, s.GetRestartsLeft(), "an outage is no failure of those who need it: %v", s)
	}
	require.NoError(t, os.Remove(down))
	eventually(t, "the database is back", func() bool {
		return byGRPC{w}.health("db").Status == gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY
	})
	took := stopwatch(func() {
		eventually(t, "its clients are back", func() bool { return len(w.clients(names)) == many })
	})
	t.Logf("all are back %v after the database", took)
	most := 10 * time.Second
	if os.Getenv("GLADSHEIM_TEST_HOST") != "bare" { // twenty starts take an emulated machine its time
		most = 30 * time.Second
	}
	require.Less(t, took, most)
	for name, pid := range w.clients(names) {
		require.NotEqual(t, before[name], pid)
	}
	w.mustCLI(append([]string{"--timeout", "3m", "stop", "db"}, names...)...)
	w.nothingLeft()
}

// clients are those that run, with their processes.
func (w *world) clients(names []string) map[string]int32 {
	all := map[string]int32{}
	for _, name := range names {
		if s := (byGRPC{w}).status(name); s.State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING {
			all[name] = s.ProcessId
		}
	}
	return all
}
