package exec

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/procfs"
)

// census is one look at all processes of the host.
type census struct {
	ours     []int       // carry the brand; zombies too
	mates    map[int]int // carry none, but are in the session of one that does: number → session
	vanished bool        // a number was listed and gone when it was looked at
}

// count lists what belongs to the brand. main, if it is not nil and has not
// ended, vouches for its session too.
func (b *Backend) count(mark brand, main *process.Process) (census, error) {
	pids, err := b.proc.PIDs()
	if err != nil {
		return census{}, err
	}
	c := census{mates: map[int]int{}}
	sessions := map[int]bool{}
	if main != nil && !over(main.Exited()) {
		sessions[main.PID()] = true
	}
	others := pids[:0]
	for _, pid := range pids {
		found, err := b.brandOf(pid)
		switch {
		case errors.Is(err, procfs.ErrNoProcess):
			c.vanished = true
		case err != nil: // hidden from us, so it is not of our making
		case found == mark:
			c.ours = append(c.ours, pid)
			if session, err := unix.Getsid(pid); err == nil {
				sessions[session] = true
			}
		case !found.is():
			others = append(others, pid)
		}
	}
	if len(sessions) == 0 {
		return c, nil
	}
	for _, pid := range others {
		if session, err := unix.Getsid(pid); err == nil && sessions[session] {
			c.mates[pid] = session
		}
	}
	return c, nil
}

// survey lists the processes of an incarnation that live, the main one first.
func (b *Backend) survey(ctx context.Context, mark brand, main *process.Process) ([]procfs.Process, error) {
	c, err := b.count(mark, main)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var list []procfs.Process
	pids := c.ours
	for pid := range c.mates {
		pids = append(pids, pid)
	}
	for _, pid := range pids {
		p, err := b.proc.Process(pid)
		if errors.Is(err, procfs.ErrNoProcess) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !p.Alive() {
			continue
		}
		list = append(list, p)
		if main != nil && pid == main.PID() {
			last := len(list) - 1
			list[0], list[last] = list[last], list[0]
		}
	}
	return list, nil
}

// prey is one process that was sent SIGKILL and has not ended.
type prey struct{ pid, pidfd int }

// atOnce is how many processes a round of killing holds to wait for their
// ends. More may live; they are killed as well, and met again in the next
// round.
const atOnce = 256

// hunt is one killing of an incarnation.
type hunt struct {
	backend *Backend
	brand   brand
	main    *process.Process // nil if it is not held
	killed  map[int]bool     // were sent SIGKILL
	stuck   []prey           // have not ended in the last round
}

// round kills what it finds and tells whether it met somebody new. Each member
// is held by pidfd before its brand is read once more, so that nobody is hit
// who was given the number of one that ended. A process with SIGKILL pending
// can not fork any more (fork(2) is restarted, and dies first), so every round
// that kills faster than the rest can fork shrinks them.
func (h *hunt) round(first bool) (found census, fresh bool, err error) {
	h.release()
	c, err := h.backend.count(h.brand, h.main)
	if err != nil {
		return c, false, err
	}
	if first {
		h.killMates(c)
	}
	for _, pid := range c.ours {
		pidfd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return c, fresh, fmt.Errorf("open a pidfd of process %d: %w", pid, err)
		}
		if mark, err := h.backend.brandOf(pid); err != nil || mark != h.brand {
			unix.Close(pidfd)
			continue
		}
		if process.Ended(pidfd) {
			unix.Close(pidfd)
			h.backend.reaper.reap(pid)
			continue
		}
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // a failure shows in its staying alive
		fresh = fresh || !h.killed[pid]
		h.killed[pid] = true
		if len(h.stuck) < atOnce {
			h.stuck = append(h.stuck, prey{pid, pidfd})
		} else {
			unix.Close(pidfd)
		}
	}
	return c, fresh, nil
}
