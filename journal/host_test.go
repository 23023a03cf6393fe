package journal

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// onHost gives the journal of a test host.
func onHost(t *testing.T) (j Journal, bootID string) {
	t.Helper()
	if !slices.Contains(strings.Fields(os.Getenv("GLADSHEIM_TEST_OFFERS")), "systemd") {
		t.Skip("this needs a test host with systemd: go run ./test/floors")
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	require.NoError(t, err)
	return Host(), strings.TrimSpace(string(id))
}

// connected is a stream to the journal that is found there.
func connected(t *testing.T, j Journal, bootID, name string) (fd int, s service.Stream) {
	t.Helper()
	s = NewStream(name, bootID)
	fd, err := j.Connect(name, "", s.Mark)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	synced(t, j)
	ids, err := j.Find(t.Context(), []service.Stream{s})
	require.NoError(t, err)
	require.Len(t, ids[s.Mark], 32)
	s.ID = ids[s.Mark]
	return fd, s
}

// synced waits until all that was written is in the journal, which on an emulated
// machine takes longer than Sync waits.
func synced(t *testing.T, j Journal) {
	t.Helper()
	require.Eventually(t, func() bool { return j.Sync(t.Context()) == nil }, 5*time.Minute, time.Millisecond)
}

func say(t *testing.T, fd int, text string) {
	t.Helper()
	n, err := unix.Write(fd, []byte(text))
	require.NoError(t, err)
	require.Equal(t, len(text), n)
}

// What is written is read, and nothing that others write, whatever they call
// themselves.
func TestARealJournal(t *testing.T) {
	j, boot := onHost(t)
	require.NoError(t, j.Reachable())
	began := time.Now()
	require.NoError(t, j.Probe(t.Context(), boot))
	t.Logf("the probe took %v", time.Since(began))
	fd, s := connected(t, j, boot, "real")
	other, otherStream := connected(t, j, boot, "real")
	say(t, fd, "one\n<3>two\n\n  three  \n\x01\xff\nfour\x00five\n")
	say(t, other, s.Mark+"\nforged\n")
	say(t, fd, strings.Repeat("x", 100_000)+"\n")
	synced(t, j)
	x := func(n int) string { return strings.Repeat("x", n) }
	lines := read(t, j, Request{Streams: []service.Stream{s}, Lines: 100})
	require.Equal(t, []string{"one", "<3>two", "  three", "\x01\xff", "four", "five"}, lines[:6], "journald keeps no empty line and no blanks at the end of one, and a NUL ends it")
	require.Len(t, lines, 9)
	require.True(t, slices.Equal(lines[6:], []string{x(48<<10) + "+", x(48<<10) + "+", x(100_000 - 96<<10)}), "the long line")
	require.Equal(t, []string{s.Mark, "forged"}, read(t, j, Request{Streams: []service.Stream{otherStream}, Lines: 100}))
	ids, err := j.Find(t.Context(), []service.Stream{s})
	require.NoError(t, err)
	require.Equal(t, s.ID, ids[s.Mark], "a copy of the mark is none")
}

// TestTheRateLimit: journald drops what exceeds its limit, and says how many messages.
// Those that are kept and those that are said to be dropped are all that were written.
func TestTheRateLimit(t *testing.T) {
	j, boot := onHost(t)
	const count, interval = 15_000, 5
	require.NoError(t, os.MkdirAll("/run/systemd/journald.conf.d", 0o755))
	const conf = "/run/systemd/journald.conf.d/limit.conf"
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, "[Journal]\nRateLimitIntervalSec=%ds\nRateLimitBurst=100\n", interval), 0o644))
	defer func() {
		require.NoError(t, os.Remove(conf))
		require.NoError(t, exec.Command("systemctl", "restart", "systemd-journald").Run())
	}()
	require.NoError(t, exec.Command("systemctl", "restart", "systemd-journald").Run())
	unit := ownUnit(t)
	fd, s := connected(t, j, boot, "chatter")
	s.Unit = unit
	for i := range count {
		say(t, fd, fmt.Sprintf("%06d\n", i))
	}
	synced(t, j)
	time.Sleep(interval * time.Second) // a limit holds for as long, and what was dropped is told with the next line after
	say(t, fd, "the end\n")
	synced(t, j)
	kept, lost := 0, uint64(0)
	require.NoError(t, j.Read(t.Context(), Request{Streams: []service.Stream{s}, Lines: count + 1}, func(l Line) error {
		if kept++; l.Dropped > 0 {
			t.Logf("%s", l.Text)
			kept--
			lost += l.Dropped
		}
		return nil
	}))
	t.Logf("of %d lines %d are kept, %d told to be dropped; unit %q", count+1, kept, lost, unit)
	require.EqualValues(t, count+1, uint64(kept)+lost)
	require.NotZero(t, lost)
}

// ownUnit is the unit of this process, to which journald counts what it writes.
func ownUnit(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	for _, part := range strings.Split(strings.TrimSpace(string(text)), "/") {
		if strings.HasSuffix(part, ".scope") || strings.HasSuffix(part, ".service") {
			return part
		}
	}
	return ""
}
