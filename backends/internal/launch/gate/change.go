package gate

import (
	"syscall"
	"unsafe"
)

// change does what comes after the word to go: another user, the directory as
// that user sees it, and nothing of the agent left open.
func change(p *Plan) (Step, syscall.Errno) {
	if errno := dropCapabilities(); errno != 0 {
		return StepCapabilities, errno
	}
	if p.Become {
		if step, errno := become(p); errno != 0 {
			return step, errno
		}
	}
	if errno := enter(p.Directory); errno != 0 {
		return StepDirectory, errno
	}
	if p.NoNewPrivs {
		const prSetNoNewPrivs = 38
		if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0); errno != 0 {
			return StepNoNewPrivs, errno
		}
	}
	const closeRangeCloexec = 1 << 2
	if errno := closeRange(FD, closeRangeCloexec); errno != 0 {
		return StepCloseFiles, errno
	}
	return 0, 0
}

// dropCapabilities empties the inheritable set, and with it the ambient one,
// so that an agent which was given capabilities does not hand them on
// (capabilities(7)). A program that runs as root gets root's all the same.
func dropCapabilities() syscall.Errno {
	header := struct {
		version uint32
		pid     int32
	}{version: 0x20080522}
	var sets [2]struct{ effective, permitted, inheritable uint32 }
	_, _, errno := syscall.RawSyscall(syscall.SYS_CAPGET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0)
	if errno != 0 {
		return errno
	}
	if sets[0].inheritable|sets[1].inheritable == 0 {
		return 0
	}
	sets[0].inheritable, sets[1].inheritable = 0, 0
	_, _, errno = syscall.RawSyscall(syscall.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0)
	return errno
}

func become(p *Plan) (Step, syscall.Errno) {
	var groups uintptr
	if len(p.Groups) > 0 {
		groups = uintptr(unsafe.Pointer(&p.Groups[0]))
	}
	_, _, errno := syscall.RawSyscall(sysSetgroups, uintptr(len(p.Groups)), groups, 0)
	// Root of a user namespace may be forbidden to set groups at all.
	if errno != 0 && (errno != syscall.EPERM || !p.OwnUser) {
		return StepGroups, errno
	}
	gid := uintptr(p.GID)
	if _, _, errno := syscall.RawSyscall(sysSetresgid, gid, gid, gid); errno != 0 {
		return StepGroup, errno
	}
	uid := uintptr(p.UID)
	if _, _, errno := syscall.RawSyscall(sysSetresuid, uid, uid, uid); errno != 0 {
		return StepUser, errno
	}
	return 0, 0
}

// enter changes the directory, following no link of /proc: such a link could
// lead to where a descriptor of the agent leads.
func enter(directory string) syscall.Errno {
	const (
		sysOpenat2          = 437
		oPath               = 0x200000
		resolveNoMagicLinks = 0x02
		atFdcwd             = ^uintptr(99)
	)
	dir, err := syscall.BytePtrFromString(directory)
	if err != nil {
		return syscall.EINVAL
	}
	how := struct{ flags, mode, resolve uint64 }{
		flags:   oPath | uint64(syscall.O_DIRECTORY) | syscall.O_CLOEXEC,
		resolve: resolveNoMagicLinks,
	}
	fd, _, errno := syscall.RawSyscall6(sysOpenat2, atFdcwd, uintptr(unsafe.Pointer(dir)),
		uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
	switch errno {
	case 0:
		_, _, errno = syscall.RawSyscall(syscall.SYS_FCHDIR, fd, 0, 0)
		syscall.RawSyscall(syscall.SYS_CLOSE, fd, 0, 0)
	case syscall.ENOSYS, syscall.EPERM: // Linux before 5.6, or a filter that knows no openat2
		_, _, errno = syscall.RawSyscall(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(dir)), 0, 0)
	}
	return errno
}

// closeRange closes every descriptor from first on, or with CLOSE_RANGE_CLOEXEC
// (Linux 5.11) marks it for execve. Where the kernel can not, the descriptors
// in /proc/self/fd are marked one by one.
func closeRange(first, flags uintptr) syscall.Errno {
	const sysCloseRange = 436
	_, _, errno := syscall.RawSyscall(sysCloseRange, first, uintptr(^uint32(0)), flags)
	if errno == 0 {
		return 0
	}
	return markAll()
}

func markAll() syscall.Errno {
	dir, err := syscall.Open("/proc/self/fd", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err.(syscall.Errno)
	}
	defer syscall.Close(dir)
	buffer := make([]byte, 4096)
	for {
		n, err := syscall.ReadDirent(dir, buffer)
		if err != nil {
			return err.(syscall.Errno)
		}
		if n == 0 {
			return 0
		}
		_, _, names := syscall.ParseDirent(buffer[:n], -1, nil)
		for _, name := range names {
			fd := uintptr(0)
			for i := range len(name) {
				fd = fd*10 + uintptr(name[i]-'0')
			}
			if fd >= FD {
				closeOnExec(fd)
			}
		}
	}
}
