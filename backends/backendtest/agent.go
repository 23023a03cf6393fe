package backendtest

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// jobVariable holds, for a process that plays an agent, what it is to do.
const jobVariable = "GLADSHEIM_BACKENDTEST_JOB"

// job is what an agent in a process of its own does.
type job struct {
	Launch    service.Launch
	DieAtGate bool   // kill -9 itself before the program may run
	Report    string // file that it writes the Ref to
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
	h, err := agent.Launch(context.Background(), j.Launch, func(ref service.Ref) error {
		if j.DieAtGate {
			report(ref)
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	})
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
