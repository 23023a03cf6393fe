// Package process holds one process by its pidfd, never by its number: it
// tells when the process has ended, how (exactly, for children of ours and
// wherever the kernel keeps it), and signals nobody else. A process that is
// held here is never touched by anything but Signal.
package process

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

// ErrGone says that the process that was looked for is no more, even if
// another one has its number.
var ErrGone = errors.New("the process is gone")

// UnknownExit is why nobody knows how a process ended that was no child of
// ours and about which the kernel keeps nothing.
const UnknownExit = "agent_was_down"

// ParentLost is why nobody knows how a process ended whose parent, which would have
// told us, is no more or has not told within parentGrace.
const ParentLost = "parent_lost"

// parentGrace is how long a parent may take to tell of an end that was seen.
const parentGrace = 10 * time.Second

// reapGrace is how long the exit of a zombie that is not our child may wait
// for its parent to reap it; only then does the kernel, or the teller, tell how it ended.
const reapGrace = time.Second

// orphanGrace is reapGrace where there is a teller, which may be slow to tell.
const orphanGrace = 5 * time.Second

// Process is one process. Its methods may be called by many goroutines at
// once.
type Process struct {
	pid    int
	start  uint64
	exited chan struct{}
	remove func() // from the watcher

	// mu guards the pidfd against being closed while somebody uses it.
	mu    sync.RWMutex
	pidfd int // -1 once closed

	settle sync.Once // closes exited
	exit   service.Exit
	used   Used
	at     time.Time
	disown sync.Once
	grace  *time.Timer // runs while a zombie waits for its parent

	teller   Teller      // of its end, nil when nobody is
	told     bool        // the teller will say no more
	patience *time.Timer // runs while an end that was seen waits for the teller
	forget   func()      // ends the waiting for the teller
}

// Told is how a process ended, as its parent says.
type Told struct {
	Exit     service.Exit
	Used     Used
	At       time.Time // wall clock
	NeverRan bool      // it ended as what it was born as, before it ran a program
}

// Teller is a parent that tells us how its children ended.
type Teller interface {
	// Await calls tell once: when the process has ended, at once if it has
	// already, or with false when nobody is sure to tell: the teller is gone, or it is
	// not its child. One that becomes its child, as an orphan, it tells of all the same.
	Await(pid int, startTicks uint64, tell func(Told, bool)) (forget func())
	// Ended tells how a child ended that is no more. An error says that the teller
	// may know and could not be asked.
	Ended(pid int, startTicks uint64) (Told, bool, error)
	// AwaitStop calls tell once: when a signal has stopped the process, or it goes on
	// after that, or nobody will tell any more. tell must not block. told is false when
	// nobody tells of that process.
	AwaitStop(pid int, startTicks uint64, tell func()) (forget func(), told bool)
}

// Mark names a process for whoever finds it again in the same boot.
func Mark(pid int, startTicks uint64) string { return fmt.Sprintf("%d %d", pid, startTicks) }

// ParseMark reads what Mark wrote, and tells whether it did.
func ParseMark(mark string) (pid int, startTicks uint64, ok bool) {
	if _, err := fmt.Sscanf(mark, "%d %d", &pid, &startTicks); err != nil || pid <= 0 || Mark(pid, startTicks) != mark {
		return 0, 0, false
	}
	return pid, startTicks, true
}

// Believable tells whether somebody who may lie can be believed that a process was
// the main one of an incarnation. If it lives, belongs has to say that it is of that
// incarnation; if it is no more, there is nobody whom the lie could harm, unless its
// start ticks could still be given to another. An error is belongs's, or one of /proc.
func Believable(fs procfs.FS, pid int, startTicks uint64, belongs func() (bool, error)) (bool, error) {
	// The ticks are read first: who belongs in its stead can only be a successor,
	// and what is named then is no more.
	now, err := fs.StartTicks(pid)
	if err == nil && now == startTicks {
		is, err := belongs()
		return is || errors.Is(err, procfs.ErrNoProcess), notGone(err)
	}
	return procfs.Ticks(startTicks+1) <= procfs.SinceBoot(), notGone(err)
}

func notGone(err error) error {
	if errors.Is(err, procfs.ErrNoProcess) {
		return nil
	}
	return err
}

// Used is what the kernel counted for a child of ours until it was reaped:
// its own CPU time and that of all the descendants it had waited for.
type Used struct {
	CPUTime time.Duration
	Known   bool // false for a process that somebody else reaped
}

// Child takes up pid, a child of ours, and its pidfd, which from now on is
// the Process's own; after an error it stays the caller's. The child is reaped with waitid(P_PIDFD) when the pidfd
// tells of its end, and by nobody else.
func Child(w *watch.Watcher, pid, pidfd int) (*Process, error) {
	fs, err := procfs.New("/proc")
	if err != nil {
		return nil, err
	}
	start, err := fs.StartTicks(pid)
	if err != nil {
		return nil, fmt.Errorf("cannot identify child %d: %w", pid, err)
	}
	return hold(w, pid, pidfd, start, nil)
}

