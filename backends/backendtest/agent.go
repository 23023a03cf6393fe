package backendtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
)

// jobVariable holds, for a process that plays an agent, what it is to do.
const jobVariable = "GLADSHEIM_BACKENDTEST_JOB"

// job is what an agent in a process of its own does.
type job struct {
	Launch    service.Launch
	DieAtGate bool   // kill -9 itself before the program may run
	Report    string // file that it writes the Ref to
}

// RunDir is a directory for the agents of a test, those in processes of their own
// too, where each finds what the one before has left. It goes with the test in
// which it was first asked for.
func RunDir(t testing.TB) string {
	t.Helper()
	const variable = "GLADSHEIM_BACKENDTEST_RUN"
	if dir := os.Getenv(variable); dir != "" {
		return dir
	}
	dir := t.TempDir()
	require.NoError(t, os.Setenv(variable, dir))
	t.Cleanup(func() {
		require.NoError(t, os.Unsetenv(variable))
		// What outlives the agents leaves when nobody needs it any more.
		for end := time.Now().Add(patience); ; <-time.After(10 * time.Millisecond) {
			shims := slices.DeleteFunc(children(), func(pid int) bool {
				name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
				s, ok := statOf(pid)
				return !ok || s.state == 'Z' || string(name) != "gladsheim-shim\n"
			})
			if len(shims) == 0 {
				return
			}
			if time.Now().After(end) {
				t.Errorf("these shims stay: %v, with ends that nobody has heard of: %+v", shims, kept(dir))
				return
			}
		}
	})
	return dir
}

// kept asks the shim in dir for the ends that it keeps.
func kept(dir string) (ends []gate.End) {
	c, err := net.Dial("unixpacket", filepath.Join(dir, gate.ShimSocket))
	if err != nil {
		return nil
	}
	defer c.Close()
	message := make([]byte, gate.MaxSaid)
	for {
		n, err := c.Read(message)
		if err != nil || message[0] == gate.SayAll {
			return ends
		}
		if e, ok := gate.DecodeEnd(message[:n]); ok && message[0] == gate.SayEnd {
			ends = append(ends, e)
		}
	}
}

// actAsAgent plays the agent when this process was started for that. It does
// not come back before it is killed.
func actAsAgent(t *testing.T, s Subject) bool {
	text := os.Getenv(jobVariable)
	if text == "" {
		return false
	}
	var j job
	require.NoError(t, json.Unmarshal([]byte(text), &j))
	require.NoError(t, os.Unsetenv(jobVariable))
	report := func(ref service.Ref) {
		text, err := json.Marshal(ref)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(j.Report+".new", text, 0o600))
		require.NoError(t, os.Rename(j.Report+".new", j.Report))
	}
	agent := s.New(t)
	h, err := agent.Launch(context.Background(), j.Launch, backends.Birth{Identify: func(ref service.Ref) error {
		if j.DieAtGate {
			report(ref)
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}})
	require.NoError(t, err)
	report(h.Ref())
	<-t.Context().Done()
	return true
}

// agentProcess is an agent in a process of its own.
type agentProcess struct {
	*os.Process
	bench *bench
	ref   service.Ref // of what it has launched
}

// agentApart starts an agent in a process of its own that launches l, and
// waits until it has reported.
func (b *bench) agentApart(l service.Launch, dieAtGate bool) *agentProcess {
	b.Helper()
	report := filepath.Join(b.dir, "ref.json")
	text, err := json.Marshal(job{Launch: l, DieAtGate: dieAtGate, Report: report})
	require.NoError(b, err)
	output, err := os.Create(filepath.Join(b.dir, "agent.log"))
	require.NoError(b, err)
	defer output.Close()
	var pattern []string
	for part := range strings.SplitSeq(b.trial.name, "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	p, err := os.StartProcess("/proc/self/exe", []string{os.Args[0], "-test.run=" + strings.Join(pattern, "/")}, &os.ProcAttr{
		Env:   append(os.Environ(), jobVariable+"="+string(text)),
		Files: []*os.File{nil, output, output},
	})
	require.NoError(b, err)
	a := &agentProcess{Process: p, bench: b}
	b.Cleanup(func() { _ = p.Kill(); _, _ = p.Wait() })
	b.eventually(func() bool {
		text, err := os.ReadFile(report)
		return err == nil && json.Unmarshal(text, &a.ref) == nil
	}, "the agent in a process of its own never launched; it said %q", lazy(func() string {
		text, _ := os.ReadFile(output.Name())
		return string(text)
	}))
	return a
}

