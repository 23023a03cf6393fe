package logfile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// agentVariable names the log that the test binary, played as an agent, keeps
// until it is killed.
const agentVariable = "GLADSHEIM_TEST_LOG"

// deadline is for what takes a moment.
const deadline = 30 * time.Second

// busy is a rotation for a log that is cut all the time, and keeps everything.
var busy = service.LogRotation{Size: 64 << 10, Total: 1 << 40}

func TestMain(m *testing.M) {
	if path := os.Getenv(agentVariable); path != "" {
		k, err := Open(filepath.Dir(path), slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		f := k.File(path)
		for { // as fast as it can, without waiting for a look
			live, err := f.open(os.O_RDWR)
			if err == nil {
				err = errors.Join(f.load(), f.trim(live, busy, time.Now()), live.Close())
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
	goleak.VerifyTestMain(m)
}

// everywhere runs a test on a file system that collapses ranges, and on one that
// has holes only.
func everywhere(t *testing.T, f func(t *testing.T, dir string)) {
	for _, row := range []struct {
		name, below string
		collapses   bool
	}{{"collapse", "", true}, {"hole", "/dev/shm", false}} {
		t.Run(row.name, func(t *testing.T) {
			dir, err := os.MkdirTemp(row.below, "logfile")
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
			if has := collapses(t, dir); has != row.collapses {
				t.Skipf("%s has collapse: %v", dir, has)
			}
			f(t, dir)
		})
	}
}

func collapses(t *testing.T, dir string) bool {
	t.Helper()
	f, err := os.CreateTemp(dir, "probe")
	require.NoError(t, err)
	defer f.Close()
	defer os.Remove(f.Name())
	require.NoError(t, f.Truncate(1<<20))
	return fallocate(f, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 64<<10) == nil
}

// writer appends as a service does.
func writer(t *testing.T, path string) *os.File {
	t.Helper()
	w, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	require.NoError(t, err)
	t.Cleanup(func() { w.Close() })
	return w
}

// numbered writes lines from first on, of many lengths, until done is closed; at
// least some.
func numbered(w io.Writer, first, least int, done <-chan struct{}) (next int, err error) {
	var batch bytes.Buffer
	for next = first; ; {
		select {
		case <-done:
			if next-first >= least {
				return next, nil
			}
		default:
		}
		batch.Reset()
		for range 1 + next%40 {
			fmt.Fprintf(&batch, "%d %s\n", next, strings.Repeat("x", next%397))
			next++
		}
		if _, err := w.Write(batch.Bytes()); err != nil {
			return next, err
		}
	}
}

// checkNumbered wants lines from first up to next, each once, in a stream.
func checkNumbered(t *testing.T, f *File, first, next int) {
	t.Helper()
	s, err := f.Open()
	require.NoError(t, err)
	defer s.Close()
	end, err := s.End()
	require.NoError(t, err)
	lines := bufio.NewScanner(io.NewSectionReader(s, s.Oldest(), end-s.Oldest()))
	lines.Buffer(nil, 1<<20)
	for n := first; n < next; n++ {
		require.True(t, lines.Scan(), "line %d of %d is not there: %v", n, next, lines.Err())
		if want := fmt.Sprintf("%d %s", n, strings.Repeat("x", n%397)); lines.Text() != want {
			require.Equal(t, want, lines.Text())
		}
	}
	require.False(t, lines.Scan(), "%q is there, too", lines.Text())
	require.NoError(t, lines.Err())
}

// shelf is every file of a log, sorted.
func shelf(t *testing.T, path string) []string {
	t.Helper()
	all, err := filepath.Glob(path + "*")
	require.NoError(t, err)
	for i := range all {
		all[i] = filepath.Base(all[i])
	}
	return all
}

// cutOnce cuts about size bytes, as a Keeper does.
func cutOnce(t *testing.T, f *File, size int64) int64 {
	t.Helper()
	require.NoError(t, f.load())
	live, err := f.open(os.O_RDWR)
	require.NoError(t, err)
	defer live.Close()
	took, err := f.cut(live, size, false)
	require.NoError(t, err)
	return took
}

func TestACutKeepsTheStream(t *testing.T) {
	everywhere(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "web.log")
		text := make([]byte, 300_000)
		for i := range text {
			text[i] = byte('a' + i%23)
		}
		w := writer(t, path)
		f := New(path)
		check := func(f *File) {
			s, err := f.Open()
			require.NoError(t, err)
			defer s.Close()
			end, err := s.End()
			require.NoError(t, err)
			require.EqualValues(t, len(text), end)
			require.Zero(t, s.Oldest())
			got := make([]byte, len(text))
			_, err = s.ReadAt(got, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(text, got))
			for range 50 { // wherever a reader begins
				from := rand.Int64N(end)
				n := min(end-from, rand.Int64N(100_000))
				_, err = s.ReadAt(got[:n], from)
				require.NoError(t, err)
				require.True(t, bytes.Equal(text[from:from+n], got[:n]))
			}
			_, err = s.ReadAt(got[:2], end-1)
			require.ErrorIs(t, err, io.EOF)
		}
		_, err := w.Write(text[:100_000])
		require.NoError(t, err)
		require.EqualValues(t, 65536, cutOnce(t, f, 65536))
		require.Equal(t, []string{"web.log", "web.log.000000000000000"}, shelf(t, path))
		_, err = w.Write(text[100_000:])
		require.NoError(t, err)
		check(f)
		require.EqualValues(t, 131072, cutOnce(t, f, 131072+100))
		check(f)
		require.EqualValues(t, (300_000-196608-1)/4096*4096, cutOnce(t, f, 1<<40), "all whole blocks but the last byte's")
		check(f)
		require.Zero(t, cutOnce(t, f, 1<<40))
		check(f)
		check(New(path)) // the next agent finds the same

		info, err := os.Stat(path)
		require.NoError(t, err)
		require.LessOrEqual(t, info.Sys().(*syscall.Stat_t).Blocks*512, int64(3*4096), "what was cut off takes no room")
		live, err := f.open(os.O_RDONLY)
		require.NoError(t, err)
		defer live.Close()
		hole, err := leadingHole(live)
		require.NoError(t, err)
		require.Less(t, info.Size()-hole, int64(4097))
		require.Equal(t, collapses(t, dir), hole == 0)
		piece, err := os.Stat(path + ".000000000000000")
		require.NoError(t, err)
		require.Equal(t, info.Mode(), piece.Mode())
	})
}

// While a service writes as fast as it can, nothing is lost, and a reader reads
// every byte once.
func TestNothingIsLostInACut(t *testing.T) {
	everywhere(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "web.log")
		w := writer(t, path)
		f := New(path)
		done, next := make(chan struct{}), make(chan int, 1)
		go func() {
			n, err := numbered(w, 0, 100_000, done)
			if err != nil {
				n = -1
			}
			next <- n
		}()
		s, err := f.Open()
		require.NoError(t, err)
		defer s.Close()
		var read bytes.Buffer
		for cuts := 0; cuts < 30; {
			if cutOnce(t, f, 64<<10) > 0 {
				cuts++
			}
			_, err := io.Copy(&read, io.NewSectionReader(s, int64(read.Len()), 1<<20))
			require.NoError(t, err)
		}
		close(done)
		n := <-next
		require.Positive(t, n)
		checkNumbered(t, f, 0, n)
		_, err = io.Copy(&read, io.NewSectionReader(s, int64(read.Len()), 1<<40))
		require.NoError(t, err)
		for i, line := range bytes.Split(bytes.TrimSuffix(read.Bytes(), []byte("\n")), []byte("\n")) {
			number, _, _ := strings.Cut(string(line), " ")
			if number != strconv.Itoa(i) {
				require.Equal(t, strconv.Itoa(i), number)
			}
			n--
		}
		require.Zero(t, n)
	})
}

