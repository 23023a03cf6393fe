package tail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/logfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = f.WriteString(text)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// read gives all lines, a piece that is cut with a "+" after it.
func read(t *testing.T, req Request) []string {
	t.Helper()
	out := []string{}
	require.NoError(t, Read(context.Background(), req, func(l Line) error {
		out = append(out, shown(l))
		return nil
	}))
	return out
}

func shown(l Line) string {
	if l.Cut {
		return string(l.Text) + "+"
	}
	return string(l.Text)
}

func TestPastLines(t *testing.T) {
	dir := t.TempDir()
	x := func(n int) string { return strings.Repeat("x", n) }
	for name, c := range map[string]struct {
		text  string
		lines int
		match string
		want  []string
	}{
		"empty":                      {"", 5, "", nil},
		"no lines wanted":            {"a\nb\n", 0, "", nil},
		"fewer than wanted":          {"a\nb\n", 5, "", []string{"a", "b"}},
		"the last ones":              {"a\nb\nc\n", 2, "", []string{"b", "c"}},
		"without an end":             {"a\nb\nc", 2, "", []string{"b", "c"}},
		"one without an end":         {"abc", 1, "", []string{"abc"}},
		"empty lines":                {"\n\n\n", 2, "", []string{"", ""}},
		"an empty line":              {"\n", 3, "", []string{""}},
		"carriage returns stay":      {"a\r\n", 3, "", []string{"a\r"}},
		"NUL and no UTF-8":           {"a\x00\xff\n", 3, "", []string{"a\x00\xff"}},
		"matching":                   {"a1\nb1\na2\nb2\na3\nb3\n", 2, "^a", []string{"a2", "a3"}},
		"fewer match":                {"a1\nb1\n", 9, "^a", []string{"a1"}},
		"none match":                 {"a1\nb1\n", 9, "^c", nil},
		"as long as a piece":         {x(MaxLine) + "\nb\n", 2, "", []string{x(MaxLine), "b"}},
		"longer than a piece":        {x(MaxLine) + "y\nb\n", 2, "", []string{x(MaxLine) + "+", "y", "b"}},
		"much longer, without end":   {"a\n" + x(2*MaxLine) + "y", 1, "", []string{x(MaxLine) + "+", x(MaxLine) + "+", "y"}},
		"the piece that matches":     {"a\n" + x(2*MaxLine) + "y\nb\n", 1, "y", []string{"y"}},
		"a newline between blocks":   {x(MaxLine-1) + "\n" + x(MaxLine) + "\n", 1, "", []string{x(MaxLine)}},
		"a newline at a block's end": {x(MaxLine) + "\n" + x(MaxLine-1) + "\n", 2, "", []string{x(MaxLine), x(MaxLine - 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "log")
			require.NoError(t, os.WriteFile(path, []byte(c.text), 0o600))
			req := Request{Log: logfile.New(path), Lines: c.lines}
			if c.match != "" {
				req.Match = regexp.MustCompile(c.match)
			}
			got := read(t, req)
			require.Len(t, got, len(c.want))
			for i := range c.want {
				require.Equal(t, c.want[i], got[i])
			}
		})
	}
}

// For every split of lines over blocks, the last n lines are those of a plain
// split.
func TestLastLinesAgainstSplit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var text bytes.Buffer
	for i := range 60_000 { // a few blocks of lines of many lengths
		fmt.Fprintf(&text, "%d %s\n", i, strings.Repeat("x", i%37))
	}
	require.NoError(t, os.WriteFile(path, text.Bytes(), 0o600))
	all := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	for _, n := range []int{1, 2, 1000, 3001, 59_999, 60_000, 60_001} {
		require.Equal(t, all[max(0, len(all)-n):], read(t, Request{Log: logfile.New(path), Lines: n}))
	}
}

// A file that grows faster than it is read has an end all the same: the one it
// had at first.
func TestTheEndDoesNotRunAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "a\nb\nc\n")
	var got []string
	require.NoError(t, Read(t.Context(), Request{Log: logfile.New(path), Lines: 2}, func(l Line) error {
		got = append(got, string(l.Text))
		write(t, path, strings.Repeat("more\n", MaxLine))
		return nil
	}))
	require.Equal(t, []string{"b", "c"}, got)
}