// Ward takes up a child of the teller's; else it is like Child.
func Ward(w *watch.Watcher, pid, pidfd int, startTicks uint64, teller Teller) (*Process, error) {
	p, err := hold(w, pid, pidfd, startTicks, teller)
	if err != nil {
		return nil, err
	}
	p.listen()
	return p, nil
}

// listen has the teller tell how p ends.
func (p *Process) listen() {
	forget := p.teller.Await(p.pid, p.start, p.tell)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget = forget
}

// tell takes what the teller says.
func (p *Process) tell(t Told, known bool) {
	if known {
		p.end(t.Exit, t.Used, t.At)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = true
	if p.pidfd >= 0 && Ended(p.pidfd) {
		p.judge(0)
	}
}

// Open gives a pidfd of the process that has the number pid now; it is the
// caller's to close. It fails with ErrGone when none has.
func Open(pid int) (pidfd int, err error) {
	pidfd, err = unix.PidfdOpen(pid, 0)
	switch {
	case err == nil:
		return pidfd, nil
	// EINVAL: the number is not free, because a session or process group still
	// bears it, and no process has it any more.
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
		return -1, ErrGone
	}
	return -1, fmt.Errorf("cannot open a pidfd of process %d: %w", pid, err)
}

// Find takes up a process that need not be a child of ours: pid, if it began
// at startTicks. It fails with ErrGone when that process is no more. How it
// ends is known if the teller knows (nil: there is none), if it is our child after
// all, or if the kernel tells (PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15);
// else it is UnknownExit. One that is no more, but of which the teller knows how
// it ended, is found as well: it has exited, with service.NeverRan if it ran no program.
//
// A zombie is found too; it has ended, and Exited tells so soon.
func Find(w *watch.Watcher, fs procfs.FS, teller Teller, pid int, startTicks uint64) (*Process, error) {
	p, err := find(w, fs, teller, pid, startTicks)
	if teller == nil {
		return p, err
	}
	t, ended, deaf := teller.Ended(pid, startTicks)
	switch {
	case err == nil:
		p.listen()
	case deaf != nil:
		return nil, deaf
	case errors.Is(err, ErrGone) && ended:
		return past(pid, startTicks, teller, t), nil
	}
	return p, err
}

// past is a process that has ended.
func past(pid int, startTicks uint64, teller Teller, t Told) *Process {
	p := &Process{pid: pid, start: startTicks, pidfd: -1, exited: make(chan struct{}), remove: func() {}, teller: teller}
	p.disown.Do(func() {}) // it was never owned
	if t.NeverRan {
		t.Exit = service.NeverRan
	}
	p.end(t.Exit, t.Used, t.At)
	return p
}

func find(w *watch.Watcher, fs procfs.FS, teller Teller, pid int, startTicks uint64) (*Process, error) {
	pidfd, err := Open(pid)
	if err != nil {
		return nil, err
	}
	// The ticks are read after the pidfd was opened: if they are right then
	// so is the pidfd, for the number can not have been given away before.
	start, err := fs.StartTicks(pid)
	if errors.Is(err, procfs.ErrNoProcess) || (err == nil && start != startTicks) {
		unix.Close(pidfd)
		return nil, ErrGone
	}
	if err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("cannot identify process %d: %w", pid, err)
	}
	p, err := hold(w, pid, pidfd, start, teller)
	if err != nil {
		unix.Close(pidfd)
	}
	return p, err
}

// hold does not close pidfd when it fails. A teller is known from the start: the
// end may come before it was asked.
func hold(w *watch.Watcher, pid, pidfd int, start uint64, teller Teller) (*Process, error) {
	p := &Process{pid: pid, start: start, pidfd: pidfd, exited: make(chan struct{}), teller: teller}
	own(pid)
	// Edge-triggered: the one event tells of the zombie, another of its
	// being reaped, and nothing is to be read in between. The lock keeps the
	// first event waiting until remove is known.
	p.mu.Lock()
	defer p.mu.Unlock()
	remove, err := w.Add(pidfd, unix.EPOLLIN|unix.EPOLLET, p.event)
	if err != nil {
		disown(pid)
		return nil, fmt.Errorf("cannot watch process %d: %w", pid, err)
	}
	p.remove = remove
	return p, nil
}

// PID is the number of the process. It may belong to another one as soon as
// Exited is closed.
func (p *Process) PID() int { return p.pid }

// StartTicks is when the process began, in ticks since boot.
func (p *Process) StartTicks() uint64 { return p.start }

// Exited is closed when the process has ended. Close does not close it.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Ended tells whether Exited is closed.
func (p *Process) Ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// Lives asks the kernel whether the process lives, of whose end Exited tells
// a moment later. Of one that was closed it says no.
func (p *Process) Lives() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.pidfd >= 0 && !Ended(p.pidfd)
}

