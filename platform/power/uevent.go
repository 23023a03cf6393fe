package power

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	kernelGroup = 1       // of NETLINK_KOBJECT_UEVENT: what the kernel says; 2 is what udev does
	longest     = 8 << 10 // of a message: the kernel's are at most 2 KiB of text and a header
)

// How long to wait after an error, which is doubled while it lasts.
const (
	soonAgain = time.Second
	lateAgain = time.Minute
)

// uevents hears what the kernel says of power supplies (netlink(7),
// NETLINK_KOBJECT_UEVENT).
type uevents struct {
	file    *os.File
	conn    syscall.RawConn
	closing chan struct{}
	receive func(fd int, p []byte, flags int) (int, unix.Sockaddr, error) // recvfrom(2)
}

func hear() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("cannot open a socket for uevents: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot listen to uevents: %w", err)
	}
	file := os.NewFile(uintptr(fd), "uevents")
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("cannot wait for uevents: %w", err)
	}
	return &uevents{file, conn, make(chan struct{}), unix.Recvfrom}, nil
}

// tell calls f for each message about a power supply, and when messages were lost or can
// not be received, until the socket is closed.
func (u *uevents) tell(f func(), log *slog.Logger) {
	buf := make([]byte, longest)
	for wait := time.Duration(0); ; {
		n, from, err := 0, unix.Sockaddr(nil), error(nil)
		closed := u.conn.Read(func(fd uintptr) bool {
			n, from, err = u.receive(int(fd), buf, 0)
			return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
		})
		switch {
		case closed != nil:
			return
		case errors.Is(err, unix.ENOBUFS): // nobody knows what was lost
			f()
		case err != nil: // such as ENOMEM
			if wait == 0 {
				log.Warn("changes of the power supply can not be heard; it is tried again", "error", err)
			}
			wait = min(max(2*wait, soonAgain), lateAgain)
			f()
			if !u.pause(wait) {
				return
			}
		default:
			wait = 0
			if fromKernel(from) && ofPower(buf[:n]) {
				f()
			}
		}
	}
}

// pause waits, and tells whether the socket is open still.
func (u *uevents) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-u.closing:
		return false
	}
}

func (u *uevents) close() {
	close(u.closing)
	u.file.Close()
}

// fromKernel: anybody with the privilege may send to the group, but only the kernel
// has port 0.
func fromKernel(from unix.Sockaddr) bool {
	nl, ok := from.(*unix.SockaddrNetlink)
	return ok && nl.Pid == 0 && nl.Groups == kernelGroup
}

// ofPower tells whether a message, ACTION@PATH and then KEY=VALUE, each with a NUL
// behind it, is about a power supply.
func ofPower(message []byte) bool {
	return bytes.Contains(message, []byte("\x00SUBSYSTEM=power_supply\x00"))
}
