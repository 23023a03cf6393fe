package notify

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// pace is how many messages a second are read of one service: what is more waits in the
// socket, and then its senders do.
const pace = 64

// attention is who hears an incarnation.
type attention struct {
	owns func(pid int) (bool, error)
	tell func(service.Heard)
}

// socket is that of one incarnation.
type socket struct {
	listener *Listener
	key      int32
	file     *os.File
	conn     syscall.RawConn
	attended atomic.Pointer[attention] // nil when nobody hears

	hearing sync.Mutex // held by the one who reads, and guards what follows
	second  time.Time  // in which read were read
	read    int
	dropped uint64

	mu     sync.Mutex
	later  *time.Timer // looks again, after too much was said
	closed bool
}

// openSocket binds a socket at path that uid may send to.
func openSocket(path string, uid int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), path)
	if err := provide(fd, path, uid); err != nil {
		file.Close()
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &socket{file: file, conn: conn}, nil
}

// provide binds the socket under another name first, so that nobody can send before it is
// known who may.
func provide(fd int, path string, uid int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, soPassPIDFD, 1) // Linux 6.5
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	const fresh = ".new" // no service is called so
	at := fmt.Sprintf("/proc/self/fd/%d/%s", dir, fresh)
	if err := unix.Unlink(at); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: at}); err != nil {
		return err
	}
	err = unix.Fchmodat(dir, fresh, 0o600, 0)
	if err == nil && uid != os.Geteuid() {
		err = unix.Fchownat(dir, fresh, uid, -1, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = unix.Renameat(dir, fresh, dir, filepath.Base(path))
	}
	if err != nil {
		return errors.Join(err, unix.Unlink(at))
	}
	return nil
}

// hear reads what has come, as far as the pace allows.
func (s *socket) hear(m *mail) {
	s.hearing.Lock()
	defer s.hearing.Unlock()
	if s.attended.Load() == nil {
		return // until somebody attends again
	}
	for {
		now := time.Now()
		if now.Sub(s.second) >= time.Second {
			s.second, s.read = now, 0
		}
		if s.read == pace {
			s.hearLater(time.Second - now.Sub(s.second))
			return
		}
		s.read++
		if !s.hearOne(m) {
			s.again()
			return
		}
	}
}

// hearOne reads one message, and tells whether there was one.
func (s *socket) hearOne(m *mail) bool {
	var l letter
	err := control(s.conn, func(fd int) (err error) { l, err = m.receive(fd); return err })
	if err != nil {
		return errors.Is(err, unix.EINTR)
	}
	defer l.close()
	a := s.attended.Load()
	if a == nil {
		return true
	}
	if why := l.stranger(a.owns); why != "" {
		s.dropped++
		if s.dropped > 1 {
			why = "" // that was told
		}
		if s.dropped&(s.dropped-1) == 0 { // now and then, how many they are
			a.tell(service.Heard{Dropped: s.dropped, Why: why})
		}
		return true
	}
	said, err := service.ParseNotification(l.text)
	h := service.Heard{Said: said, Dropped: s.dropped}
	if err != nil {
		h.Why = fmt.Sprintf("process %d sent what can not be read: %v", l.from.Pid, err)
	}
	if !said.IsZero() || h.Why != "" {
		a.tell(h)
	}
	return true
}

// again has the loop call once more when something comes.
func (s *socket) again() { _ = s.listener.watch(unix.EPOLL_CTL_MOD, s) } // of one that was closed it fails

func (s *socket) hearLater(wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.later = time.AfterFunc(wait, s.again)
	}
}

func (s *socket) close() {
	s.attended.Store(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.later != nil {
		s.later.Stop()
	}
	s.file.Close()
}

// control runs f on the descriptor, which is not closed meanwhile.
func control(conn syscall.RawConn, f func(fd int) error) error {
	var failed error
	if err := conn.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}
