package systemd

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestLaunchWhenTheSignalIsLost(t *testing.T) {
	needSystemd(t)
	p := newProxy(t)
	b := newBackend(t, p.config())
	p.dropSignals.Store(true)
	h := start(t, b, planned(t, service.Limits{service.MemoryMax: service.Of(64 << 20)}, "sleep"))
	require.Equal(t, h.ref.Cgroup, cgroupOfProcess(t, h.ref.PID))
	release(t, h)
}

func TestLaunchWhenTheAnswerIsLost(t *testing.T) {
	needSystemd(t)
	p := newProxy(t)
	b := newBackend(t, p.config())
	p.dropReplies.Store(1) // the first call is the request
	h := start(t, b, planned(t, service.Limits{}, "sleep"))
	require.Zero(t, p.dropReplies.Load())
	release(t, h)
}

func TestSignalsThatComeTwice(t *testing.T) {
	needSystemd(t)
	p := newProxy(t)
	b := newBackend(t, p.config())
	p.twice.Store(true)
	for range 5 {
		release(t, start(t, b, planned(t, service.Limits{}, "sleep")))
	}
}

// TestLaunchWhenTheConnectionBreaks breaks it after each message of a launch
// and its release in turn.
func TestLaunchWhenTheConnectionBreaks(t *testing.T) {
	needSystemd(t)
	p := newProxy(t)
	b := newBackend(t, p.config())
	for after := range int64(6) {
		t.Run(strconv.FormatInt(after+1, 10), func(t *testing.T) {
			l := planned(t, service.Limits{service.CPUMax: service.Of(50 * service.UsecPerPercent)}, "sleep")
			p.cutAt.Store(after + 1)
			h := start(t, b, l)
			_, err := h.Limit(within(t), service.Limits{service.PidsMax: service.Of(50)})
			require.NoError(t, err)
			release(t, h)
			require.Zero(t, p.cutAt.Load(), "the connection was never cut")
		})
	}
}

// TestLaunchGivenUp lets systemd answer only long after the launch was given
// up: nothing may remain of what it then makes.
func TestLaunchGivenUp(t *testing.T) {
	needSystemd(t)
	for name, byPID := range map[string]bool{"by pidfd": false, "by number": true} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			b := newBackend(t, p.config())
			if byPID {
				b.bus.current.pidfds = false
			}
			l := planned(t, service.Limits{}, "sleep")
			p.freeze()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			_, err := b.Launch(ctx, l, func(service.Ref) error { t.Error("identify was called"); return nil })
			require.Equal(t, service.Timeout, service.KindOf(err), "%v", err)
			require.Equal(t, service.ReasonBackendTimeout, service.ReasonOf(err))
			require.Less(t, time.Since(began), soonAfter)
			require.Len(t, b.slots, 1, "what may still come holds its slot")

			p.thaw()
			eventually(t, func() bool { return len(b.slots) == 0 }, "the late answer was never dealt with")
			nothingOf(t, b.Plan(l))
			release(t, start(t, b, planned(t, service.Limits{}, "sleep")))
		})
	}
}

// TestPID1Stalled asks for more than is let through at a time.
func TestPID1Stalled(t *testing.T) {
	needSystemd(t)
	p := newProxy(t)
	b := newBackend(t, p.config())
	p.freeze()
	const many = 3 * inFlight
	launches := make([]service.Launch, many)
	var wait sync.WaitGroup
	for i := range launches {
		launches[i] = planned(t, service.Limits{}, "sleep")
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if _, err := b.Launch(ctx, launches[i], unrecorded); service.KindOf(err) != service.Timeout {
				t.Errorf("launch %d: %v", i, err)
			}
		})
	}
	wait.Wait()
	p.thaw()
	eventually(t, func() bool { return len(b.slots) == 0 }, "the late answers were never dealt with")
	require.LessOrEqual(t, p.requests.Load(), int64(inFlight))
	for _, l := range launches {
		nothingOf(t, b.Plan(l))
	}
	release(t, start(t, b, planned(t, service.Limits{}, "sleep")))
}

// TestCloseWhileStalled must not leave the child at its gate.
func TestCloseWhileStalled(t *testing.T) {
	needSystemd(t)
	p := newProxy(t)
	b := newBackend(t, p.config())
	b.bus.current.pidfds = false
	p.freeze()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := b.Launch(ctx, planned(t, service.Limits{}, "sleep"), unrecorded)
	require.Equal(t, service.Timeout, service.KindOf(err), "%v", err)
	require.NoError(t, b.Close())
	require.Empty(t, gates(t))
}

