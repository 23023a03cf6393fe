package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// journalHost skips where there is no journal.
func journalHost(t *testing.T) {
	t.Helper()
	if !offers(t, "systemd") {
		t.Skip("there is no journal here")
	}
}

func (w *world) logLines(args ...string) []string {
	said := strings.TrimSuffix(w.mustCLI(append([]string{"--timeout", patience.String(), "logs"}, args...)...), "\n")
	if said == "" {
		return nil
	}
	return strings.Split(said, "\n")
}

// onJournald has systemctl do something to journald, as often as the test likes: of
// its own accord systemd starts it five times in ten seconds and no more.
func onJournald(t *testing.T, verb string) {
	t.Helper()
	sh(t, "/", "systemctl reset-failed systemd-journald && systemctl "+verb+" systemd-journald")
}

// TestJournalOutlivesEverybody: a service writes into the journal on and on while
// journald is restarted and killed, and so is the agent. It lives, and of its lines
// each is there once, in order; but for those that journald had read and not written
// when it was killed.
func TestJournalOutlivesEverybody(t *testing.T) {
	journalHost(t)
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			if mode == "cgroup" {
				oneOfAKind(t)
			}
			w := newWorld(t)
			enough := w.path("enough")
			w.register(fields{"name": "talker", "launch": mode, "restart": fields{"policy": "never"}, "exec": []string{"/bin/sh", "-c",
				"i=0; until [ -e " + enough + " ]; do for _ in 1 2 3 4 5; do i=$((i+1)); echo line $i; done; sleep 0.02; done"}})
			started := byGRPC{w}.start("talker")
			require.Equal(t, "journal", started.Log)
			written := func() (last int) {
				_, _ = fmt.Sscanf(strings.Join(w.logLines("talker", "-n", "1"), ""), "line %d", &last)
				return last
			}
			goesOn := func(what string) (last int) {
				t.Helper()
				before := written()
				eventually(t, "lines go on after "+what, func() bool { last = written(); return last > before })
				require.Equal(t, started.ProcessId, byGRPC{w}.status("talker").ProcessId)
				return last
			}
			goesOn("the start")
			told, unfollow := w.follow("talker")
			eventually(t, "past lines are told", func() bool { return len(told()) > 0 })
			onJournald(t, "restart")
			alive := goesOn("a restart of journald")
			onJournald(t, "kill -s KILL")
			again := goesOn("the death of journald")
			w.leave(syscall.SIGKILL)
			onJournald(t, "restart")
			w.begin()
			goesOn("the death of the agent")
			writeFile(t, enough, nil)
			last := w.ended("talker")
			require.Zero(t, last.GetExitCode(), "%v", last)
			require.NotNil(t, last.ExitCode, "%v", last)
			lines := w.logLines("talker", "-n", "1000000")
			next, lost := 1, 0
			for _, line := range lines {
				var n int
				_, err := fmt.Sscanf(line, "line %d", &n)
				require.NoError(t, err, line)
				if n != next {
					require.True(t, n > next && alive < next && n <= again, "lines %d to %d are missing; journald was killed between %d and %d", next, n-1, alive, again)
					lost += n - next
				}
				next = n + 1
			}
			var followed []string
			eventually(t, "who follows sees the last line, over the death of the agent", func() bool {
				followed = told()
				return followed[len(followed)-1] == lines[len(lines)-1]
			})
			unfollow()
			require.Equal(t, lines[len(lines)-len(followed):], followed)
			require.Len(t, last.LastLines, 20)
			for i, line := range last.LastLines {
				require.Equal(t, lines[len(lines)-20+i], string(line))
			}
			t.Logf("%d lines are there, %d went with journald", len(lines), lost)
		})
	}
}

