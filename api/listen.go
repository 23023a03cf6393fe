package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

const (
	socketMode    = 0o660
	socketDirMode = 0o750
	maxSocketPath = 107 // sun_path of unix(7), less its NUL
)

// Listen opens one address of the agent.
//
//   - unix:///PATH: a socket of mode 0660, of group Group where there is one. Its
//     directory is made with mode 0750 if it is not there; one that others may
//     write to is refused. A socket nobody answers on is taken for a dead
//     agent's and replaced; one that is answered, or anything that is no
//     socket, is left alone. Abstract sockets have no owner and are refused.
//   - tcp://HOST:PORT: a loopback address. There is no authentication on it, so
//     every user of the host may do everything: configure it only where that is
//     meant. Any other address is refused.
//
// An error is a *service.Error: Invalid for what can not be meant, Conflict for
// a socket in use, HostUnavailable for what the host refused.
func Listen(address string) (net.Listener, error) {
	scheme, rest, _ := strings.Cut(address, "://")
	var l net.Listener
	var err error
	switch scheme {
	case "unix":
		l, err = listenUnix(rest)
	case "tcp":
		l, err = listenTCP(rest)
	default:
		err = fault("an address is unix:///PATH or tcp://HOST:PORT")
	}
	if err == nil {
		return l, nil
	}
	kind := service.HostUnavailable
	if as, ok := errors.AsType[*listenError](err); ok {
		kind = as.kind
	}
	return nil, &service.Error{Op: "listen on " + address, Kind: kind, Err: err}
}

// listenError is what Listen finds by itself, as against the host's refusals.
type listenError struct {
	kind service.Kind
	text string
}

func (e *listenError) Error() string { return e.text }

func fault(format string, args ...any) error {
	return &listenError{service.Invalid, fmt.Sprintf(format, args...)}
}

func inUse(format string, args ...any) error {
	return &listenError{service.Conflict, fmt.Sprintf(format, args...)}
}

func listenTCP(hostPort string) (net.Listener, error) {
	addr, err := net.ResolveTCPAddr("tcp", hostPort)
	if err != nil {
		return nil, fault("%v", err)
	}
	if !addr.IP.IsLoopback() {
		return nil, fault("it is no loopback address, and there is no encryption or authentication over TCP; use 127.0.0.1 or [::1], and reach it from afar through ssh")
	}
	return net.ListenTCP("tcp", addr)
}

func listenUnix(path string) (net.Listener, error) {
	switch {
	case strings.HasPrefix(path, "@") || strings.ContainsRune(path, 0):
		return nil, fault("abstract sockets are refused, because any user may take their name")
	case !filepath.IsAbs(path) || filepath.Clean(path) != path:
		return nil, fault("the path of a socket must be absolute and plain, as in unix:///run/gladsheim/gladsheim.sock")
	case len(path) > maxSocketPath:
		return nil, fault("the path has %d bytes; a socket's can have %d", len(path), maxSocketPath)
	}
	group, grouped := groupNumber()
	dir := filepath.Dir(path)
	if err := prepareSocketDir(dir, group, grouped); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// Until here the socket has the mode the umask left, and whoever connects
	// is still asked for its credentials.
	if err := giveSocket(path, group, grouped); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// giveSocket makes the socket usable by its group.
func giveSocket(path string, group uint32, grouped bool) error {
	if grouped {
		if err := giveToGroup(path, group); err != nil {
			return err
		}
	}
	return os.Chmod(path, socketMode)
}

// MakeRunDir makes the directory that holds the agent's socket beside what else
// is the agent's alone, with its parents: of mode 0750 and of group Group where
// there is one. One that is there, of that mode and the agent's own user, such as
// one made before there was the group, is given to the group, too.
func MakeRunDir(dir string) error {
	group, grouped := groupNumber()
	return makeRunDir(dir, group, grouped)
}

func makeRunDir(dir string, group uint32, grouped bool) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := prepareSocketDir(dir, group, grouped); err != nil || !grouped {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	if info.Mode().Perm()&^0o001 == socketDirMode && // others may pass through it, see package notify
		int(stat.Uid) == os.Geteuid() && stat.Gid != group {
		return giveToGroup(dir, group)
	}
	return nil
}

// giveToGroup gives a file of ours to a group. A plain user may give it only to
// one of his own, and else keeps it.
func giveToGroup(path string, group uint32) error {
	if err := os.Lchown(path, -1, int(group)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// prepareSocketDir makes dir if it is missing, and refuses one in which somebody
// else could put a socket in place of ours.
func prepareSocketDir(dir string, group uint32, grouped bool) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(dir, socketDirMode); err != nil {
			return err
		}
		if grouped {
			if err := giveToGroup(dir, group); err != nil {
				return err
			}
		}
		return os.Chmod(dir, socketDirMode) // over the umask
	}
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok {
		return fault("%s is no directory", dir)
	}
	if stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return fault("%s belongs to uid %d, who could replace the socket; it must be root's or the agent's own", dir, stat.Uid)
	}
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fault("%s may be written by others (mode %#o), who could replace the socket; run: chmod go-w %s", dir, info.Mode().Perm(), dir)
	}
	return nil
}

// removeStale removes the socket of an agent that is dead.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return inUse("there is a file in its place that is no socket; it is left alone")
	}
	switch err := knock(path); {
	case err == nil, errors.Is(err, unix.EAGAIN): // EAGAIN: so many knock there already (connect(2))
		return inUse("another process answers there; is the agent running already?")
	case !errors.Is(err, unix.ECONNREFUSED):
		return inUse("a socket is there, and whether it is in use is unknown: %v", err)
	}
	return os.Remove(path)
}

// knock connects, and hangs up. The kernel answers at once, however slow the host:
// a time limit would take a dead agent's socket for one in use when we are starved.
func knock(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make a socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}
