package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// tick is USER_HZ, the unit of times in /proc: 100 per second on every
// architecture that Go runs Linux on (time(7)).
const tick = time.Second / 100

var pageSize = uint64(os.Getpagesize())

// Fields of /proc/PID/stat that are read, counted from the state, which is the
// first one after the name.
const (
	fieldState = iota
	fieldPPID
	fieldPGID
	fieldSID
	fieldUserTime           = 11
	fieldSystemTime         = 12
	fieldChildrenUserTime   = 13
	fieldChildrenSystemTime = 14
	fieldThreads            = 17
	fieldStart              = 19
	fieldRSS                = 21
	fieldsRead              = 22
)

// errReleased is what the kernel says of a task in the moment it lets go of it
// (do_task_stat without a sighand): it has no group and no session any more.
// The number itself may live on, as another thread's that executes a program.
var errReleased = errors.New("it is being released")

// parseStat reads /proc/PID/stat. The name in it is the process's own choice
// and may hold anything, ") R 1\n" too: it ends at the last parenthesis,
// because nothing after it holds one.
func parseStat(data []byte) (Process, error) {
	open, closing := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || closing < open {
		return Process{}, errors.New("it has no name in parentheses")
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(data[:open])))
	if err != nil || pid <= 0 {
		return Process{}, fmt.Errorf("%.20q is not the number of a process", data[:open])
	}
	var fields [fieldsRead]string
	n := 0
	for field := range strings.FieldsSeq(string(data[closing+1:])) {
		if n == fieldsRead {
			break
		}
		fields[n] = field
		n++
	}
	if n < fieldsRead {
		return Process{}, fmt.Errorf("it has %d fields after the name; at least %d are wanted", n, fieldsRead)
	}
	if len(fields[fieldState]) != 1 {
		return Process{}, fmt.Errorf("%.20q is not a state", fields[fieldState])
	}
	if fields[fieldPGID] == "-1" && fields[fieldSID] == "-1" {
		return Process{}, errReleased
	}
	numbers := fieldReader{fields: &fields}
	p := Process{
		PID:             pid,
		PPID:            int(numbers.at(fieldPPID)),
		PGID:            int(numbers.at(fieldPGID)),
		SID:             int(numbers.at(fieldSID)),
		State:           fields[fieldState][0],
		Start:           numbers.at(fieldStart),
		Name:            string(data[open+1 : closing]),
		Threads:         int(numbers.at(fieldThreads)),
		RSS:             numbers.at(fieldRSS) * pageSize,
		CPUTime:         time.Duration(numbers.at(fieldUserTime)+numbers.at(fieldSystemTime)) * tick,
		ChildrenCPUTime: time.Duration(numbers.at(fieldChildrenUserTime)+numbers.at(fieldChildrenSystemTime)) * tick,
	}
	return p, numbers.err
}

// fieldReader reads numbers and keeps the first error.
type fieldReader struct {
	fields *[fieldsRead]string
	err    error
}

// at is the number in field i. The kernel writes some of them signed; none
// that is read here is negative for a process of user space.
func (r *fieldReader) at(i int) uint64 {
	n, err := strconv.ParseUint(r.fields[i], 10, 63)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("field %d, %.20q, is not a number", i+3, r.fields[i])
	}
	return n
}

// Lines of /proc/PID/limits that are read.
const (
	limitRTTime = "Max realtime timeout"
	limitNoFile = "Max open files"
)

// unlimited is what a limit of RLIM_INFINITY is told as.
const unlimited = math.MaxUint64

// parseLimit finds one limit in /proc/PID/limits.
func parseLimit(data []byte, name string) (soft, hard uint64, err error) {
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, name+" ")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			return 0, 0, fmt.Errorf("%s has no two values", name)
		}
		if soft, err = parseLimitValue(fields[0]); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", name, err)
		}
		if hard, err = parseLimitValue(fields[1]); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", name, err)
		}
		return soft, hard, nil
	}
	return 0, 0, fmt.Errorf("it has no line %q", name)
}

func parseLimitValue(text string) (uint64, error) {
	if text == "unlimited" {
		return unlimited, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%.20q is not a limit", text)
	}
	return n, nil
}

// parseMemory finds the lines on memory in /proc/PID/status, which a process that has
// none lacks.
func parseMemory(data []byte) (m Memory, err error) {
	var shared uint64
	err = parseLines(data, " kB", map[string]*uint64{"VmHWM": &m.Peak, "RssAnon": &m.Anon, "RssFile": &m.File, "RssShmem": &shared, "VmSwap": &m.Swap})
	if err != nil {
		return Memory{}, err
	}
	m.File += shared
	for _, n := range []*uint64{&m.Peak, &m.Anon, &m.File, &m.Swap} {
		*n <<= 10
	}
	return m, nil
}

// parseIO finds what was read and written in /proc/PID/io, without what was given up
// before it was written.
func parseIO(data []byte) (read, written uint64, err error) {
	var cancelled uint64
	err = parseLines(data, "", map[string]*uint64{"read_bytes": &read, "write_bytes": &written, "cancelled_write_bytes": &cancelled})
	if err != nil {
		return 0, 0, err
	}
	return read, written - min(written, cancelled), nil
}

// parseLines finds the numbers of all these lines "name: number unit".
func parseLines(data []byte, unit string, want map[string]*uint64) error {
	left := len(want)
	for line := range strings.Lines(string(data)) {
		name, rest, _ := strings.Cut(line, ":")
		to := want[name]
		if to == nil {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), unit), 10, 53)
		if err != nil {
			return fmt.Errorf("%s %.20q is not a number", name, rest)
		}
		*to, left = n, left-1
	}
	if left == 0 {
		return nil
	}
	return fmt.Errorf("it lacks lines of %s", strings.Join(slices.Sorted(maps.Keys(want)), ", "))
}

// commandLength bounds a command line that is shown to people.
const commandLength = 4 << 10

// parseCommand turns /proc/PID/cmdline, arguments that end with NUL, into one
// line.
func parseCommand(data []byte) string {
	data = bytes.TrimRight(data[:min(len(data), commandLength)], "\x00")
	return printable(string(bytes.ReplaceAll(data, []byte{0}, []byte{' '})))
}

// printable escapes what could deceive a terminal or the reader of a log.
func printable(text string) string {
	clean := func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
	if !strings.ContainsFunc(text, clean) {
		return text
	}
	quoted := strconv.Quote(text)
	return quoted[1 : len(quoted)-1]
}

// parseFlocks reads proc_locks(5): "1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF".
// Who waits for a lock has an arrow behind the number.
func parseFlocks(data []byte, inode uint64) (pids []int, err error) {
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[1] != "FLOCK" {
			continue
		}
		if _, of, _ := strings.Cut(fields[5], ":"); !strings.HasSuffix(of, ":"+strconv.FormatUint(inode, 10)) {
			continue
		}
		pid, err := strconv.Atoi(fields[4])
		if err != nil {
			return nil, fmt.Errorf("cannot read the line %q: %w", line, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
