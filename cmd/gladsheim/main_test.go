package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/api"
	"github.com/gladsheim/gladsheim/api/apitest"
)

var update = flag.Bool("update", false, "write what the commands print into the scripts")

// now is when every test happens.
var now = time.Date(2026, 11, 22, 3, 41, 51, 0, time.UTC)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gladsheim": func() {
			version = "0.1.0"
			os.Exit(run(context.Background(), surroundings{
				args: os.Args[1:], in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv,
				now: func() time.Time { return now },
			}))
		},
	})
}

// TestScripts runs each script against an agent of its own, which plays the
// services of hall.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			agent := hall(filepath.Join(e.WorkDir, "log"))
			e.Values["agent"] = agent
			e.Setenv("GLADSHEIM_HOST", serve(e, agent))
			e.Setenv("TZ", "UTC")
			e.Setenv("LANG", "C.UTF-8")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
		},
	})
}

// exits runs a command and wants its exit code: exits 3 gladsheim status db.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG…")
	}
	code := "0"
	if ended, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](ts.Exec(args[1], args[2:]...)); ok {
		code = strconv.Itoa(ended.ExitCode())
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}

type cleaner interface{ Defer(func()) }

// serve serves agent on a socket, and gives its address.
func serve(c cleaner, agent *apitest.Agent) string {
	dir, err := os.MkdirTemp("", "cli")
	must(err)
	path := filepath.Join(dir, "s")
	l, err := api.Listen("unix://" + path)
	must(err)
	server := api.New(api.Config{Agent: agent, Log: slog.New(slog.DiscardHandler)})
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	c.Defer(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		server.Stop(ctx)
		must(<-done)
		must(os.RemoveAll(dir))
	})
	return "unix://" + path
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// testCleaner is a test as a cleaner.
type testCleaner struct{ *testing.T }

func (c testCleaner) Defer(f func()) { c.Cleanup(f) }

// cli is the command in this process, on what may be a terminal.
type cli struct {
	t        *testing.T
	agent    *apitest.Agent
	env      map[string]string
	terminal bool
}

func newCLI(t *testing.T) *cli {
	agent := hall(t.TempDir())
	return &cli{t: t, agent: agent, env: map[string]string{"GLADSHEIM_HOST": serve(testCleaner{t}, agent), "LANG": "C.UTF-8"}}
}

func (c *cli) run(args ...string) (code int, out, errs string) {
	return c.runWith(c.t.Context(), args...)
}

func (c *cli) runWith(ctx context.Context, args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = run(ctx, surroundings{
		args: args, in: strings.NewReader(""), out: &o, err: &e, terminal: c.terminal,
		getenv: func(name string) string { return c.env[name] },
		now:    func() time.Time { return now },
		uid:    1000,
	})
	return code, o.String(), e.String()
}

func (c *cli) mustRun(args ...string) string {
	c.t.Helper()
	code, out, errs := c.run(args...)
	require.Zero(c.t, code, errs)
	return out
}
