// Package procfs reads facts from a /proc root: which process a number stands
// for (number and start ticks), what it uses, how it is marked, and what the
// whole host has. It holds nothing open and caches nothing, so a value is as
// old as its reading. Sizes are bytes, times are durations.
//
// The host's figures come through prometheus/procfs. Those of processes are
// parsed here, because a scan over all of them must be cheap and because their
// text is partly written by the processes themselves.
package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	prometheus "github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// ErrNoProcess says that no process has that number.
var ErrNoProcess = errors.New("no such process")

// FS is a /proc root. The zero FS reads nothing; see New. It may be used by
// many goroutines at once.
type FS struct {
	root string
	host prometheus.FS
}

// New takes root as a /proc: "/proc" itself, or in tests a directory with the
// files that the test needs.
func New(root string) (FS, error) {
	host, err := prometheus.NewFS(root)
	if err != nil {
		return FS{}, fmt.Errorf("cannot use %s as /proc: %w", root, err)
	}
	return FS{root: root, host: host}, nil
}

// Process is what /proc/PID/stat tells of one process (proc_pid_stat(5)).
type Process struct {
	PID, PPID, PGID, SID int
	State                byte   // one of RSDTtZXI…
	Start                uint64 // ticks since boot, field 22
	Name                 string // comm: up to 15 bytes, chosen by the process
	Threads              int
	RSS                  uint64        // bytes
	CPUTime              time.Duration // user and system
	ChildrenCPUTime      time.Duration // of children that have ended and were waited for
}

// Alive tells whether p can still do anything: it is neither a zombie nor dead.
// A process whose first thread alone has ended is no zombie, although its state
// says so: another thread may live on, or be about to execute a program and
// take the first one's place.
func (p Process) Alive() bool {
	switch p.State {
	case 'Z':
		return p.Threads > 1
	case 'X', 'x':
		return false
	}
	return true
}

// Process reads /proc/PID/stat. It fails with ErrNoProcess when there is none.
func (f FS) Process(pid int) (Process, error) {
	for range releaseReads {
		data, err := f.read(pid, "stat")
		if err != nil {
			return Process{}, err
		}
		p, err := parseStat(data)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, errReleased) {
			return Process{}, fmt.Errorf("cannot read %s: %w", f.path(pid, "stat"), err)
		}
	}
	return Process{}, fmt.Errorf("%s: %w", f.path(pid, "stat"), ErrNoProcess)
}

// releaseReads is how often a process is looked at that is being released: each
// time another one would have to be met in a moment of nanoseconds.
const releaseReads = 100

// StartTicks is when pid began, in ticks since boot. With the boot ID and the
// number itself it names one process for ever.
func (f FS) StartTicks(pid int) (uint64, error) {
	p, err := f.Process(pid)
	return p.Start, err
}

// RSS is the resident memory of pid in bytes.
func (f FS) RSS(pid int) (uint64, error) {
	p, err := f.Process(pid)
	return p.RSS, err
}

// Command is the command line of pid for people: its arguments, else its name
// in brackets as ps(1) shows it, else "". Control characters and broken UTF-8
// are quoted; at most commandLength bytes are read.
func (f FS) Command(pid int) string {
	if data, err := f.read(pid, "cmdline"); err == nil {
		if command := parseCommand(data); command != "" {
			return command
		}
	}
	if p, err := f.Process(pid); err == nil {
		return "[" + printable(p.Name) + "]"
	}
	return ""
}

// Cgroup is the cgroup v2 path of pid, below the cgroup root and with a
// leading slash; "" on a host without cgroup v2.
func (f FS) Cgroup(pid int) (string, error) {
	data, err := f.read(pid, "cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(path, "\n"), nil
		}
	}
	return "", nil
}

// RTTimeLimit is the RLIMIT_RTTIME of pid in microseconds (getrlimit(2)), the
// highest number where there is none. A zombie has it still.
func (f FS) RTTimeLimit(pid int) (soft, hard uint64, err error) { return f.limit(pid, limitRTTime) }

// NoFileLimit is the soft RLIMIT_NOFILE of pid, the one that holds.
func (f FS) NoFileLimit(pid int) (uint64, error) {
	soft, _, err := f.limit(pid, limitNoFile)
	return soft, err
}

func (f FS) limit(pid int, name string) (soft, hard uint64, err error) {
	data, err := f.read(pid, "limits")
	if err != nil {
		return 0, 0, err
	}
	if soft, hard, err = parseLimit(data, name); err != nil {
		return 0, 0, fmt.Errorf("cannot read %s: %w", f.path(pid, "limits"), err)
	}
	return soft, hard, nil
}

// Memory is what a process has in memory, in bytes (proc_pid_status(5)).
type Memory struct {
	Peak uint64 // most that was ever resident since it became its present program
	Anon uint64 // resident, its own
	File uint64 // resident, of files and shared
	Swap uint64 // swapped out
}

// Memory reads /proc/PID/status. Kernel threads and zombies have no memory, which is
// an error.
func (f FS) Memory(pid int) (Memory, error) {
	data, err := f.read(pid, "status")
	if err != nil {
		return Memory{}, err
	}
	m, err := parseMemory(data)
	if err != nil {
		return Memory{}, fmt.Errorf("cannot read %s: %w", f.path(pid, "status"), err)
	}
	return m, nil
}