// An agent that does nothing but cut is killed at any moment, over and over.
func TestAnAgentThatIsKilledLosesNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "web.log")
		w := writer(t, path)
		done, next := make(chan struct{}), make(chan int, 1)
		go func() {
			n, err := numbered(w, 0, 1, done)
			if err != nil {
				n = -1
			}
			next <- n
		}()
		binary, err := os.Executable()
		require.NoError(t, err)
		left := map[string]int{} // what the dead left behind
		for range 40 {
			agent := exec.Command(binary)
			agent.Env = append(os.Environ(), agentVariable+"="+path)
			var said bytes.Buffer
			agent.Stderr = &said
			require.NoError(t, agent.Start())
			time.Sleep(time.Duration(rand.Int64N(int64(40 * time.Millisecond))))
			require.NoError(t, agent.Process.Kill())
			require.Error(t, agent.Wait())
			require.Empty(t, said.String())
			if slices.ContainsFunc(shelf(t, path), func(name string) bool { return strings.Contains(name, cutMark) }) {
				left["a copy"]++
			}
		}
		close(done)
		n := <-next
		require.Positive(t, n)
		t.Logf("%d lines, %d files, left half-way: %v", n, len(shelf(t, path)), left)
		checkNumbered(t, New(path), 0, n)
		for _, name := range shelf(t, path) {
			require.NotContains(t, name, cutMark)
		}
	})
}

