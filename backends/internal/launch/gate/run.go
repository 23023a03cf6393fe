package gate

import (
	"syscall"
	"unsafe"
)

// run is the life of a gate. It runs on the thread that the process began
// with, to which the Go runtime ties every initialiser, so credentials and
// other properties of threads need to be set only here.
func run() {
	closeOnExec(FD)
	setName(Name + "\x00")
	p := readPlan()
	resetSignals()
	if step, errno := dress(&p); errno != 0 {
		fail(step, errno)
	}
	answer(StepWait, 0)
	awaitGo()
	switch {
	case p.Pause:
		pause()
	case p.Shim:
		shim()
	}
	if step, errno := change(&p); errno != 0 {
		fail(step, errno)
	}
	if step, errno := setLateRlimits(&p); errno != 0 {
		fail(step, errno)
	}
	answer(StepExecute, 0)
	if p.IgnorePipe { // not before: an answer that nobody hears ends the gate
		setSignal(uintptr(syscall.SIGPIPE), ignored)
	}
	// Not a raw execve: another thread of the runtime that was just being
	// made would find clone(2) failing, and end the process.
	err := syscall.Exec(p.Path, p.Args, p.Env)
	errno, _ := err.(syscall.Errno)
	fail(StepExecute, errno)
}

// Name is what a gate is called (comm of proc_pid_comm(5)) until it executes its program.
const Name = "gladsheim-gate"

// readPlan waits for the plan. When the agent goes instead, so does the gate.
func readPlan() Plan {
	var head [4]byte
	readFull(head[:])
	size := getUint32(head[:])
	if size > maxPlan {
		fail(StepRead, syscall.E2BIG)
	}
	body := make([]byte, size)
	readFull(body)
	p, ok := decode(body)
	if !ok {
		fail(StepRead, syscall.EBADMSG)
	}
	return p
}

// unopened is how a gate exits that nobody opened. An agent that finds its
// zombie must not take it for a program that ended well.
const unopened = 127

// awaitGo returns when the agent opens the gate.
func awaitGo() {
	var word [1]byte
	readFull(word[:])
	if word[0] != Go {
		leave(unopened)
	}
}

// readFull fills b from the agent. The reads tell the runtime that they block,
// or it would send this thread a signal every 10 ms.
func readFull(b []byte) {
	for len(b) > 0 {
		n, _, errno := syscall.Syscall(syscall.SYS_READ, FD, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch {
		case errno == syscall.EINTR:
		case errno != 0 || n == 0:
			leave(unopened)
		default:
			b = b[n:]
		}
	}
}

func answer(step Step, errno syscall.Errno) {
	message := append([]byte{byte(step)}, putUint32(nil, uint32(errno))...)
	// Five bytes fit into the empty buffer of a socket: never partial. If the
	// agent has gone meanwhile, SIGPIPE ends the gate, which is right.
	syscall.RawSyscall(syscall.SYS_WRITE, FD, uintptr(unsafe.Pointer(&message[0])), uintptr(len(message)))
}

func fail(step Step, errno syscall.Errno) {
	answer(step, errno)
	leave(127)
}

func leave(code uintptr) {
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}

// pause sleeps for ever, holding a cgroup open. It ends by a signal only, not
// with the agent.
func pause() {
	setName("gladsheim-pause\x00")
	root := [2]byte{'/'}
	syscall.RawSyscall(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(&root[0])), 0, 0)
	closeRange(FD+1, 0)
	answer(StepExecute, 0)
	syscall.RawSyscall(syscall.SYS_CLOSE, FD, 0, 0)
	for {
		syscall.Syscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}

func setName(name string) {
	const prSetName = 15
	syscall.RawSyscall(syscall.SYS_PRCTL, prSetName, uintptr(unsafe.Pointer(unsafe.StringData(name))), 0)
}

func closeOnExec(fd uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall(syscall.SYS_FCNTL, fd, syscall.F_SETFD, syscall.FD_CLOEXEC)
	return errno
}