func TestSince(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	before := time.Now().Add(-time.Minute)
	write(t, path, "a\nb\n")
	s, err := logfile.New(path).Open()
	require.NoError(t, err)
	defer s.Close()
	require.False(t, s.Made().IsZero(), "this file system does not tell when a file was made")
	require.Equal(t, []string{"a", "b"}, read(t, Request{Log: logfile.New(path), Lines: 9, Since: before}))
	require.Equal(t, []string{"b"}, read(t, Request{Log: logfile.New(path), Lines: 1, Since: before}))
	later := time.Now().Add(time.Hour)
	require.Empty(t, read(t, Request{Log: logfile.New(path), Lines: 9, Since: later}))
	require.NoError(t, os.Chtimes(path, later, later.Add(time.Minute))) // written since
	require.ErrorIs(t, Read(t.Context(), Request{Log: logfile.New(path), Lines: 9, Since: later}, nil), ErrUndated)
}

// Whoever has left is not searched for any longer.
func TestASearchCanBeGivenUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, strings.Repeat("x\n", 4*MaxLine))
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	reads := countReads{f, func(n int) {
		if n == 2 {
			cancel()
		}
	}, 0}
	_, err = startOf(ctx, &reads, 0, 8*MaxLine, 1, regexp.MustCompile("y"))
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 2, reads.n, "and a block is read once, however many lines it has")
}

type countReads struct {
	*os.File
	each func(int)
	n    int
}

func (c *countReads) ReadAt(b []byte, at int64) (int, error) {
	c.n++
	c.each(c.n)
	return c.File.ReadAt(b, at)
}

func TestAFarEndIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(10*MaxScan)) // one line, mostly a hole, past the scan
	_, err = f.WriteAt([]byte("x"), 0)         // so that its front was not cut off
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("\na\nb\n"), 10*MaxScan)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, []string{"a", "b"}, read(t, Request{Log: logfile.New(path), Lines: 1000}), "a line that begins before the scan is left out")
	require.Equal(t, []string{"b"}, read(t, Request{Log: logfile.New(path), Lines: 1}))
	require.Equal(t, []string{"b"}, read(t, Request{Log: logfile.New(path), Lines: 1000, Match: regexp.MustCompile("^b$")}))
}

func TestOnlyRegularFiles(t *testing.T) {
	dir := t.TempDir()
	fifo, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	require.NoError(t, os.Symlink("/etc/passwd", link))
	for _, path := range []string{fifo, link, dir} {
		require.Error(t, Read(context.Background(), Request{Log: logfile.New(path), Lines: 1}, func(Line) error { return nil }), path)
	}
	require.Empty(t, read(t, Request{Log: logfile.New(filepath.Join(dir, "none")), Lines: 1}))
	require.Error(t, Read(context.Background(), Request{Log: logfile.New(filepath.Join(dir, "none", "x")), Lines: 1, Follow: true}, func(Line) error { return nil }))
}

// follower reads on in the background.
type follower struct {
	t      *testing.T
	lines  chan string
	cancel context.CancelFunc
	done   chan error
}

func follow(t *testing.T, req Request) *follower {
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{t: t, lines: make(chan string, 1000), cancel: cancel, done: make(chan error, 1)}
	req.Follow = true
	go func() {
		f.done <- Read(ctx, req, func(l Line) error {
			select {
			case f.lines <- shown(l):
				return nil
			case <-ctx.Done(): // the test has failed
				return ctx.Err()
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-f.done, context.Canceled)
	})
	return f
}

func (f *follower) expect(want ...string) {
	f.t.Helper()
	for _, w := range want {
		select {
		case got := <-f.lines:
			require.Equal(f.t, w, got)
		case <-time.After(10 * time.Second):
			require.Fail(f.t, "no line came", "wanted %q", w)
		}
	}
}

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "a\nb\nhalf")
	f := follow(t, Request{Log: logfile.New(path), Lines: 2})
	f.expect("b")
	write(t, path, " and half\nc\n")
	f.expect("half and half", "c")
	write(t, path, strings.Repeat("x", MaxLine+1))
	f.expect(strings.Repeat("x", MaxLine) + "+")
	write(t, path, "\n")
	f.expect("x")
}

func TestFollowFromNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f := follow(t, Request{Log: logfile.New(path), Lines: 2})
	write(t, path+".other", "not this\n")
	write(t, path, "a\n")
	f.expect("a")
}

func TestFollowMatching(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "yes 1\nno\n")
	f := follow(t, Request{Log: logfile.New(path), Lines: 9, Match: regexp.MustCompile("yes")})
	f.expect("yes 1")
	write(t, path, "no\nyes 2\n")
	f.expect("yes 2")
}

func TestFollowThroughTruncation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "a\nb\n")
	f := follow(t, Request{Log: logfile.New(path), Lines: 9})
	f.expect("a", "b")
	require.NoError(t, os.Truncate(path, 0))
	write(t, path, "c\n")
	f.expect("c")
}

func TestFollowThroughRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "a\n")
	f := follow(t, Request{Log: logfile.New(path), Lines: 9})
	f.expect("a")
	for i := range 5 {
		old := fmt.Sprintf("%s.%d", path, i)
		require.NoError(t, os.Rename(path, old))
		write(t, old, fmt.Sprintf("late %d\nlast %d", i, i)) // its writer had it open still
		f.expect(fmt.Sprintf("late %d", i))
		write(t, path, fmt.Sprintf("new %d\n", i))
		f.expect(fmt.Sprintf("last %d", i), fmt.Sprintf("new %d", i))
	}
	require.NoError(t, os.Remove(path))
	write(t, path, "again\n")
	f.expect("again")
}

// The front of a log is cut off again and again, while its service writes: a
// reader of past lines and one that follows see every line once.
func TestThroughCuts(t *testing.T) {
	dir := t.TempDir()
	k, err := logfile.Open(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	require.NoError(t, err)
	t.Cleanup(k.Close)
	path := filepath.Join(dir, "web.log")
	k.Keep(path, service.LogRotation{Size: 64 << 10, Total: 1 << 40})
	log := k.File(path)
	write(t, path, "0\n")
	f := follow(t, Request{Log: log, Lines: 1})
	f.expect("0")
	pieces := func() int {
		all, err := filepath.Glob(path + ".0*")
		require.NoError(t, err)
		return len(all)
	}
	next := 1
	for end := time.Now().Add(30 * time.Second); pieces() < 5; {
		require.True(t, time.Now().Before(end), "it is not cut")
		var batch, want []string
		for range 500 {
			want = append(want, fmt.Sprint(next))
			batch = append(batch, want[len(want)-1]+"\n")
			next++
		}
		write(t, path, strings.Join(batch, ""))
		f.expect(want...)
	}
	for _, n := range []int{1, 10, 20_000, next - 1, next, next + 1} {
		got := read(t, Request{Log: log, Lines: n})
		require.Len(t, got, min(n, next))
		for i, line := range got {
			require.Equal(t, fmt.Sprint(next-len(got)+i), line)
		}
	}
	require.Equal(t, []string{"7"}, read(t, Request{Log: log, Lines: 9, Match: regexp.MustCompile("^7$")}), "in the first piece")
	s, err := log.Open()
	require.NoError(t, err)
	defer s.Close()
	require.Len(t, read(t, Request{Log: log, Lines: 1 << 30, Since: s.Made().Add(-time.Second)}), next)
	require.ErrorIs(t, Read(t.Context(), Request{Log: log, Lines: 1, Since: s.Made().Add(time.Millisecond)}, nil), ErrUndated)
	require.Empty(t, read(t, Request{Log: log, Lines: 9, Since: time.Now().Add(time.Hour)}))
}

// What was removed, and the rest of a line of which the beginning was, is not
// there for readers of past lines.
func TestPastLinesOfWhatIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	write(t, path+".000000000000100", "half\nthree\nfo")
	write(t, path, "ur\nfive\n")
	require.Equal(t, []string{"three", "four", "five"}, read(t, Request{Log: logfile.New(path), Lines: 9}))
	require.Equal(t, []string{"four", "five"}, read(t, Request{Log: logfile.New(path), Lines: 2}))
	require.NoError(t, os.Remove(path))
	require.Equal(t, []string{"three", "fo"}, read(t, Request{Log: logfile.New(path), Lines: 9}))
}

