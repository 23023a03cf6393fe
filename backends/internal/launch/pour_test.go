package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/process"
)

// poured is a service whose log the shim writes, and what was told of that.
type poured struct {
	*family
	t    *testing.T
	log  string
	shim int // its number, once it was looked at

	mu   sync.Mutex
	told []service.LogTrouble
}

func newPoured(t *testing.T, logDir string) *poured {
	p := &poured{family: newFamily(t, t.TempDir()), t: t, log: filepath.Join(logDir, "web.log")}
	p.WatchLogs(p.hear)
	return p
}

func (p *poured) hear(t service.LogTrouble) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, t)
}

// heard gives what was told so far.
func (p *poured) heard() []service.LogTrouble {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]service.LogTrouble(nil), p.told...)
}

// until polls a condition.
func (p *poured) until(what string, condition func() bool) {
	p.t.Helper()
	require.Eventually(p.t, condition, time.Minute, 5*time.Millisecond, what)
}

// begin launches a script.
func (p *poured) begin(policy service.LogFull, script string) *process.Process {
	p.t.Helper()
	req := request("/bin/sh", "-c", script)
	req.Launch.Spec.LogFull, req.Launch.LogFile, req.Shim = policy, p.log, p.Shim
	return run(p.t, p.watcher, req).Process()
}

// know finds the shim of a process that lives.
func (p *poured) know(s *process.Process) {
	p.t.Helper()
	p.shim = parentOf(p.t, p.fs, s.PID())
	p.t.Cleanup(func() {
		_ = unix.Prlimit(p.shim, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}, nil)
	})
}

func (p *poured) size() uint64 {
	p.t.Helper()
	info, err := os.Stat(p.log)
	require.NoError(p.t, err)
	return uint64(info.Size())
}

// room lets the shim write so many bytes of a file, as the disk does that is full
// then; the kernel says EFBIG instead.
func (p *poured) room(bytes uint64) {
	p.t.Helper()
	require.NoError(p.t, unix.Prlimit(p.shim, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}, nil))
}

func (p *poured) written() string {
	p.t.Helper()
	text, err := os.ReadFile(p.log)
	require.NoError(p.t, err)
	return string(text)
}

var note = regexp.MustCompile(`^\[gladsheim: ([0-9]+) bytes in ([0-9]+) lines were dropped here(, the rest of the line above among them)?: (.*)\]$`)

// account reads a log in which things are missing: the bytes and whole lines that the
// service wrote, and those that the log says were dropped. A line that is there is
// one of all, and in their order.
func account(t *testing.T, log string, all func(i int) string) (bytes, lines, droppedBytes, droppedLines int) {
	t.Helper()
	next := 0
	texts := strings.SplitAfter(log, "\n")
	for i, text := range texts {
		if said := note.FindStringSubmatch(strings.TrimSuffix(text, "\n")); said != nil {
			b, err := strconv.Atoi(said[1])
			require.NoError(t, err)
			n, err := strconv.Atoi(said[2])
			require.NoError(t, err)
			droppedBytes, droppedLines, next = droppedBytes+b, droppedLines+n, next+n
			continue
		}
		if text == "" {
			continue
		}
		if i+1 < len(texts) {
			if said := note.FindStringSubmatch(strings.TrimSuffix(texts[i+1], "\n")); said != nil && said[3] != "" {
				text = strings.TrimSuffix(text, "\n")
				require.True(t, strings.HasPrefix(all(next), text), "%q is the beginning of line %d", text, next)
				bytes += len(text)
				continue
			}
		}
		require.Equal(t, all(next), text, "line %d", next)
		bytes, lines, next = bytes+len(text), lines+1, next+1
	}
	return bytes, lines, droppedBytes, droppedLines
}

func numbered(i int) string { return fmt.Sprintf("line %d\n", i+1) }

// numbers says lines in writes of their own, until a file is there, and then how many.
const numbers = `i=0; while ! [ -e %[1]s ]; do i=$((i+1)); echo "line $i"; done; echo $i >%[1]s.count; exit 7`

