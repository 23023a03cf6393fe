package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// printed is an entry as journalctl prints it. A field whose value is no text comes
// with its length.
func printed(fields ...string) []byte {
	var b bytes.Buffer
	for i := 0; i < len(fields); i += 2 {
		key, value := fields[i], fields[i+1]
		if !strings.ContainsAny(value, "\x01\xff\n") {
			fmt.Fprintf(&b, "%s=%s\n", key, value)
			continue
		}
		fmt.Fprintf(&b, "%s\n", key)
		_ = binary.Write(&b, binary.LittleEndian, uint64(len(value)))
		fmt.Fprintf(&b, "%s\n", value)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

func TestExport(t *testing.T) {
	one := printed("__CURSOR", "s=1;i=2", "__REALTIME_TIMESTAMP", "1795318870000123", "_BOOT_ID", "b", "OTHER", "x\ny", "MESSAGE", "a=b", "_STREAM_ID", "s1", "_PID", "7")
	two := printed("__CURSOR", "s=1;i=3", "MESSAGE", "\x01\xff\n\n=", "_LINE_BREAK", "line-max", "N_DROPPED", "12")
	all := append(bytes.Clone(one), two...)
	r := &reader{from: bufio.NewReader(bytes.NewReader(all))}
	e, err := r.next()
	require.NoError(t, err)
	require.Equal(t, entry{cursor: "s=1;i=2", at: time.UnixMicro(1795318870000123), boot: "b", message: []byte("a=b"), stream: "s1", pid: "7"}, *e)
	e, err = r.next()
	require.NoError(t, err)
	require.Equal(t, entry{cursor: "s=1;i=3", message: []byte("\x01\xff\n\n="), broken: "line-max", dropped: 12}, *e)
	require.True(t, e.cut())
	_, err = r.next()
	require.ErrorIs(t, err, io.EOF)

	for cut := range len(all) { // what was cut off is no entry
		n := 0
		_ = entries(bytes.NewReader(all[:cut]), func(*entry) error { n++; return nil })
		want := 0
		if cut >= len(one) {
			want = 1
		}
		require.Equal(t, want, n, "cut at %d", cut)
	}
}

func FuzzExport(f *testing.F) {
	f.Add(printed("MESSAGE", "a", "X", "\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = entries(bytes.NewReader(data), func(*entry) error { return nil })
	})
}

// canned is a journal whose journalctl prints what is in a file, whatever it is asked
// for, and tells what it was asked.
func canned(t *testing.T, output []byte) (j Journal, asked func() string) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "out"), output, 0o600))
	program := filepath.Join(dir, "journalctl")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho \"$*\" >>"+dir+"/asked\nexec cat "+dir+"/out\n"), 0o700))
	return Journal{Program: program}, func() string {
		text, _ := os.ReadFile(filepath.Join(dir, "asked"))
		return string(text)
	}
}

var stream = service.Stream{Mark: "web begins", PID: 7, BootID: "b-c", ID: "s1", Unit: "web.scope"}

func line(cursor, text string, more ...string) []byte {
	return printed(append([]string{"__CURSOR", cursor, "__REALTIME_TIMESTAMP", "5000000", "_STREAM_ID", "s1", "MESSAGE", text}, more...)...)
}

