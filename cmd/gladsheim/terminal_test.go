package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/apitest"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
	"github.com/gladsheim/gladsheim/test/unprivileged"
)

// Every kind has its exit code. One that is missing in the table would exit
// with 0.
func TestEveryKindHasAnExitCode(t *testing.T) {
	want := map[service.Kind]int{
		service.Internal: 1, service.Invalid: 2, service.NotFound: 4, service.Exists: 9, service.AlreadyRunning: 9,
		service.NotRunning: 3, service.Conflict: 9, service.Unenforceable: 9, service.Exhausted: 1, service.Denied: 5,
		service.Unauthenticated: 5, service.Timeout: 8, service.Cancelled: 130, service.Unlaunchable: 1, service.HostUnavailable: 7,
	}
	require.Len(t, want, int(service.NumKinds))
	c := newCLI(t)
	for kind := service.Kind(0); kind < service.NumKinds; kind++ {
		t.Run(kind.String(), func(t *testing.T) {
			err := &service.Error{Op: "start", Service: service.MustName("api"), Kind: kind, Err: errors.New("it is so")}
			require.Equal(t, want[kind], exitCode(err))
			c.agent.Before = func(_ context.Context, method string) error {
				if method == "Start" {
					return err
				}
				return nil
			}
			code, out, errs := c.run("start", "batch")
			require.Equal(t, want[kind], code)
			require.Empty(t, out)
			require.Contains(t, errs, "gladsheim: cannot start api: it is so\n")
		})
	}
	require.Equal(t, 6, exitCode(&service.Error{Kind: service.Invalid, Reason: service.ReasonBadDefinition}))
	require.Equal(t, 0, exitCode(nil))
	require.Equal(t, 2, exitCode(usage(errors.New("x"))))
	require.Equal(t, 1, exitCode(errors.New("x")))
	require.Equal(t, 1, exitCode(status.Error(codes.Unknown, "x")))
	require.Equal(t, 7, exitCode(status.Error(codes.Unavailable, "x")))
}

func TestAHostThatIsIllIsNoMissingAgent(t *testing.T) {
	c := newCLI(t)
	c.agent.Before = func(context.Context, string) error {
		return &service.Error{Op: "ask systemd", Kind: service.HostUnavailable, Err: errors.New("no bus")}
	}
	code, _, errs := c.run("system")
	require.Equal(t, 7, code)
	require.Equal(t, "gladsheim: cannot ask systemd: no bus\n", errs)
}

func TestDenied(t *testing.T) {
	if !unprivileged.User(t) {
		return
	}
	a := &app{surroundings: surroundings{getenv: os.Getenv, err: os.Stderr}}
	socket := filepath.Join(t.TempDir(), "s")
	a.host = "unix://" + socket
	require.NoError(t, a.connect())
	defer a.close()
	// What a dial that the kernel refuses leaves behind.
	unreachable := status.Error(codes.Unavailable, "connection error")
	require.Equal(t, exitUnreachable, a.code(unreachable))
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Chmod(socket, 0))
	_, err = a.askHost(t.Context())
	require.ErrorIs(t, a.client.DialError(), fs.ErrPermission)
	require.Equal(t, exitDenied, a.code(err))
}

