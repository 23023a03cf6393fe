package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// Frozen tells whether the group is frozen, by itself or by one above it: then
// no process in it runs, and one that is born inside stops before its execve.
func (g Group) Frozen() (bool, error) {
	text, err := g.read("cgroup.events")
	if err != nil {
		return false, err
	}
	return event(text, "frozen")
}

// FrozenBy names the group by which g is frozen: g itself, else the nearest above it
// that is told to be (cgroup.freeze), else the root, for one above that can not be
// seen from here. The zero Group and false mean that g is not frozen.
func (g Group) FrozenBy() (Group, bool, error) {
	frozen, err := g.Frozen()
	if err != nil || !frozen {
		return Group{}, false, err
	}
	for _, level := range slices.Backward(g.lineage()) {
		told, err := level.toldToFreeze()
		if err != nil {
			return Group{}, false, err
		}
		if told {
			return level, true, nil
		}
	}
	if frozen, err = g.Frozen(); err != nil || !frozen { // it was thawed while we looked
		return Group{}, false, err
	}
	return g.Root(), true, nil
}

// toldToFreeze tells whether this very group is, not whether it has come about. The
// root of the host can not be frozen, and has no such file.
func (g Group) toldToFreeze() (bool, error) {
	text, err := g.read("cgroup.freeze")
	if errors.Is(err, fs.ErrNotExist) && g.path == "/" {
		return false, nil
	}
	return text == "1", err
}

// CanFreeze tells whether the kernel freezes groups (cgroup.freeze, Linux 5.2).
func (g Group) CanFreeze() (bool, error) {
	d, err := g.open()
	if err != nil {
		return false, err
	}
	defer d.Close()
	return d.has("cgroup.freeze")
}

// RefuseFrozen is an error if the group is frozen. It keeps a fork into it from
// waiting, with all forks that follow, for somebody to thaw it.
func (g Group) RefuseFrozen() error {
	frozen, err := g.Frozen()
	if err == nil && frozen {
		err = fmt.Errorf("%s is frozen, or a cgroup above it (see cgroup.freeze): nothing can start there", g.Parent().Path())
	}
	return err
}

// Freeze stops every process in the group and below it, those being forked at that
// moment included, and returns when the kernel says that all are (cgroup.freeze and
// cgroup.events, Linux's cgroup-v2.rst). A process in uninterruptible sleep does not
// freeze before that ends; when ctx ends first, the error is that of ctx and the group
// is thawed again. SIGKILL reaches what is frozen; other signals wait.
func (g Group) Freeze(ctx context.Context) error {
	err := g.write("cgroup.freeze", "1")
	if err == nil {
		err = g.waitEvent(ctx, "frozen", true)
	}
	if err != nil {
		return errors.Join(err, ignoreGone(g.write("cgroup.freeze", "0")))
	}
	_, err = g.Frozen() // one that is gone is not frozen
	return err
}

// thawPatience is how long the kernel may take to say that a group is thawed. It takes
// the leave of no process, so that one which stays frozen is held by a group above.
const thawPatience = 2 * time.Second

// Thaw lets the processes run again, and returns when the kernel says so. If a group
// above is frozen they stay as they are: then held is true, and by is that group, as
// FrozenBy tells.
func (g Group) Thaw(ctx context.Context) (by Group, held bool, err error) {
	if err := g.write("cgroup.freeze", "0"); err != nil {
		return Group{}, false, err
	}
	by, held, err = g.FrozenBy()
	if err != nil || !held || by.path != "/" {
		return by, held, err
	}
	short, cancel := context.WithTimeout(ctx, thawPatience)
	defer cancel()
	if err = g.waitEvent(short, "frozen", false); errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return by, true, nil
	}
	return Group{}, false, err
}