// Each state in which a cut can be left.
func TestACutIsFinishedOrUndone(t *testing.T) {
	everywhere(t, func(t *testing.T, dir string) {
		const whole = 3 * 65536
		text := bytes.Repeat([]byte("0123456789abcdef"), whole/16) // the same again behind every cut
		for name, leave := range map[string]func(t *testing.T, live *os.File, path string){
			"half a copy": func(t *testing.T, _ *os.File, path string) {
				require.NoError(t, os.WriteFile(path+".cut-0-65536", text[:1000], 0o600))
			},
			"a copy": func(t *testing.T, _ *os.File, path string) {
				require.NoError(t, os.WriteFile(path+".cut-0-65536", text[:65536], 0o600))
			},
			"punched": func(t *testing.T, live *os.File, path string) {
				require.NoError(t, os.WriteFile(path+".cut-0-65536", text[:65536], 0o600))
				require.NoError(t, punch(live, 0, 65536))
			},
			"renamed": func(t *testing.T, live *os.File, path string) {
				require.NoError(t, os.WriteFile(path+".000000000000000", text[:65536], 0o600))
				require.NoError(t, punch(live, 0, 65536))
			},
			"the second one, punched": func(t *testing.T, live *os.File, path string) {
				cutOnce(t, New(path), 65536)
				upto := int64(131072)
				if collapses(t, filepath.Dir(path)) {
					upto = 65536
				}
				require.NoError(t, os.WriteFile(fmt.Sprintf("%s.cut-65536-%d", path, upto), text[:65536], 0o600))
				require.NoError(t, punch(live, 0, upto))
			},
			"the second one, a copy": func(t *testing.T, live *os.File, path string) {
				cutOnce(t, New(path), 65536)
				upto := int64(131072)
				if collapses(t, filepath.Dir(path)) {
					upto = 65536
				}
				require.NoError(t, os.WriteFile(fmt.Sprintf("%s.cut-65536-%d", path, upto), text[:65536], 0o600))
			},
		} {
			t.Run(name, func(t *testing.T) {
				path := filepath.Join(dir, strings.NewReplacer(" ", "-", ",", "").Replace(name)+".log")
				_, err := writer(t, path).Write(text)
				require.NoError(t, err)
				live, err := os.OpenFile(path, os.O_RDWR, 0)
				require.NoError(t, err)
				defer live.Close()
				leave(t, live, path)
				for range 2 {
					s, err := New(path).Open()
					require.NoError(t, err)
					end, err := s.End()
					require.NoError(t, err)
					require.EqualValues(t, whole, end)
					require.Zero(t, s.Oldest())
					got := make([]byte, whole)
					_, err = s.ReadAt(got, 0)
					require.NoError(t, err)
					require.True(t, bytes.Equal(text, got))
					require.NoError(t, s.Close())
				}
				for _, name := range shelf(t, path) {
					require.NotContains(t, name, cutMark)
				}
			})
		}
	})
}

// A log whose front is removed goes on at the same offsets.
func TestTotal(t *testing.T) {
	everywhere(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "web.log")
		w := writer(t, path)
		f := New(path)
		require.NoError(t, f.load())
		live, err := f.open(os.O_RDWR)
		require.NoError(t, err)
		defer live.Close()
		policy := service.LogRotation{Size: 64 << 10, Total: 256 << 10}
		chunk := bytes.Repeat([]byte("x"), 50_000)
		s, err := f.Open()
		require.NoError(t, err)
		defer s.Close()
		for range 40 {
			_, err := w.Write(chunk)
			require.NoError(t, err)
			require.NoError(t, f.trim(live, policy, time.Now()))
			end, err := s.End()
			require.NoError(t, err)
			require.LessOrEqual(t, end-s.Oldest(), int64(256<<10))
		}
		end, err := s.End()
		require.NoError(t, err)
		require.EqualValues(t, 40*50_000, end)
		require.Greater(t, end-s.Oldest(), int64(150<<10))
		_, err = s.ReadAt(make([]byte, 10), 5)
		require.ErrorIs(t, err, ErrRemoved)

		// What was written while nobody cut is not copied only to be removed.
		_, err = w.Write(bytes.Repeat([]byte("y"), 10<<20))
		require.NoError(t, err)
		require.NoError(t, f.trim(live, policy, time.Now()))
		for _, f := range []*File{f, New(path)} {
			s, err := f.Open()
			require.NoError(t, err)
			later, err := s.End()
			require.NoError(t, err)
			require.EqualValues(t, 40*50_000+10<<20, later)
			require.LessOrEqual(t, later-s.Oldest(), int64(256<<10))
			require.Greater(t, later-s.Oldest(), int64(150<<10))
			got := make([]byte, later-s.Oldest())
			_, err = s.ReadAt(got, s.Oldest())
			require.NoError(t, err)
			require.Equal(t, len(got), bytes.Count(got, []byte("y")))
			require.NoError(t, s.Close())
		}
	})
}

