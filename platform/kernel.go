package platform

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

var thisKernel = kernel{uid: os.Geteuid, pidfd: tryPidfd, bornInside: tryBornInside}

// tryPidfd opens this process, sends it nothing, and waits for it, which must
// fail for the right reason: we are not our own child.
func tryPidfd() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil {
		return fmt.Errorf("pidfd_send_signal: %w", err)
	}
	if err := unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		return fmt.Errorf("waitid of a pidfd: %w", err)
	}
	return nil
}

// cloneArgs is struct clone_args of clone3(2), version 2.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
	setTID, setTIDSize, cgroup                                           uint64
}

// tryBornInside asks for a child in a cgroup that does not exist. A kernel that
// knows CLONE_INTO_CGROUP says EBADF to that, any other something else; in no
// case is there a child.
func tryBornInside() error {
	args := cloneArgs{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: 1<<31 - 1}
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	switch {
	case errno == unix.EBADF:
		return nil
	case errno != 0:
		return fmt.Errorf("clone3: %w", errno)
	case pid == 0:
		// A sandbox that ignores the flag has made a child after all. It must
		// not go on as a second agent.
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	if _, err := unix.Wait4(int(pid), nil, 0, nil); err != nil {
		return fmt.Errorf("clone3 ignores the cgroup, and its child can not be waited for: %w", err)
	}
	return errors.New("clone3 ignores the cgroup")
}