// A reader that is overtaken by a removal is told so, and not given the lines
// after it as if nothing were missing.
func TestWhatIsRemovedMeanwhileIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	piece := path + ".000000000000000"
	write(t, piece, strings.Repeat("a\n", 2*MaxLine))
	write(t, path, "b\n")
	n := 0
	err := Read(t.Context(), Request{Log: logfile.New(path), Lines: 1 << 30}, func(Line) error {
		if n++; n == 1 {
			require.NoError(t, os.Remove(piece))
		}
		return nil
	})
	require.ErrorIs(t, err, logfile.ErrRemoved)
	require.Equal(t, MaxLine/2, n, "what had been read")
}

func TestAReaderThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "a\nb\n")
	full := errors.New("full")
	n := 0
	err := Read(context.Background(), Request{Log: logfile.New(path), Lines: 9, Follow: true}, func(Line) error { n++; return full })
	require.ErrorIs(t, err, full)
	require.Equal(t, 1, n)
}

func FuzzStart(f *testing.F) {
	f.Add([]byte("a\nb\n\nc"), 2)
	path := filepath.Join(f.TempDir(), "log")
	f.Fuzz(func(t *testing.T, text []byte, n int) {
		n = n%9 + 1
		if n < 1 || len(text) == 0 {
			return
		}
		require.NoError(t, os.WriteFile(path, text, 0o600))
		all := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		require.Equal(t, all[max(0, len(all)-n):], read(t, Request{Log: logfile.New(path), Lines: n}))
	})
}

// A stretch of a log has the lines that it begins and ends with, and no others.
func TestAStretch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "a\nb\nc\nd\n")
	log := logfile.New(path)
	for lines, want := range map[int][]string{0: {}, 1: {"c"}, 2: {"b", "c"}, 9: {"b", "c"}} {
		require.Equal(t, want, read(t, Request{Log: log, Lines: lines, From: 2, Upto: 6}), "%d", lines)
	}
	require.Empty(t, read(t, Request{Log: log, Lines: 9, From: 8}))
	require.Equal(t, []string{"c", "d"}, read(t, Request{Log: log, Lines: 9, From: 4}))
}

// Every line tells where the next begins, from where on a log can be read again; amid
// a line, and of one without an end, there is no such place.
func TestResuming(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, "a\nbb\n"+strings.Repeat("x", MaxLine+1)+"\n\nno end")
	log := logfile.New(path)
	var ends []int64
	require.NoError(t, Read(t.Context(), Request{Log: log, Lines: 99}, func(l Line) error { ends = append(ends, l.End); return nil }))
	require.Equal(t, []int64{2, 5, 0, 5 + MaxLine + 2, 5 + MaxLine + 3, 0}, ends)
	from := ends[4]
	require.Equal(t, []string{"no end"}, read(t, Request{Log: log, Lines: math.MaxInt, From: from, Resumed: true}))
	require.Equal(t, []string{"no end"}, read(t, Request{Log: log, Lines: 1, From: 2, Resumed: true}))
	require.Len(t, read(t, Request{Log: log, Lines: math.MaxInt, From: 2, Resumed: true}), 5)
	end := from + int64(len("no end"))
	require.Empty(t, read(t, Request{Log: log, Lines: math.MaxInt, From: end, Resumed: true}))
	err := Read(t.Context(), Request{Log: log, Lines: math.MaxInt, From: end + 1, Resumed: true}, func(Line) error { return nil })
	require.ErrorIs(t, err, ErrOther)
}
