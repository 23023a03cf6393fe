package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

var dropNote = regexp.MustCompile(`^\[gladsheim: [0-9]+ bytes in ([0-9]+) lines were dropped here(, the rest of the line above among them)?: no space left on device\]$`)

// TestAFullLogDisk: while the disk of the logs is full one service waits, and of
// another is counted what it loses; both live, over the end of the agent as well. When
// there is room they go on by themselves: of the one nothing is missing, of the other
// what the log says.
func TestAFullLogDisk(t *testing.T) {
	anywhere(t)
	offers(t, "exec")
	if !isRoot(t) {
		t.Skip("only root mounts a small disk; the same runs as root on this host")
	}
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			w.leave(syscall.SIGTERM)
			logs := w.path("log")
			require.NoError(t, unix.Mount("none", logs, "tmpfs", 0, "size=256k"))
			t.Cleanup(func() { require.NoError(t, unix.Unmount(logs, unix.MNT_DETACH)) })
			w.begin()
			word := w.path("word")
			was := map[string]int32{}
			for _, name := range []string{"drop-count", "block"} {
				w.register(fields{"name": name, "launch": mode, "log_full": name, "restart": fields{"policy": "never"}, "exec": []string{"/bin/sh", "-c", fmt.Sprintf(
					`i=0; while ! [ -e %s ]; do i=$((i+1)); echo "line $i"; [ $((i %% 100)) = 0 ] && sleep 0.01; done; echo $i >%s.%s; exec sleep 1000`, word, word, name)}})
				s := byGRPC{w}.start(name)
				require.Equal(t, w.path("log", name+".log"), s.Log, "a policy for the file means the file")
				was[name] = s.ProcessId
			}
			troubled := func(want bool) func() bool {
				return func() bool {
					return (byGRPC{w}.status("drop-count").LogTrouble != nil) == want && (byGRPC{w}.status("block").LogTrouble != nil) == want
				}
			}
			eventually(t, "the disk is full", troubled(true))
			require.Equal(t, "no space left on device", byGRPC{w}.status("block").LogTrouble.Reason)
			w.leave(syscall.SIGKILL)
			w.begin()
			eventually(t, "the next agent knows", troubled(true))
			doctor := w.cli("doctor").stdout
			for name := range was {
				require.Contains(t, doctor, "the log of "+name+" can not be written: no space left on device")
				require.Contains(t, w.mustCLI("events", name, "-n", "100"), "log_disk_full")
			}
			require.Contains(t, doctor, "no room is left in "+logs)
			require.Contains(t, w.cli("status", "block").stdout, "it waits when it writes")

			require.NoError(t, unix.Mount("none", logs, "tmpfs", unix.MS_REMOUNT, "size=64m"))
			eventually(t, "it goes on by itself", troubled(false))
			require.NoError(t, os.WriteFile(word, nil, 0o644))
			for name, pid := range was {
				var emitted int
				eventually(t, "it has counted", func() bool {
					text, _ := os.ReadFile(word + "." + name)
					emitted, _ = strconv.Atoi(strings.TrimSpace(string(text)))
					return emitted > 0
				})
				var lines, dropped int
				eventually(t, "all is written", func() bool {
					lines, dropped = wholeAndDropped(t, w.path("log", name+".log"))
					return lines+dropped >= emitted
				})
				require.Equal(t, emitted, lines+dropped, "written and dropped")
				require.Equal(t, name == "block", dropped == 0)
				s := byGRPC{w}.status(name)
				require.Equal(t, pid, s.ProcessId)
				require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, s.State)
				require.Contains(t, w.mustCLI("events", name, "-n", "100"), "log_disk_recovered")
				t.Logf("%s: %d lines, of which %d are there and %d dropped", name, emitted, lines, dropped)
			}
			require.NotContains(t, w.cli("doctor").stdout, "can not be written")
		})
	}
}

// wholeAndDropped counts the lines of a log that are there, each of which has to be
// the next one, and those that it says were dropped.
func wholeAndDropped(t *testing.T, path string) (lines, dropped int) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	all := strings.Split(string(text), "\n")
	for i, line := range all[:len(all)-1] {
		if said := dropNote.FindStringSubmatch(line); said != nil {
			n, err := strconv.Atoi(said[1])
			require.NoError(t, err)
			dropped += n
			continue
		}
		want := fmt.Sprintf("line %d", lines+dropped+1)
		if next := dropNote.FindStringSubmatch(all[i+1]); next != nil && next[2] != "" {
			require.True(t, strings.HasPrefix(want, line), "%q is the beginning of %q", line, want)
			continue
		}
		require.Equal(t, want, line)
		lines++
	}
	return lines, dropped
}