// gates lists the processes that wait at a gate, made by this process or its shim.
func gates(t *testing.T) []string {
	t.Helper()
	below := func(parent string) []string {
		text, err := exec.Command("ps", "-o", "pid=,args=", "--ppid", parent).Output()
		if _, none := errors.AsType[*exec.ExitError](err); !none {
			require.NoError(t, err)
		}
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	var found []string
	for _, line := range below(strconv.Itoa(os.Getpid())) {
		pid, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case strings.HasPrefix(args, "gladsheim-gate"):
			found = append(found, line)
		case strings.HasPrefix(args, "gladsheim-shim"):
			for _, line := range below(pid) {
				if strings.Contains(line, "gladsheim-gate") {
					found = append(found, line)
				}
			}
		}
	}
	return found
}

// TestDaemonRestarts launches after each of the accidents that break links.
func TestDaemonRestarts(t *testing.T) {
	accidents := map[string]func(t *testing.T){
		"dbus-daemon restarts": func(t *testing.T) { systemctl(t, "restart", "dbus.service") },
		"dbus-daemon is killed": func(t *testing.T) {
			systemctl(t, "kill", "--signal=KILL", "dbus.service")
		},
		"systemd executes itself anew": func(t *testing.T) { systemctl(t, "daemon-reexec") },
	}
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		for name, happens := range accidents {
			t.Run(name, func(t *testing.T) {
				b := newBackend(t, cfg)
				before := start(t, b, planned(t, service.Limits{service.MemoryMax: service.Of(64 << 20)}, "sleep"))
				happens(t)
				began := time.Now()
				h := start(t, b, planned(t, service.Limits{}, "sleep"))
				t.Logf("the next launch took %v", time.Since(began))
				_, err := before.Limit(within(t), service.Limits{service.MemoryMax: service.Of(48 << 20)})
				require.NoError(t, err)
				require.NoError(t, before.Signal(t.Context(), syscall.SIGTERM))
				require.Equal(t, service.Exit{Signal: syscall.SIGTERM}, waitExit(t, before))
				release(t, before)
				release(t, h)
			})
		}
	})
}

// TestOlderSystemd makes this one do without what older ones lack.
func TestOlderSystemd(t *testing.T) {
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		b := newBackend(t, cfg)
		b.bus.current.pidfds, b.bus.current.oomPolicy = false, false
		h := start(t, b, planned(t, service.Limits{service.MemoryMax: service.Of(64 << 20)}, "sleep"))
		require.Equal(t, "1", file(t, h.scope, "memory.oom.group"))
		_, err := h.Limit(within(t), service.Limits{service.MemoryMax: service.Of(48 << 20)})
		require.NoError(t, err)
		require.Equal(t, "1", file(t, h.scope, "memory.oom.group"))

		// Somebody else sets a property, and systemd writes 0 again.
		for _, look := range []func() error{
			func() error { _, err := h.Limits(t.Context()); return err },
			func() error { _, err := h.Usage(t.Context()); return err },
			func() error {
				again, err := newBackend(t, cfg).Adopt(within(t), h.ref, service.Limits{})
				if err == nil {
					err = again.Close()
				}
				return err
			},
		} {
			path := filepath.Join(cgroupRoot, h.ref.Cgroup, "memory.oom.group")
			require.NoError(t, os.WriteFile(path, []byte("0"), 0o644))
			require.NoError(t, look())
			require.Equal(t, "1", file(t, h.scope, "memory.oom.group"))
		}
	})
}

func TestFiftyCyclesLeaveNothing(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	const together = 5
	cycles := func() service.Ref {
		var last service.Ref
		var wait sync.WaitGroup
		for range together {
			l := planned(t, service.Limits{service.MemoryMax: service.Of(64 << 20)}, "exit", "0")
			last = b.Plan(l)
			wait.Go(func() {
				h, err := b.Launch(within(t), l, unrecorded)
				if err != nil {
					t.Error(err)
					return
				}
				<-h.Exited()
				if _, err := h.Release(within(t)); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		return last
	}
	cycles()
	goroutines, fds := runtime.NumGoroutine(), openFiles(t)
	for range 50 / together {
		nothingOf(t, cycles())
	}
	eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines }, "there were %d goroutines; now: %v", goroutines, lazyStacks{})
	require.Equal(t, fds, openFiles(t))
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

// lazyStacks prints what all goroutines do at the moment it is printed.
type lazyStacks struct{}

func (lazyStacks) String() string {
	text := make([]byte, 1<<20)
	return string(text[:runtime.Stack(text, true)])
}
