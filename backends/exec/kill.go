package exec

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/failpoint"
)

// hunt is one killing of an incarnation.
type hunt struct {
	*handle
	leftOver bool // the main process had ended before

	stuck []prey // were sent SIGKILL and had not ended in the latest round
	mates []prey // were sent SIGKILL and carry no brand, so no round meets them again
	pack  bool   // strike at whole process groups
	full  bool   // there were no descriptors to hold more
}

// prey is one process that was sent SIGKILL.
type prey struct{ pid, pidfd int }

// atOnce is how many processes a round holds to wait for their ends. When
// there are more they are killed as well, and met again in the next round.
const atOnce = 256

// calm is how many looks in a row must find no sign of life where no look is
// conclusive, because the host forks all the time.
const calm = 16

// run kills until nobody is left, or gives up when ctx ends.
//
// Killing one by one has to deal with members that fork faster than they are
// found, and with those that leave their place to a child before each look
// reaches them. Against the first: with SIGKILL pending a process can not fork
// (its clone(2) is undone, and it dies), so each round shrinks them, and while
// a round meets new ones the next begins at once. Against the second: it ends
// only with a look that found nobody and during which nothing was forked on
// the whole host, or with many that found no sign of them, not even a corpse.
func (h *hunt) run(ctx context.Context) error {
	defer hasten()()
	defer func() { letGo(h.stuck); letGo(h.mates) }()
	fresh, conclusive, err := h.first()
	err = failpoint.After(err, failpoint.T5KillSent)
	for quiet := 0; ; {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil && (fresh > 0 || len(h.stuck) > 0):
			return ctx.Err()
		case fresh > 0:
			quiet = 0
		case len(h.stuck) > 0:
			quiet = 0
			if err := h.backend.await(ctx, h.stuck); err != nil {
				return err
			}
		case conclusive:
			return h.backend.await(ctx, h.mates)
		default:
			if quiet++; quiet == calm {
				return h.backend.await(ctx, h.mates)
			}
		}
		h.pack = true
		fresh, conclusive, err = h.round()
	}
}

// hasten gives this thread the highest priority, if that is allowed, until
// restore is called: the processes to be killed may be many and all busy.
func hasten() (restore func()) {
	runtime.LockOSThread()
	thread := unix.Gettid()
	before, err := unix.Getpriority(unix.PRIO_PROCESS, thread)
	if err == nil {
		err = unix.Setpriority(unix.PRIO_PROCESS, thread, -20)
	}
	return func() {
		if err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, thread, 20-before) // the system call tells 20-nice
		}
		runtime.UnlockOSThread()
	}
}

// first is the first round. It also kills those that carry no brand, before
// the others die who vouch for them.
func (h *hunt) first() (fresh int, conclusive bool, err error) {
	return h.look(func() error {
		c, err := h.backend.count(h.brand, h.main)
		if err != nil {
			return err
		}
		for _, m := range c.mates {
			if err := h.killMate(m); err != nil {
				return err // the others live, so that the next Kill finds it again
			}
		}
		if !h.ended() {
			// All of its process group at one moment, where the kernel can.
			// What a main process that has ended left over is met one by one,
			// because it is counted.
			_ = h.main.SignalGroup(unix.SIGKILL)
		}
		for _, pid := range c.ours {
			h.strike(pid)
		}
		return nil
	})
}

// round looks at all processes and strikes at each member when it is seen.
func (h *hunt) round() (fresh int, conclusive bool, err error) {
	letGo(h.stuck)
	h.stuck, h.full = nil, false
	return h.look(func() error {
		return h.backend.proc.EachPID(func(pid int) {
			if mark, err := h.backend.brandOf(pid); err == nil && mark == h.brand {
				h.strike(pid)
			}
		})
	})
}

// look tells how many signs of members who were not struck before a search
// has met, and whether nothing was forked meanwhile.
func (h *hunt) look(search func() error) (fresh int, conclusive bool, err error) {
	known := h.signsOfLife()
	before, err := h.backend.proc.LastPID()
	if err != nil {
		return 0, false, err
	}
	if err := search(); err != nil {
		return 0, false, err
	}
	after, err := h.backend.proc.LastPID()
	if err != nil {
		return 0, false, err
	}
	if h.full && len(h.stuck) == 0 {
		return 0, false, errors.New("no descriptor is left to hold a process by")
	}
	if h.full { // when those that are held have ended there are descriptors again
		return 0, false, nil
	}
	return h.signsOfLife() - known, before == after, nil
}

