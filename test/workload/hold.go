package main

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// runHold seizes a process and has the kernel stop it in the midst of its
// death (PTRACE_EVENT_EXIT in ptrace(2)): SIGKILL does not end it, any more
// than it ends one that waits for a disk, until this program ends.
func runHold(args []string) error {
	pid, err := number(args, 0)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the thread is the tracer, not the program
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, unix.PTRACE_O_TRACEEXIT, 0, 0)
	if errno != 0 {
		return fmt.Errorf("cannot seize process %d: %w", pid, errno)
	}
	ready()
	forever()
	return nil
}
