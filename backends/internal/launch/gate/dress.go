package gate

import (
	"syscall"
	"unsafe"
)

// resetSignals gives every signal its default action and blocks none, so that
// what the agent ignores or blocks does not reach the program: execve(2) keeps
// both. From here on a signal ends the gate as it would end the program.
func resetSignals() {
	const last = 64
	for signal := uintptr(1); signal <= last; signal++ {
		setSignal(signal, byDefault) // fails for SIGKILL and SIGSTOP, which can not be ignored
	}
	const sigSetMask = 2
	var mask signalMask
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, sigSetMask, uintptr(unsafe.Pointer(&mask[0])), 0, unsafe.Sizeof(mask), 0, 0)
}

type signalMask [8]byte

// What is done about a signal: SIG_DFL and SIG_IGN.
const (
	byDefault = iota
	ignored
)

func setSignal(signal, handler uintptr) {
	action := [8]uintptr{handler} // no kernel's struct sigaction is larger
	syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&action[0])), 0, unsafe.Sizeof(signalMask{}), 0, 0)
}

// dress sets what may be set while the gate waits, and as the agent's user.
func dress(p *Plan) (Step, syscall.Errno) {
	syscall.RawSyscall(syscall.SYS_UMASK, uintptr(p.Umask), 0, 0)
	resetScheduling()
	if errno := setScheduling(p); errno != 0 {
		return StepScheduling, errno
	}
	if errno := setOOMScoreAdj(p.OOMScoreAdj); errno != 0 {
		return StepOOMScore, errno
	}
	return setRlimits(p)
}

// resetScheduling undoes an agent's niceness, policy, CPU affinity, IO priority
// and timer slack, as far as the kernel allows: a plain user may not.
func resetScheduling() {
	const (
		schedOther    = 0
		ioprioProcess = 1
		prTimerSlack  = 29
		timerSlack    = 50_000 // ns, the kernel's own
	)
	var parameter [8]byte
	syscall.RawSyscall(syscall.SYS_SCHED_SETSCHEDULER, 0, schedOther, uintptr(unsafe.Pointer(&parameter[0])))
	syscall.RawSyscall(syscall.SYS_SETPRIORITY, 0, 0, 0)
	var cpus [128]byte
	for i := range cpus {
		cpus[i] = 0xff
	}
	syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(cpus), uintptr(unsafe.Pointer(&cpus[0])))
	syscall.RawSyscall(syscall.SYS_IOPRIO_SET, ioprioProcess, 0, 0)
	syscall.RawSyscall(syscall.SYS_PRCTL, prTimerSlack, timerSlack, 0)
}

// setScheduling sets what the definition asks for over that.
func setScheduling(p *Plan) syscall.Errno {
	if p.Policy != 0 {
		parameter := p.Priority // the one field of struct sched_param
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETSCHEDULER, 0, uintptr(p.Policy), uintptr(unsafe.Pointer(&parameter))); errno != 0 {
			return errno
		}
	}
	if p.Nice != 0 {
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETPRIORITY, 0, 0, uintptr(p.Nice)); errno != 0 {
			return errno
		}
	}
	return 0
}

// setOOMScoreAdj writes /proc/self/oom_score_adj. A plain user may not go
// below what it was given; where the definition asks for no protection, 0 or
// more, the greater value that was inherited is left standing, for else no
// service could start below a user manager, which has one.
func setOOMScoreAdj(score int32) syscall.Errno {
	fd, errno := open("/proc/self/oom_score_adj\x00", syscall.O_WRONLY)
	if errno != 0 {
		return errno
	}
	text := decimal(score)
	_, _, errno = syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&text[0])), uintptr(len(text)))
	syscall.RawSyscall(syscall.SYS_CLOSE, fd, 0, 0)
	if errno == syscall.EACCES && score >= 0 {
		return 0
	}
	return errno
}

func open(path string, flags uintptr) (fd uintptr, errno syscall.Errno) {
	const atFdcwd = ^uintptr(99)
	fd, _, errno = syscall.RawSyscall6(syscall.SYS_OPENAT, atFdcwd,
		uintptr(unsafe.Pointer(unsafe.StringData(path))), flags|syscall.O_CLOEXEC, 0, 0, 0)
	return fd, errno
}

func decimal(n int32) []byte {
	var b [12]byte
	i, negative, rest := len(b), n < 0, int64(n)
	if negative {
		rest = -rest
	}
	for {
		i--
		b[i] = byte('0' + rest%10)
		if rest /= 10; rest == 0 {
			break
		}
	}
	if negative {
		i--
		b[i] = '-'
	}
	return b[i:]
}

