package backendtest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// refusal is a launch that can not be.
type refusal struct {
	says      string
	reason    service.Reason
	permanent bool
	text      []string // what the error must name
	change    func(b *bench, broken string, l *service.Launch)
}

// executing is a change that executes a file below the directory of broken ones.
func executing(file string, args ...string) func(*bench, string, *service.Launch) {
	return func(_ *bench, broken string, l *service.Launch) {
		l.Spec.Exec[0] = filepath.Join(broken, file)
		l.Spec.Exec = append(l.Spec.Exec, args...)
	}
}

func refusals() []refusal {
	unmovable := strings.Repeat("x", 127<<10)
	return []refusal{
		{
			says: "that does not exist", reason: service.ReasonExecNotFound, permanent: true,
			text: []string{"nowhere", "no such file"}, change: executing("nowhere"),
		},
		{
			says: "below what is no directory", reason: service.ReasonExecNotFound, permanent: true,
			text: []string{"script/below", "not a directory"}, change: executing("script/below"),
		},
		{
			says: "whose interpreter does not exist", reason: service.ReasonExecNotFound, permanent: true,
			text: []string{"no-interpreter", "no such file"}, change: executing("no-interpreter"),
		},
		{
			says: "that is not executable", reason: service.ReasonExecDenied, permanent: true,
			text: []string{"no-mode", "permission denied"}, change: executing("no-mode"),
		},
		{
			says: "that is a directory", reason: service.ReasonExecDenied, permanent: true,
			text: []string{"directory", "permission denied"}, change: executing("directory"),
		},
		{
			says: "on a file system mounted noexec", reason: service.ReasonExecDenied, permanent: true,
			text: []string{"program", "permission denied"}, change: onNoexec,
		},
		{
			says: "of no known format", reason: service.ReasonExecFormat, permanent: true,
			text: []string{"no-format", "exec format error"}, change: executing("no-format"),
		},
		{
			says: "with too many arguments", reason: service.ReasonExecTooBig, permanent: true,
			text: []string{"script", "argument list too long"},
			change: func(b *bench, broken string, l *service.Launch) {
				// Together they are above the 6 MiB that execve(2) never exceeds.
				executing("script", repeat(unmovable, 60)...)(b, broken, l)
			},
		},
		{
			says: "that is open for writing", reason: service.ReasonExecBusy, permanent: false,
			text: []string{"busy", "text file busy"}, change: executing("busy"),
		},
		{
			says: "behind a loop of links", reason: service.ReasonExecLoop, permanent: true,
			text: []string{"loop-a", "too many levels of symbolic links"}, change: executing("loop-a"),
		},
		{
			says: "in a working directory that does not exist", reason: service.ReasonBadDirectory, permanent: true,
			text: []string{"nowhere", "no such file"},
			change: func(_ *bench, broken string, l *service.Launch) {
				l.Spec.WorkingDirectory = filepath.Join(broken, "nowhere")
			},
		},
		{
			says: "in a working directory that is a file", reason: service.ReasonBadDirectory, permanent: true,
			text: []string{"script", "not a directory"},
			change: func(_ *bench, broken string, l *service.Launch) {
				l.Spec.WorkingDirectory = filepath.Join(broken, "script")
			},
		},
		{
			says: "for a user that does not exist", reason: service.ReasonUnknownUser, permanent: true,
			text:   []string{"no-such-user"},
			change: func(_ *bench, _ string, l *service.Launch) { l.Spec.User = "no-such-user" },
		},
		{
			says: "for a group that does not exist", reason: service.ReasonUnknownGroup, permanent: true,
			text:   []string{"no-such-group"},
			change: func(_ *bench, _ string, l *service.Launch) { l.Spec.Group = "no-such-group" },
		},
	}
}

func repeat(s string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = s
	}
	return all
}

func refusalLaws() []law {
	var all []law
	for _, r := range refusals() {
		all = append(all, law{
			says: "a program " + r.says + " is refused with its own reason, and leaves nothing",
			only: real, check: func(b *bench) { lawRefusal(b, r) },
		})
	}
	return append(all,
		law{says: "a working directory that the user may not enter is refused with its own reason", only: real, check: lawForbiddenDirectory},
		law{says: "a launch that must fail keeps nobody else from launching", only: real, check: lawRefusalApart},
	)
}

func lawRefusal(b *bench, r refusal) {
	l := b.plan("sleep")
	r.change(b, b.brokenFiles(), &l)
	h, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	require.Nil(b, h)
	e := b.wantError(err, service.Unlaunchable)
	require.Equal(b, r.reason, e.Reason, "the reason of: %v", err)
	require.Equal(b, r.permanent, e.Permanent, "permanence of: %v", err)
	for _, part := range append(r.text, l.Name.String()) {
		require.ErrorContains(b, err, part)
	}
	require.Less(b, len(err.Error()), 1000, "an error is for people to read")
	b.nothingOf(l)
}

// brokenFiles lets a workload of our own fill a directory with files that can
// not be executed; it goes on holding one open for writing.
func (b *bench) brokenFiles() string {
	b.Helper()
	dir := filepath.Join(b.dir, "broken")
	require.NoError(b, os.Mkdir(dir, 0o755))
	read, write, err := os.Pipe()
	require.NoError(b, err)
	defer read.Close()
	p, err := os.StartProcess(b.Workload, []string{b.Workload, "broken-files", dir}, &os.ProcAttr{Files: []*os.File{nil, write, write}})
	require.NoError(b, write.Close())
	require.NoError(b, err)
	b.Cleanup(func() { _ = p.Kill(); _, _ = p.Wait() })
	said := make([]byte, 256)
	n, err := read.Read(said)
	require.NoError(b, err)
	require.Equal(b, "ready\n", string(said[:n]))
	return dir
}

// onNoexec mounts a file system that nothing may be executed on, in the
// directory of broken files.
func onNoexec(b *bench, broken string, l *service.Launch) {
	if os.Geteuid() != 0 {
		b.Skip("only root may mount")
	}
	dir := filepath.Join(broken, "directory")
	require.NoError(b, syscall.Mount("none", dir, "tmpfs", syscall.MS_NOEXEC, ""))
	b.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	program := filepath.Join(dir, "program")
	require.NoError(b, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755))
	l.Spec.Exec[0] = program
}

func lawForbiddenDirectory(b *bench) {
	secret := filepath.Join(b.dir, "secret")
	require.NoError(b, os.Mkdir(secret, 0))
	l := b.plan("sleep")
	l.Spec.WorkingDirectory = secret
	if os.Geteuid() == 0 { // who may enter everywhere
		l.Spec.User = b.User
	}
	_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	e := b.wantError(err, service.Unlaunchable)
	require.Equal(b, service.ReasonBadDirectory, e.Reason)
	require.ErrorContains(b, err, "permission denied")
	require.ErrorContains(b, err, secret)
	b.nothingOf(l)
}

func lawRefusalApart(b *bench) {
	done := make(chan error)
	for range 5 {
		go func() {
			l := b.plan("sleep")
			l.Spec.Exec[0] = filepath.Join(b.dir, "nowhere")
			_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
			done <- err
		}()
	}
	i := b.start("sleep")
	for range 5 {
		b.wantError(<-done, service.Unlaunchable)
	}
	i.lives()
}