// A mark counts only if the process that made the stream wrote it, and the first of a
// mark only: later ones are copies.
func TestFind(t *testing.T) {
	mark := func(id, pid, boot string) []byte {
		return printed("MESSAGE", "web begins", "_STREAM_ID", id, "_PID", pid, "_BOOT_ID", boot)
	}
	for name, c := range map[string]struct {
		entries [][]byte
		want    map[string]string
	}{
		"none":            {nil, map[string]string{}},
		"it":              {[][]byte{mark("s1", "7", "bc")}, map[string]string{"web begins": "s1"}},
		"another process": {[][]byte{mark("s1", "8", "bc")}, map[string]string{}},
		"another boot":    {[][]byte{mark("s1", "7", "bd")}, map[string]string{}},
		"no stream":       {[][]byte{printed("MESSAGE", "web begins", "_PID", "7", "_BOOT_ID", "bc")}, map[string]string{}},
		"a copy":          {[][]byte{mark("s1", "7", "bc"), mark("s2", "7", "bc")}, map[string]string{"web begins": "s1"}},
	} {
		t.Run(name, func(t *testing.T) {
			j, _ := canned(t, bytes.Join(c.entries, nil))
			ids, err := j.Find(t.Context(), []service.Stream{stream})
			require.NoError(t, err)
			require.Equal(t, c.want, ids)
		})
	}
}

func TestPastLines(t *testing.T) {
	mark := line("0", "web begins", "_PID", "7", "_BOOT_ID", "bc")
	reversed := bytes.Join([][]byte{
		line("6", "six"), line("5", "five, its end"), line("4", "five,", "_LINE_BREAK", "line-max"),
		printed("__CURSOR", "3", "__REALTIME_TIMESTAMP", "5000000", "MESSAGE", "Suppressed 9 messages", "N_DROPPED", "9"),
		line("2", "two"), line("1", "one"), mark,
	}, nil)
	for name, c := range map[string]struct {
		req  Request
		want []string
	}{
		"the last":                    {Request{Lines: 1}, []string{"six"}},
		"pieces are one":              {Request{Lines: 2}, []string{"five,+", "five, its end", "six"}},
		"what is not kept is told":    {Request{Lines: 3}, []string{"two", "9 dropped", "five,+", "five, its end", "six"}},
		"all, but no mark":            {Request{Lines: 9}, []string{"one", "two", "9 dropped", "five,+", "five, its end", "six"}},
		"none":                        {Request{}, nil},
		"that match":                  {Request{Lines: 1, Match: regexp.MustCompile("five")}, []string{"five, its end"}},
		"that match, further back":    {Request{Lines: 9, Match: regexp.MustCompile("o")}, []string{"one", "two", "9 dropped"}},
		"since then":                  {Request{Lines: 9, Since: time.Unix(5, 0)}, []string{"one", "two", "9 dropped", "five,+", "five, its end", "six"}},
		"since later":                 {Request{Lines: 9, Since: time.Unix(6, 0)}, nil},
		"behind a line":               {Request{Lines: 9, After: "4"}, []string{"five, its end", "six"}},
		"the last behind a line":      {Request{Lines: 1, After: "2"}, []string{"six"}},
		"behind the last":             {Request{Lines: 9, After: "6"}, nil},
		"of a stream that is unknown": {Request{Lines: 9, Streams: []service.Stream{{Mark: "x"}}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			j, asked := canned(t, reversed)
			if c.req.Streams == nil {
				c.req.Streams = []service.Stream{stream}
			}
			require.Equal(t, c.want, read(t, j, c.req))
			require.LessOrEqual(t, strings.Count(asked(), "\n"), 1, "few lines are read once")
			if asked() != "" {
				require.Contains(t, asked(), "_TRANSPORT=stdout _STREAM_ID=s1 + _TRANSPORT=driver "+dropped+" OBJECT_SYSTEMD_UNIT=web.scope\n")
			}
		})
	}
}

// A stream of an agent before this one, of which nobody knows yet what the journal calls
// it, is followed from its mark on.
func TestFollowFromTheMarkOfAnEarlierAgent(t *testing.T) {
	unknown := stream
	unknown.ID = ""
	j, asked := canned(t, bytes.Join([][]byte{
		line("0", "web begins", "_PID", "8", "_BOOT_ID", "bc", "_STREAM_ID", "s2"), // somebody else says so
		line("1", "forged", "_STREAM_ID", "s2"),
		line("2", "web begins", "_PID", "7", "_BOOT_ID", "bc"),
		line("3", "one"),
	}, nil))
	req := Request{Streams: []service.Stream{unknown}, Lines: math.MaxInt, Follow: true, Service: service.MustName("web"), Known: func() []service.Stream { return []service.Stream{unknown} }}
	require.Equal(t, []string{"one"}, read(t, j, req))
	first, second, _ := strings.Cut(asked(), "\n")
	require.Contains(t, first, "_TRANSPORT=stdout SYSLOG_IDENTIFIER=web _PID="+strconv.Itoa(os.Getpid())+" _PID=7")
	require.Contains(t, second, "_STREAM_ID=s1")
}