// Somebody else may empty the log, move it away, or remove pieces.
func TestOthersTouchTheLog(t *testing.T) {
	everywhere(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "web.log")
		w := writer(t, path)
		f := New(path)
		full := bytes.Repeat([]byte("x"), 200_000)
		_, err := w.Write(full)
		require.NoError(t, err)
		cutOnce(t, f, 128<<10)
		read := func(want string) {
			s, err := f.Open()
			require.NoError(t, err)
			defer s.Close()
			end, err := s.End()
			require.NoError(t, err)
			got := make([]byte, end-s.Start())
			_, err = s.ReadAt(got, s.Start())
			require.NoError(t, err)
			require.Equal(t, want, string(got))
		}
		require.NoError(t, os.Truncate(path, 0))
		_, err = w.WriteString("short\n")
		require.NoError(t, err)
		read("short\n")

		_, err = w.Write(full)
		require.NoError(t, err)
		cutOnce(t, f, 128<<10)
		require.NoError(t, os.Rename(path, path+".away"))
		w = writer(t, path)
		_, err = w.Write(full)
		require.NoError(t, err)
		_, err = w.WriteString("new\n")
		require.NoError(t, err)
		cutOnce(t, f, 1<<20)
		s, err := f.Open()
		require.NoError(t, err)
		defer s.Close()
		end, err := s.End()
		require.NoError(t, err)
		got := make([]byte, 200_004)
		_, err = s.ReadAt(got, end-200_004)
		require.NoError(t, err)
		require.Equal(t, string(full)+"new\n", string(got))

		require.NoError(t, os.Remove(path+".000000000000000"))
		require.Zero(t, s.Oldest())
		_, err = s.ReadAt(got, 0)
		require.ErrorIs(t, err, ErrRemoved)
		require.Positive(t, s.Oldest(), "from then on it is known")
	})
}

// On a disk without room older pieces go first, and then the log is left as it is.
func TestAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may mount")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, "size=1m"))
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	path := filepath.Join(dir, "web.log")
	w := writer(t, path)
	defer w.Close()
	f := New(path)
	for range 3 {
		_, err := w.Write(bytes.Repeat([]byte("x"), 64<<10))
		require.NoError(t, err)
		cutOnce(t, f, 60<<10)
	}
	require.Len(t, shelf(t, path), 4)
	fill := filepath.Join(dir, "fill")
	require.NoError(t, os.WriteFile(fill, make([]byte, 700<<10), 0o600))
	_, err := w.Write(bytes.Repeat([]byte("y"), 64<<10))
	require.NoError(t, err)
	require.EqualValues(t, 60<<10, cutOnce(t, f, 60<<10))
	require.Len(t, shelf(t, path), 4, "one went, one came")
	require.NoFileExists(t, path+".000000000000000")

	_, err = w.Write(bytes.Repeat([]byte("z"), 64<<10))
	require.NoError(t, err)
	fillUp := func(name string) {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		defer f.Close()
		_, err = io.Copy(f, zeros{})
		require.ErrorIs(t, err, unix.ENOSPC)
	}
	fillUp("more")
	require.EqualValues(t, 60<<10, cutOnce(t, f, 60<<10))
	require.Len(t, shelf(t, path), 3, "two went, one came")
	require.NoError(t, os.Remove(filepath.Join(dir, "more")))
	_, err = w.Write(bytes.Repeat([]byte("z"), 64<<10))
	require.NoError(t, err)
	fillUp("still-more")
	live, err := f.open(os.O_RDWR)
	require.NoError(t, err)
	defer live.Close()
	_, err = f.cut(live, 60<<10, false)
	require.ErrorIs(t, err, errRoom)
	require.Len(t, shelf(t, path), 2, "the newest stays")
	require.NoError(t, os.Remove(fill))
	require.Positive(t, cutOnce(t, f, 60<<10), "and it goes on when there is room")
}

