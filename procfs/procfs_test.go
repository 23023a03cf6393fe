package procfs

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

const testBootID = "7c4ad5c1-4a8c-4f7e-9d0e-2b1f3c5a6d70"

// evil is a name that a process may choose for itself.
const evil = "x) R 1\n"

// tree writes files below a directory and takes it as /proc.
func tree(t testing.TB, files map[string]string) FS {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	fs, err := New(root)
	require.NoError(t, err)
	return fs
}

// stat is a line as /proc/PID/stat has it.
func stat(pid int, name string, state byte, ppid, pgid, sid int) string {
	return strconv.Itoa(pid) + " (" + name + ") " + string(state) + " " + strconv.Itoa(ppid) + " " + strconv.Itoa(pgid) + " " + strconv.Itoa(sid) +
		" 34816 -1 4194304 100 200 0 0 150 50 300 100 20 0 7 0 123456 9437184 345 18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
}

const limits = `Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max open files            1024                 20000                files     
Max realtime priority     0                    0                    
Max realtime timeout      100                  4611686018427387981  us        
`

func testTree(t testing.TB) FS {
	return tree(t, map[string]string{
		"sys/kernel/random/boot_id": testBootID + "\n",
		"7/stat":                    stat(7, "web server", 'S', 1, 7, 7),
		"7/cmdline":                 "/srv/web\x00--title\x00two words\x00\x00",
		"7/cgroup":                  "12:cpu:/old\n1:name=systemd:/old\n0::/gladsheim.slice/svc-web-00000001\n",
		"7/limits":                  limits,
		"7/status":                  "Name:\tweb\nVmPeak:\t 9000 kB\nVmHWM:\t    1400 kB\nThreads:\t7\n",
		"40/stat":                   stat(40, evil, 'Z', 7, 7, 7),
		"40/cmdline":                "",
		"40/cgroup":                 "12:cpu:/old\n",
		"40/limits":                 strings.ReplaceAll(limits, "4611686018427387981", "unlimited"),
		"40/status":                 "Name:\tx\n",
		"9/stat":                    "9 (kthread",
		"9/cmdline":                 "\x1b[31m\x00\xff",
		"9/limits":                  "Limit Soft Hard\n",
		"self/stat":                 "not a number",
		"meminfo":                   "MemTotal: 2000 kB\nMemFree: 100 kB\nMemAvailable: 1500 kB\nSwapTotal: 300 kB\nSwapFree: 300 kB\n",
		"stat":                      "cpu  100 10 50 5000 20 5 15 7 30 3\ncpu0 50 5 25 2500 10 2 8 3 15 1\ncpu1 50 5 25 2500 10 3 7 4 15 2\nbtime 1\n",
	})
}

func TestProcess(t *testing.T) {
	fs := testTree(t)
	p, err := fs.Process(7)
	require.NoError(t, err)
	want := Process{
		PID: 7, PPID: 1, PGID: 7, SID: 7, State: 'S', Start: 123456, Name: "web server", Threads: 7,
		RSS: 345 * pageSize, CPUTime: 2 * time.Second, ChildrenCPUTime: 4 * time.Second,
	}
	require.Equal(t, want, p)
	require.True(t, p.Alive())

	start, err := fs.StartTicks(7)
	require.NoError(t, err)
	require.Equal(t, uint64(123456), start)
	rss, err := fs.RSS(7)
	require.NoError(t, err)
	require.Equal(t, 345*pageSize, rss)
}

func TestANameThatLooksLikeFieldsIsAName(t *testing.T) {
	p, err := testTree(t).Process(40)
	require.NoError(t, err)
	require.Equal(t, evil, p.Name)
	require.Equal(t, byte('Z'), p.State)
	require.Equal(t, 7, p.PPID)
	require.True(t, p.Alive(), "its other threads live")
	p.Threads = 1
	require.False(t, p.Alive())
}

func TestNoProcess(t *testing.T) {
	fs := testTree(t)
	_, err := fs.Process(8)
	require.ErrorIs(t, err, ErrNoProcess)
	_, err = fs.Cgroup(8)
	require.ErrorIs(t, err, ErrNoProcess)
	_, _, err = fs.RTTimeLimit(8)
	require.ErrorIs(t, err, ErrNoProcess)
	_, err = fs.NoFileLimit(8)
	require.ErrorIs(t, err, ErrNoProcess)
	_, err = fs.Memory(8)
	require.ErrorIs(t, err, ErrNoProcess)
	_, _, err = fs.IO(8)
	require.ErrorIs(t, err, ErrNoProcess)
	require.Empty(t, fs.Command(8))
}