func read(t *testing.T, j Journal, req Request) (lines []string) {
	t.Helper()
	require.NoError(t, j.Read(t.Context(), req, func(l Line) error {
		text := string(l.Text)
		switch {
		case l.Cut:
			text += "+"
		case l.Dropped > 0:
			text = fmt.Sprintf("%d dropped", l.Dropped)
		}
		lines = append(lines, text)
		return nil
	}))
	return lines
}

// Many lines are read where they lie, up to the end that there was, and a line that is
// longer than a piece comes in pieces.
func TestManyLines(t *testing.T) {
	var forward []byte
	for i := range 4 {
		forward = append(forward, line(fmt.Sprint(i), strings.Repeat("x", 3*MaxLine/2))...)
	}
	j, _ := canned(t, append(forward, line("later", "later")...))
	lines := 0
	require.NoError(t, j.Read(t.Context(), Request{Streams: []service.Stream{stream}, Lines: math.MaxInt}, func(l Line) error {
		lines++
		require.Equal(t, lines%2 == 1, l.Cut)
		require.Equal(t, map[bool]int{true: MaxLine, false: MaxLine / 2}[l.Cut], len(l.Text))
		return nil
	}))
	// The canned journal is not reversed: its first line is the end.
	require.Equal(t, 2, lines)
}

// All behind a line is read from there, up to the end that there was; every line but
// a piece has a place of its own.
func TestAllBehindALine(t *testing.T) {
	j, asked := canned(t, append(line("5", "five", "_LINE_BREAK", "line-max"), line("6", "six")...))
	var cursors []string
	require.NoError(t, j.Read(t.Context(), Request{Streams: []service.Stream{stream}, Lines: math.MaxInt, After: "4"}, func(l Line) error {
		cursors = append(cursors, l.Stream+" "+l.Cursor)
		return nil
	}))
	require.Equal(t, []string{"s1 "}, cursors) // the canned journal is not reversed: its first line is the end
	require.Contains(t, asked(), "--after-cursor=4 _TRANSPORT=stdout")
	require.NotContains(t, strings.Split(asked(), "\n")[0], "--after-cursor")
	j, asked = canned(t, line("6", "six"))
	require.Empty(t, read(t, j, Request{Streams: []service.Stream{stream}, Lines: math.MaxInt, After: "6"}))
	require.Equal(t, 1, strings.Count(asked(), "\n"))
}

func TestJournalctlFails(t *testing.T) {
	program := filepath.Join(t.TempDir(), "journalctl")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho no such luck >&2\nexit 3\n"), 0o700))
	_, err := Journal{Program: program}.Find(t.Context(), []service.Stream{stream})
	require.ErrorContains(t, err, "exit status 3: no such luck")
	_, err = Journal{Program: "/nowhere/journalctl"}.Find(t.Context(), []service.Stream{stream})
	require.ErrorContains(t, err, "/nowhere/journalctl")
}

// A reader that leaves takes its journalctl with it.
func TestJournalctlEndsWithItsReader(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "journalctl")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho $$ >"+dir+"/pid\nprintf 'MESSAGE=a\\n\\n'\nexec sleep 1000\n"), 0o700))
	gone := func() {
		t.Helper()
		pid, err := os.ReadFile(dir + "/pid")
		require.NoError(t, err)
		_, err = os.Stat("/proc/" + strings.TrimSpace(string(pid)))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	left := errors.New("left")
	require.ErrorIs(t, Journal{Program: program}.run(t.Context(), nil, func(*entry) error { return left }), left)
	gone()
	ctx, cancel := context.WithCancel(t.Context())
	require.ErrorIs(t, Journal{Program: program}.run(ctx, nil, func(*entry) error { cancel(); return nil }), context.Canceled)
	gone()
}

