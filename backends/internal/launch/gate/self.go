package gate

import (
	"syscall"
	"unsafe"
)

// Self is the number of a process and its start ticks in one: bit 61, then 22 bits
// of the number, which are all that it can have (PID_MAX_LIMIT), then 39 of the
// ticks, which last for 174 years.
func Self(pid int, startTicks uint64) uint64 {
	return selfBit | uint64(pid)<<ticksBits | startTicks&(1<<ticksBits-1)
}

// ParseSelf reads what Self made, and tells whether it did.
func ParseSelf(self uint64) (pid int, startTicks uint64, ok bool) {
	pid = int(self >> ticksBits &^ (selfBit >> ticksBits))
	return pid, self & (1<<ticksBits - 1), self>>61 == 1 && pid > 0
}

const (
	selfBit   = 1 << 61
	ticksBits = 39
)

// ownSelf is Self of this process, as /proc/self/stat tells it (proc_pid_stat(5)).
func ownSelf() (uint64, syscall.Errno) {
	fd, errno := open("/proc/self/stat\x00", syscall.O_RDONLY)
	if errno != 0 {
		return 0, errno
	}
	var text [1024]byte
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&text[0])), uintptr(len(text)))
	syscall.RawSyscall(syscall.SYS_CLOSE, fd, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	ticks, ok := startOf(text[:n])
	if !ok {
		return 0, syscall.EBADMSG
	}
	return Self(syscall.Getpid(), ticks), 0
}

// startOf finds the start ticks in a stat: field 22, of which the third is the
// first behind the name. The name of a gate has no space or bracket.
func startOf(stat []byte) (ticks uint64, ok bool) {
	const fieldStart = 22
	field := 1
	for _, c := range stat {
		switch {
		case c == ' ' && field == fieldStart:
			return ticks, ok
		case c == ' ':
			field++
		case field != fieldStart:
		case c < '0' || c > '9':
			return 0, false
		default:
			ticks, ok = ticks*10+uint64(c-'0'), true
		}
	}
	return 0, false
}
