package exec

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/procfs"
)

// brand is the hard RLIMIT_RTTIME of every process of one incarnation, in
// microseconds: bit 62, then 30 bits of a hash of the agent and the service,
// then the incarnation's lower 32 bits. The soft one tells who the main process
// is, see launch.Self.
//
// That limit fits because nothing else uses it: it bounds how long a real-time
// process may run without a system call, and each brand allows more than
// 146,000 years. The kernel hands it down through fork and execve, everybody
// may read it in /proc/PID/limits, and only CAP_SYS_RESOURCE may raise it. The
// soft limit is a process's to play with, up to the hard one.
type brand uint64

const brandBit brand = 1 << 62

// is tells whether m was made by some agent, and is no ordinary limit.
func (m brand) is() bool { return m>>62 == 1 }

func (m brand) service() uint32     { return uint32(m>>32) &^ (3 << 30) }
func (m brand) incarnation() uint64 { return uint64(uint32(m)) }

func (b *Backend) brand(name service.Name, incarnation uint64) brand {
	return brandBit | brand(b.hash(name))<<32 | brand(uint32(incarnation))
}

// hash is 30 bits of a hash of the agent and the service: two of a thousand
// services collide once in two thousand hosts, and then only mix up
// incarnations of the same number.
func (b *Backend) hash(name service.Name) uint32 {
	sum := sha256.Sum256([]byte(b.agentID + "\x00" + name.String()))
	return binary.BigEndian.Uint32(sum[:]) >> 2
}

// brandOf reads the brand of pid, 0 if it has none. It fails with
// procfs.ErrNoProcess when there is no such process; a zombie still has one.
func (b *Backend) brandOf(pid int) (brand, error) {
	mark, _, err := b.marksOf(pid)
	return mark, err
}

// marksOf reads the brand of pid and, as far as it has left that alone, who led
// its incarnation at the launch (launch.Self).
func (b *Backend) marksOf(pid int) (mark brand, leader uint64, err error) {
	// One system call, but only for processes of our own user, or with
	// CAP_SYS_RESOURCE.
	var limit unix.Rlimit
	err = unix.Prlimit(pid, unix.RLIMIT_RTTIME, nil, &limit)
	switch {
	case err == nil:
	case errors.Is(err, unix.ESRCH):
		return 0, 0, procfs.ErrNoProcess
	case !errors.Is(err, unix.EPERM):
		return 0, 0, fmt.Errorf("read the brand of process %d: %w", pid, err)
	default:
		if limit.Cur, limit.Max, err = b.proc.RTTimeLimit(pid); err != nil {
			return 0, 0, err
		}
	}
	if mark = brand(limit.Max); !mark.is() {
		return 0, 0, nil
	}
	return mark, limit.Cur, nil
}

// canBrand tells why this process could not give its children a brand, or nil.
func canBrand() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_RTTIME, &limit); err != nil {
		return fmt.Errorf("read RLIMIT_RTTIME: %w", err)
	}
	if limit.Max == unix.RLIM_INFINITY {
		return nil
	}
	// Setting what is there already changes nothing; raising tells whether
	// raising is allowed.
	if err := unix.Setrlimit(unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: limit.Cur, Max: unix.RLIM_INFINITY}); err != nil {
		return fmt.Errorf("the agent's own RLIMIT_RTTIME is limited to %d µs and may not be raised (%w); start it without that limit", limit.Max, err)
	}
	return nil
}