// die kills the agent as the OOM killer would.
func (a *agentProcess) die() {
	a.bench.Helper()
	require.NoError(a.bench, a.Kill())
	_, err := a.Wait()
	require.NoError(a.bench, err)
}

func agentLaws() []law {
	return []law{
		{says: "kill -9 of the agent ends no service, and a fresh agent takes it up", only: real, check: lawAgentKilled},
		{says: "an agent that is killed at the gate leaves nothing that runs, then or later", only: real, check: lawAgentKilledAtGate},
		{says: "the log goes on without the agent, no line is lost", only: real, check: lawLogWithoutAgent},
		{says: "an exit while the agent was dead is told exactly or as unknown", only: real, check: lawExitWithoutAgent},
	}
}

func lawAgentKilled(b *bench) {
	l := b.plan("fork", "3")
	a := b.agentApart(l, false)
	b.eventually(func() bool { return b.alive(l) == 4 }, "its children never came")
	a.die()
	require.Equal(b, 4, b.alive(l))
	h, err := b.agent.Adopt(b.within(), a.ref, service.Launch{})
	require.NoError(b, err)
	i := b.keep(h, l)
	require.Equal(b, a.ref, i.Ref())
	i.lives()
	require.NoError(b, i.Signal(b.within(), syscall.SIGTERM))
	b.exact(service.Exit{Signal: syscall.SIGTERM}, i.exit())
	require.Equal(b, 3, i.release().Leftovers)
	b.nothingOf(l)
}

// lawAgentKilledAtGate adopts by the record that the dead agent has written
// before the deed; what it finds it removes.
func lawAgentKilledAtGate(b *bench) {
	mark := filepath.Join(b.dir, "ran")
	l := b.plan("mark", mark, "sleep")
	a := b.agentApart(l, true)
	_, err := a.Wait()
	require.NoError(b, err)
	b.eventually(func() bool {
		s, ok := statOf(a.ref.PID)
		return !ok || s.start != a.ref.StartTicks || s.state == 'Z'
	}, "the child still waits at the gate of a dead agent")
	require.NoFileExists(b, mark)
	h, err := b.agent.Adopt(b.within(), a.ref, service.Launch{})
	if err == nil {
		i := b.keep(h, l)
		require.False(b, i.exit().Clean(), "a program that never ran has not ended well")
		i.release()
	} else {
		require.ErrorIs(b, err, backends.ErrGone)
	}
	b.nothingOf(l)
	require.NoFileExists(b, mark)
}

func lawLogWithoutAgent(b *bench) {
	const lines = 200
	l := b.plan("log", "200", "40", "400")
	a := b.agentApart(l, false)
	a.die()
	h, err := b.agent.Adopt(b.within(), a.ref, service.Launch{})
	if err == nil {
		b.exitOf(b.keep(h, l))
	} else {
		require.ErrorIs(b, err, backends.ErrGone, "it was too late for that")
	}
	text, err := os.ReadFile(l.LogFile)
	require.NoError(b, err)
	require.Equal(b, lines, strings.Count(string(text), "\n"))
	require.True(b, strings.HasSuffix(string(text), "0000000200 xxxxxxxxxxxxxxxxxxxxxxxxxxxx\n"), "%q", text)
}

func lawExitWithoutAgent(b *bench) {
	l := b.plan("hand-stdout", "200ms")
	a := b.agentApart(l, false)
	a.die()
	b.eventually(func() bool {
		s, ok := statOf(a.ref.PID)
		return !ok || s.start != a.ref.StartTicks || s.state == 'Z'
	}, "it never ended")
	h, err := b.agent.Adopt(b.within(), a.ref, service.Launch{})
	require.NoError(b, err, "a grandchild of it lives")
	i := b.keep(h, l)
	b.missed(service.Exit{}, i.exit())
	require.Equal(b, 1, i.release().Leftovers)
}
