package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
	"github.com/gladsheim/gladsheim/test/auditor"
	"github.com/gladsheim/gladsheim/test/dbusproxy"
)

// needsSystemd is for what only systemd can do to us.
func needsSystemd(t *testing.T) {
	t.Helper()
	if !offers(t, "systemd") {
		t.Skip("this belongs on hosts with systemd")
	}
}

// seeing writes a program that is the agent, for whom other sockets lie over those
// of systemd and the bus.
func seeing(t *testing.T, sockets map[string]string) string {
	t.Helper()
	var script strings.Builder
	script.WriteString("set -e\n")
	for over, socket := range sockets {
		fmt.Fprintf(&script, "mount --bind %s %s\n", socket, over)
	}
	script.WriteString(`exec gladsheimd "$@"` + "\n")
	inside, program := filepath.Join(t.TempDir(), "inside"), filepath.Join(t.TempDir(), "agent")
	writeFile(t, inside, []byte(script.String()))
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\nexec unshare --mount sh "+inside+` "$@"`+"\n"), 0o755))
	return program
}

// byTheBus is the agent, which finds no socket of systemd's own that answers.
func byTheBus(t *testing.T) string {
	t.Helper()
	none := filepath.Join(t.TempDir(), "none")
	writeFile(t, none, nil)
	return seeing(t, map[string]string{dbusproxy.Private: none})
}

// TestSystemdInTurmoil: while callers start, stop and limit services, read their
// usage and watch the events, the bus restarts or is killed, or systemd reloads
// or executes itself anew, again and again. No call fails, no event is missing, and
// services that just run keep their process, their place and their limits.
func TestSystemdInTurmoil(t *testing.T) {
	needsSystemd(t)
	run := func(command ...string) func(*testing.T) {
		return func(t *testing.T) {
			out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
			require.NoError(t, err, "%v: %s", command, out)
		}
	}
	// Else systemd would refuse to start it that often. It is left alone until it
	// serves again, however slow the machine is.
	forgiven := func(trouble ...string) func(*testing.T) {
		return func(t *testing.T) {
			run(trouble...)(t)
			run("systemctl", "reset-failed", "dbus.service")(t)
			eventually(t, "the bus serves", func() bool {
				return exec.Command("busctl", "--no-pager", "status", "org.freedesktop.systemd1").Run() == nil
			})
		}
	}
	for _, c := range []struct {
		name    string
		program func(*testing.T) string
		trouble func(*testing.T)
		pause   time.Duration // before it happens again, at most
	}{
		{"the bus restarts", byTheBus, forgiven("systemctl", "restart", "dbus.service"), time.Second},
		{"the bus is killed", byTheBus, forgiven("systemctl", "kill", "--signal=KILL", "dbus.service"), time.Second},
		{"systemd reloads", nil, run("systemctl", "daemon-reload"), 100 * time.Millisecond},
		{"systemd executes itself anew", nil, run("systemctl", "daemon-reexec"), time.Second},
		{"systemd reloads, seen by the bus", byTheBus, run("systemctl", "daemon-reload"), 100 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := "gladsheimd"
			if c.program != nil {
				program = c.program(t)
			}
			w := newWorldOf(t, program)
			if c.program != nil {
				out, err := exec.Command("busctl", "--no-pager", "list").CombinedOutput()
				require.NoError(t, err, "%s", out)
				require.Regexp(t, fmt.Sprintf(`(?m)^:\S+ +%d gladsheimd`, w.daemon.Process.Pid), string(out), "it goes by the bus")
			}
			w.turmoil(c.trouble, c.pause)
		})
	}
}

