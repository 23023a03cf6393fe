package gate

import (
	"sync"
	"syscall"
	"unsafe"
)

// ShimName is what a shim is called (comm of proc_pid_comm(5)).
const ShimName = "gladsheim-shim"

// Descriptors of a shim besides the gate's: the socket it listens on, the
// directory where that has its name, and its first connection.
const (
	ListenFD = 4
	DirFD    = 5
	FirstFD  = 6
)

// maxEnds is how many ends are kept; of more the oldest go.
const maxEnds = 1 << 14

// maxShimFDs is more than come with any message.
const maxShimFDs = 8

// warden is the state of a shim.
type warden struct {
	mu      sync.Mutex
	living  map[int32]living // the children
	forking int              // of which the kernel may have made one that is not known yet
	known   sync.Cond        // that one less is
	ends    []End            // that were not heard of
	agents  map[int]bool     // connections; more than one only while an agent follows another
	forked  chan struct{}    // that there is somebody to wait for
	bred    chan struct{}    // likewise, for who waits for stops
	socket  syscall.Stat_t   // as it was when agents could find it

	pours    *pourer            // nil while no output was ever to be poured
	pipes    int                // that are not at their end
	troubles map[string]Trouble // that last, by whose; as told
	missed   []Trouble          // that were over when no agent listened
}

// living is a child that was not reaped.
type living struct {
	ticks   uint64
	whose   string
	heard   bool    // nobody will ask how it ended
	stopped bool    // by a signal
	pipe    *stream // of its output, nil if that is not poured
}

// shim is the life of the process that is the parent of every service, so that
// their ends are known also when no agent was there. It makes gates for the
// agent, reaps, orphans too, and keeps how its children ended until an agent has heard of it.
// It leaves when it has no agent, no child, no pipe and nothing to tell, or nobody who
// could come and ask, because its socket was removed.
//
// A service is no more bound to it than to any parent: when it is killed, the
// services run on.
func shim() {
	setName(ShimName + "\x00")
	root := [2]byte{'/'}
	syscall.RawSyscall(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(&root[0])), 0, 0)
	const prSetChildSubreaper = 36
	syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
	closeOnExec(ListenFD)
	closeOnExec(DirFD)
	closeOnExec(FirstFD)
	closeRange(FirstFD+1, 0)
	answer(StepExecute, 0)
	// Closed, but not free: what is received lies above all that a gate is given.
	syscall.Dup3(0, FD, syscall.O_CLOEXEC)
	w := &warden{living: map[int32]living{}, agents: map[int]bool{}, forked: make(chan struct{}, 1), bred: make(chan struct{}, 1), troubles: map[string]Trouble{}}
	w.known.L = &w.mu
	lookUp(&w.socket)
	go w.reap()
	go w.watchStops()
	for agent := FirstFD; ; {
		w.greet(agent)
		go w.serve(agent)
		for {
			var err error
			if agent, _, err = syscall.Accept4(ListenFD, syscall.SOCK_CLOEXEC); err == nil {
				break
			}
			pause := syscall.Timespec{Nsec: 100_000_000} // no descriptor or memory is free, perhaps
			syscall.Nanosleep(&pause, nil)
		}
	}
}

// patience is how long an agent may leave what it is told unread, before it is
// hung up on: it will connect again, and be told all anew.
var patience = syscall.Timeval{Sec: 1}

// greet tells a new agent who lives and what was kept.
func (w *warden) greet(agent int) {
	syscall.SetsockoptTimeval(agent, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &patience)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.agents[agent] = true
	w.name(agent, SayLiving, func(living) bool { return true })
	for _, e := range w.ends {
		say(agent, e.Encode(SayEnd), nil)
	}
	w.name(agent, SayStopped, func(l living) bool { return l.stopped })
	w.recount(agent)
	say(agent, []byte{SayAll}, nil)
}

// name names children to an agent, in as many messages as it takes, and in one at least.
func (w *warden) name(agent int, kind byte, which func(living) bool) {
	message := []byte{kind}
	for pid, l := range w.living {
		if !which(l) {
			continue
		}
		if message = putChild(message, Child{pid, l.ticks}); len(message)+childSize > MaxSaid {
			say(agent, message, nil)
			message = message[:1]
		}
	}
	say(agent, message, nil)
}