// TestJournalTellsServicesApart: the lines of a service are those that it wrote into
// its own connection, whoever else claims its name; it keeps those of earlier
// incarnations, and each has its time.
func TestJournalTellsServicesApart(t *testing.T) {
	journalHost(t)
	oneOfAKind(t)
	w := newWorld(t)
	for _, mode := range modes(t) {
		name := "teller-" + mode
		w.register(fields{"name": name, "launch": mode, "log": "journal", "restart": fields{"policy": "never"}, "stop": fields{"timeout": "1s"},
			"exec": []string{"/bin/sh", "-c", `echo "first of $$"; /bin/echo from a child; echo "<3>as it is"; printf 'no end'; exec sleep 1000`}})
		byGRPC{w}.start(name)
		forge := fmt.Sprintf(`echo forged | systemd-cat -t %s; logger -t %s forged; echo forged | systemd-run --quiet --pipe --wait -p SyslogIdentifier=%s cat`, name, name, name)
		sh(t, "/", forge)
		w.logLines(name)
		before := time.Now()
		told, unfollow := w.follow(name)
		eventually(t, "past lines are told", func() bool { return len(told()) >= 3 })
		byGRPC{w}.restart(name)
		sh(t, "/", forge)
		eventually(t, "lines of the next incarnation are told", func() bool { return len(told()) >= 7 })
		lines := told()
		unfollow()
		require.Equal(t, lines, w.logLines(name, "-n", "100"))
		pid := byGRPC{w}.status(name).ProcessId
		require.Len(t, lines, 7, "%q", lines) // what has no end yet is not there yet, unless its writer has ended
		require.Equal(t, []string{"from a child", "<3>as it is", "no end", fmt.Sprintf("first of %d", pid), "from a child", "<3>as it is"}, lines[1:])
		require.Equal(t, lines[5:], w.logLines(name, "-n", "2"))
		require.Equal(t, lines[3:], w.logLines(name, "--since", before.UTC().Format(time.RFC3339Nano)))
		require.Equal(t, []string{"<3>as it is", "<3>as it is"}, w.logLines(name, "--grep", "as it", "-n", "2"))
		byGRPC{w}.stop(name)
		require.Equal(t, "no end", w.logLines(name, "-n", "1")[0])
	}
	eventually(t, "no journalctl is left when nobody reads", func() bool {
		return !strings.Contains(sh(t, "/", "cat /proc/[0-9]*/comm 2>/dev/null || true"), "journalctl")
	})
}

// follow runs `gladsheim logs -f`, and tells the lines that it has printed. Each has
// its time.
func (w *world) follow(name string) (told func() []string, end func()) {
	out, err := os.Create(w.path(name + ".followed"))
	require.NoError(w.t, err)
	cmd := exec.Command("gladsheim", "--host", "unix://"+w.socket, "-o", "json", "logs", "-f", name)
	cmd.Stdout = out
	require.NoError(w.t, cmd.Start())
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			out.Close()
		}
	}
	w.t.Cleanup(end)
	told = func() (lines []string) {
		text, err := os.ReadFile(out.Name())
		require.NoError(w.t, err)
		for line := range bytes.Lines(text) {
			if !bytes.HasSuffix(line, []byte("\n")) {
				break
			}
			var l struct {
				Line     []byte
				AtUnixMs string
			}
			require.NoError(w.t, json.Unmarshal(line, &l), "%s", line)
			require.NotEqual(w.t, "0", l.AtUnixMs)
			lines = append(lines, string(l.Line))
		}
		return lines
	}
	return told, end
}

// TestJournalBytes: long lines come in pieces with a mark, and bytes are as they
// were written.
func TestJournalBytes(t *testing.T) {
	journalHost(t)
	oneOfAKind(t)
	w := newWorld(t)
	w.register(fields{"name": "bytes", "restart": fields{"policy": "never"}, "exec": []string{"/bin/sh", "-c",
		`head -c 100000 /dev/zero | tr '\0' y; echo; printf '\001\377\033[31m\r\n'; printf 'a\tb  \n'`}})
	byGRPC{w}.start("bytes")
	w.ended("bytes")
	stream, err := gladsheimv1.NewLogServiceClient(w.conn).Tail(contextFor(t), &gladsheimv1.TailRequest{ServiceName: "bytes"})
	require.NoError(t, err)
	var texts []string
	for {
		l, err := stream.Recv()
		if err != nil {
			break
		}
		text := string(l.Line)
		if len(texts) > 0 && strings.HasSuffix(texts[len(texts)-1], "+") {
			text, texts = strings.TrimSuffix(texts[len(texts)-1], "+")+text, texts[:len(texts)-1]
		}
		if l.Truncated {
			text += "+"
		}
		texts = append(texts, text)
	}
	require.Len(t, texts, 3)
	require.True(t, texts[0] == strings.Repeat("y", 100_000), "the long line has %d bytes", len(texts[0]))
	require.Equal(t, []string{"\x01\xff\x1b[31m", "a\tb"}, texts[1:], "journald takes blanks off the end of a line")
}