// TestWhoIsBeingReleasedIsLookedAtAgain: for a moment the kernel has neither
// group nor session to tell of; then the number is gone, or another thread's.
func TestWhoIsBeingReleasedIsLookedAtAgain(t *testing.T) {
	released := stat(7, "web", 'R', 0, -1, -1)
	fs := tree(t, map[string]string{"8/stat": released, "7/comm": "web\n"})
	_, err := fs.Process(8)
	require.ErrorIs(t, err, ErrNoProcess)

	path := filepath.Join(fs.root, "7/stat")
	require.NoError(t, unix.Mkfifo(path, 0o600))
	require.NoError(t, os.WriteFile(path+".next", []byte(stat(7, "web", 'R', 1, 7, 7)), 0o600))
	wrote := make(chan error, 1)
	go func() {
		fifo, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = fifo.WriteString(released)
			// Before the end of the first reading, so that the second one finds it.
			err = errors.Join(err, os.Rename(path+".next", path), fifo.Close())
		}
		wrote <- err
	}()
	p, err := fs.Process(7)
	require.NoError(t, <-wrote)
	require.NoError(t, err)
	require.Equal(t, 7, p.SID)
}

func TestBrokenFilesAreErrorsThatNameThem(t *testing.T) {
	fs := testTree(t)
	_, err := fs.Process(9)
	require.ErrorContains(t, err, "9/stat")
	require.NotErrorIs(t, err, ErrNoProcess)
	_, _, err = fs.RTTimeLimit(9)
	require.ErrorContains(t, err, "9/limits")
	_, err = fs.Memory(40)
	require.ErrorContains(t, err, "VmHWM", "absent is not zero")
	_, _, err = tree(t, map[string]string{"7/io": "read_bytes: 1\n"}).IO(7)
	require.ErrorContains(t, err, "write_bytes", "absent is not zero")
	_, err = fs.Processes()
	require.ErrorContains(t, err, "9/stat")
}

func TestCommand(t *testing.T) {
	fs := testTree(t)
	require.Equal(t, "/srv/web --title two words", fs.Command(7))
	require.Equal(t, `[x) R 1\n]`, fs.Command(40), "a zombie has only its name")
	require.Equal(t, `\x1b[31m \xff`, fs.Command(9))
}

func TestCgroup(t *testing.T) {
	fs := testTree(t)
	path, err := fs.Cgroup(7)
	require.NoError(t, err)
	require.Equal(t, "/gladsheim.slice/svc-web-00000001", path)
	path, err = fs.Cgroup(40)
	require.NoError(t, err)
	require.Empty(t, path)
}

func TestLimits(t *testing.T) {
	fs := testTree(t)
	_, hard, err := fs.RTTimeLimit(7)
	require.NoError(t, err)
	require.Equal(t, uint64(1<<62|77), hard)
	soft, hard, err := fs.RTTimeLimit(40)
	require.NoError(t, err)
	require.Equal(t, uint64(100), soft)
	require.Equal(t, uint64(math.MaxUint64), hard)
	files, err := fs.NoFileLimit(7)
	require.NoError(t, err)
	require.Equal(t, uint64(1024), files, "the soft one")
}

func TestMemory(t *testing.T) {
	fs := tree(t, map[string]string{"7/status": "Name:\tweb\nVmHWM:\t    1400 kB\nVmRSS:\t    1000 kB\n" +
		"RssAnon:\t     600 kB\nRssFile:\t     300 kB\nRssShmem:\t     100 kB\nVmSwap:\t      20 kB\n"})
	m, err := fs.Memory(7)
	require.NoError(t, err)
	require.Equal(t, Memory{Peak: 1400 << 10, Anon: 600 << 10, File: 400 << 10, Swap: 20 << 10}, m)
}

func TestIO(t *testing.T) {
	fs := tree(t, map[string]string{"7/io": "rchar: 9\nwchar: 9\nsyscr: 9\nsyscw: 9\nread_bytes: 4096\nwrite_bytes: 12288\ncancelled_write_bytes: 8192\n"})
	read, written, err := fs.IO(7)
	require.NoError(t, err)
	require.Equal(t, []uint64{4096, 4096}, []uint64{read, written})
}