// strike kills pid if it is a member: it is held by pidfd before its brand is
// read once more, so that nobody is hit who was given the number of one that
// ended.
func (h *hunt) strike(pid int) {
	pidfd, err := process.Open(pid)
	if err != nil {
		h.full = h.full || !errors.Is(err, process.ErrGone)
		return
	}
	mark, self, err := h.backend.marksOf(pid)
	if err != nil || mark != h.brand {
		unix.Close(pidfd)
		return
	}
	if process.Ended(pidfd) {
		unix.Close(pidfd)
		h.corpse(pid)
		return
	}
	h.kill(pid, pidfd, h.leftOver && !launch.IsBeside(self))
}

// kill sends SIGKILL and keeps the pidfd to wait for the end.
func (h *hunt) kill(pid, pidfd int, leftOver bool) {
	h.condemn(pid, leftOver)
	if h.pack {
		// The group that it leads, if it does, at one moment. All of a group
		// are in one session, which is ours. It is not done in the first
		// round, where each is to be counted.
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, unix.PIDFD_SIGNAL_PROCESS_GROUP)
	}
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // if it fails, the process stays
	if len(h.stuck) < atOnce {
		h.stuck = append(h.stuck, prey{pid, pidfd})
	} else {
		unix.Close(pidfd)
	}
}

// killMate kills one that carries no brand, if its session is provably ours:
// at one moment both it and its voucher are held, alive and in that session. It
// fails when there is no descriptor to hold them by.
func (h *hunt) killMate(m mate) error {
	pidfd, err := process.Open(m.pid)
	if err != nil {
		return unlessGone(err)
	}
	voucher, err := process.Open(m.voucher)
	if err != nil {
		unix.Close(pidfd)
		return unlessGone(err)
	}
	defer unix.Close(voucher)
	both := inSession(m.voucher, m.session) && inSession(m.pid, m.session) &&
		h.vouches(m.voucher) && !process.Ended(voucher) && !process.Ended(pidfd)
	if !both {
		unix.Close(pidfd)
		return nil
	}
	h.condemn(m.pid, h.leftOver)
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	h.mates = append(h.mates, prey{m.pid, pidfd})
	return nil
}

func unlessGone(err error) error {
	if errors.Is(err, process.ErrGone) {
		return nil
	}
	return err
}

func inSession(pid, session int) bool {
	found, err := unix.Getsid(pid)
	return err == nil && found == session
}

// vouches tells whether pid is the main process, alive, or carries the brand.
func (h *hunt) vouches(pid int) bool {
	if !h.ended() && pid == h.main.PID() {
		return true
	}
	mark, err := h.backend.brandOf(pid)
	return err == nil && mark == h.brand
}

// await waits until all of them have ended.
func (b *Backend) await(ctx context.Context, all []prey) error {
	ends := make(chan struct{}, len(all))
	for _, p := range all {
		remove, err := b.watch.Add(p.pidfd, unix.EPOLLIN|unix.EPOLLONESHOT, func(uint32) { ends <- struct{}{} })
		if err != nil {
			return err
		}
		defer remove()
	}
	for range all {
		select {
		case <-ends:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func letGo(all []prey) {
	for _, p := range all {
		unix.Close(p.pidfd)
	}
}

// survivors describes those that would not die.
func (b *Backend) survivors(name service.Name, op string, mark brand, main *process.Main, cause error) error {
	list, err := b.survey(mark, main)
	if err != nil {
		return &service.Error{Op: op, Service: name, Kind: service.HostUnavailable, Err: errors.Join(cause, err)}
	}
	if len(list) == 0 {
		return &service.Error{Op: op, Service: name, Kind: service.Timeout, Err: fmt.Errorf("given up before the end of its processes was seen: %w", cause)}
	}
	words := make([]string, 0, len(list))
	for _, p := range list {
		words = append(words, fmt.Sprintf("%d %s (state %c)", p.PID, b.proc.Command(p.PID), p.State))
	}
	return &service.Error{Op: op, Service: name, Kind: service.Timeout, Reason: service.ReasonUnkillable,
		Err: fmt.Errorf("%d processes have not ended: %s: %w", len(list), strings.Join(words, ", "), cause)}
}