// A reader stays right over a Forget and whatever is cut afterwards.
func TestForgottenWhileItIsRead(t *testing.T) {
	everywhere(t, func(t *testing.T, dir string) {
		k := keeper(t, dir)
		path := filepath.Join(dir, "web.log")
		w := writer(t, path)
		next, err := numbered(w, 0, 2000, closed())
		require.NoError(t, err)
		s, err := k.File(path).Open()
		require.NoError(t, err)
		defer s.Close()
		end, err := s.End()
		require.NoError(t, err)
		oldest := s.Oldest()
		before := make([]byte, end-oldest)
		_, err = s.ReadAt(before, oldest)
		require.NoError(t, err)

		k.Forget(path)
		k.Keep(path, service.LogRotation{Size: 1 << 30, Total: 1 << 40})
		require.Positive(t, cutOnce(t, k.File(path), (end-oldest)/2))
		_, err = numbered(w, next, 100, closed())
		require.NoError(t, err)
		after := make([]byte, end-oldest)
		_, err = io.ReadFull(io.NewSectionReader(s, oldest, end-oldest), after)
		require.NoError(t, err)
		require.True(t, bytes.Equal(before, after), "the reader reads something else now")
	})
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// A log that was copied with its hole to a file system of larger blocks can not be
// cut, which is not to be taken for a log that need not be.
func TestAHoleOfNoWholeBlocks(t *testing.T) {
	f := New(filepath.Join(t.TempDir(), "web.log"))
	_, err := writer(t, f.path).Write(bytes.Repeat([]byte("z"), 300<<10))
	require.NoError(t, err)
	require.NoError(t, f.load())
	live, err := f.open(os.O_RDWR)
	require.NoError(t, err)
	defer live.Close()
	require.NoError(t, punch(live, 0, 64<<10))
	f.hole = 1000
	_, err = f.cut(live, 60<<10, false)
	require.ErrorContains(t, err, "the hole at its front is of 1000 bytes, which are no whole blocks of")
}

// A file that somebody has emptied meanwhile is not cut: what is in it was never copied.
func TestACutOfWhatWasEmptied(t *testing.T) {
	f := New(filepath.Join(t.TempDir(), "web.log"))
	_, err := writer(t, f.path).Write(bytes.Repeat([]byte("x"), 128<<10))
	require.NoError(t, err)
	before, err := os.Stat(f.path)
	require.NoError(t, err)
	require.NoError(t, f.named(before))
	require.NoError(t, os.Truncate(f.path, 0))
	_, err = writer(t, f.path).Write([]byte("new\n"))
	require.NoError(t, err)
	require.ErrorContains(t, f.named(before), "was emptied while it was cut")
}

// A file that has lost its name is not cut: what has the name now begins anew, and no
// piece of the other comes before it.
func TestACutOfWhatWasReplaced(t *testing.T) {
	f := New(filepath.Join(t.TempDir(), "web.log"))
	_, err := writer(t, f.path).Write(bytes.Repeat([]byte("x"), 128<<10))
	require.NoError(t, err)
	require.NoError(t, f.load())
	live, err := f.open(os.O_RDWR)
	require.NoError(t, err)
	defer live.Close()
	require.NoError(t, os.Remove(f.path))
	_, err = f.cut(live, 64<<10, false)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = writer(t, f.path).Write([]byte("new\n"))
	require.NoError(t, err)
	_, err = f.cut(live, 64<<10, false)
	require.ErrorContains(t, err, "was replaced while it was cut")
	s, err := f.Open()
	require.NoError(t, err)
	defer s.Close()
	require.Zero(t, s.Oldest())
	end, err := s.End()
	require.NoError(t, err)
	require.EqualValues(t, 4, end)
	require.Equal(t, []string{"web.log"}, shelf(t, f.path))
}

// A log that has filled the disk makes room itself, if it is beyond its total.
func TestALogThatFillsTheDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may mount")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, "size=1m"))
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	path := filepath.Join(dir, "web.log")
	w := writer(t, path)
	defer w.Close()
	_, err := io.Copy(w, zeros{})
	require.ErrorIs(t, err, unix.ENOSPC)
	info, err := w.Stat()
	require.NoError(t, err)
	f := New(path)
	require.NoError(t, f.load())
	live, err := f.open(os.O_RDWR)
	require.NoError(t, err)
	defer live.Close()
	require.NoError(t, f.trim(live, service.LogRotation{Size: 64 << 10, Total: 128 << 10}, time.Now()))
	_, err = w.Write(make([]byte, 512<<10))
	require.NoError(t, err, "there is room again")
	s, err := New(path).Open()
	require.NoError(t, err)
	defer s.Close()
	end, err := s.End()
	require.NoError(t, err)
	require.Equal(t, info.Size()+512<<10, end, "and offsets go on")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