const (
	rlimitCPU = iota
	rlimitFileSize
	rlimitData
	rlimitStack
	rlimitCore
	rlimitRSS
	_ // 6 to 9 differ on some architectures; all that Go knows but mips have these
	rlimitNoFile
	rlimitMemLock
	rlimitAddressSpace
	rlimitLocks
	rlimitPending
	rlimitMessageQueue
	rlimitNice
	rlimitRTPriority
	rlimitRTTime
	numRlimits
)

const infinity = ^uint64(0)

// startLimits are the soft limits the kernel gives its first process, so that
// those of the agent do not matter; 0 keeps the hard limit for the soft one.
// unbounded ones are unlimited hard as well, where that may be done.
var startLimits = [numRlimits]struct {
	soft      uint64
	unbounded bool
}{
	rlimitCPU:          {infinity, true},
	rlimitFileSize:     {infinity, true},
	rlimitData:         {infinity, true},
	rlimitStack:        {8 << 20, true},
	rlimitRSS:          {infinity, true},
	rlimitNoFile:       {1024, false},
	rlimitMemLock:      {8 << 20, false},
	rlimitAddressSpace: {infinity, true},
	rlimitLocks:        {infinity, true},
	rlimitMessageQueue: {819200, false},
	rlimitRTTime:       {infinity, false},
}

// Unasked is the soft and the hard limit that a program gets of a resource when nobody
// asked for one, and hard is that of the agent. To raise that may be refused, and then is
// not done.
func Unasked(resource int, hard uint64) (soft, most uint64) {
	start := startLimits[resource]
	switch {
	case resource == rlimitCore:
		return 0, 0
	case resource == rlimitNice || resource == rlimitRTPriority:
		return 0, hard
	case start.unbounded:
		return start.soft, infinity
	case start.soft == 0:
		return hard, hard
	}
	return min(start.soft, hard), hard
}

type rlimit struct{ soft, hard uint64 }

func setRlimits(p *Plan) (Step, syscall.Errno) {
	for resource := range numRlimits {
		var limit rlimit
		if _, _, errno := prlimit(resource, nil, &limit); errno != 0 {
			return StepRlimits, errno
		}
		asked, wanted := p.rlimit(resource)
		switch {
		case wanted && !late(resource):
			limit = asked
		case resource == rlimitRTTime && p.Brand != 0:
			self, errno := ownSelf(p.Beside)
			if errno != 0 {
				return StepRlimits, errno
			}
			limit = rlimit{self, p.Brand}
		case resource == rlimitNoFile && p.NoFile != 0:
			limit = rlimit{p.NoFile, p.NoFile}
		default:
			soft, hard := Unasked(resource, limit.hard)
			if hard > limit.hard {
				if _, _, errno := prlimit(resource, &rlimit{soft, hard}, nil); errno == 0 {
					continue
				}
			}
			limit = rlimit{min(soft, limit.hard), min(hard, limit.hard)}
		}
		if resource == rlimitNoFile {
			// Through package syscall, or its Exec would restore the limit that
			// the gate was born with.
			err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: limit.soft, Max: limit.hard})
			if errno, failed := err.(syscall.Errno); failed {
				return StepNoFile, errno
			}
			continue
		}
		if _, _, errno := prlimit(resource, &limit, nil); errno != 0 {
			return StepRlimits, errno
		}
	}
	return 0, 0
}

// rlimit is the limit that the definition asks for.
func (p *Plan) rlimit(resource int) (rlimit, bool) {
	for _, l := range p.Rlimits {
		if int(l.Resource) == resource {
			return rlimit{l.Soft, l.Hard}, true
		}
	}
	return rlimit{}, false
}

// late tells which limits the gate itself could not live with, or not for long. They
// are set when it needs no more memory; until then there is none of them.
func late(resource int) bool { return resource == rlimitAddressSpace || resource == rlimitData }

func setLateRlimits(p *Plan) (Step, syscall.Errno) {
	for resource := range numRlimits {
		if asked, wanted := p.rlimit(resource); wanted && late(resource) {
			if _, _, errno := prlimit(resource, &asked, nil); errno != 0 {
				return StepRlimits, errno
			}
		}
	}
	return 0, 0
}

func prlimit(resource int, limit, old *rlimit) (uintptr, uintptr, syscall.Errno) {
	return prlimitOf(0, resource, limit, old)
}

// prlimitOf is prlimit(2) of another process, or of this one if pid is 0.
func prlimitOf(pid, resource int, limit, old *rlimit) (uintptr, uintptr, syscall.Errno) {
	return syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(pid), uintptr(resource),
		uintptr(unsafe.Pointer(limit)), uintptr(unsafe.Pointer(old)), 0, 0)
}
