package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api"
	"github.com/gladsheim/gladsheim/api/apitest"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// host is a socket at which agents come and go.
type host struct {
	t      *testing.T
	path   string
	server *api.Server
	done   chan error
}

func newHost(t *testing.T) *host {
	dir, err := os.MkdirTemp("", "cli")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	h := &host{t: t, path: filepath.Join(dir, "s")}
	t.Cleanup(func() { h.end(true) })
	return h
}

func (h *host) begin(agent *apitest.Agent) {
	h.t.Helper()
	l, err := api.Listen("unix://" + h.path)
	require.NoError(h.t, err)
	h.server, h.done = api.New(api.Config{Agent: agent, Log: slog.New(slog.DiscardHandler)}), make(chan error, 1)
	go func() { h.done <- h.server.Serve(l) }()
}

// end ends the agent, politely or at once.
func (h *host) end(politely bool) {
	if h.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if !politely {
		cancel()
	}
	h.server.Stop(ctx)
	require.NoError(h.t, <-h.done)
	h.server = nil
}

// shared is a buffer that one writes and another reads.
type shared struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *shared) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

func (s *shared) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// begun is a command that goes on.
type begun struct {
	t         *testing.T
	out, errs shared
	cancel    context.CancelFunc
	done      chan int
}

func (h *host) run(args ...string) *begun {
	ctx, cancel := context.WithCancel(h.t.Context())
	b := &begun{t: h.t, cancel: cancel, done: make(chan int, 1)}
	go func() {
		b.done <- run(ctx, surroundings{
			args: append([]string{"--host", "unix://" + h.path}, args...), in: strings.NewReader(""), out: &b.out, err: &b.errs,
			getenv: func(string) string { return "" }, now: func() time.Time { return now }, uid: 1000,
		})
	}()
	h.t.Cleanup(cancel)
	return b
}

func (b *begun) sees(in *shared, text string) {
	b.t.Helper()
	require.Eventually(b.t, func() bool { return strings.Contains(in.String(), text) }, 30*time.Second, 5*time.Millisecond, "%q is not in %q", text, in)
}

func (b *begun) interrupt() {
	b.t.Helper()
	b.cancel()
	require.Equal(b.t, exitInterrupted, <-b.done)
}

func TestEventsGoOnWithTheNextAgent(t *testing.T) {
	for way, politely := range map[string]bool{"stopped": true, "killed": false} {
		t.Run(way, func(t *testing.T) {
			agent, h := hall(t.TempDir()), newHost(t)
			tell := func(text string) { agent.Change("api", service.NoticeState, text, "", func(*service.Status) {}) }
			h.begin(agent)
			b := h.run("events", "-f", "-n", "1")
			b.sees(&b.out, "asked")
			tell("first")
			b.sees(&b.out, "first")
			h.end(politely)
			b.sees(&b.errs, "has gone; waiting for the next one")
			tell("meanwhile")
			h.begin(agent) // of which what was told is kept
			b.sees(&b.out, "meanwhile")
			tell("last")
			b.sees(&b.out, "last")
			b.interrupt()
			out := b.out.String()
			for _, once := range []string{"first", "meanwhile", "last"} {
				require.Equal(t, 1, strings.Count(out, once), out)
			}
			require.Equal(t, 4, strings.Count(out, "\n"), out)
			require.Contains(t, b.errs.String(), "there is an agent again; going on after event 1000004\n")
			require.Equal(t, 2, strings.Count(b.errs.String(), "\n"), b.errs.String())
		})
	}
}

func TestALogGoesOnWithTheNextAgent(t *testing.T) {
	agent, h := hall(t.TempDir()), newHost(t)
	write := func(text string) {
		f, err := os.OpenFile(filepath.Join(agent.LogDir, "billing.log"), os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		defer f.Close()
		_, err = f.WriteString(text)
		require.NoError(t, err)
	}
	h.begin(agent)
	b := h.run("logs", "-f", "-n", "1", "billing")
	b.sees(&b.out, "warming up\n")
	write("first\n")
	b.sees(&b.out, "first\n")
	h.end(false)
	b.sees(&b.errs, "has gone; waiting for the next one")
	write("meanwhile\n")
	h.begin(agent)
	b.sees(&b.errs, "there is an agent again; going on behind the last line")
	write("last\n")
	b.sees(&b.out, "last\n")
	b.interrupt()
	require.Equal(t, "503 /ready: warming up\nfirst\nmeanwhile\nlast\n", b.out.String())
}

// A log is resumed where that can be told, and else not said to be.
func TestWhereALogIsResumed(t *testing.T) {
	none, ten, all := uint32(0), uint32(10), uint32(math.MaxUint32)
	for name, c := range map[string]struct {
		last        string
		asked, want *gladsheimv1.TailRequest // want nil: it can not be told
	}{
		"behind the last line":       {"file:7", &gladsheimv1.TailRequest{Lines: &ten, SinceUnixMs: 5}, &gladsheimv1.TailRequest{Lines: &all, After: "file:7"}},
		"also if no past was wanted": {"file:7", &gladsheimv1.TailRequest{Lines: &none}, &gladsheimv1.TailRequest{Lines: &all, After: "file:7"}},
		"all, for there was nothing": {"", &gladsheimv1.TailRequest{Lines: &ten}, &gladsheimv1.TailRequest{Lines: &all}},
		"since then":                 {"", &gladsheimv1.TailRequest{SinceUnixMs: 5}, &gladsheimv1.TailRequest{Lines: &all, SinceUnixMs: 5}},
		"where it was asked to":      {"", &gladsheimv1.TailRequest{After: "file:3"}, &gladsheimv1.TailRequest{Lines: &all, After: "file:3"}},
		"nobody knows":               {"", &gladsheimv1.TailRequest{Lines: &none}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := &printer{last: c.last, began: c.last != ""}
			require.Equal(t, c.want != nil, p.resume(c.asked))
			if c.want != nil {
				require.True(t, proto.Equal(c.want, c.asked), "%v", c.asked)
			}
		})
	}
}

