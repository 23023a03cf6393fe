package notify

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Of Linux 6.5; package unix does not name the first.
const (
	soPassPIDFD = 0x4c // SO_PASSPIDFD, on all architectures but parisc, sparc and alpha
	scmPIDFD    = unix.SCM_PIDFD
)

// keptFiles is how many descriptors of one message are taken, to be closed when it was looked
// at, which is what a sender who waits for that is told by (sd_notify_barrier(3)). The
// kernel closes the others at once.
const keptFiles = 2

// mail receives messages.
type mail struct {
	text []byte
	more []byte // credentials, a pidfd and descriptors
}

func newMail() *mail {
	return &mail{
		text: make([]byte, service.MaxNotification+1),
		more: make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4)+unix.CmsgSpace(4*keptFiles)),
	}
}

// letter is one message.
type letter struct {
	text  string
	from  unix.Ucred // as the kernel says; zero if it does not
	pidfd int        // of the sender, -1 where the kernel gives none
	files []int
}

func (l letter) close() {
	for _, fd := range l.files {
		unix.Close(fd)
	}
	if l.pidfd >= 0 {
		unix.Close(l.pidfd)
	}
}

// receive takes one message, or fails with EAGAIN.
func (m *mail) receive(fd int) (letter, error) {
	l := letter{pidfd: -1}
	n, nm, _, _, err := unix.Recvmsg(fd, m.text, m.more, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return l, err
	}
	l.text = string(m.text[:n])
	parts, err := unix.ParseSocketControlMessage(m.more[:nm])
	if err != nil {
		return l, nil // then nobody knows the sender
	}
	for i := range parts {
		part := &parts[i]
		if part.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch part.Header.Type {
		case unix.SCM_CREDENTIALS:
			if from, err := unix.ParseUnixCredentials(part); err == nil {
				l.from = *from
			}
		case unix.SCM_RIGHTS:
			files, _ := unix.ParseUnixRights(part)
			l.files = append(l.files, files...)
		case scmPIDFD:
			part.Header.Type = unix.SCM_RIGHTS
			if files, err := unix.ParseUnixRights(part); err == nil && len(files) == 1 {
				l.pidfd = files[0]
			}
		}
	}
	return l, nil
}

// stranger tells why a message does not count, "" if it does. Without a pidfd whoever has the
// sender's number now is taken for it.
func (l letter) stranger(owns func(pid int) (bool, error)) string {
	pid := int(l.from.Pid)
	who := fmt.Sprintf("process %d of uid %d", pid, l.from.Uid)
	if pid <= 0 {
		return "a message came from a process of which this host does not tell the number"
	}
	own, err := owns(pid)
	switch {
	case err != nil:
		return fmt.Sprintf("it can not be found out whose %s is, which sent a message: %v", who, err)
	case own:
		return ""
	case l.pidfd >= 0 && readable(l.pidfd): // it has ended
		return fmt.Sprintf("%s had ended before it could be seen whose it is, and its message is not believed (systemd-notify waits, and so does sd_notify_barrier)", who)
	}
	return fmt.Sprintf("%s, which is none of the service's, sent a message", who)
}

// readable tells whether something can be read of a descriptor; of a pidfd, whether its
// process has ended.
func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			runtime.KeepAlive(fds)
			return n > 0
		}
	}
}
