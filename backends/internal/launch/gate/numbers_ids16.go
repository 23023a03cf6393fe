//go:build 386 || arm

package gate

import "syscall"

// On these architectures the plain calls take IDs of 16 bits.
const (
	sysSetgroups = syscall.SYS_SETGROUPS32
	sysSetresgid = syscall.SYS_SETRESGID32
	sysSetresuid = syscall.SYS_SETRESUID32
)