// serve talks with one agent until that goes.
func (w *warden) serve(agent int) {
	message, rights := make([]byte, 2+MaxWhose), make([]byte, syscall.CmsgSpace(4*maxShimFDs))
	for {
		n, nr, _, _, err := syscall.Recvmsg(agent, message, rights, syscall.MSG_CMSG_CLOEXEC)
		// An agent that leaves without having read all is told of first, once; what it
		// said before is still to be read (unix(7)).
		if err == syscall.EINTR || err == syscall.ECONNRESET {
			continue
		}
		if err != nil || n == 0 {
			break
		}
		files := received(rights[:nr])
		switch message[0] {
		case SayFork:
			files = w.fork(agent, message[1:n], files)
		case SayAsk:
			w.mu.Lock()
			say(agent, []byte{SayAll}, nil)
			w.mu.Unlock()
		case SayHeard:
			w.heard(string(message[1:n]))
		}
		for _, fd := range files {
			syscall.Close(fd)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.agents, agent)
	syscall.Close(agent)
	w.leaveIfIdle()
}

func received(rights []byte) []int {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return nil
	}
	files, _ := syscall.ParseUnixRights(&messages[0])
	return files
}

// say sends a message, or hangs up on who does not take it and tells false.
func say(agent int, message, rights []byte) bool {
	for {
		switch syscall.Sendmsg(agent, message, rights, nil, syscall.MSG_NOSIGNAL) {
		case nil:
			return true
		case syscall.EINTR:
		default:
			syscall.Shutdown(agent, syscall.SHUT_RDWR)
			return false
		}
	}
}

// sayAll tells every agent there is.
func (w *warden) sayAll(message []byte) {
	for agent := range w.agents {
		say(agent, message, nil)
	}
}

// fork makes a gate: the program is the agent's, so that the two understand each
// other. It may take for ever: a child that is born in a frozen cgroup does not get
// to execve. It gives back the descriptors that are not needed any more.
func (w *warden) fork(agent int, message []byte, files []int) (left []int) {
	policy, whose := byte(PourNot), ""
	if len(message) > 0 {
		policy, whose = message[0], string(message[1:])
	}
	w.mu.Lock()
	w.forking++
	w.mu.Unlock()
	pipe, left, err := w.takePipe(whose, policy, files)
	var pid, pidfd int
	if err == nil {
		pid, pidfd, err = forkGate(left)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forking--
	defer w.known.Broadcast()
	if err != nil {
		errno, ok := err.(syscall.Errno)
		if !ok {
			errno = syscall.EIO
		}
		say(agent, EncodeChild(SayChild, Child{}, errno), nil)
		return left
	}
	defer syscall.Close(pidfd)
	c, taken := Child{int32(pid), startTicks(pid)}, false
	if c.StartTicks == 0 { // nobody could tell it from others
		say(agent, EncodeChild(SayChild, c, syscall.ESRCH), nil)
	} else {
		taken = say(agent, EncodeChild(SayChild, c, 0), syscall.UnixRights(pidfd))
	}
	// One that was not taken leaves, for nobody has its socket.
	w.living[c.PID] = living{ticks: c.StartTicks, whose: whose, heard: !taken, pipe: pipe}
	for other := range w.agents {
		if other != agent {
			say(other, putChild([]byte{SayLiving}, c), nil)
		}
	}
	for _, waits := range []chan struct{}{w.forked, w.bred} {
		select {
		case waits <- struct{}{}:
		default:
		}
	}
	return left
}

func forkGate(files []int) (pid, pidfd int, err error) {
	if len(files) < ForkedFiles {
		return 0, -1, syscall.EBADMSG
	}
	attr := &syscall.ProcAttr{
		Dir: "/", Env: []string{Mark, OneProcessor},
		Files: []uintptr{uintptr(files[1]), uintptr(files[2]), uintptr(files[2]), uintptr(files[3])},
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	}
	if len(files) > ForkedFiles {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, files[ForkedFiles]
	}
	pid, err = syscall.ForkExec("/proc/self/fd/"+string(decimal(int32(files[0]))), []string{"gladsheim-gate"}, attr)
	return pid, pidfd, err
}

func (w *warden) heard(whose string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	others := w.ends[:0]
	for _, e := range w.ends {
		if e.Whose != whose {
			others = append(others, e)
		}
	}
	w.ends = others
	for pid, l := range w.living {
		if l.whose == whose {
			l.heard = true
			w.living[pid] = l
		}
	}
}

// leaveIfIdle ends the process when nobody needs it.
func (w *warden) leaveIfIdle() {
	if len(w.agents) == 0 && len(w.living) == 0 && w.pipes == 0 && (len(w.ends) == 0 || !w.reachable()) {
		leave(0)
	}
}

// lookUp looks where an agent would for the socket, also when the path of its
// directory leads elsewhere by now.
func lookUp(found *syscall.Stat_t) error {
	return syscall.Lstat("/proc/self/fd/"+string(decimal(DirFD))+"/"+ShimSocket, found)
}

// reachable tells whether an agent that comes would find the socket.
func (w *warden) reachable() bool {
	var now syscall.Stat_t
	err := lookUp(&now)
	return err != syscall.ENOENT && (err != nil || now.Dev == w.socket.Dev && now.Ino == w.socket.Ino)
}

// reap waits for the ends of children, and of orphans.
func (w *warden) reap() {
	for {
		pid, _, err := awaitChild(pAll, 0, syscall.WEXITED|syscall.WNOWAIT) // it is reaped later
		if err == syscall.ECHILD {
			<-w.forked
		}
		if err != nil {
			continue
		}
		w.pourLast(int(pid))
		w.mu.Lock()
		w.bury(int(pid))
		w.leaveIfIdle()
		w.mu.Unlock()
	}
}

// bury reaps a process that has ended, and tells of it. The caller holds mu.
func (w *warden) bury(pid int) {
	e := End{Child: Child{PID: int32(pid)}}
	// Of a zombie the kernel still tells these.
	var brand rlimit
	if _, _, errno := prlimitOf(pid, rlimitRTTime, nil, &brand); errno == 0 {
		e.Brand = brand.hard
	}
	if session, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, uintptr(pid), 0, 0); errno == 0 {
		e.Session = int32(session)
	}
	var text [statSize]byte
	named := nameOf(statOf(pid, &text)) == Name
	var now syscall.Timeval
	if syscall.Gettimeofday(&now) == nil {
		e.At = now.Nano()
	}
	var usage syscall.Rusage
	for {
		_, err := syscall.Wait4(pid, &e.Status, 0, &usage)
		if err == nil {
			break
		}
		if err != syscall.EINTR {
			return
		}
	}
	// A program may call itself so too; but a gate has not many ways to end.
	e.Gate = named && (e.Status.Signaled() || e.Status.ExitStatus() == unopened)
	e.CPU = uint64(usage.Utime.Nano() + usage.Stime.Nano())
	child, ours := w.living[e.PID]
	if !ours {
		w.sayAll(e.Encode(SayOrphan))
		return
	}
	delete(w.living, e.PID)
	e.StartTicks, e.Whose = child.ticks, child.whose
	if !child.heard {
		w.keep(e)
	}
	w.sayAll(e.Encode(SayEnd))
}