// Exit tells how the process ended; the zero Exit until Exited is closed.
func (p *Process) Exit() service.Exit {
	select {
	case <-p.exited:
		return p.exit
	default:
		return service.Exit{}
	}
}

// ExitedAt is when the process ended, or was seen to have ended, by the wall
// clock; zero until Exited is closed.
func (p *Process) ExitedAt() time.Time {
	select {
	case <-p.exited:
		return p.at
	default:
		return time.Time{}
	}
}

// Used tells what was counted until the process was reaped.
func (p *Process) Used() Used {
	select {
	case <-p.exited:
		return p.used
	default:
		return Used{}
	}
}

// Signal sends sig with pidfd_send_signal(2). For a process that has ended,
// reaped or not, it is a *service.Error of Kind NotRunning.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.send(sig, 0)
}

// SignalGroup sends sig to every member of the process group that the process
// leads or once led, all at one moment, also when the process itself has ended
// (PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9). It fails with EINVAL on older
// kernels and with Kind NotRunning when the group has no members.
func (p *Process) SignalGroup(sig syscall.Signal) error {
	return p.send(sig, unix.PIDFD_SIGNAL_PROCESS_GROUP)
}

func (p *Process) send(sig syscall.Signal, flags int) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	switch {
	case p.pidfd < 0 && p.Ended():
		return p.failure(sig, service.NotRunning, errors.New("it has ended"))
	case p.pidfd < 0:
		return p.failure(sig, service.Internal, errors.New("it was let go"))
	}
	// Signalling a zombie succeeds and does nothing.
	if flags == 0 && Ended(p.pidfd) {
		return p.failure(sig, service.NotRunning, errors.New("it has ended"))
	}
	switch err := unix.PidfdSendSignal(p.pidfd, sig, nil, flags); {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH):
		return p.failure(sig, service.NotRunning, errors.New("it has ended"))
	case errors.Is(err, unix.EPERM):
		return p.failure(sig, service.Denied, err)
	default:
		return p.failure(sig, service.Internal, err)
	}
}

func (p *Process) failure(sig syscall.Signal, kind service.Kind, err error) error {
	return &service.Error{Op: "signal", Kind: kind,
		Err: fmt.Errorf("%s to process %d: %w", service.SignalName(sig), p.pid, err)}
}

// Close lets the process go: it is no longer watched and, if it is a child of
// ours, no longer reaped. Idempotent.
func (p *Process) Close() error {
	p.remove()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.forget != nil {
		p.forget()
		p.forget = nil
	}
	if p.pidfd < 0 {
		return nil
	}
	for _, timer := range []*time.Timer{p.grace, p.patience} {
		if timer != nil {
			timer.Stop()
		}
	}
	err := unix.Close(p.pidfd)
	p.pidfd = -1
	p.disown.Do(func() { disown(p.pid) })
	if err != nil {
		return fmt.Errorf("cannot close the pidfd of process %d: %w", p.pid, err)
	}
	return nil
}

// event runs on the watcher's loop when the pidfd has news: the process is a
// zombie, or it was reaped.
func (p *Process) event(events uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return
	}
	p.judge(events)
}

// judge finds out how the process ended; the caller holds mu.
func (p *Process) judge(events uint32) {
	exit, used, err := reap(p.pidfd)
	switch {
	case err == nil:
		p.end(exit, used, time.Now())
		return
	case !errors.Is(err, unix.ECHILD):
		return // not ended yet: its last thread is about to
	case p.teller != nil && !p.told:
		if p.patience == nil { // its parent tells
			p.patience = time.AfterFunc(parentGrace, func() { p.tell(Told{}, false) })
		}
		return
	}
	unknown := service.Exit{Unknown: UnknownExit}
	if p.teller != nil {
		unknown.Unknown = ParentLost
	}
	exit, told := keptExit(p.pidfd)
	switch {
	case told == tellsNow:
		p.end(exit, Used{}, time.Now())
	case p.teller == nil && (told == tellsNever || events&unix.EPOLLHUP != 0):
		p.end(unknown, Used{}, time.Now())
	case p.grace == nil:
		// The kernel tells once its parent has reaped it, with another event, and so
		// does a teller that has become its parent; a parent that never does must not
		// hide the end for ever.
		wait := reapGrace
		if p.teller != nil {
			wait = orphanGrace
		}
		p.grace = time.AfterFunc(wait, func() { p.end(unknown, Used{}, time.Now()) })
	}
}

// end publishes how the process ended, once.
func (p *Process) end(exit service.Exit, used Used, at time.Time) {
	p.settle.Do(func() {
		p.exit, p.used, p.at = exit, used, at
		p.disown.Do(func() { disown(p.pid) })
		close(p.exited)
	})
}

// Ended tells whether the process of pidfd has ended, reaped or not.
func Ended(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			runtime.KeepAlive(fds)
			return n > 0
		}
	}
}
