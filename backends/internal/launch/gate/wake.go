package gate

import (
	"syscall"
	"unsafe"
)

// eventfd is by what one thread wakes another (eventfd(2)).
func eventfd() (int, error) {
	fd, _, errno := syscall.RawSyscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// signal makes an eventfd readable, and unsignal no longer.
func signal(eventfd int) { syscall.Write(eventfd, (&[8]byte{1})[:]) }

func unsignal(eventfd int) { syscall.Read(eventfd, (&[8]byte{})[:]) }

// readable waits until fd is, for so many milliseconds at most.
func readable(fd int, most int64) bool {
	poll := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: 1} // POLLIN
	limit := syscall.NsecToTimespec(most * 1_000_000)
	for {
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
		if errno != syscall.EINTR {
			return int(n) > 0
		}
	}
}
