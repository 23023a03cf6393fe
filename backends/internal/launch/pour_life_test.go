package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/process"
)

// leave launches a script whose end is for another to hear.
func (p *poured) leave(policy service.LogFull, script string) *process.Process {
	p.t.Helper()
	req := request("/bin/sh", "-c", script)
	req.Launch.Spec.LogFull, req.Launch.LogFile, req.Shim = policy, p.log, p.Shim
	c, err := Start(p.t.Context(), p.watcher, req)
	require.NoError(p.t, err)
	require.NoError(p.t, c.Open(p.t.Context()))
	require.NoError(p.t, c.Process().Close())
	return c.Process()
}

// TestTroubleWithoutAnAgent: what happens to a log while no agent is there happens all
// the same, and the next one hears of what lasts and of what was over. What was held
// outlives its service, and the shim stays for it.
func TestTroubleWithoutAnAgent(t *testing.T) {
	p := newPoured(t, t.TempDir())
	lives := p.leave(service.LogFullBlock, "exec sleep 60")
	p.know(lives)
	p.room(1000)
	s := p.leave(service.LogFullBlock, "exec seq 1 5000")
	p.until("it is told", func() bool { return len(p.heard()) == 1 })
	dir := p.cfg.Dir
	p.die()
	gone(t, p.fs, s.PID()) // its pipe took the rest
	require.NoError(t, unix.Kill(lives.PID(), unix.SIGKILL))
	gone(t, p.fs, lives.PID())

	second := &poured{family: newFamily(t, dir), t: t, log: p.log, shim: p.shim}
	second.WatchLogs(second.hear)
	second.until("what lasts is told again", func() bool { return len(second.heard()) == 1 })
	require.True(t, second.heard()[0].Began.Equal(p.heard()[0].Began))
	second.released()
	second.die()
	require.NoError(t, unix.Kill(p.shim, 0), "it has neither agent nor child, and stays")
	require.EqualValues(t, 1000, p.size())
	second.room(unix.RLIM_INFINITY)
	gone(t, p.fs, p.shim)
	want := ""
	for i := range 5000 {
		want += fmt.Sprintln(i + 1)
	}
	require.True(t, want == p.written(), "all of it, in its order")
}

// TestAPipeOutlivesItsService: a descendant that goes on is heard to its end.
func TestAPipeOutlivesItsService(t *testing.T) {
	p := newPoured(t, t.TempDir())
	word := filepath.Join(t.TempDir(), "word")
	s := p.begin(service.LogFullDrop, "(while ! [ -e "+word+" ]; do sleep 0.01; done; echo stray) & echo main")
	require.Equal(t, service.Exit{}, exitOf(t, s))
	require.Equal(t, "main\n", p.written())
	require.NoError(t, os.WriteFile(word, nil, 0o600))
	p.until("what follows is there", func() bool { return p.written() == "main\nstray\n" })
}

// TestIncarnationsInTheirOrder: what one could not write comes before what the next did.
func TestIncarnationsInTheirOrder(t *testing.T) {
	p := newPoured(t, t.TempDir())
	p.know(p.begin(service.LogFullBlock, "exec sleep 60"))
	p.room(10)
	require.Equal(t, service.Exit{}, exitOf(t, p.begin(service.LogFullBlock, "echo first incarnation")))
	p.until("it is told", func() bool { return len(p.heard()) == 1 })
	p.room(unix.RLIM_INFINITY)
	require.Equal(t, service.Exit{}, exitOf(t, p.begin(service.LogFullBlock, "echo second incarnation")))
	p.until("both are there", func() bool { return p.written() == "first incarnation\nsecond incarnation\n" })
}

// TestTheShimOfAPipeIsKilled: its service lives, and the trouble of its log is told to
// be over because nobody knows of it any more.
func TestTheShimOfAPipeIsKilled(t *testing.T) {
	p := newPoured(t, t.TempDir())
	s := p.begin(service.LogFullDrop, "while :; do echo x; sleep 0.01; done")
	p.know(s)
	p.room(0)
	p.until("it is told", func() bool { return len(p.heard()) == 1 })
	require.NoError(t, unix.Kill(p.shim, unix.SIGKILL))
	p.until("it is told to be lost", func() bool { return len(p.heard()) == 2 })
	require.True(t, p.heard()[1].Lost)
	time.Sleep(100 * time.Millisecond) // it writes
	require.False(t, s.Ended(), "no SIGPIPE ends it")
}

// TestPipesLeaveNothing: neither a descriptor nor a thread of the shim, which has none of
// either for logs that nobody asked it to write.
func TestPipesLeaveNothing(t *testing.T) {
	p := newPoured(t, t.TempDir())
	p.know(p.begin(service.LogFullFail, "exec sleep 60"))
	count := func(what string) int {
		all, err := filepath.Glob(fmt.Sprintf("/proc/%d/%s/*", p.shim, what))
		require.NoError(t, err)
		return len(all)
	}
	exitOf(t, p.begin(service.LogFullFail, "true"))
	before := count("fd")
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.shim))
	require.NoError(t, err)
	for _, link := range links {
		to, _ := os.Readlink(link)
		require.NotContains(t, []string{"anon_inode:[eventpoll]", "anon_inode:[timerfd]"}, to)
	}
	threads := 0
	for i := range 50 {
		exitOf(t, p.begin(service.LogFullBlock, "echo x"))
		if i == 20 {
			threads = count("task")
		}
	}
	p.until("only what the thread waits for is left", func() bool { return count("fd") == before+4 })
	require.LessOrEqual(t, count("task"), threads+1)
	for range 50 { // at once
		p.begin(service.LogFullBlock, "exec sleep 60")
	}
	require.Equal(t, before+4+100, count("fd"))
	require.LessOrEqual(t, count("task"), threads+3, "no thread for each")
}

// TestASmallDisk: as TestALogThatIsFull, with a file system that has no room.
func TestASmallDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root mounts a small disk; TestALogThatIsFull is told here")
	}
	for _, policy := range []service.LogFull{service.LogFullDrop, service.LogFullBlock} {
		t.Run(policy.String(), func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, "size=64k"))
			t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
			p := newPoured(t, dir)
			s := p.begin(policy, "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo line $i; done; exec sleep 60")
			p.until("it is told", func() bool { return len(p.heard()) == 1 })
			require.Equal(t, "no space left on device", p.heard()[0].Why)
			require.False(t, s.Ended())
			require.NoError(t, unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT, "size=16m"))
			p.until("it is told to be over", func() bool { return len(p.heard()) >= 2 && !p.heard()[len(p.heard())-1].Lasts() })
			p.until("all is accounted for", func() bool {
				_, lines, _, dropped := account(t, p.written(), numbered)
				return lines+dropped == 60000 && (dropped == 0) == (policy == service.LogFullBlock)
			})
		})
	}
}
