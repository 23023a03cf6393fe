package sockets

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// diag is a netlink socket on which the kernel answers about sockets.
type diag struct {
	fd     int
	buffer []byte
}

func open() (*diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	// The kernel has its answer at once: this is for one that has not.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	return &diag{fd: fd, buffer: make([]byte, 32<<10)}, nil // as much as the kernel gives at once
}

func (d *diag) close() { unix.Close(d.fd) }

// dump calls see with each answer to a request for all that there are.
func (d *diag) dump(request []byte, see func([]byte)) error {
	return d.exchange(unix.NLM_F_DUMP, request, see)
}

// ask calls see with the answer to a request for one socket. That this is no more is
// no error, and no answer.
func (d *diag) ask(request []byte, see func([]byte)) error {
	err := d.exchange(unix.NLM_F_ACK, request, see)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return nil
	}
	return err
}

// headerSize is that of struct nlmsghdr (netlink(7)).
const headerSize = 16

func (d *diag) exchange(flags uint16, request []byte, see func([]byte)) error {
	message := make([]byte, headerSize, headerSize+len(request))
	order.PutUint32(message, uint32(headerSize+len(request)))
	order.PutUint16(message[4:], unix.SOCK_DIAG_BY_FAMILY)
	order.PutUint16(message[6:], unix.NLM_F_REQUEST|flags)
	if err := unix.Sendto(d.fd, append(message, request...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask sock_diag: %w", err)
	}
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buffer, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read from sock_diag: %w", err)
		}
		if done, err := answers(d.buffer[:n], see); done || err != nil {
			return err
		}
	}
}

// answers calls see with what is in the messages of b, and tells whether the last one
// was among them.
func answers(b []byte, see func([]byte)) (done bool, err error) {
	for len(b) >= headerSize {
		size := int(order.Uint32(b))
		if size < headerSize || size > len(b) {
			return false, errors.New("read from sock_diag: a message is cut off")
		}
		switch payload := b[headerSize:size]; order.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, failed(payload)
		case unix.NLMSG_ERROR:
			return true, failed(payload)
		case unix.SOCK_DIAG_BY_FAMILY:
			see(payload)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false, nil
}

// failed reads the errno with which an answer ends; 0 is none.
func failed(payload []byte) error {
	if len(payload) < 4 {
		return nil
	}
	if errno := int32(order.Uint32(payload)); errno != 0 {
		return fmt.Errorf("sock_diag: %w", unix.Errno(-errno))
	}
	return nil
}
