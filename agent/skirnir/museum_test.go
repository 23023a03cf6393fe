package skirnir

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// The files below testdata/format-N were written by agents of their time and are read
// for ever. A format that changes adds a folder; none is ever changed.
func TestMuseum(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS("testdata/format-1")))
	s, err := OpenStore(filepath.Join(dir, "state"), filepath.Join(dir, "run"), anew)
	require.NoError(t, err)
	l, err := s.Load()
	require.NoError(t, err)
	require.Empty(t, l.Faults)

	at := time.Date(2026, 11, 28, 12, 0, 0, 123456789, time.UTC)
	web, boot := service.MustName("web"), "0a1b2c3d-0000-4000-8000-000000000000"
	memory := service.Limits{service.MemoryMax: service.Of(128 << 20)}
	policy := service.RestartPolicy{MaxAttempts: 3, Window: 10 * time.Minute, Backoff: time.Second, MaxBackoff: time.Minute}
	require.Equal(t, []Wanted{{
		Name: web, Document: []byte(`{"name": "web", "exec": ["/usr/sbin/nginx", "-g", "daemon off;"]}`), Generation: 3, Changed: at, Up: true,
		Limits: memory, Over: "{}",
		Options: service.StartOptions{Environment: map[string]string{"A": "b"}, WorkingDirectory: "/tmp", Args: []string{"-v"}, Actor: "uid 0 (root)"},
	}}, l.Wanted)

	spec := service.Spec{
		Name: web, Description: "Front page", Exec: []string{"/usr/sbin/nginx", "-g", "daemon off;"},
		Environment: map[string]string{"TZ": "UTC"}, WorkingDirectory: "/srv/web", User: "www-data", Group: "www-data", Umask: 0o22,
		Limits:   service.Limits{service.MemoryMax: service.Of(256 << 20), service.PidsMax: service.Of(512)},
		Warnings: service.Warnings{Memory: 80, CPU: 80},
		Ready:    service.Check{Timeout: 30 * time.Second},
		Health: service.Check{
			Type: service.CheckHTTP, URL: "http://127.0.0.1:8080/health", Interval: 5 * time.Second, Timeout: 5 * time.Second, Threshold: 3,
		},
		Restart: policy,
	}
	spec.Stop.Signal, spec.Stop.Timeout, spec.Stop.ForceKill = syscall.SIGTERM, 10*time.Second, true
	require.Equal(t, []Actual{{
		Name:    web,
		Machine: service.Machine{State: service.Running, Incarnation: 17, Up: true, Failures: 2, Restarts: 5, ForceKill: true, Policy: policy},
		Ref: service.Ref{
			Backend: "cgroupfs", Name: web, Incarnation: 17, Cgroup: "/gladsheim/svc-web-00000011", PID: 4711, StartTicks: 1234567, BootID: boot,
		},
		Spec: spec, Limits: memory, Started: at, LogFrom: 99, Exit: &service.Exit{Code: 3}, Actor: "uid 0 (root)", BootID: boot,
	}}, l.Actual)

	require.Equal(t, map[service.Name][]service.ExitRecord{web: {
		{
			Incarnation: 15, Exit: service.Exit{Code: 3}, Verdict: service.VerdictCrash, Started: at, Ended: at.Add(time.Minute),
			Message: "exited with code 3", LastLines: []string{"bye"},
		},
		{
			Incarnation: 16, Exit: service.Exit{Signal: syscall.SIGKILL}, Verdict: service.VerdictStopped, RequestedBy: "uid 0 (root)",
			ForceKilled: true, Started: at, Ended: at.Add(time.Hour),
			Remains: service.Remains{
				Usage: service.Usage{Source: "cgroup", Memory: 1 << 20, CPUTime: time.Second, MemoryPeak: service.Of(2 << 20)},
				OOM:   service.OOMOwn, OOMLevel: "/gladsheim/svc-web-00000010", Leftovers: 2,
			},
		},
	}}, l.Exits)
}
