package backendtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// bench is where one law is tried: a backend, a directory, and ways to look at
// the host.
type bench struct {
	*testing.T
	Subject
	trial *trial
	agent backends.Backend // shared with other laws, unless ownAgent was called
	dir   string           // everybody may read it
}

func (t *trial) bench(test *testing.T) *bench {
	b := &bench{T: test, Subject: t.subject, trial: t, agent: t.agent}
	// Not TempDir: nobody but its owner may look into that one.
	dir, err := os.MkdirTemp("", "law-")
	require.NoError(b, err)
	require.NoError(b, os.Chmod(dir, 0o755))
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	b.dir = dir
	return b
}

// ownAgent gives the law an agent of its own, that it may close.
func (b *bench) ownAgent() {
	b.Helper()
	if b.agent == b.trial.agent {
		b.agent = b.newAgent()
	}
}

// newAgent makes a Backend as a fresh agent has it.
func (b *bench) newAgent() backends.Backend {
	b.Helper()
	agent := b.New(b.T)
	b.Cleanup(func() { _ = agent.Close() })
	return agent
}

// patience is how long anything that must happen may take, on a busy host, too.
const patience = time.Minute

// soon is how long a thing may take that a law wants within d.
func soon(d time.Duration) time.Duration {
	if emulated() {
		return 10 * d
	}
	return d
}

// few gives the first n on an emulated machine, where each launch is dear, and
// all elsewhere: enough to see that the backend passes them on.
func few[T any](all []T, n int) []T {
	if emulated() {
		return all[:n]
	}
	return all
}

// within is a context for one call that must come to an end.
func (b *bench) within() context.Context {
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	b.Cleanup(cancel)
	return ctx
}

// ended is a context that has come to its end.
func (b *bench) ended() context.Context {
	ctx, cancel := context.WithCancel(b.Context())
	cancel()
	return ctx
}

// eventually looks again and again until what must become true is true.
func (b *bench) eventually(condition func() bool, what string, args ...any) {
	b.Helper()
	again := time.NewTicker(soon(2 * time.Millisecond))
	defer again.Stop()
	for over := time.After(patience); !condition(); {
		select {
		case <-over:
			b.Fatalf(what, args...)
		case <-again.C:
		}
	}
}

func random() string {
	var r [8]byte
	_, _ = rand.Read(r[:]) // never fails, see crypto/rand
	return hex.EncodeToString(r[:])
}

// plan is a launch of the workload in the given mode, under a name and with a
// token that nobody else has.
func (b *bench) plan(mode ...string) service.Launch {
	program := b.Workload
	if program == "" {
		program = "/workload"
	}
	spec := service.Defaults()
	spec.Name = service.MustName(fmt.Sprintf("t%s-%d", random(), b.trial.next()))
	spec.Exec = append([]string{program, "-t", "token-" + random()}, mode...)
	return service.Launch{
		Name: spec.Name, Incarnation: 1, Spec: spec, Limits: spec.Limits,
		LogFile: filepath.Join(b.dir, spec.Name.String()+".log"),
	}
}

// limited gives l limits, in the definition and as planned.
func limited(l service.Launch, limits service.Limits) service.Launch {
	l.Limits = limits
	l.Spec.Limits = limits
	return l
}

// incarnation is something launched.
type incarnation struct {
	backends.Handle
	bench *bench
	plan  service.Launch
}

// token finds the processes of l, see plan.
func token(l service.Launch) string { return l.Spec.Exec[2] }

var nothingToIdentify = backends.Birth{Identify: func(service.Ref) error { return nil }}

// launch launches l and sees to it that nothing of it outlives the law.
func (b *bench) launch(l service.Launch) *incarnation {
	b.Helper()
	h, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	require.NoError(b, err)
	return b.keep(h, l)
}

// keep takes charge of a handle: it is released when the law is done.
func (b *bench) keep(h backends.Handle, l service.Launch) *incarnation {
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := h.Release(ctx); err != nil {
			b.Errorf("cannot clean up: %v", err)
		}
		if n := b.alive(l); n != 0 {
			b.Errorf("%d processes outlived the release", n)
		}
		if err := h.Close(); err != nil {
			b.Errorf("cannot close the handle: %v", err)
		}
	})
	return &incarnation{Handle: h, bench: b, plan: l}
}

// start launches the workload in the given mode and waits until everything it
// is going to be is in place.
func (b *bench) start(mode ...string) *incarnation {
	b.Helper()
	i := b.launch(b.plan(mode...))
	i.ready()
	return i
}

// ready waits for the line with which the workload says that it is complete.
func (i *incarnation) ready() {
	i.bench.Helper()
	if i.bench.Workload == "" {
		return
	}
	i.says("ready")
}

// says waits until the log holds text.
func (i *incarnation) says(text string) {
	i.bench.Helper()
	i.bench.eventually(func() bool { return strings.Contains(i.log(), text) },
		"the log of %v never said %q; it says %q", i.plan.Spec.Exec, text, lazy(i.log))
}

// lazy is text that is made only when it is printed.
type lazy func() string

func (l lazy) String() string { return l() }

func (i *incarnation) log() string {
	text, err := os.ReadFile(i.plan.LogFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		i.bench.Fatal(err)
	}
	return string(text)
}

// exit waits for the end of the main process.
func (i *incarnation) exit() service.Exit {
	i.bench.Helper()
	return i.bench.exitOf(i.Handle)
}

func (b *bench) exitOf(h backends.Handle) service.Exit {
	b.Helper()
	select {
	case <-h.Exited():
	case <-time.After(patience):
		b.Fatal("the exit of the main process was never told")
	}
	return h.Exit()
}

// lives wants the main process not to be told as ended.
func (i *incarnation) lives() {
	i.bench.Helper()
	select {
	case <-i.Exited():
		i.bench.Fatalf("%v has ended: %v; it said %q", i.plan.Spec.Exec, i.Exit(), i.log())
	default:
	}
}

// alive counts the processes of l, from outside.
func (b *bench) alive(l service.Launch) int {
	if b.Alive != nil {
		return b.Alive(token(l))
	}
	return len(processesWith(token(l)))
}

// nothingOf wants nothing of l to be there: no process, no cgroup, no unit.
func (b *bench) nothingOf(l service.Launch) {
	b.Helper()
	require.Zero(b, b.alive(l), "processes are left")
	if b.CgroupRoot != "" {
		require.Empty(b, cgroupsOf(b.CgroupRoot, l.Name), "cgroups are left")
	}
	if b.Residue != nil {
		residue, err := b.Residue(l.Name)
		require.NoError(b, err)
		require.Empty(b, residue, "the host still knows it")
	}
}

// wantError wants err to be one of ours, of the given kind.
func (b *bench) wantError(err error, kind service.Kind) *service.Error {
	b.Helper()
	require.Error(b, err)
	e, ok := errors.AsType[*service.Error](err)
	require.True(b, ok, "%v (%T) is no *service.Error", err, err)
	require.Equal(b, kind, e.Kind, "the kind of: %v", err)
	require.True(b, strings.HasPrefix(err.Error(), "cannot "), "%q does not begin with cannot", err)
	return e
}