func (p *poured) count(word string) int {
	p.t.Helper()
	text, err := os.ReadFile(word + ".count")
	require.NoError(p.t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(p.t, err)
	return n
}

// TestOutputIsPoured: all of it, in its order, by the time that the end is told.
func TestOutputIsPoured(t *testing.T) {
	for _, policy := range []service.LogFull{service.LogFullDrop, service.LogFullBlock} {
		t.Run(policy.String(), func(t *testing.T) {
			p := newPoured(t, t.TempDir())
			for i := range 20 {
				require.Equal(t, service.Exit{Code: 3}, exitOf(t, p.begin(policy, "seq 1 10000; echo err >&2; printf end; exit 3")))
				require.Equal(t, 10002*(i+1)-i, strings.Count(p.written(), "\n")+1, "all of it is there when its end is told")
			}
			require.Empty(t, p.heard())
			require.Equal(t, 1, strings.Count(p.written(), "\nerr\nend1\n2\n")/19)
		})
	}
}

// TestALogThatIsFull: of what is written while a log can not be, nothing is missing
// that the log does not tell of, and it goes on by itself.
func TestALogThatIsFull(t *testing.T) {
	for _, policy := range []service.LogFull{service.LogFullDrop, service.LogFullBlock} {
		t.Run(policy.String(), func(t *testing.T) {
			p := newPoured(t, t.TempDir())
			word := filepath.Join(t.TempDir(), "word")
			s := p.begin(policy, fmt.Sprintf(numbers, word))
			p.know(s)
			for round, more := range []uint64{50_001, 60_002, 0} {
				p.room(p.size() + more)
				p.until("it is told", func() bool { return len(p.heard()) == 2*round+1 })
				begun := p.heard()[2*round]
				require.True(t, begun.Lasts())
				require.Equal(t, []any{request().Launch.Name, uint64(1), policy, "file too large"}, []any{begun.Service, begun.Incarnation, begun.Policy, begun.Why})
				size := p.size()
				time.Sleep(300 * time.Millisecond) // it writes on, or would
				require.Equal(t, size, p.size(), "there is no room")
				require.False(t, s.Ended())
				p.room(unix.RLIM_INFINITY)
				p.until("it is told to be over", func() bool { return len(p.heard()) == 2*round+2 })
				over := p.heard()[2*round+1]
				require.True(t, over.Began.Equal(begun.Began) && over.Ended.After(over.Began) && !over.Lost)
				require.Equal(t, policy == service.LogFullDrop, over.Bytes > 0)
			}
			require.NoError(t, os.WriteFile(word, nil, 0o600))
			require.Equal(t, service.Exit{Code: 7}, exitOf(t, s))
			emitted := 0
			for i := range p.count(word) {
				emitted += len(numbered(i))
			}
			bytes, lines, droppedBytes, droppedLines := account(t, p.written(), numbered)
			require.Equal(t, p.count(word), lines+droppedLines, "lines: written and dropped")
			require.Equal(t, emitted, bytes+droppedBytes, "bytes: written and dropped")
			told := service.LogTrouble{}
			for _, h := range p.heard() {
				if !h.Lasts() {
					told.Bytes, told.Lines = told.Bytes+h.Bytes, told.Lines+h.Lines
				}
			}
			require.Equal(t, []uint64{uint64(droppedBytes), uint64(droppedLines)}, []uint64{told.Bytes, told.Lines}, "agents are told what the log says")
			require.Equal(t, policy == service.LogFullBlock, droppedBytes == 0)
			t.Logf("%d lines written, %d dropped", lines, droppedLines)
		})
	}
}

// A disk that does not answer at all keeps nobody's end from being told, exactly: not
// that of the service that writes there, and not another's.
func TestADiskThatHangsHoldsUpNoEnd(t *testing.T) {
	p := newPoured(t, t.TempDir())
	disk, slow, err := os.Pipe() // into a pipe that is full a write takes until it is read
	require.NoError(t, err)
	defer disk.Close()
	defer slow.Close()
	size, err := unix.FcntlInt(slow.Fd(), unix.F_SETPIPE_SZ, 4096) // Fd makes it block
	require.NoError(t, err)
	_, err = slow.Write(make([]byte, size))
	require.NoError(t, err)
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	hangs := func(script string) *process.Process {
		req := request("/bin/sh", "-c", script)
		req.Launch.Spec.LogFull, req.Launch.LogFile, req.Shim = service.LogFullBlock, p.log, p.Shim
		req.Output = &Output{sinks{in: null.Fd(), out: slow.Fd(), pour: pours[service.LogFullBlock]}}
		return run(t, p.watcher, req).Process()
	}
	for code, script := range []string{"echo hello; exit 0", "echo hello; exit 1", "echo hello; exit 2"} {
		require.Equal(t, service.Exit{Code: code}, exitOf(t, hangs(script)))
	}
	require.Equal(t, service.Exit{Code: 7}, exitOf(t, p.run(t, "exit 7")), "it has nothing to do with that disk")
	_, err = disk.Read(make([]byte, size))
	require.NoError(t, err)
	var said []byte
	p.until("what was written is poured", func() bool {
		b := make([]byte, 4096)
		n, err := disk.Read(b)
		require.NoError(t, err)
		said = append(said, b[:n]...)
		return strings.Count(string(said), "hello") == 3
	})
}
