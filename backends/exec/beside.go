package exec

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
)

// Run implements backends.Handle. The program carries the brand of the incarnation, and by
// its soft limit it and its descendants are told from the main process and those of that.
func (h *handle) Run(ctx context.Context, p backends.Program) (backends.Ran, error) {
	if !p.After && h.ended() {
		return backends.Ran{}, &service.Error{Op: "run a program beside", Service: h.ref.Name, Kind: service.NotRunning, Err: errors.New("its main process has ended")}
	}
	h.mu.Lock()
	limits := withoutRTTime(h.requested)
	h.mu.Unlock()
	opening, barren := h.backend.fork()
	ran, err := launch.Beside{
		Ref: h.ref, Like: h.like, Limits: limits, Program: p, Main: h.main, CgroupFD: -1, Brand: uint64(h.brand),
		Opening: opening,
		Sweep: func(ctx context.Context, root *launch.Child) error {
			if root == nil || over(root.Process().Exited()) && barren(root.PID()) {
				return nil
			}
			_ = root.Process().SignalGroup(unix.SIGKILL) // all of it at one moment, where the kernel can
			if p.After {                                 // then nothing else of the incarnation may live
				return h.backend.sweep(ctx, h.branded)
			}
			return h.backend.sweep(ctx, func(pid int) bool { return h.descends(pid, root) })
		},
	}.Run(ctx, h.backend.watch)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dead += ran.CPUTime
	return backends.Ran{Exit: ran.Exit, Output: ran.Output}, err
}

// branded tells whether pid is of the incarnation.
func (h *handle) branded(pid int) bool {
	mark, _, err := h.backend.marksOf(pid)
	return err == nil && mark == h.brand
}

// sameNumbers is for how long the latest number of a process tells that there was no other:
// no host gives out all that there are in that time.
const sameNumbers = time.Second

// fork tells of a program that has ended whether it is certain to have no descendants,
// without a look at all processes: nothing was forked on the whole host, or in the container
// that is it for us, since its gate was opened. A kernel that does not even tell of the gate
// (gVisor always says 0) is not asked.
func (b *Backend) fork() (opening func(), barren func(pid int) bool) {
	var began time.Time
	before, unknown := 0, errors.New("its gate was not opened")
	opening = func() {
		began = time.Now()
		before, unknown = b.proc.LastPID()
	}
	return opening, func(pid int) bool {
		if unknown != nil || !b.counts || before < pid || time.Since(began) >= sameNumbers {
			return false
		}
		now, err := b.proc.LastPID()
		return err == nil && now == before
	}
}

// descends tells whether pid is root or descends from it: it has its soft limit, or, should
// it have changed that, is in its session.
func (h *handle) descends(pid int, root *launch.Child) bool {
	mark, self, err := h.backend.marksOf(pid)
	if err != nil || mark != h.brand {
		return false
	}
	return self == launch.BesideOf(root.PID(), root.StartTicks()) || inSession(pid, root.PID())
}

// sweep kills who belongs, until a look has found nobody; see hunt on when that counts.
func (b *Backend) sweep(ctx context.Context, belongs func(pid int) bool) error {
	for quiet := 0; quiet < calm; quiet++ {
		before, err := b.proc.LastPID()
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		struck, err := b.strikeAll(ctx, belongs)
		if err != nil {
			return err
		}
		after, err := b.proc.LastPID()
		switch {
		case err != nil:
			return err
		case struck > 0:
			quiet = 0
		case before == after:
			return nil
		}
	}
	return nil
}

// strikeAll kills who belongs, and waits for their ends.
func (b *Backend) strikeAll(ctx context.Context, belongs func(pid int) bool) (struck int, err error) {
	var stuck []prey
	defer func() { letGo(stuck) }()
	full := false
	err = b.proc.EachPID(func(pid int) {
		if !belongs(pid) {
			return
		}
		pidfd, err := process.Open(pid)
		if err != nil {
			full = full || !errors.Is(err, process.ErrGone)
			return
		}
		if !belongs(pid) || process.Ended(pidfd) { // now that its number can not be another's
			unix.Close(pidfd)
			return
		}
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		if stuck = append(stuck, prey{pid, pidfd}); len(stuck) > atOnce {
			unix.Close(pidfd)
			stuck = stuck[:atOnce]
		}
		struck++
	})
	if err == nil && full && struck == 0 {
		err = errors.New("no descriptor is left to hold a process by")
	}
	if err == nil {
		err = b.await(ctx, stuck)
	}
	return struck, err
}

// endBeside ends what an agent that is no more was running beside the main process of an
// incarnation. It looks for all such processes when it is called first: whoever adopts
// does so before it runs anything.
func (b *Backend) endBeside(ctx context.Context, mark brand) error {
	b.mu.Lock()
	if b.beside == nil {
		b.beside = map[brand][]int{}
		err := b.proc.EachPID(func(pid int) {
			if m, self, err := b.marksOf(pid); err == nil && m.is() && launch.IsBeside(self) {
				b.beside[m] = append(b.beside[m], pid)
			}
		})
		if err != nil {
			b.beside = nil
			b.mu.Unlock()
			return err
		}
	}
	found := b.beside[mark]
	delete(b.beside, mark)
	b.mu.Unlock()
	if len(found) == 0 {
		return nil
	}
	return b.sweep(ctx, func(pid int) bool {
		m, self, err := b.marksOf(pid)
		return err == nil && m == mark && launch.IsBeside(self)
	})
}
