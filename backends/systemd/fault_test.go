package systemd

import (
	"context"
	"errors"
	"fmt"
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

	"github.com/godbus/dbus/v5"
	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/test/dbusproxy"
)

// The rules of what befalls messages most.
func signals(d dbusproxy.Deed) *dbusproxy.Rule {
	return &dbusproxy.Rule{Kind: dbus.TypeSignal, Do: d}
}

func calls(method string, d dbusproxy.Deed) *dbusproxy.Rule {
	return &dbusproxy.Rule{Kind: dbus.TypeMethodCall, Member: method, Times: 1, Do: d}
}

func replies(method string, d dbusproxy.Deed) *dbusproxy.Rule {
	return &dbusproxy.Rule{Kind: dbus.TypeMethodReply, Member: method, Times: 1, Do: d}
}

// throughProxy runs a test on each route, with a proxy in it.
func throughProxy(t *testing.T, test func(t *testing.T, p *dbusproxy.Proxy, b *Backend)) {
	onBothRoutes(t, func(t *testing.T, cfg Config) {
		upstream, here := dbusproxy.Private, &cfg.PrivateSocket
		if cfg.Route == RouteBus {
			upstream, here = dbusproxy.Bus, &cfg.BusSocket
		}
		p := dbusproxy.New(t, upstream)
		*here = p.Path()
		test(t, p, newBackend(t, cfg))
	})
}

// soonAfter is a limit for things that must not wait for anything long.
const soonAfter = 20 * time.Second

func TestLaunchWhenTheSignalIsLost(t *testing.T) {
	throughProxy(t, func(t *testing.T, p *dbusproxy.Proxy, b *Backend) {
		lost := signals(dbusproxy.Drop)
		p.Script(lost)
		h := start(t, b, planned(t, service.Limits{service.MemoryMax: service.Of(64 << 20)}, "sleep"))
		require.Equal(t, h.ref.Cgroup, cgroupOfProcess(t, h.ref.PID))
		release(t, h)
		require.NotZero(t, lost.Done())
	})
}

func TestLaunchWhenTheAnswerIsLost(t *testing.T) {
	throughProxy(t, func(t *testing.T, p *dbusproxy.Proxy, b *Backend) {
		lost := replies("StartTransientUnit", dbusproxy.Drop)
		p.Script(lost)
		h := start(t, b, planned(t, service.Limits{}, "sleep"))
		require.Equal(t, 1, lost.Done())
		release(t, h)
	})
}

// TestSignalsInDisorder: each comes twice, or behind the next one, or behind the
// answer to whoever waits for it.
func TestSignalsInDisorder(t *testing.T) {
	throughProxy(t, func(t *testing.T, p *dbusproxy.Proxy, b *Backend) {
		for name, rule := range map[string]*dbusproxy.Rule{
			"twice": signals(dbusproxy.Repeat), "swapped": signals(dbusproxy.Swap),
			"late": signals(dbusproxy.Delay(50 * time.Millisecond)), "behind": replies("StartTransientUnit", dbusproxy.Swap),
		} {
			t.Run(name, func(t *testing.T) {
				p.Script(rule)
				defer p.Script()
				for range 3 {
					release(t, start(t, b, planned(t, service.Limits{}, "sleep")))
				}
				require.NotZero(t, rule.Done())
			})
		}
	})
}

