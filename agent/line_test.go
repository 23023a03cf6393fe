package agent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/journal"
	"github.com/gladsheim/gladsheim/logfile"
)

// pages is an agent that knows of the log of a service, and nothing else.
type pages struct {
	*Agent
	t    *testing.T
	path string
	spec service.Spec
}

func newPages(t *testing.T, pattern string) *pages {
	dir := t.TempDir()
	logs, err := logfile.Open(dir, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(logs.Close)
	p := &pages{t: t, spec: service.Spec{Name: web}, Agent: &Agent{cfg: Config{LogDir: dir, Logs: logs, Log: slog.New(slog.DiscardHandler)}}}
	p.path, p.spec.Ready = p.logPath(web), service.Check{Type: service.CheckLog, Pattern: pattern}
	return p
}

func (p *pages) write(text string) {
	p.t.Helper()
	f, err := os.OpenFile(p.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(p.t, err)
	defer f.Close()
	_, err = f.WriteString(text)
	require.NoError(p.t, err)
}

// await looks for the line from an offset on; what it returns tells what came of it.
func (p *pages) await(from int64) <-chan error {
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Minute)
	p.t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- p.awaitLine(ctx, &p.spec, 1, from) }()
	return done
}

// found wants that the line has come.
func (p *pages) found(done <-chan error) {
	p.t.Helper()
	require.NoError(p.t, <-done)
}

// absent wants that there is no such line.
func (p *pages) absent(from int64) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 200*time.Millisecond)
	defer cancel()
	require.EqualError(p.t, p.awaitLine(ctx, &p.spec, 1, from), "no line of its output matched")
}

func TestAwaitLine(t *testing.T) {
	p := newPages(t, "^listening on [0-9]+$")
	p.absent(0) // there is no file yet
	p.write("listening on 80\nthe end of the first one, which has no newline")
	from := p.logEnd(web)
	p.absent(from)
	done := p.await(from)
	p.write("starting\nlistening")
	p.write(" on 81")
	p.absent(from) // it may go on
	p.write("\n")
	p.found(done)
	p.found(p.await(from)) // what was written before counts, as long as it is of this one
	p.absent(p.logEnd(web))
	p.write("listening on 82\n")
	p.absent(p.logEnd(web))
}

func TestAwaitLineTakesTheBeginningsOfLines(t *testing.T) {
	p := newPages(t, "^up|late$")
	filler := strings.Repeat("x", 64<<10)
	p.write(filler + "up\n" + filler[:maxReadyLine-2] + "late\n")
	p.absent(0)
	p.write(filler[:maxReadyLine-4] + "late and more\n")
	p.found(p.await(0))
}

// An output that can not be followed is read now and then.
func TestAwaitLineThatCanNotBeFollowed(t *testing.T) {
	p := newPages(t, "^up$")
	program := filepath.Join(p.cfg.LogDir, "journalctl")
	said := "__CURSOR=1\n__REALTIME_TIMESTAMP=5000000\n_STREAM_ID=s1\nMESSAGE=up\n\n"
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\ncase \"$*\" in *--follow*) echo no watch >&2; exit 1;; esac\nprintf '"+said+"'\n"), 0o700))
	p.cfg.Journal = journal.Journal{Program: program}
	p.outputs.of = map[service.Name][]service.Output{web: {{Incarnation: 1, Stream: service.Stream{Mark: "m", ID: "s1"}}}}
	p.found(p.await(0))
	p.spec.Ready.Pattern = "^down$"
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorContains(t, p.awaitLine(ctx, &p.spec, 1, 0), "no watch")
}

func TestAwaitLineOverCuts(t *testing.T) {
	p := newPages(t, "^up$")
	p.write("of the one before\n")
	from := p.logEnd(web)
	done := p.await(from)
	p.cfg.Logs.Keep(p.path, service.LogRotation{Size: 64 << 10, Total: 128 << 10})
	noise := strings.Repeat(strings.Repeat("n", 99)+"\n", 100)
	require.Eventually(t, func() bool {
		p.write(noise)
		entries, err := os.ReadDir(p.cfg.LogDir)
		return err == nil && len(entries) > 1
	}, 2*time.Minute, 5*time.Millisecond)
	p.write("up\n")
	p.found(done)
	require.NoError(t, os.Truncate(p.path, 0)) // somebody empties it
	p.write("not yet\n")
	p.absent(from + 1<<40)
	done = p.await(from + 1<<40)
	p.write("up\n")
	p.found(done)
}