func TestConnect(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "stdout")
	j := Journal{Stdout: socket}
	require.ErrorIs(t, j.Reachable(), unix.ENOENT)
	_, err := j.Connect("web", "web.scope", "web begins")
	require.ErrorContains(t, err, socket)
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	fd, err := j.Connect("web", "web.scope", "web begins")
	require.NoError(t, err)
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()
	_, err = unix.Write(fd, []byte("out\n"))
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	said, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "web\nweb.scope\n6\n0\n0\n0\n0\nweb begins\nout\n", string(said))
	require.NoError(t, j.Reachable())
}

// A journald that takes up nobody, because it hangs, holds no launch up for ever; and
// the service that has its connection waits as long as it takes.
func TestAJournaldThatHangs(t *testing.T) {
	was := patience
	patience = unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
	defer func() { patience = was }()
	j := Journal{Stdout: filepath.Join(t.TempDir(), "stdout")}
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(l)
	require.NoError(t, unix.Bind(l, &unix.SockaddrUnix{Name: j.Stdout}))
	require.NoError(t, unix.Listen(l, 0)) // one may wait
	fd, err := j.Connect("web", "", "web begins")
	require.NoError(t, err)
	defer unix.Close(fd)
	bound, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO)
	require.NoError(t, err)
	require.Equal(t, &unix.Timeval{}, bound)
	_, err = j.Connect("db", "", "db begins")
	require.ErrorIs(t, err, unix.ETIMEDOUT)
	require.ErrorIs(t, j.Reachable(), unix.ETIMEDOUT)
}

func TestSync(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "varlink")
	j := Journal{Varlink: socket}
	require.Error(t, j.Sync(t.Context()))
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	for answer, want := range map[string]string{
		`{"parameters":{}}` + "\x00":                              "",
		`{"error":"org.varlink.service.MethodNotFound"}` + "\x00": "MethodNotFound",
		`nonsense` + "\x00":                                       "hear journald",
		"":                                                        "hear journald",
		`{"error":"io.systemd.Journal.NotSupportedByNamespaces"}` + "\x00\x00": "NotSupported",
	} {
		done := make(chan error, 1)
		go func() { done <- j.Sync(t.Context()) }()
		conn, err := l.Accept()
		require.NoError(t, err)
		asked, err := bufio.NewReader(conn).ReadString(0)
		require.NoError(t, err)
		require.Equal(t, `{"method":"io.systemd.Journal.Synchronize"}`+"\x00", asked)
		_, err = io.WriteString(conn, answer)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		if err := <-done; want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, want)
		}
	}
}

// A journal that can not be read is told from one that is too slow to tell.
func TestProbe(t *testing.T) {
	j, _ := canned(t, nil)
	j.Stdout = filepath.Join(t.TempDir(), "stdout")
	require.ErrorIs(t, j.Probe(t.Context(), "b"), unix.ENOENT)
	stdout, err := net.Listen("unix", j.Stdout)
	require.NoError(t, err)
	defer stdout.Close()
	j.Varlink = filepath.Join(t.TempDir(), "varlink")
	varlink, err := net.Listen("unix", j.Varlink)
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := varlink.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(conn).ReadString(0)
			_, _ = io.WriteString(conn, "{}\x00")
			conn.Close()
		}
	}()
	defer func() { varlink.Close(); <-served }()
	require.ErrorContains(t, j.Probe(t.Context(), "b"), "can not be read with journalctl")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, j.Probe(ctx, "b"), context.DeadlineExceeded)
}