func (w *warden) keep(e End) {
	if len(w.ends) == maxEnds {
		w.ends = w.ends[1:]
	}
	w.ends = append(w.ends, e)
}

// Whom waitid(2) is asked about: P_ALL, P_PID.
const (
	pAll = 0
	pPID = 1
)

// awaitChild waits until something has become of a child, and tells the signal or the
// exit code that this was; of no child with WNOHANG if nothing has.
func awaitChild(whom uintptr, pid int32, options uintptr) (child, status int32, err error) {
	var info [128]byte // siginfo_t
	_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, whom, uintptr(pid), uintptr(unsafe.Pointer(&info[0])), options, 0, 0)
	if errno != 0 {
		return 0, 0, errno
	}
	const behind = 8 // si_status, behind si_pid and si_uid
	return *(*int32)(unsafe.Pointer(&info[siginfoPID])), *(*int32)(unsafe.Pointer(&info[siginfoPID+behind])), nil
}

// siginfoPID is where siginfo_t has si_pid: behind three ints, aligned for pointers.
const siginfoPID = (12 + unsafe.Alignof(uintptr(0)) - 1) &^ (unsafe.Alignof(uintptr(0)) - 1)

// statSize is more than a line of /proc/PID/stat has.
const statSize = 1024

// statOf reads /proc/PID/stat of this process or of a child that was not reaped;
// nothing if that can not be.
func statOf(pid int, text *[statSize]byte) []byte {
	fd, err := syscall.Open("/proc/"+string(decimal(int32(pid)))+"/stat", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	n, err := syscall.Read(fd, text[:])
	if err != nil {
		return nil
	}
	return text[:n]
}

// nameOf finds what is between the first bracket and the last.
func nameOf(stat []byte) string {
	first, last := 0, len(stat)-1
	for first < len(stat) && stat[first] != '(' {
		first++
	}
	for last > first && stat[last] != ')' {
		last--
	}
	if last <= first {
		return ""
	}
	return string(stat[first+1 : last])
}

func startTicks(pid int) uint64 {
	var text [statSize]byte
	return ticksOf(statOf(pid, &text))
}

// ticksOf finds field 22, behind the name, which may hold anything, brackets too.
func ticksOf(stat []byte) uint64 {
	i := len(stat) - 1
	for i >= 0 && stat[i] != ')' {
		i--
	}
	const behind = 22 - 2 // fields, of which each begins with a space
	spaces, ticks := 0, uint64(0)
	for _, c := range stat[i+1:] {
		switch {
		case c == ' ':
			if spaces++; spaces > behind {
				return ticks
			}
		case spaces == behind && c >= '0' && c <= '9':
			ticks = ticks*10 + uint64(c-'0')
		}
	}
	return 0 // it was cut off
}