// IO is how many bytes a process and the children it has waited for had read from
// block devices and written to them (proc_pid_io(5)). Only who may trace the process
// may read it; else the error is fs.ErrPermission.
func (f FS) IO(pid int) (read, written uint64, err error) {
	data, err := f.read(pid, "io")
	if err != nil {
		return 0, 0, err
	}
	if read, written, err = parseIO(data); err != nil {
		return 0, 0, fmt.Errorf("cannot read %s: %w", f.path(pid, "io"), err)
	}
	return read, written, nil
}

// BootID names this boot of the host; numbers of processes mean nothing
// outside of it.
func (f FS) BootID() (string, error) {
	data, err := os.ReadFile(filepath.Join(f.root, "sys/kernel/random/boot_id"))
	if err != nil {
		return "", fmt.Errorf("cannot read the boot ID: %w", err)
	}
	id := string(bytes.TrimSpace(data))
	if id == "" {
		return "", fmt.Errorf("cannot read the boot ID: %s is empty", filepath.Join(f.root, "sys/kernel/random/boot_id"))
	}
	return id, nil
}

// Flocks lists who has locked an inode by flock(2), of whatever file system: what
// stat(2) says of that is not always what proc_locks(5) does. One that has died, while
// a child of it holds the lock, is not named, nor is one of another PID namespace.
func (f FS) Flocks(inode uint64) (pids []int, err error) {
	text, err := os.ReadFile(filepath.Join(f.root, "locks"))
	if err != nil {
		return nil, err
	}
	return parseFlocks(text, inode)
}

// Processes lists every process of the host, zombies included, in the order of
// their numbers. One that ends while the list is made may be missing.
func (f FS) Processes() ([]Process, error) {
	pids, err := f.PIDs()
	if err != nil {
		return nil, err
	}
	list := make([]Process, 0, len(pids))
	for _, pid := range pids {
		p, err := f.Process(pid)
		if errors.Is(err, ErrNoProcess) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// PIDs lists the numbers of all processes, ascending, and reads nothing else.
func (f FS) PIDs() ([]int, error) {
	var pids []int
	err := f.EachPID(func(pid int) { pids = append(pids, pid) })
	slices.Sort(pids)
	return pids, err
}

// EachPID calls see with the number of each process, while it reads the list:
// what see finds out is only microseconds younger than the list. The kernel
// lists in ascending order.
func (f FS) EachPID(see func(pid int)) error {
	fd, err := openFile(f.root)
	if err != nil {
		return fmt.Errorf("cannot list processes: %w", err)
	}
	defer unix.Close(fd)
	// Small, so that little time passes between the kernel's look and see.
	buffer := make([]byte, 1<<10)
	var names []string
	for {
		n, err := unix.ReadDirent(fd, buffer)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot list processes: %w", err)
		}
		if n == 0 {
			return nil
		}
		_, _, names = unix.ParseDirent(buffer[:n], -1, names[:0])
		for _, name := range names {
			if name[0] < '1' || name[0] > '9' {
				continue
			}
			if pid, err := strconv.Atoi(name); err == nil {
				see(pid)
			}
		}
	}
}

// LastPID is the number that was given to the latest process or thread of the
// host. When it is the same before and after a look at all processes, then
// nothing was forked meanwhile.
func (f FS) LastPID() (int, error) {
	fd, err := openFile(f.root + "/loadavg")
	if err != nil {
		return 0, fmt.Errorf("cannot read loadavg: %w", err)
	}
	defer unix.Close(fd)
	buffer := make([]byte, 128)
	n, err := unix.Read(fd, buffer)
	if err != nil {
		return 0, fmt.Errorf("cannot read loadavg: %w", err)
	}
	fields := strings.Fields(string(buffer[:n]))
	if len(fields) < 5 {
		return 0, fmt.Errorf("cannot read loadavg: %q has no five fields", buffer[:n])
	}
	last, err := strconv.Atoi(fields[4])
	if err != nil {
		return 0, fmt.Errorf("cannot read loadavg: %w", err)
	}
	return last, nil
}

// TellsNow tells whether LastPID is what the kernel says now: containers may have a file of
// another file system in the place of its own (lxcfs), whose words are seconds old.
func (f FS) TellsNow() bool {
	var st unix.Statfs_t
	err := unix.Statfs(f.root+"/loadavg", &st)
	return err == nil && st.Type == unix.PROC_SUPER_MAGIC
}

func (f FS) path(pid int, file string) string {
	return f.root + "/" + strconv.Itoa(pid) + "/" + file
}

// readLimit is more than any file read here has, but for cmdline, which the
// process makes as long as it likes.
const readLimit = 16 << 10

// read reads a file of one process. It uses no os.File, because a scan over
// thousands of files would register each with the runtime's poller.
func (f FS) read(pid int, file string) ([]byte, error) {
	path := f.path(pid, file)
	fd, err := openFile(path)
	if err != nil {
		return nil, processError(path, err)
	}
	defer unix.Close(fd)
	data := make([]byte, 0, 2<<10)
	for len(data) < readLimit {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := unix.Read(fd, data[len(data):cap(data)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, processError(path, err)
		}
		if n == 0 {
			break
		}
		data = data[:len(data)+n]
	}
	return data, nil
}

func openFile(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// processError tells a process that is gone from every other failure.
func processError(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%s: %w", path, ErrNoProcess)
	}
	return fmt.Errorf("cannot read %s: %w", path, err)
}
