package process

import (
	"errors"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// errLives says that there is nothing to reap yet.
var errLives = errors.New("it has not ended")

// reap waits for the child of pidfd without blocking. It fails with ECHILD
// when it is no child of ours or was reaped, and with errLives when it has not
// ended.
func reap(pidfd int) (service.Exit, Used, error) {
	_, exit, used, err := waitid(unix.P_PIDFD, pidfd, unix.WEXITED|unix.WNOHANG)
	return exit, used, err
}

// childInfo is the part of siginfo_t that waitid(2) fills, which begins where
// the union in it does: after three ints, aligned for pointers.
type childInfo struct {
	pid    int32
	uid    uint32
	status int32
}

const childInfoOffset = (12 + unsafe.Alignof(uintptr(0)) - 1) &^ (unsafe.Alignof(uintptr(0)) - 1)

// Values of si_code for SIGCHLD (sigaction(2)).
const (
	cldExited = 1
	cldDumped = 3
)

// waitid is waitid(2) with the counters of the child.
func waitid(idType, id, options int) (pid int, exit service.Exit, used Used, err error) {
	var info unix.Siginfo
	var usage unix.Rusage
	for {
		err = unix.Waitid(idType, id, &info, options, &usage)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, service.Exit{}, Used{}, err
	}
	child := (*childInfo)(unsafe.Add(unsafe.Pointer(&info), childInfoOffset))
	if child.pid == 0 {
		return 0, service.Exit{}, Used{}, errLives
	}
	if info.Code == cldExited {
		exit.Code = int(child.status)
	} else {
		exit.Signal = syscall.Signal(child.status)
		exit.Core = info.Code == cldDumped
	}
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return int(child.pid), exit, Used{CPUTime: cpu, Known: true}, nil
}

// telling is whether the kernel tells how a process ended.
type telling uint8

const (
	tellsNow   telling = iota // it did
	tellsLater                // when the process was reaped
	tellsNever                // this kernel does not, or it has forgotten
)

// keptExit asks the kernel how the process of pidfd ended (pidfd.h,
// PIDFD_GET_INFO: Linux 6.13; PIDFD_INFO_EXIT: 6.15), whoever reaped it.
func keptExit(pidfd int) (service.Exit, telling) {
	info := pidfdInfo{mask: unix.PIDFD_INFO_EXIT}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	switch {
	case errno != 0:
		return service.Exit{}, tellsNever
	case info.mask&unix.PIDFD_INFO_EXIT == 0:
		return service.Exit{}, tellsLater
	}
	status := unix.WaitStatus(info.exitCode)
	if status.Exited() {
		return service.Exit{Code: status.ExitStatus()}, tellsNow
	}
	return service.Exit{Signal: status.Signal(), Core: status.CoreDump()}, tellsNow
}

// pidfdInfo is the first version of struct pidfd_info, which later kernels
// still take.
type pidfdInfo struct {
	mask     uint64
	cgroup   uint64
	ids      [11]uint32 // numbers and credentials
	exitCode int32      // as wait(2) gives it
}

// pidfdGetInfo is _IOWR(0xFF, 11, struct pidfd_info), with our size in it.
const pidfdGetInfo = 3<<30 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xFF<<8 | 11

// Await waits until the child of pidfd has ended, and reaps it. For children
// that no Process holds; it blocks its thread.
func Await(pidfd int) {
	_, _, _, _ = waitid(unix.P_PIDFD, pidfd, unix.WEXITED)
}