// TestTheConnectionBreaks breaks it at each call of a launch, a change of limits
// and a release in turn: before systemd hears of it, after, and in the midst of the
// answer's way. None of them fails, and nothing is left.
func TestTheConnectionBreaks(t *testing.T) {
	throughProxy(t, func(t *testing.T, p *dbusproxy.Proxy, b *Backend) {
		story := func(t *testing.T) {
			l := planned(t, service.Limits{service.CPUMax: service.Of(50 * service.UsecPerPercent)}, "sleep")
			h := start(t, b, l)
			_, err := h.Limit(within(t), service.Limits{service.PidsMax: service.Of(50)})
			require.NoError(t, err)
			require.Equal(t, "50", file(t, h.scope, "pids.max"))
			release(t, h)
		}
		for _, at := range []struct {
			kind dbus.Type
			deed dbusproxy.Deed
			what string
		}{
			{dbus.TypeMethodCall, dbusproxy.Cut, "lost call"},
			{dbus.TypeMethodCall, dbusproxy.CutAfter, "call"},
			{dbus.TypeMethodReply, dbusproxy.Cut, "lost answer"},
		} {
			all := &dbusproxy.Rule{Kind: at.kind, Do: dbusproxy.Pass}
			p.Script(all)
			story(t)
			require.NotZero(t, all.Done())
			for n := range all.Done() {
				t.Run(fmt.Sprintf("%s %d", at.what, n+1), func(t *testing.T) {
					cut := &dbusproxy.Rule{Kind: at.kind, Skip: n, Times: 1, Do: at.deed}
					p.Script(cut)
					defer p.Script()
					story(t)
					require.Equal(t, 1, cut.Done(), "the connection was never cut")
				})
			}
		}
	})
}

// TestTheGreetingBreaks: a connection that ends while it is being made is made
// again, whatever it was at.
func TestTheGreetingBreaks(t *testing.T) {
	throughProxy(t, func(t *testing.T, p *dbusproxy.Proxy, b *Backend) {
		for n := 0; ; n++ {
			cut := &dbusproxy.Rule{Kind: dbus.TypeMethodReply, Skip: n, Times: 1, Early: true, Do: dbusproxy.Cut}
			p.Script(cut)
			p.Cut()
			_, err := b.bus.list(within(t), "gladsheim-none.scope")
			require.NoError(t, err)
			if cut.Done() == 0 {
				require.GreaterOrEqual(t, n, 3, "two questions and the subscription, at least")
				return
			}
		}
	})
}

// TestTheBusIsSlow: an answer that takes its time is waited for, and one that takes
// longer than the caller has is dealt with when it comes.
func TestTheBusIsSlow(t *testing.T) {
	throughProxy(t, func(t *testing.T, p *dbusproxy.Proxy, b *Backend) {
		p.Script(replies("StartTransientUnit", dbusproxy.Delay(5*time.Second)))
		h := start(t, b, planned(t, service.Limits{}, "sleep"))
		require.Equal(t, h.ref.Cgroup, cgroupOfProcess(t, h.ref.PID))

		for name, rule := range map[string]*dbusproxy.Rule{
			"call": calls("StartTransientUnit", dbusproxy.Delay(5*time.Second)), "answer": replies("StartTransientUnit", dbusproxy.Delay(5*time.Second)),
		} {
			t.Run(name, func(t *testing.T) {
				p.Script(rule)
				l := planned(t, service.Limits{}, "sleep")
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				_, err := b.Launch(ctx, l, backends.Birth{Identify: func(service.Ref) error { t.Error("identify was called"); return nil }})
				require.Equal(t, service.ReasonBackendTimeout, service.ReasonOf(err), "%v", err)
				require.ErrorContains(t, err, "systemd has not answered yet")
				require.Equal(t, 1, rule.Done())
				eventually(t, func() bool { return len(b.slots) == 0 }, "the late answer was never dealt with")
				nothingOf(t, b.Plan(l))
			})
		}
		release(t, h)
	})
}

// TestLaunchGivenUp lets systemd answer only long after the launch was given
// up: nothing may remain of what it then makes.
func TestLaunchGivenUp(t *testing.T) {
	needSystemd(t)
	for name, byPID := range map[string]bool{"by pidfd": false, "by number": true} {
		t.Run(name, func(t *testing.T) {
			p, b := stallable(t)
			if byPID {
				b.bus.current.pidfds = false
			}
			l := planned(t, service.Limits{}, "sleep")
			p.Freeze()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			_, err := b.Launch(ctx, l, backends.Birth{Identify: func(service.Ref) error { t.Error("identify was called"); return nil }})
			require.Equal(t, service.Timeout, service.KindOf(err), "%v", err)
			require.Equal(t, service.ReasonBackendTimeout, service.ReasonOf(err))
			require.Less(t, time.Since(began), soonAfter)
			require.Len(t, b.slots, 1, "what may still come holds its slot")

			p.Thaw()
			eventually(t, func() bool { return len(b.slots) == 0 }, "the late answer was never dealt with")
			nothingOf(t, b.Plan(l))
			release(t, start(t, b, planned(t, service.Limits{}, "sleep")))
		})
	}
}

