package gate

import "syscall"

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

// BesideOf is Self of a program that runs beside a main process: without the bit.
func BesideOf(pid int, startTicks uint64) uint64 { return Self(pid, startTicks) &^ selfBit }

// IsBeside tells whether the soft limit of a branded process, which descendants inherit, is
// from BesideOf.
func IsBeside(self uint64) bool { return self>>61 == 0 && self>>ticksBits > 0 }

const (
	selfBit   = 1 << 61
	ticksBits = 39
)

// ownSelf is Self of this process, or BesideOf, as /proc/self/stat tells it
// (proc_pid_stat(5)).
func ownSelf(beside bool) (uint64, syscall.Errno) {
	ticks := startTicks(syscall.Getpid())
	if ticks == 0 {
		return 0, syscall.EBADMSG
	}
	if beside {
		return BesideOf(syscall.Getpid(), ticks), 0
	}
	return Self(syscall.Getpid(), ticks), 0
}