func TestTimeout(t *testing.T) {
	c := newCLI(t)
	c.agent.Before = func(ctx context.Context, method string) error {
		if method == "Start" {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	code, _, errs := c.run("--timeout", "50ms", "start", "batch")
	require.Equal(t, exitTimeout, code)
	require.Contains(t, errs, "gladsheim: cannot ")
	require.Contains(t, errs, "may happen still; see: gladsheim status")
}

// A program that ended as soon as it was ready is no service that runs.
func TestStartOfWhatHasEnded(t *testing.T) {
	a := &app{surroundings: surroundings{out: &bytes.Buffer{}}}
	show := a.started(nil).show
	require.NoError(t, show(&gladsheimv1.ServiceStatus{ServiceName: "t", State: gladsheimv1.ServiceState_SERVICE_STATE_STOPPING, Incarnation: 3,
		LastExit: &gladsheimv1.ExitRecord{Incarnation: 3, ExitCode: new(int32), Verdict: gladsheimv1.Verdict_VERDICT_CLEAN}}))
	require.NoError(t, show(&gladsheimv1.ServiceStatus{ServiceName: "t", State: gladsheimv1.ServiceState_SERVICE_STATE_STOPPING, Incarnation: 4,
		LastExit: &gladsheimv1.ExitRecord{Incarnation: 3, ExitCode: new(int32)}}))
	require.Equal(t, ". t: stopping; it was ready and has ended already: exit code 0 (clean)\n"+
		". t: stopping; it was ready and has ended already; see: gladsheim history t\n", a.out.(*bytes.Buffer).String())
}

// The definition of what runs may be lost.
func TestALostDefinition(t *testing.T) {
	c := newCLI(t)
	c.agent.Put(&apitest.Service{Status: known("lost", "")})
	code, out, errs := c.run("definition", "lost")
	require.Equal(t, exitNotFound, code)
	require.Empty(t, out)
	require.Contains(t, errs, "cannot show the definition of lost: it is lost")
}

func TestOneLine(t *testing.T) {
	require.Equal(t, "cannot write x: no space; cannot remove x", oneLine("cannot write x: no space\ncannot write x: no space\n\ncannot remove x"))
	require.Equal(t, "cannot register x: cannot write x: no space", oneLine("cannot register x: cannot write x: no space\ncannot write x: no space"))
}

// What ends by itself is bound as well, for the agent may hang.
func TestTimeoutOfStreams(t *testing.T) {
	c := newCLI(t)
	c.agent.Before = func(ctx context.Context, method string) error {
		if method == "Watch" {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	for _, args := range [][]string{{"events"}, {"events", "-f"}, {"logs", "-f", "billing"}} {
		code, _, errs := c.run(append([]string{"--timeout", "50ms"}, args...)...)
		require.Equal(t, exitTimeout, code, errs)
	}
}

func TestApplyOfTooMuch(t *testing.T) {
	c, dir := newCLI(t), t.TempDir()
	for i := range 20 {
		file := filepath.Join(dir, fmt.Sprintf("s%d.json", i))
		require.NoError(t, os.WriteFile(file, []byte(strings.Repeat(" ", 64<<10)), 0o600))
	}
	code, _, errs := c.run("apply", "-f", dir)
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "cannot apply 20 definitions at once: they have 1.3 MiB, and the agent takes 1 MiB; apply them in parts")
}

// When a service was started is not told as when it began to stop.
func TestActive(t *testing.T) {
	t.Setenv("TZ", "UTC")
	a := &app{surroundings: surroundings{now: func() time.Time { return now }}}
	st := &gladsheimv1.ServiceStatus{State: gladsheimv1.ServiceState_SERVICE_STATE_STOPPING, StartTimeUnixMs: now.Add(-time.Minute).UnixMilli()}
	require.Regexp(t, `^stopping; started .*; 1m 0s ago$`, a.active(st))
	st.State = gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
	require.Regexp(t, `^running since .*; 1m 0s ago$`, a.active(st))
}

// A plain user means his own agent, if he has one.
func TestDefaultHost(t *testing.T) {
	home := t.TempDir()
	env := map[string]string{"XDG_RUNTIME_DIR": home}
	a := &app{surroundings: surroundings{uid: 1000, getenv: func(name string) string { return env[name] }}}
	require.Equal(t, "unix:///run/gladsheim/gladsheim.sock", a.defaultHost())
	require.NoError(t, os.Mkdir(filepath.Join(home, "gladsheim"), 0o700))
	socket := filepath.Join(home, "gladsheim", "gladsheim.sock")
	require.NoError(t, os.WriteFile(socket, nil, 0o600))
	require.Equal(t, "unix://"+socket, a.defaultHost())
	env["GLADSHEIM_HOST"] = "tcp://127.0.0.1:50060"
	require.Equal(t, "tcp://127.0.0.1:50060", a.defaultHost())
	delete(env, "GLADSHEIM_HOST")
	a.uid = 0
	require.Equal(t, "unix:///run/gladsheim/gladsheim.sock", a.defaultHost())
}

// A definition that never comes does not keep anybody.
func TestInterruptedAtStdin(t *testing.T) {
	c := newCLI(t)
	in, typed := io.Pipe()
	defer typed.Close()
	ctx, cancel := context.WithCancel(t.Context())
	read := make(chan int)
	go func() {
		read <- run(ctx, surroundings{
			args: []string{"register", "-f", "-"}, in: in, out: io.Discard, err: io.Discard,
			getenv: func(name string) string { return c.env[name] }, now: func() time.Time { return now },
		})
	}()
	_, err := typed.Write([]byte("{")) // it reads
	require.NoError(t, err)
	cancel()
	require.Equal(t, exitInterrupted, <-read)
}

func TestInterrupted(t *testing.T) {
	for _, args := range [][]string{{"events", "-f"}, {"logs", "-f", "billing", "api"}, {"start", "batch", "api"}, {"usage", "--watch"}} {
		t.Run(args[0], func(t *testing.T) {
			c := newCLI(t)
			ctx, cancel := context.WithCancel(t.Context())
			entered := make(chan struct{}, 8)
			c.agent.Before = func(ctx context.Context, method string) error {
				switch method {
				case "Start":
					entered <- struct{}{}
					<-ctx.Done()
				case "Watch", "WatchUsage":
					entered <- struct{}{}
				}
				return nil
			}
			go func() { <-entered; cancel() }()
			code, _, errs := c.runWith(ctx, args...)
			require.Equal(t, exitInterrupted, code)
			require.Empty(t, errs)
		})
	}
}

// What a list that is too long leaves out is asked for: it may be what is wrong.
func TestWhatAListLeavesOut(t *testing.T) {
	c := newCLI(t)
	c.agent.Change("billing", service.NoticeState, "", "", func(st *service.Status) {
		long := *st.Spec
		long.Description = strings.Repeat("x", 4*mebibyte)
		st.Spec = &long
	})
	code, out, errs := c.run("health")
	require.Equal(t, exitNotRunning, code, errs) // one has crashed, too
	require.Contains(t, out, "✗ billing  unhealthy")
	require.Contains(t, c.mustRun("usage"), "billing")

	// What can not be had is told; of what has gone meanwhile there is nothing to tell.
	for kind, want := range map[service.Kind]int{service.HostUnavailable: exitUnreachable, service.NotFound: exitOK, service.NotRunning: exitOK} {
		c.agent.Before = func(_ context.Context, method string) error {
			if method == "Usage" {
				return &service.Error{Op: "measure", Service: service.MustName("billing"), Kind: kind, Err: errors.New("it is so")}
			}
			return nil
		}
		code, out, errs = c.run("usage")
		require.Equal(t, want, code, errs)
		require.NotContains(t, out, "billing")
		require.Equal(t, want != exitOK, strings.Contains(errs, "cannot measure billing: it is so"))
	}
}

func TestColours(t *testing.T) {
	c := newCLI(t)
	c.terminal = true
	require.Contains(t, c.mustRun("list"), "\x1b[32m●\x1b[0m api")
	_, out, _ := c.run("status", "mailer")
	require.Contains(t, out, "\x1b[31m✗\x1b[0m mailer")
	require.Contains(t, out, "\x1b[31mit failed 4 times")
	for name, value := range map[string]string{"NO_COLOR": "1", "TERM": "dumb"} {
		c.env[name] = value
		require.NotContains(t, c.mustRun("list"), "\x1b")
		require.Contains(t, c.mustRun("list"), "● api")
		delete(c.env, name)
	}
	c.env["LC_ALL"] = "POSIX"
	require.Contains(t, c.mustRun("list"), "\x1b[32m*\x1b[0m api")
	require.Contains(t, c.mustRun("status", "billing"), "|-4190")
}

func TestStyle(t *testing.T) {
	for _, tt := range []struct {
		env  map[string]string
		want style
	}{
		{nil, style{true, false}},
		{map[string]string{"LANG": "de_DE.UTF-8"}, style{true, true}},
		{map[string]string{"LANG": "en_US.utf8", "TERM": "dumb"}, style{false, true}},
		{map[string]string{"LANG": "en_US.utf8", "LC_ALL": "C"}, style{true, false}},
		{map[string]string{"LC_CTYPE": "C.UTF-8", "LANG": "C", "NO_COLOR": "x"}, style{false, true}},
	} {
		require.Equal(t, tt.want, styleOf(surroundings{terminal: true, getenv: func(name string) string { return tt.env[name] }}))
	}
	require.Equal(t, style{}, styleOf(surroundings{getenv: func(string) string { return "" }}))
}

// What a service writes can not reach the terminal as it is.
func TestNothingHarmfulReachesATerminal(t *testing.T) {
	c := newCLI(t)
	const evil = "a\x1b]0;t\x07\x9b31m\u009b1m\u202e\u2066\u061c\u200f\rb\x7f\xff\tc"
	require.NoError(t, os.WriteFile(filepath.Join(c.agent.LogDir, "api.log"), []byte(evil+"\n"), 0o600))
	c.agent.Change("api", service.NoticeState, evil, evil, func(st *service.Status) {
		st.Error, st.Health.Message, st.LastActor = evil, evil, evil
		st.Spec.Description = evil
	})
	c.agent.Config, c.agent.Info.Hostname = []byte("{\n\""+strings.ToValidUTF8(evil, "")+"\": 1}"), evil
	c.agent.Found = []service.Finding{{Level: service.SeverityWarning, Title: evil, Detail: evil, Fix: evil}}

	require.Contains(t, c.mustRun("logs", "api"), evil, "a pipe gets what was written")
	c.terminal = true
	c.env["NO_COLOR"] = "1"
	for _, args := range []string{
		"logs api", "status api", "list", "events", "config show", "system", "doctor", "health api", "-o json status api", "-o json events",
		"-o jsonl list", "-o json logs api",
	} {
		out := c.mustRun(strings.Fields(args)...)
		for _, r := range out {
			require.False(t, r != '\n' && harmful(r), "%s: %q", args, out)
		}
	}
	require.Equal(t, `a\x1b]0;t\x07\x9b31m\x9b1m\u202e\u2066\u061c\u200f\rb\x7f\xff`+"\tc\n", c.mustRun("logs", "api"))
}

func TestPlain(t *testing.T) {
	require.Equal(t, "äöü 世界 😀 \uFFFD\t", plain("äöü 世界 😀 \uFFFD\t"))
	require.Equal(t, `a\nb\rc\x00\x85\u2028`, plain("a\nb\rc\x00\u0085\u2028"))
	require.Equal(t, `\xe4\xb8`, plain("\xe4\xb8"))
}

func TestFollow(t *testing.T) {
	c := newCLI(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer reader.Close()
	done := make(chan int, 1)
	go func() {
		defer writer.Close()
		done <- run(ctx, surroundings{
			args: []string{"logs", "-f", "-n", "0", "api", "billing"}, out: writer, err: writer,
			getenv: func(name string) string { return c.env[name] }, now: func() time.Time { return now },
		})
	}()
	require.Eventually(t, func() bool { return c.agent.Watchers() == 2 }, 10*time.Second, 5*time.Millisecond)
	f, err := os.OpenFile(filepath.Join(c.agent.LogDir, "api.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer f.Close()
	line, n := make([]byte, 11), 0
	require.Eventually(t, func() bool {
		_, err := f.WriteString("hello\n") // again: what was there before the log was opened is past
		require.NoError(t, err)
		require.NoError(t, reader.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		n, err = io.ReadFull(reader, line)
		return err == nil
	}, 10*time.Second, time.Millisecond)
	require.Equal(t, "api: hello\n", string(line[:n]))
	cancel()
	require.Equal(t, exitInterrupted, <-done)
}

func TestSpans(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0ms": -time.Second, "999ms": 999 * time.Millisecond, "59s": 59*time.Second + 900*time.Millisecond, "1m 0s": time.Minute,
		"59m 59s": time.Hour - time.Second, "23h 59m": 24*time.Hour - time.Second, "3d 2h": 74 * time.Hour,
	} {
		require.Equal(t, want, span(d))
	}
	require.Equal(t, "2s ago", ago(now, now.Add(-2*time.Second)))
	require.Equal(t, "in 2s", ago(now, now.Add(2*time.Second)))
	require.Equal(t, []string{"0s", "0ms", "4.1s", "1m 0s"}, []string{usecOf(0), usecOf(10), usecOf(4_100_000), usecOf(60_000_000)})
	require.NotPanics(t, func() { usecOf(math.MaxUint64) })
}

func TestSizes(t *testing.T) {
	for want, n := range map[string]float64{
		"0 B": 0, "1023 B": 1023, "1 KiB": 1024, "61.2 MiB": 61.2 * mebibyte, "16 GiB": 16 << 30, "max": math.MaxUint64, "1 PiB": 1 << 50,
	} {
		require.Equal(t, want, size(n))
	}
	require.Equal(t, "max", size(math.Inf(1)))
	inf, n := math.Inf(1), 128.0*mebibyte
	require.Equal(t, "max", limit("cpu_percent", &inf))
	require.Equal(t, "128MiB", limit("memory_max", &n))
	require.Equal(t, "134217728", limit("a limit of tomorrow", &n))
	require.Empty(t, limit("pids_max", nil))
}

// A run leaves nothing behind, whatever came of it.
func TestNoLeaks(t *testing.T) {
	c := newCLI(t)
	before := goleak.IgnoreCurrent()
	for _, args := range []string{"list", "status nobody", "events -n 1", "logs billing", "frobnicate", "--host unix:///nonexistent/s list"} {
		c.run(strings.Fields(args)...)
	}
	goleak.VerifyNone(t, before)
}

// A pipe that nobody writes keeps nobody from leaving, and is no definition of
// a directory's.
func TestInterruptedAtAPipe(t *testing.T) {
	c := newCLI(t)
	dir := t.TempDir()
	fifo := filepath.Join(dir, "web.json")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	for _, verb := range []string{"register", "apply"} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		code, _, errs := c.runWith(ctx, verb, "-f", fifo)
		require.Equal(t, exitInterrupted, code, "%s: %s", verb, errs)
		writer, err := os.OpenFile(fifo, os.O_WRONLY, 0) // lets the one go who waits for it
		require.NoError(t, err)
		require.NoError(t, writer.Close())
	}
	code, _, errs := c.run("apply", "-f", dir)
	require.NotZero(t, code)
	require.Contains(t, errs, fifo+" is no regular file")
	code, _, errs = c.run("register", "-f", "/dev/zero")
	require.NotZero(t, code)
	require.Contains(t, errs, "more than 1048576 bytes")
}
