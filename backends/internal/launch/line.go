package launch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
)

// line is one connection to the process.
type line struct {
	conn     *net.UnixConn
	all      chan struct{} // told whenever all ends that are kept have come
	lost     chan struct{} // closed when the connection is
	answers  chan forked
	children map[gate.Child]bool // that live, guarded by the Shim's mu
	troubles map[string]bool     // that last, by whose, likewise
	stops    bool                // it tells of children that are stopped, likewise
}

// forked is what became of a request to fork.
type forked struct {
	child gate.Child
	pidfd int
	errno syscall.Errno
}

// fork has the shim make a gate, with the descriptors of its 0, of its 1 and 2,
// and of its socket, in a cgroup if cgroupFD is not -1.
func (s *Shim) fork(ctx context.Context, whose string, cgroupFD int, output sinks, socket int) (forked, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return forked{}, ctx.Err()
	}
	l, err := s.connect(ctx)
	if err != nil {
		return forked{}, fmt.Errorf("reach the shim: %w", err)
	}
	f, err := l.fork(ctx, whose, cgroupFD, output, socket)
	if err != nil {
		s.abandon(whose)
	}
	return f, err
}

// errLost says that nobody can tell whether the shim has made a gate. One that it
// has made leaves when the other end of its socket is closed: to try again takes
// another.
var errLost = errors.New("the shim, which is the parent of all services, has ended")

// patience is how long the shim may take to answer. Only one that is stopped, or
// stuck with a child in a frozen cgroup, takes longer.
const patience = 10 * time.Second

var errSilent = fmt.Errorf("the shim, which is the parent of all services, has not answered for %v", patience)

func (l *line) fork(ctx context.Context, whose string, cgroupFD int, output sinks, socket int) (forked, error) {
	// The link names the running program even when its file was replaced.
	program, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return forked{}, &os.PathError{Op: "open", Path: "/proc/self/exe", Err: err}
	}
	defer unix.Close(program)
	files := []int{program, int(output.in), int(output.out), socket}
	if output.pour != gate.PourNot {
		var pipe [2]int // another one for each attempt: of each only one gate shall know
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			return forked{}, fmt.Errorf("make a pipe: %w", err)
		}
		defer unix.Close(pipe[0])
		defer unix.Close(pipe[1])
		files = []int{program, int(output.in), pipe[1], socket, pipe[0], int(output.out)}
	}
	if cgroupFD >= 0 {
		files = append(files, cgroupFD)
	}
	if err := l.say(gate.SayFork, string(output.pour)+whose, files...); err != nil {
		l.hangUp()
		return forked{}, errors.Join(errLost, err)
	}
	silence := time.NewTimer(patience)
	defer silence.Stop()
	select {
	case f := <-l.answers:
		if f.errno != 0 {
			return f, f.errno
		}
		return f, nil
	case <-l.lost:
		err = errLost
	case <-ctx.Done(): // whatever it answers later must not be taken for another's
		err = ctx.Err()
	case <-silence.C:
		err = errSilent
	}
	l.hangUp()
	l.drop()
	return forked{}, err
}

// say sends a message. One that is not taken for long is an error: the shim is stopped.
func (l *line) say(what byte, whose string, files ...int) error {
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(reapWait)); err != nil {
		return err
	}
	_, _, err := l.conn.WriteMsgUnix(append([]byte{what}, whose...), rights, nil)
	return err
}

// drop lets go of an answer that came on a connection that was lost.
func (l *line) drop() {
	select {
	case f := <-l.answers:
		if f.pidfd >= 0 {
			unix.Close(f.pidfd)
		}
	default:
	}
}

// connect gives the connection: the one there is, one to the process that an
// earlier agent has left, or one to a new process. The caller holds turn.
func (s *Shim) connect(ctx context.Context) (*line, error) {
	if l, err := s.dial(ctx); l != nil || err != nil {
		return l, err
	}
	return s.begin(ctx)
}

// find is connect without a new process.
func (s *Shim) find(ctx context.Context) (*line, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return s.dial(ctx)
}