// stallable is a backend whose messages a test can stop.
func stallable(t *testing.T) (*dbusproxy.Proxy, *Backend) {
	t.Helper()
	p := dbusproxy.New(t, dbusproxy.Private)
	return p, newBackend(t, Config{Route: RoutePrivate, PrivateSocket: p.Path()})
}

// TestPID1Stalled asks for more than is let through at a time.
func TestPID1Stalled(t *testing.T) {
	needSystemd(t)
	p, b := stallable(t)
	asked := &dbusproxy.Rule{Kind: dbus.TypeMethodCall, Member: "StartTransientUnit", Do: dbusproxy.Pass}
	p.Script(asked)
	p.Freeze()
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
	p.Thaw()
	eventually(t, func() bool { return len(b.slots) == 0 }, "the late answers were never dealt with")
	require.LessOrEqual(t, asked.Done(), inFlight)
	for _, l := range launches {
		nothingOf(t, b.Plan(l))
	}
	release(t, start(t, b, planned(t, service.Limits{}, "sleep")))
}

// TestCloseWhileStalled must not leave the child at its gate.
func TestCloseWhileStalled(t *testing.T) {
	needSystemd(t)
	p, b := stallable(t)
	b.bus.current.pidfds = false
	p.Freeze()
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

// TestPID1IsBusy gives PID 1 a queue of jobs so long that everything waits for it:
// nothing fails, and no more is asked for at a time than before.
func TestPID1IsBusy(t *testing.T) {
	needSystemd(t)
	jobs := 100
	if soak {
		jobs = 1000
	}
	long, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	b := newBackend(t, Config{})
	running := start(t, b, planned(t, service.Limits{}, "sleep"))
	crowd, err := dbus.SystemBusPrivate()
	require.NoError(t, err)
	defer crowd.Close()
	require.NoError(t, crowd.Auth(nil))
	require.NoError(t, crowd.Hello())
	answers := make(chan *dbus.Call, jobs)
	type property struct {
		Name  string
		Value dbus.Variant
	}
	type aux struct {
		Name       string
		Properties []property
	}
	for n := range jobs {
		crowd.Object("org.freedesktop.systemd1", manager).Go(managerInterface+".StartTransientUnit", dbus.FlagNoReplyExpected, answers,
			fmt.Sprintf("crowd%d.slice", n), "fail", []property{{"Description", dbus.MakeVariant("one of many")}}, []aux{})
	}
	defer func() {
		systemctl(t, "stop", "crowd*.slice")
		eventually(t, func() bool { left, err := loaded("crowd*.slice"); return err == nil && len(left) == 0 }, "the crowd stays")
	}()
	began := time.Now()
	var wait sync.WaitGroup
	for range 4 {
		l := planned(t, service.Limits{service.PidsMax: service.Of(40)}, "sleep")
		wait.Go(func() {
			h, err := b.Launch(long, l, unrecorded)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := h.Limit(long, service.Limits{service.PidsMax: service.Of(50)}); err != nil {
				t.Error(err)
			}
			if _, err := h.Release(long); err != nil {
				t.Error(err)
			}
		})
	}
	_, err = running.Usage(within(t))
	require.NoError(t, err)
	wait.Wait()
	left, err := loaded("crowd*.slice")
	require.NoError(t, err)
	t.Logf("4 starts, changes of limits and releases took %v; %d of %d units were there then", time.Since(began), len(left), jobs)
	require.NotEmpty(t, left)
	require.Empty(t, b.slots)
	release(t, running)
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
		b.bus.current.pidfds, b.bus.current.knows253 = false, false
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
				again, err := newBackend(t, cfg).Adopt(within(t), h.ref, service.Launch{})
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