// What was shown of a line whose end is still to come is not shown again.
func TestALogIsResumedAmidALine(t *testing.T) {
	var out, errs strings.Builder
	for how, machine := range map[string]string{"plain": "table", "jsonl": "jsonl"} {
		out.Reset()
		p := &printer{app: &app{surroundings: surroundings{out: &out, err: &errs}, format: machine}, name: "web", whole: machine == "table"}
		say := func(text string, cut bool, position string) {
			require.NoError(t, p.show(&gladsheimv1.LogLine{Line: []byte(text), Truncated: cut, Position: position}), how)
		}
		say("before", false, "file:7")
		say("aaaa", true, "")
		say("bbbb", true, "")
		req := &gladsheimv1.TailRequest{}
		require.True(t, p.resume(req))
		require.Equal(t, "file:7", req.After)
		say("aaaa", true, "")
		say("bbbb", true, "")
		say("cc", false, "file:18")
		say("after", false, "file:24")
		if machine == "table" {
			require.Equal(t, "before\naaaabbbbcc\nafter\n", out.String())
		} else {
			require.Equal(t, 5, strings.Count(out.String(), "\n"), out.String())
		}
	}
}

func TestLogsAfter(t *testing.T) {
	c := newCLI(t)
	var first struct{ Position string }
	line, _, _ := strings.Cut(c.mustRun("-o", "jsonl", "logs", "billing"), "\n")
	require.NoError(t, json.Unmarshal([]byte(line), &first))
	require.Equal(t, "file:22", first.Position)
	require.Equal(t, "\x1b[31mWARN\x1b[0m heap near limit\n503 /ready: warming up\n", c.mustRun("logs", "billing", "--after", "file:22"))
	require.Equal(t, "503 /ready: warming up\n", c.mustRun("logs", "billing", "--after", "file:22", "-n", "1"))
	for _, wrong := range [][]string{{"--after", "22"}, {"--after", "file:22", "--since", "1m"}, {"api", "--after", "file:22"}} {
		code, _, errs := c.run(append([]string{"logs", "billing"}, wrong...)...)
		require.Equal(t, exitUsage, code, "%v: %s", wrong, errs)
	}
	code, _, errs := c.run("logs", "billing", "--after", "file:22000")
	require.NotZero(t, code)
	require.Contains(t, errs, "the log was emptied or replaced since")
}

// An agent that was never there is no agent to wait for.
func TestFollowingNobody(t *testing.T) {
	h := newHost(t)
	for _, verb := range [][]string{{"events", "-f"}, {"logs", "-f", "web"}} {
		require.Equal(t, exitUnreachable, <-h.run(verb...).done)
	}
}

func TestEventsAfter(t *testing.T) {
	c := newCLI(t)
	out := c.mustRun("events", "--after", "1000001")
	require.Equal(t, 2, strings.Count(out, "\n"), out)
	code, out, errs := c.run("events", "--after", "999000")
	require.Zero(t, code)
	require.Equal(t, 3, strings.Count(out, "\n"), out)
	require.Equal(t, "gladsheim: events 999001 to 1000000 are missing here: they are no longer kept, or the host was booted in between\n", errs)
	code, out, errs = c.run("events", "--after", "2000000")
	require.Zero(t, code)
	require.Empty(t, out)
	require.Equal(t, "gladsheim: there was no event 2000000: it is another host's, or what was kept is lost; the latest here is 1000003, and -n shows those up to it\n", errs)
	code, _, _ = c.run("events", "--after", "1", "-n", "2")
	require.Equal(t, exitUsage, code)
}