// TestJournalIsStopped: the end of journald, which closes every connection to it, is
// not the end of a service, whose lines of before are kept. doctor tells that those
// after are lost, until it is restarted.
func TestJournalIsStopped(t *testing.T) {
	journalHost(t)
	w := newWorld(t)
	w.register(fields{"name": "talker", "exec": []string{"/bin/sh", "-c", "i=0; while :; do i=$((i+1)); echo $i of $$ 2>/dev/null; sleep 0.05; done"}})
	started := byGRPC{w}.start("talker")
	eventually(t, "there are lines", func() bool { return len(w.logLines("talker")) >= 10 })
	before := w.logLines("talker", "-n", "100000")
	const sockets = "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket"
	sh(t, "/", "systemctl stop "+sockets+" systemd-journald.service || systemctl stop systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service")
	refused := w.cli("start", "talker", "--timeout", "5s")
	t.Logf("asked to start meanwhile: %d %s", refused.code, refused.stderr)
	w.register(fields{"name": "other", "exec": []string{"/bin/sleep", "1000"}})
	require.NotEqual(t, "journal", byGRPC{w}.start("other").Log, "auto is a file where there is no journal")
	onJournald(t, "start systemd-journald.socket systemd-journald-dev-log.socket")
	s := byGRPC{w}.status("talker")
	require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, s.State)
	require.Equal(t, started.ProcessId, s.ProcessId)
	after := w.logLines("talker", "-n", "100000")
	require.Equal(t, before, after[:len(before)])
	told := strings.Contains(w.cli("doctor").stdout, "talker writes into the journal, which does not take it any more")
	if !told { // then the connection outlived it
		eventually(t, "lines go on", func() bool { return len(w.logLines("talker", "-n", "100000")) > len(after) })
	}
	t.Logf("of the connection: ended %v", told)
	again := byGRPC{w}.restart("talker")
	eventually(t, "it is heard again", func() bool {
		return strings.HasSuffix(w.logLines("talker", "-n", "1")[0], fmt.Sprint(" of ", again.ProcessId))
	})
	require.NotContains(t, w.cli("doctor").stdout, "does not take it any more")
}

// TestOutputMoves: what a service wrote into a file, into the journal and into the file
// again is one, in the order in which it was written. Who follows is told when its
// output goes elsewhere.
func TestOutputMoves(t *testing.T) {
	journalHost(t)
	oneOfAKind(t)
	w := newWorld(t)
	var want []string
	say := func(sink string, line int) *gladsheimv1.ServiceStatus {
		w.register(fields{"name": "mover", "log": sink, "stop": fields{"timeout": "1s"}, "exec": []string{"/bin/sh", "-c", fmt.Sprintf("echo %d; exec sleep 1000", line)}})
		s := byGRPC{w}.restart("mover")
		want = append(want, fmt.Sprint(line))
		eventually(t, "it has said so", func() bool { return strings.Join(w.logLines("mover", "-n", "1"), "") == fmt.Sprint(line) })
		return s
	}
	for i, sink := range []string{"file", "auto", "journal", "file", "file", "auto"} {
		s := say(sink, i+1)
		require.Equal(t, sink == "file", s.Log == w.path("log", "mover.log"), s.Log)
	}
	for n := 1; n <= len(want); n++ {
		require.Equal(t, want[len(want)-n:], w.logLines("mover", "-n", fmt.Sprint(n)))
	}
	require.Equal(t, want[3:5], w.logLines("mover", "--grep", "4|5"))
	stream, err := gladsheimv1.NewLogServiceClient(w.conn).Tail(contextFor(t), &gladsheimv1.TailRequest{ServiceName: "mover", Follow: true})
	require.NoError(t, err)
	for _, line := range want {
		l, err := stream.Recv()
		require.NoError(t, err)
		require.Equal(t, line, string(l.Line))
	}
	say("file", 7)
	_, err = stream.Recv()
	require.ErrorContains(t, err, "its output goes elsewhere")
}
