package exec

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/procfs"
)

// census is one look at all processes of the host.
type census struct {
	ours  []int // carry the brand; zombies too
	mates []mate
}

// mate is a process that carries no brand, but is in the session of one that
// does. Sessions are inherited and can not be joined, and that of a service
// begins at the gate, so a mate descends from the service.
type mate struct{ pid, session, voucher int }

// count lists what belongs to the brand. main, if it is not nil and has not
// ended, vouches for its session too.
func (b *Backend) count(mark brand, main *process.Main) (census, error) {
	var c census
	var others []int
	vouchers := map[int]int{} // session → a member in it
	if main != nil && !over(main.Exited()) {
		vouchers[main.PID()] = main.PID()
	}
	err := b.proc.EachPID(func(pid int) {
		switch found, err := b.brandOf(pid); {
		case err != nil: // gone, or hidden from us and so not of our making
		case found == mark:
			c.ours = append(c.ours, pid)
			if session, err := unix.Getsid(pid); err == nil {
				vouchers[session] = pid
			}
		case found == 0:
			others = append(others, pid)
		}
	})
	if err != nil {
		return census{}, err
	}
	if len(vouchers) == 0 {
		return c, nil
	}
	for _, pid := range others {
		session, err := unix.Getsid(pid)
		if voucher, ok := vouchers[session]; ok && err == nil {
			c.mates = append(c.mates, mate{pid, session, voucher})
		}
	}
	return c, nil
}

// survey lists the processes of an incarnation that live, the main one first.
func (b *Backend) survey(mark brand, main *process.Main) ([]procfs.Process, error) {
	c, err := b.count(mark, main)
	if err != nil {
		return nil, err
	}
	var list []procfs.Process
	pids := c.ours
	for _, m := range c.mates {
		pids = append(pids, m.pid)
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

// over tells whether a channel is closed.
func over(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