// turmoil lets callers be at work, and trouble happen meanwhile.
func (w *world) turmoil(trouble func(*testing.T), pause time.Duration) {
	t := w.t
	var steady []string
	want := bounds{memory: 64 * mebibyte, cpu: 50, pids: 32}
	for i := range 3 {
		name := fmt.Sprintf("steady-%d", i)
		w.register(workload(t, name, "steady", "sleep").with(fields{"launch": "scope", "limits": fields{
			"memory_max": "64MiB", "memory_swap_max": "0", "cpu_percent": 50, "pids_max": 32}}))
		byGRPC{w}.start(name)
		steady = append(steady, name)
	}
	since, err := auditor.Take(t.Context(), w.auditorHost())
	require.NoError(t, err)
	require.Len(t, since.Instances, len(steady))
	token := w.sequence()

	watching, watch := context.WithCancel(t.Context())
	var watcher, callers sync.WaitGroup
	watcher.Go(func() { w.watch(watching, token) })
	rounds := 4
	if soak {
		rounds = 40
	}
	acked := make([][]auditor.Ack, 3)
	for i := range acked {
		name := fmt.Sprintf("busy-%d", i)
		w.register(workload(t, name, "busy", "sleep").with(fields{"launch": "scope"}))
		callers.Go(func() { acked[i] = w.busy(name, rounds) })
	}
	over := make(chan struct{})
	go func() { callers.Wait(); close(over) }()
	times := 0
	for done := false; !done; times++ {
		took := stopwatch(func() { trouble(t) })
		next := time.After(took + rand.N(pause)) // a slow machine needs time for the rest, too
		if times == 5*rounds {                   // enough; on a busy machine callers would come to nothing
			next = nil
		}
		select {
		case <-over:
			done = true
		case <-next:
		}
	}
	t.Logf("%d times, while each of %d callers did %d rounds", times, len(acked), rounds)
	require.Positive(t, times)

	byGRPC{w}.set(steady[0], bounds{memory: 48 * mebibyte, cpu: 50, pids: 32})
	for i, name := range steady {
		expected := want
		if i == 0 {
			expected.memory = 48 * mebibyte
		}
		s := byGRPC{w}.status(name)
		checkPlace(t, s, "scope")
		checkLimits(t, s, expected)
	}
	watch()
	watcher.Wait()
	expect := auditor.Expectation{Since: since, Quiet: true}
	for _, a := range acked {
		require.Len(t, a, 2*rounds)
		expect.Acked = append(expect.Acked, a...)
	}
	r, err := auditor.Audit(t.Context(), w.auditorHost(), expect, settle)
	require.NoError(t, err)
	require.Empty(t, r.Findings, w.daemonLog())
}

// watch reads events until ctx ends; none may be missing.
func (w *world) watch(ctx context.Context, after uint64) {
	stream, err := gladsheimv1.NewEventServiceClient(w.conn).Watch(ctx, &gladsheimv1.WatchRequest{AfterSequence: &after})
	if err != nil {
		w.t.Errorf("watch: %v", err)
		return
	}
	for {
		ev, err := stream.Recv()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			w.t.Errorf("the watch ended: %v", err)
			return
		case ev.GetEvent() == nil: // synced
		case ev.Sequence != after+1:
			w.t.Errorf("event %d came after %d", ev.Sequence, after)
		default:
			after++
		}
	}
}

// busy does with a service what callers do, again and again; all must succeed.
func (w *world) busy(name string, rounds int) (acked []auditor.Ack) {
	var s *gladsheimv1.ServiceStatus
	for range rounds {
		if !w.insist("start "+name, func() (err error) {
			s, err = w.services().StartService(contextFor(w.t), &gladsheimv1.StartServiceRequest{ServiceName: name})
			return err
		}) {
			return acked
		}
		incarnation := s.Incarnation
		acked = append(acked, auditor.Ack{Service: name, Deed: auditor.Started, Incarnation: incarnation})
		pids := 40 + rand.Uint64N(40)
		w.insist("limit "+name, func() error {
			_, err := w.services().SetResourceLimits(contextFor(w.t), &gladsheimv1.ResourceLimitsRequest{
				ServiceName: name, Limits: &gladsheimv1.ResourceLimits{PidsMax: &pids}})
			return err
		})
		if text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", s.Cgroup, "pids.max")); err != nil || strings.TrimSpace(string(text)) != fmt.Sprint(pids) {
			w.t.Errorf("%s may have %s tasks, not %d: %v", name, text, pids, err)
		}
		w.insist("read the usage of "+name, func() error {
			_, err := w.services().GetResourceUsage(contextFor(w.t), &gladsheimv1.ResourceUsageRequest{ServiceName: name})
			return err
		})
		again := false
		if !w.insist("stop "+name, func() error {
			_, err := w.services().StopService(contextFor(w.t), &gladsheimv1.StopServiceRequest{ServiceName: name})
			if again && reasonOf(err) == "NOT_RUNNING" { // it came about meanwhile
				return nil
			}
			again = true
			return err
		}) {
			return acked
		}
		acked = append(acked, auditor.Ack{Service: name, Deed: auditor.Stopped, Incarnation: incarnation})
	}
	return acked
}