// dial gives the connection if there is one to be had, and nil if there surely is no
// process that an earlier agent has left: any other failure is an error.
func (s *Shim) dial(ctx context.Context) (*line, error) {
	s.mu.Lock()
	l, closed := s.line, s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return nil, net.ErrClosed
	case l != nil:
		return l, nil
	}
	silent := time.Now().Add(patience)
	for {
		fd, err := s.socket(unix.SOCK_NONBLOCK, unix.Connect)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
			return nil, nil
		}
		if err == nil {
			l, err = s.adopt(ctx, fd)
		}
		switch {
		case err == nil:
			return l, nil
		// It was about to leave, has hung up on us because we did not listen, or has
		// too many who knock: which of them the next attempt tells.
		case errors.Is(err, errLost), errors.Is(err, unix.EAGAIN):
		default:
			return nil, err
		}
		switch {
		case !pause(ctx):
			return nil, ctx.Err()
		case time.Now().After(silent):
			return nil, errSilent
		}
	}
}

// pause waits before the next attempt, and tells whether there is to be one.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(10 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

// adopt takes up a connection, hears who lives and all that was kept, and says what
// could not be said to the last one.
func (s *Shim) adopt(ctx context.Context, fd int) (*line, error) {
	file := os.NewFile(uintptr(fd), "shim")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		return nil, err
	}
	l := &line{conn: conn.(*net.UnixConn), all: make(chan struct{}, 1), lost: make(chan struct{}), answers: make(chan forked, 1),
		children: map[gate.Child]bool{}, troubles: map[string]bool{}}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.line = l
		s.readers.Go(func() { s.read(l) })
	}
	s.mu.Unlock()
	if closed {
		l.conn.Close()
		return nil, net.ErrClosed
	}
	if err := l.hear(ctx); err != nil {
		return nil, err
	}
	s.settle(l)
	return l, nil
}

// hear waits until all ends that are kept have come.
func (l *line) hear(ctx context.Context) error {
	silence := time.NewTimer(patience)
	defer silence.Stop()
	select {
	case <-l.all:
		return nil
	case <-l.lost:
		return errLost
	case <-ctx.Done():
		l.hangUp()
		return ctx.Err()
	case <-silence.C:
		l.hangUp()
		return errSilent
	}
}

// hangUp ends the connection, and returns when nobody takes it for one any more.
func (l *line) hangUp() {
	l.conn.Close()
	<-l.lost
}

// read hears one connection out.
func (s *Shim) read(l *line) {
	defer s.lose(l)
	message, rights := make([]byte, gate.MaxSaid), make([]byte, unix.CmsgSpace(4))
	for {
		n, nr, _, _, err := l.conn.ReadMsgUnix(message, rights)
		if err != nil || n == 0 {
			return
		}
		switch said := message[:n]; said[0] {
		case gate.SayAll:
			l.all <- struct{}{}
		case gate.SayLiving:
			s.born(l, gate.DecodeChildren(said)...)
		case gate.SayChild:
			f := answered(said, rights[:nr])
			if f.errno == 0 {
				s.born(l, f.child)
			}
			l.answers <- f
		case gate.SayEnd:
			if e, ok := gate.DecodeEnd(said); ok {
				s.ended(l, e)
			}
		case gate.SayStopped:
			s.mu.Lock()
			l.stops = true // one that an earlier version has left does not
			s.mu.Unlock()
			s.stirred(gate.DecodeChildren(said)...)
		case gate.SayGoesOn:
			s.stirred(gate.DecodeChildren(said)...)
		case gate.SayTrouble:
			if t, ok := gate.DecodeTrouble(said); ok {
				s.troubled(l, t)
			}
		case gate.SayOrphan:
			if e, ok := gate.DecodeEnd(said); ok {
				s.orphaned(e)
			}
		}
	}
}

func answered(said, rights []byte) forked {
	c, errno, ok := gate.DecodeChild(said)
	f := forked{child: c, pidfd: -1, errno: errno}
	if messages, err := unix.ParseSocketControlMessage(rights); err == nil && len(messages) > 0 {
		if files, err := unix.ParseUnixRights(&messages[0]); err == nil && len(files) > 0 {
			f.pidfd = files[0]
			unix.CloseOnExec(f.pidfd)
		}
	}
	if errno == 0 && (!ok || f.pidfd < 0) { // no descriptor was free here
		f.errno = unix.EMFILE
	}
	return f
}

