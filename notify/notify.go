// Package notify hears what services say of themselves: datagrams of sd_notify(3), on a
// socket of its own for each service, from the processes of that service alone.
package notify

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// maxPath is the longest path that the address of a socket holds (unix(7)).
const maxPath = 107

// batch is how many events are taken from the kernel at once.
const batch = 32

// Listener has the sockets. It is one goroutine for all of them, from the first that is
// opened on. Its methods may be called by many goroutines at once.
type Listener struct {
	dir  string
	done sync.WaitGroup

	mu      sync.Mutex
	epoll   *os.File // nil until there is a socket, and once closed
	closed  bool
	sockets map[service.Name]*socket
	keys    map[int32]*socket // by what epoll calls them
	last    int32
}

// New is a Listener whose sockets lie in dir, which is made with the first of them.
func New(dir string) *Listener {
	return &Listener{dir: dir, sockets: map[service.Name]*socket{}, keys: map[int32]*socket{}}
}

// Path is where the socket of a service is, or would be.
func (l *Listener) Path(name service.Name) string { return filepath.Join(l.dir, name.String()) }

// Open makes the socket of an incarnation that is about to be launched, or was found, and
// lets uid, and root, send to it. What came to an earlier one is lost. What comes before
// Attend waits in it.
func (l *Listener) Open(name service.Name, uid int) (path string, err error) {
	if path = l.Path(name); len(path) > maxPath {
		return "", fmt.Errorf("its socket %s would have a path of %d bytes, and the kernel takes %d: give the agent a shorter run directory", path, len(path), maxPath)
	}
	l.Forget(name)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.begin(); err != nil {
		return "", err
	}
	if err := l.provide(uid); err != nil {
		return "", err
	}
	s, err := openSocket(path, uid)
	if err != nil {
		return "", err
	}
	l.last++
	s.key, s.listener = l.last, l
	l.sockets[name], l.keys[s.key] = s, s
	return path, nil
}

// begin begins the loop. The caller holds mu.
func (l *Listener) begin() error {
	if l.closed {
		return os.ErrClosed
	}
	if l.epoll != nil {
		return nil
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return fmt.Errorf("make an epoll set: %w", err)
	}
	epoll := os.NewFile(uintptr(fd), "epoll")
	l.epoll = epoll
	l.done.Go(func() { l.loop(epoll) })
	return nil
}

// provide makes the directory. Who is to send passes through it, and the one above, and
// sees neither.
func (l *Listener) provide(uid int) error {
	if err := os.Mkdir(l.dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(l.dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory", l.dir)
	}
	if uid == os.Geteuid() {
		return nil
	}
	for _, dir := range []string{l.dir, filepath.Dir(l.dir)} {
		info, err := os.Stat(dir)
		if err == nil && info.Mode()&0o001 == 0 {
			err = os.Chmod(dir, info.Mode().Perm()|0o001)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Has tells whether a service has a socket here.
func (l *Listener) Has(name service.Name) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sockets[name] != nil
}

// Unread tells whether something waits in the socket of a service, as when it says more
// than is read of it.
func (l *Listener) Unread(name service.Name) (unread bool) {
	l.mu.Lock()
	s := l.sockets[name]
	l.mu.Unlock()
	if s == nil {
		return false
	}
	err := control(s.conn, func(fd int) error {
		unread = readable(fd)
		return nil
	})
	return err == nil && unread
}

// Hear reads now what a service has said until now, as far as the pace allows; whoever attends
// has been told of that when it returns.
func (l *Listener) Hear(name service.Name) {
	l.mu.Lock()
	s := l.sockets[name]
	l.mu.Unlock()
	if s != nil {
		s.hear(newMail())
	}
}

// Attend has tell told of what an incarnation says, until leave is called: of what comes
// from processes that are its own, as owns says. tell must not block. The socket must have
// been opened. When leave has returned, nothing is told any more, unless that is under way.
func (l *Listener) Attend(name service.Name, owns func(pid int) (bool, error), tell func(service.Heard)) (leave func(), err error) {
	l.mu.Lock()
	s := l.sockets[name]
	l.mu.Unlock()
	if s == nil {
		return nil, fmt.Errorf("the socket of %s: %w", name, fs.ErrNotExist)
	}
	s.attended.Store(&attention{owns: owns, tell: tell})
	err = l.watch(unix.EPOLL_CTL_ADD, s)
	if errors.Is(err, unix.EEXIST) { // somebody has attended before
		err = l.watch(unix.EPOLL_CTL_MOD, s)
	}
	if err != nil {
		return nil, err
	}
	return func() { s.attended.Store(nil) }, nil
}

// watch has the loop look at s when something comes, once.
func (l *Listener) watch(op int, s *socket) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoll == nil {
		return os.ErrClosed
	}
	set, err := l.epoll.SyscallConn()
	if err != nil {
		return err
	}
	return control(s.conn, func(fd int) error {
		return control(set, func(epoll int) error {
			return unix.EpollCtl(epoll, op, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: s.key})
		})
	})
}

// Forget removes the socket of a service, if it has one.
func (l *Listener) Forget(name service.Name) {
	l.mu.Lock()
	s := l.sockets[name]
	if s != nil {
		delete(l.sockets, name)
		delete(l.keys, s.key)
	}
	l.mu.Unlock()
	if s != nil {
		s.close()
	}
	_ = os.Remove(l.Path(name)) // of an earlier agent, perhaps; what can not be removed is in nobody's way
}

// Sweep removes what an earlier agent has left of services that need no socket.
func (l *Listener) Sweep(need func(name string) bool) {
	entries, _ := os.ReadDir(l.dir) // as a rule there is none
	for _, e := range entries {
		if !need(e.Name()) {
			_ = os.Remove(filepath.Join(l.dir, e.Name()))
		}
	}
}

// Close lets go of the sockets. Their files stay, for the next agent to make them anew where
// services know them.
func (l *Listener) Close() {
	l.mu.Lock()
	l.closed = true
	epoll, sockets := l.epoll, l.sockets
	l.epoll, l.sockets, l.keys = nil, map[service.Name]*socket{}, map[int32]*socket{}
	l.mu.Unlock()
	for _, s := range sockets {
		s.close()
	}
	if epoll != nil {
		epoll.Close()
	}
	l.done.Wait()
}

// loop waits in Go's poller, so that it costs no thread while nobody says anything.
func (l *Listener) loop(epoll *os.File) {
	conn, err := epoll.SyscallConn()
	if err != nil {
		return // closed
	}
	events := make([]unix.EpollEvent, batch)
	mail := newMail()
	for {
		n := 0
		err := conn.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, e := range events[:n] {
			l.mu.Lock()
			s := l.keys[e.Fd]
			l.mu.Unlock()
			if s != nil {
				s.hear(mail)
			}
		}
	}
}