// insist asks until it has an answer. The one error that a caller may get is that
// systemd has not answered in time, as on a machine that is busy with other things.
func (w *world) insist(what string, ask func() error) bool {
	for end := time.Now().Add(patience); ; {
		err := ask()
		switch {
		case err == nil:
			return true
		case reasonOf(err) != "BACKEND_TIMEOUT" || time.Now().After(end):
			w.t.Errorf("%s: %v", what, err)
			return false
		}
		w.t.Logf("%s, once more: %v", what, err)
	}
}

// reasonOf is the stable reason of an error.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.Reason
		}
	}
	return ""
}

// TestSystemdAnswersLate: a start is answered when its time is up, whatever
// systemd does, and what systemd makes of it later is removed. Those that run are
// served meanwhile.
func TestSystemdAnswersLate(t *testing.T) {
	needsSystemd(t)
	for _, c := range []struct {
		says string
		on   string // each takes the time of a call to systemd
		late dbus.Type
	}{
		{"it hears late", "systemd", dbus.TypeMethodCall},
		{"it is heard late", "systemd-new", dbus.TypeMethodReply},
	} {
		t.Run(c.says, func(t *testing.T) {
			toldOn(t, c.on)
			p := dbusproxy.New(t, dbusproxy.Private)
			w := newWorldOf(t, seeing(t, map[string]string{dbusproxy.Private: p.Path()}))
			for _, name := range []string{"late", "lasting"} {
				w.register(workload(t, name, name, "sleep").with(fields{"launch": "scope"}))
			}
			before := byGRPC{w}.start("lasting")
			late := &dbusproxy.Rule{Kind: c.late, Member: "StartTransientUnit", Times: 1, Do: dbusproxy.Delay(45 * time.Second)}
			p.Script(late)
			var err error
			took := stopwatch(func() {
				_, err = w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: "late"})
			})
			require.Equal(t, 1, late.Done())
			require.Error(t, err)
			require.Equal(t, "BACKEND_TIMEOUT", reasonOf(err), "%v", err)
			require.ErrorContains(t, err, "systemd has not answered yet")
			require.Less(t, took, 45*time.Second, "it did not wait for systemd")
			t.Logf("answered after %v: %v", took, err)
			require.Equal(t, before.ProcessId, byGRPC{w}.status("lasting").ProcessId)
			byGRPC{w}.usage("lasting")
			require.Empty(t, marked(t, "late"))
			eventually(t, "what systemd made late is removed", func() bool {
				return len(ourUnits(t)) == 2 && strings.Contains(w.daemonLog(), "removed what systemd made of a launch that was given up")
			})
			require.Empty(t, marked(t, "late"))
			s := byGRPC{w}.start("late")
			require.Equal(t, []int{int(s.ProcessId)}, marked(t, "late"))
			w.mustCLI("stop", "late", "lasting")
		})
	}
}