// lose ends a connection.
func (s *Shim) lose(l *line) {
	l.conn.Close()
	s.mu.Lock()
	s.line = nil
	s.mu.Unlock()
	s.search() // before anybody could take the process for gone
	close(l.lost)
}

// search finds out, beside everything else, whether a process is there that can not
// be reached. While that is not known, those who wait for it go on waiting.
func (s *Shim) search() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.searching {
		return
	}
	s.searching = true
	s.readers.Go(func() {
		for !s.found() {
			if !pause(s.ctx) {
				return
			}
		}
	})
}

// found makes one attempt, and tells whether the search is over.
func (s *Shim) found() bool {
	ctx, cancel := context.WithTimeout(s.ctx, reapWait)
	defer cancel()
	l, err := s.find(ctx)
	s.mu.Lock()
	over := err == nil && (l == nil || s.line != nil) // else it was lost again
	s.searching = !over
	s.mu.Unlock()
	if over {
		s.orphan()
		if l == nil {
			s.settleTroubles(nil)
		}
	}
	return over
}

// backlog is how many may knock at once: one agent, that hung up and comes again.
const backlog = 8

// begin starts the process. Of the children of another, which is no more, it knows
// nothing.
func (s *Shim) begin(ctx context.Context) (*line, error) {
	listener, err := s.socket(0, unix.Bind)
	if err != nil {
		return nil, err
	}
	defer unix.Close(listener)
	// Before anybody can connect: who may forks as we do.
	if err := errors.Join(unix.Chmod(s.path(), 0o600), unix.Listen(listener, backlog)); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", s.path(), err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket pair: %w", err)
	}
	defer unix.Close(pair[1])
	dir, err := unix.Open(s.cfg.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(pair[0])
		return nil, &os.PathError{Op: "open", Path: s.cfg.Dir, Err: err}
	}
	defer unix.Close(dir)
	req := Request{CgroupFD: -1, files: []int{listener, dir, pair[1]}}
	if s.cfg.Place != nil {
		dir, err := s.cfg.Place(ctx)
		if err != nil {
			unix.Close(pair[0])
			return nil, err
		}
		if dir != nil {
			defer dir.Close()
			req.CgroupFD = int(dir.Fd())
		}
	}
	child, err := start(ctx, s.cfg.Watcher, req, gate.Plan{Shim: true, OOMScoreAdj: ownOOMScore()})
	if err == nil {
		err = child.Open(ctx)
	}
	if err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	s.mu.Lock()
	last := s.self
	s.self = child.Process()
	s.mu.Unlock()
	if last != nil {
		_ = last.Close() // it was killed
	}
	l, err := s.adopt(ctx, pair[0])
	if err != nil {
		return nil, err
	}
	return l, nil
}

// ownOOMScore is the agent's own: it is the last to go, and so is the shim.
func ownOOMScore() int32 {
	var score int32
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err == nil {
		_, _ = fmt.Sscan(string(text), &score)
	}
	return score
}

func (s *Shim) path() string {
	return filepath.Join(s.cfg.Dir, gate.ShimSocket)
}

// socket makes a socket, with flags, and binds or connects it. The kernel takes paths of up to
// 107 bytes, so it is told one through a descriptor of the directory.
func (s *Shim) socket(flags int, use func(int, unix.Sockaddr) error) (int, error) {
	dir, err := unix.Open(s.cfg.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: s.cfg.Dir, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|flags, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(s.path()))
	err = use(fd, &unix.SockaddrUnix{Name: name})
	if errors.Is(err, unix.EADDRINUSE) { // of one that is no more, or connect would have found it
		if err = unix.Unlink(name); err == nil {
			err = use(fd, &unix.SockaddrUnix{Name: name})
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "use the socket", Path: s.path(), Err: err}
	}
	return fd, nil
}