// Elsewhere than on a terminal, a log comes as it was written.
func TestLongLines(t *testing.T) {
	c := newCLI(t)
	long := strings.Repeat("x", 150<<10) + "\nshort\n"
	require.NoError(t, os.WriteFile(filepath.Join(c.agent.LogDir, "api.log"), []byte(long), 0o600))
	require.True(t, long == c.mustRun("logs", "api"))
	out := c.mustRun("logs", "api", "billing")
	require.Contains(t, out, "x\napi: short\nbilling: ")
	require.Equal(t, 2, strings.Count(out, "api: "))
	var lines []string
	for line := range strings.Lines(c.mustRun("-o", "jsonl", "logs", "api", "-n", "1")) {
		lines = append(lines, line)
	}
	require.Equal(t, []string{`{"serviceName":"api","line":"c2hvcnQ=","truncated":false,"position":"file:153607"}` + "\n"}, lines)
	c.terminal = true
	out = c.mustRun("logs", "api")
	require.Equal(t, 4, strings.Count(out, "\n"))
	require.Equal(t, 2, strings.Count(out, "x…\n"))
}

// A look at what is used goes on with the next agent.
func TestUsageGoesOnWithTheNextAgent(t *testing.T) {
	h := newHost(t)
	first, next := hall(t.TempDir()), hall(t.TempDir())
	h.begin(first)
	b := h.run("usage", "api", "--watch")
	last := clock(now) + "  api"
	b.sees(&b.out, last)
	lines := strings.Split(strings.TrimSpace(b.out.String()), "\n")
	require.Equal(t, "TIME      SERVICE               CPU      MEMORY        HELD    TASKS   STALL  THROTTLED", lines[0])
	require.Equal(t, clock(now.Add(-59*time.Minute))+"  api                    0%     5.5 MiB     3.3 MiB       38       -          -", lines[1])
	h.end(false)
	b.sees(&b.errs, "has gone")
	h.begin(next)
	b.sees(&b.errs, "there is an agent again; going on")
	require.Eventually(t, func() bool { return strings.Count(b.out.String(), last) == 2 }, 30*time.Second, 5*time.Millisecond)
	require.Equal(t, 1, strings.Count(b.out.String(), "SERVICE"), "one head")
	b.interrupt()

	b = h.run("-o", "jsonl", "usage", "--watch")
	b.sees(&b.out, `{"serviceName":"api","usage":{"beganUnixMs":`)
	b.interrupt()
}

// A wait goes on with the next agent, and hears of what came about in between.
func TestWaitGoesOnWithTheNextAgent(t *testing.T) {
	for way, politely := range map[string]bool{"stopped": true, "killed": false} {
		t.Run(way, func(t *testing.T) {
			agent, h := hall(t.TempDir()), newHost(t)
			to := func(name string, state service.State) {
				agent.Change(name, service.NoticeState, "", "", func(st *service.Status) { st.Machine.State = state })
			}
			h.begin(agent)
			b := h.run("wait", "api", "cache", "billing", "--for", "stopped")
			require.Eventually(t, func() bool { return agent.Watchers() == 1 }, 30*time.Second, 5*time.Millisecond)
			to("billing", service.Stopped)
			b.sees(&b.out, "billing: stopped") // now it knows where it was when the agent goes
			to("api", service.Stopping)
			h.end(politely)
			b.sees(&b.errs, "has gone; waiting for the next one")
			to("api", service.Stopped)
			to("api", service.Running)
			h.begin(agent)
			b.sees(&b.out, "api: stopped")
			b.sees(&b.errs, "there is an agent again; waiting for api, cache")
			require.Empty(t, b.done)
			to("cache", service.Crashed)
			require.Zero(t, <-b.done)
			require.Equal(t, "billing: stopped\napi: stopped\ncache: stopped\n", b.out.String())
		})
	}
}

// Each of several is waited for, by what happens to it.
func TestWaitHearsWhatHappens(t *testing.T) {
	agent, h := hall(t.TempDir()), newHost(t)
	h.begin(agent)
	watchers := func(n int) {
		t.Helper()
		require.Eventually(t, func() bool { return agent.Watchers() == n }, 30*time.Second, 5*time.Millisecond)
	}
	wait := func(args ...string) *begun { return h.run(append([]string{"wait"}, args...)...) }
	state := func(name string, state service.State) {
		agent.Change(name, service.NoticeState, "", "", func(st *service.Status) { st.Machine.State = state })
	}
	healthy, ready, stopped := wait("billing", "--for", "healthy"), wait("cache"), wait("cache", "--for", "healthy")
	watchers(3)
	agent.Change("billing", service.NoticeHealth, "", "", func(st *service.Status) { st.Health.Status = service.Healthy })
	require.Zero(t, <-healthy.done)
	state("cache", service.Launching)
	require.Empty(t, ready.done)
	state("cache", service.Running)
	require.Zero(t, <-ready.done)
	state("cache", service.Stopped)
	require.Equal(t, exitNotRunning, <-stopped.done)
	watchers(0)
	state("cache", service.Backoff)
	crashed := wait("cache")
	watchers(1)
	state("cache", service.Crashed)
	require.Equal(t, exitFailure, <-crashed.done)
	watchers(0)
	state("cache", service.Backoff)
	gone, done := wait("cache"), wait("cache", "--for", "stopped")
	watchers(2)
	require.NoError(t, agent.Unregister(t.Context(), service.MustName("cache"), ""))
	require.Equal(t, exitNotFound, <-gone.done)
	require.Zero(t, <-done.done)
}