// TestStoppedBehindOurBack: somebody stops a scope, or kills what is in it, with
// systemctl. The record tells it from an end of the service's own, whatever the
// service makes of the signal; what follows is up to its restart policy.
func TestStoppedBehindOurBack(t *testing.T) {
	needsSystemd(t)
	w := newWorld(t)
	const dies, exits = "exec sleep 1000", "trap 'exit 0' TERM; while :; do sleep 0.1; done"
	for i, c := range []struct {
		verb      []string
		does      string
		policy    string
		restarted bool
		says      string
		by        string
		code      int32
		signal    int32
	}{
		{[]string{"stop"}, dies, "never", false, "signal 15 (SIGTERM), stopped from outside, by systemd", "systemd", 0, 15},
		{[]string{"stop"}, dies, "on-failure", true, "signal 15 (SIGTERM), stopped from outside, by systemd", "systemd", 0, 15},
		{[]string{"stop"}, exits, "on-failure", false, "exit code 0, stopped from outside, by systemd", "systemd", 0, 0},
		{[]string{"stop"}, exits, "always", true, "exit code 0, stopped from outside, by systemd", "systemd", 0, 0},
		{[]string{"kill"}, dies, "on-failure", true, "signal 15 (SIGTERM), killed from outside", "", 0, 15},
		{[]string{"kill", "--signal=KILL"}, dies, "never", false, "signal 9 (SIGKILL), killed from outside", "", 0, 9},
	} {
		t.Run(fmt.Sprint(strings.Join(c.verb, " "), " ", c.policy, " ", i), func(t *testing.T) {
			w := w.in(t)
			name := fmt.Sprintf("victim-%d", i)
			w.register(fields{"name": name, "launch": "scope", "exec": []string{"/bin/sh", "-c", "echo begun; " + c.does},
				"restart": fields{"policy": c.policy, "backoff": "10ms"}})
			before, token := byGRPC{w}.start(name), w.sequence()
			eventually(t, "it has begun", func() bool { return strings.Contains(w.mustCLI("logs", name), "begun") })
			out, err := exec.Command("systemctl", append(c.verb, before.Unit)...).CombinedOutput()
			require.NoError(t, err, "%s", out)
			x := w.ended(name)
			require.Equal(t, gladsheimv1.Verdict_VERDICT_KILLED_FROM_OUTSIDE, x.Verdict, "%v", x)
			require.Equal(t, c.says, x.Message)
			require.Equal(t, c.by, x.RequestedBy)
			require.Equal(t, []int32{c.code, c.signal}, []int32{x.GetExitCode(), x.GetSignal()})
			want := gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
			switch {
			case c.restarted:
			case c.policy == "never" && c.signal != 0:
				want = gladsheimv1.ServiceState_SERVICE_STATE_CRASHED
			default:
				want = gladsheimv1.ServiceState_SERVICE_STATE_STOPPED
			}
			eventually(t, fmt.Sprintf("it is %s", want), func() bool { return byGRPC{w}.status(name).State == want })
			after := byGRPC{w}.status(name)
			require.Equal(t, c.restarted, after.Incarnation == before.Incarnation+1)
			kinds, _ := w.resume(token)
			require.Contains(t, kinds, "exited")
			require.Len(t, byGRPC{w}.exits(name).Exits, 1)
			if c.restarted {
				checkPlace(t, after, "scope")
				w.mustCLI("stop", name)
			}
		})
	}
}

// TestTheAnchorIsStopped: the scope in which cgroups of services would lie, and in
// which the parent of all services lives, is stopped while there is none. Services
// in scopes run on, and others are started.
func TestTheAnchorIsStopped(t *testing.T) {
	needsSystemd(t)
	oneOfAKind(t)
	w := newWorld(t)
	for _, name := range []string{"before", "after"} {
		w.register(workload(t, name, name, "sleep").with(fields{"launch": "scope"}))
	}
	before := byGRPC{w}.start("before")
	out, err := exec.Command("systemctl", "stop", "gladsheim-cgroups.scope").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, before.ProcessId, byGRPC{w}.status("before").ProcessId)
	require.Equal(t, []int{int(before.ProcessId)}, marked(t, "before"))
	checkPlace(t, byGRPC{w}.start("after"), "scope")
	w.mustCLI("stop", "before", "after")
}

// TestTheSliceIsStopped: somebody stops, or restarts, the slice in which all services
// live, with the scope of those in cgroups of their own and the parent of all. They
// come back as their policy says, each once. A restart leaves scopes alone (systemd
// 257 does), or ends them as a stop does.
func TestTheSliceIsStopped(t *testing.T) {
	needsSystemd(t)
	for _, verb := range []string{"stop", "restart"} {
		t.Run(verb, func(t *testing.T) {
			w := newWorld(t)
			w.register(workload(t, "slow-to-stop", "slow", "ignore-term").with(fields{"launch": "scope", "stop": fields{"timeout": "8s"}}))
			byGRPC{w}.start("slow-to-stop")
			eventually(t, "it is ready", func() bool { return strings.Contains(w.mustCLI("logs", "slow-to-stop"), "ready") })
			before := map[string]*gladsheimv1.ServiceStatus{}
			for _, mode := range modes(t) {
				for i := range 3 {
					name := fmt.Sprintf("%s-%d", mode, i)
					w.register(fields{"name": name, "launch": mode, "exec": []string{"/bin/sleep", "infinity"},
						"restart": fields{"policy": "on-failure", "backoff": "100ms"}})
					before[name] = byGRPC{w}.start(name)
				}
			}
			out, err := exec.Command("systemctl", verb, "gladsheim.slice").CombinedOutput()
			require.NoError(t, err, "%s", out)
			for name, s := range before {
				eventually(t, name+" runs again", func() bool {
					now := byGRPC{w}.status(name)
					return now.State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING && (now.Incarnation > s.Incarnation || verb == "restart")
				})
				now := byGRPC{w}.status(name)
				checkPlace(t, now, now.Launch)
				require.Equal(t, s.Launch, now.Launch)
				for _, x := range (byGRPC{w}).exits(name).Exits {
					t.Logf("%s, incarnation %d: %s", name, x.Incarnation, x.Message)
				}
			}
			r, err := auditor.Audit(t.Context(), w.auditorHost(), auditor.Expectation{Quiet: true}, settle)
			require.NoError(t, err)
			require.Empty(t, r.Findings, w.daemonLog())
		})
	}
}