func TestBootID(t *testing.T) {
	id, err := testTree(t).BootID()
	require.NoError(t, err)
	require.Equal(t, testBootID, id)
	_, err = tree(t, map[string]string{"sys/kernel/random/boot_id": "\n"}).BootID()
	require.ErrorContains(t, err, "is empty")
	_, err = tree(t, nil).BootID()
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestPIDs(t *testing.T) {
	pids, err := testTree(t).PIDs()
	require.NoError(t, err)
	require.Equal(t, []int{7, 9, 40}, pids)
}

func TestLastPID(t *testing.T) {
	fs := tree(t, map[string]string{"loadavg": "0.10 0.20 0.30 2/345 6789\n"})
	last, err := fs.LastPID()
	require.NoError(t, err)
	require.Equal(t, 6789, last)
	_, err = tree(t, map[string]string{"loadavg": "0.10\n"}).LastPID()
	require.ErrorContains(t, err, "no five fields")
	_, err = tree(t, map[string]string{"loadavg": "1 2 3 4 x\n"}).LastPID()
	require.ErrorContains(t, err, "loadavg")
	require.False(t, fs.TellsNow(), "it is a file of another file system")
	_, err = tree(t, nil).LastPID()
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestProcesses(t *testing.T) {
	fs := tree(t, map[string]string{
		"20/stat":   stat(20, "b", 'R', 3, 3, 3),
		"3/stat":    stat(3, "a", 'S', 1, 3, 3),
		"5/cmdline": "ended after it was listed",
	})
	list, err := fs.Processes()
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, 3, list[0].PID)
	require.Equal(t, 20, list[1].PID)
}

func TestSystem(t *testing.T) {
	s, err := testTree(t).System()
	require.NoError(t, err)
	require.Equal(t, System{
		MemoryTotal: 2000 << 10, MemoryAvailable: 1500 << 10, SwapTotal: 300 << 10,
		CPUBusy: 1800 * time.Millisecond, CPUs: map[int]time.Duration{0: 900 * time.Millisecond, 1: 900 * time.Millisecond},
	}, s)

	_, err = tree(t, map[string]string{"meminfo": "MemTotal: 2000 kB\n"}).System()
	require.ErrorContains(t, err, "MemAvailable")
	_, err = tree(t, map[string]string{"meminfo": "MemTotal: 1 kB\nMemAvailable: 1 kB\n"}).System()
	require.ErrorContains(t, err, "CPU time")
	_, err = tree(t, nil).System()
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestBusy(t *testing.T) {
	before := System{CPUBusy: 10, CPUs: map[int]time.Duration{0: 4, 1: 3, 2: 3}}
	now := System{CPUBusy: 100, CPUs: map[int]time.Duration{0: 10, 1: 20, 3: 1000}}
	require.EqualValues(t, 90, now.Busy(before, nil), "as the kernel adds up")
	require.EqualValues(t, 17, now.Busy(before, service.Numbers{{First: 1, Last: 7}}), "not those that came or went")
	require.EqualValues(t, 23, now.Busy(before, service.Numbers{{First: 0, Last: 1}}))
	require.Zero(t, now.Busy(before, service.Numbers{{First: 8, Last: 9}}))
}

func TestRootThatIsNone(t *testing.T) {
	_, err := New("/nowhere")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "/nowhere")
}

func TestTheRealProc(t *testing.T) {
	fs, err := New("/proc")
	require.NoError(t, err)
	self, err := fs.Process(os.Getpid())
	require.NoError(t, err)
	require.Equal(t, os.Getppid(), self.PPID)
	require.True(t, self.Alive())
	require.Greater(t, self.RSS, uint64(1<<20))
	m, err := fs.Memory(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, m.Peak, uint64(1<<20))
	require.Greater(t, m.Anon, uint64(1<<18))
	_, _, err = fs.IO(os.Getpid())
	require.NoError(t, err)
	require.Contains(t, fs.Command(os.Getpid()), filepath.Base(os.Args[0]))
	list, err := fs.Processes()
	require.NoError(t, err)
	require.NotEmpty(t, list)
	id, err := fs.BootID()
	require.NoError(t, err)
	require.Len(t, id, 36)
	s, err := fs.System()
	require.NoError(t, err)
	require.Greater(t, s.MemoryTotal, s.MemoryAvailable)
	require.NotEmpty(t, s.CPUs)
	require.Positive(t, s.CPUBusy)
	files, err := fs.NoFileLimit(os.Getpid())
	require.NoError(t, err)
	require.Positive(t, files)
	_, err = fs.Cgroup(os.Getpid())
	require.NoError(t, err)
	last, err := fs.LastPID()
	require.NoError(t, err)
	require.Positive(t, last)
	require.True(t, fs.TellsNow())
}

func BenchmarkProcesses(b *testing.B) {
	fs, err := New("/proc")
	require.NoError(b, err)
	for b.Loop() {
		_, err := fs.Processes()
		require.NoError(b, err)
	}
}

func TestFlocks(t *testing.T) {
	text := "1: POSIX  ADVISORY  WRITE 5 08:01:77 0 EOF\n" +
		"2: FLOCK  ADVISORY  WRITE 1234 08:01:77 0 EOF\n" +
		"2: -> FLOCK  ADVISORY  WRITE 99 08:01:77 0 EOF\n" +
		"3: FLOCK  ADVISORY  READ  42 00:1a:77 0 EOF\n" +
		"4: FLOCK  ADVISORY  WRITE 7 08:01:777 0 EOF\n"
	pids, err := parseFlocks([]byte(text), 77)
	require.NoError(t, err)
	require.Equal(t, []int{1234, 42}, pids)
	_, err = parseFlocks([]byte("1: FLOCK ADVISORY WRITE x 08:01:77 0 EOF"), 77)
	require.Error(t, err)

	f, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(f.Fd()), &st))
	real, err := New("/proc")
	require.NoError(t, err)
	pids, err = real.Flocks(st.Ino)
	require.NoError(t, err)
	require.Contains(t, pids, os.Getpid())
}