// TestMovedByRoot: root takes the main process of a service out of its cgroup, and
// removes that. It is told at once, and by the doctor; limits are refused, since
// they would not hold. The next agent takes the process up all the same; there is
// never a second one, and a stop ends it.
func TestMovedByRoot(t *testing.T) {
	if !limited(t) {
		t.Skip("this belongs on hosts with cgroup v2")
	}
	eachMode(t, func(t *testing.T, w *world, mode string) {
		w.register(workload(t, "moved", "moved", "sleep").with(fields{"launch": mode, "restart": fields{"policy": "always", "backoff": "10ms"}}))
		s := byGRPC{w}.start("moved")
		token := w.sequence()
		const elsewhere = "/sys/fs/cgroup/elsewhere"
		require.NoError(t, os.Mkdir(elsewhere, 0o755))
		t.Cleanup(func() { eventually(t, "nobody is elsewhere", func() bool { return os.Remove(elsewhere) == nil }) })
		told := make(chan int64, 1) // when it happened
		stream, err := gladsheimv1.NewEventServiceClient(w.conn).Watch(contextFor(t), &gladsheimv1.WatchRequest{AfterSequence: &token})
		require.NoError(t, err)
		go func() {
			for {
				ev, err := stream.Recv()
				if err != nil {
					return
				}
				if ev.GetEvent().GetKind() == "displaced" {
					told <- ev.TimeUnixMs
					return
				}
			}
		}()
		began := time.Now()
		require.NoError(t, os.WriteFile(elsewhere+"/cgroup.procs", fmt.Append(nil, s.ProcessId), 0o644))
		select {
		case at := <-told:
			took := time.UnixMilli(at).Sub(began)
			t.Logf("told after %v", took)
			require.Less(t, took, time.Second)
		case <-time.After(patience):
			require.Fail(t, "nobody told", w.daemonLog())
		}
		r := w.cli("doctor")
		require.Contains(t, r.stdout, fmt.Sprintf("processes of moved have left its cgroup: %d in /elsewhere", s.ProcessId))
		r = w.cli("set", "moved", "pids_max=7")
		require.NotZero(t, r.code)
		require.Contains(t, r.stderr, "somebody has moved process")
		require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, byGRPC{w}.status("moved").State)

		home := filepath.Join("/sys/fs/cgroup", s.Cgroup)
		eventually(t, "its cgroup goes", func() bool { _ = os.Remove(home); _, err := os.Stat(home); return err != nil })
		_ = os.Remove(filepath.Dir(home)) // that of a scope alone; others may live in it
		w.leave(syscall.SIGKILL)
		w.begin()
		eventually(t, "it is taken up", func() bool {
			return byGRPC{w}.status("moved").State == gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
		})
		require.Equal(t, []int{int(s.ProcessId)}, marked(t, "moved"))
		after := byGRPC{w}.status("moved")
		require.Equal(t, []any{s.ProcessId, s.Incarnation}, []any{after.ProcessId, after.Incarnation})
		require.Contains(t, w.cli("doctor").stdout, "have left its cgroup")
		again := byGRPC{w}.restart("moved")
		require.Equal(t, []int{int(again.ProcessId)}, marked(t, "moved"))
		checkPlace(t, again, mode)
		w.mustCLI("stop", "moved")
		require.Empty(t, marked(t, "moved"))
	})
}
