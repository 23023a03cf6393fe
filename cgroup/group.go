package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Group is one group of a Tree, named by its path. It holds no resources and
// need not exist; methods on one that does not exist return an error for which
// errors.Is(err, fs.ErrNotExist) holds, where they do not say otherwise. It may
// be copied and used by many goroutines at once.
type Group struct {
	tree Tree
	path string
}

// Path is where the group lies below the root, with a leading slash.
func (g Group) Path() string { return g.path }

// Holds tells whether the cgroup at that path is the group or lies below it.
func (g Group) Holds(at string) bool {
	return at == g.path || strings.HasPrefix(at, strings.TrimSuffix(g.path, "/")+"/")
}

// Child names a group directly in g.
func (g Group) Child(name string) Group { return g.tree.Group(path.Join(g.path, name)) }

// Parent names the group that g lies in; the root's parent is the root.
func (g Group) Parent() Group { return g.tree.Group(path.Dir(g.path)) }

// Root names the root of the tree that g is in.
func (g Group) Root() Group { return g.tree.Group("/") }

// lineage lists g and its ancestors, the root first.
func (g Group) lineage() []Group {
	up := []Group{g}
	for g.path != "/" {
		g = g.Parent()
		up = append(up, g)
	}
	slices.Reverse(up)
	return up
}

// Exists tells whether the group is there.
func (g Group) Exists() (bool, error) {
	d, err := g.open()
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, d.Close()
}

// Children lists the groups directly in g.
func (g Group) Children() ([]string, error) {
	d, err := g.open()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.children()
}

// Controllers lists what the kernel offers to limit in this group
// (cgroup.controllers).
func (g Group) Controllers() ([]string, error) {
	text, err := g.read("cgroup.controllers")
	return strings.Fields(text), err
}

// Create makes the group, with these controllers, whose parents pass them on
// from now on (see Enable). It verifies what the kernel made: the controllers
// are there and processes may live in it. The error is fs.ErrExist when the
// group is there already; then the parents pass the controllers on nonetheless.
// After any other error no group is left behind.
func (g Group) Create(controllers []string) error {
	if err := g.Parent().Enable(controllers); err != nil {
		return err
	}
	parent, err := g.Parent().open()
	if err != nil {
		return err
	}
	defer parent.Close()
	err = g.tree.call("mkdir", g.file(""), func() error { return unix.Mkdirat(int(parent.Fd()), path.Base(g.path), 0o755) })
	if err != nil {
		return err
	}
	if err := g.verifyNew(controllers); err != nil {
		return errors.Join(err, g.Remove())
	}
	return nil
}

func (g Group) verifyNew(controllers []string) error {
	d, err := g.open()
	if err != nil {
		return err
	}
	defer d.Close()
	if err := checkDomain(d); err != nil {
		return err
	}
	return checkOffered(d, controllers)
}

// Enable lets every group from the root down to g pass controllers on to its
// children: it writes cgroup.subtree_control where one is missing, and reads it
// back. It refuses a group that has processes of its own (the kernel would
// answer EBUSY, or, for cpu and pids, turn it into a threaded one in which
// nothing can be started) and one that is threaded already.
func (g Group) Enable(controllers []string) error {
	for _, level := range g.lineage() {
		if err := level.enableHere(controllers); err != nil {
			return err
		}
	}
	return nil
}

func (g Group) enableHere(controllers []string) error {
	d, err := g.open()
	if err != nil {
		return err
	}
	defer d.Close()
	missing, err := missingIn(d, "cgroup.subtree_control", controllers)
	if err != nil || len(missing) == 0 {
		return err
	}
	if err := checkOffered(d, controllers); err != nil {
		return err
	}
	if err := checkDomain(d); err != nil {
		return err
	}
	if err := checkInner(d); err != nil {
		return err
	}
	err = d.write("cgroup.subtree_control", "+"+strings.Join(missing, " +"))
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %s", err, innerAdvice)
	}
	if err != nil {
		return err
	}
	missing, err = missingIn(d, "cgroup.subtree_control", controllers)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s lacks %s after they were written", g.file("cgroup.subtree_control"), strings.Join(missing, ", "))
	}
	return checkDomain(d)
}

const innerAdvice = "a cgroup that has processes of its own can not pass controllers on; move them into a leaf below it first"

// checkInner refuses a group that has processes of its own. The root of the
// host may have them (it has no cgroup.type).
func checkInner(d *dir) error {
	inner, err := d.has("cgroup.type")
	if err != nil || !inner {
		return err
	}
	pids, err := d.processes()
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return fmt.Errorf("%s holds %d processes, %d the first: %s", d.Name(), len(pids), pids[0], innerAdvice)
	}
	return nil
}

// Own lists the processes in g itself that keep it from passing controllers on:
// none for the root of the host, which may have some.
func (g Group) Own() ([]int, error) {
	d, err := g.open()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if inner, err := d.has("cgroup.type"); err != nil || !inner {
		return nil, err
	}
	return d.processes()
}

// Vacate moves what is Own to g into the group to, and what is forked meanwhile.
func (g Group) Vacate(to Group) error {
	const passes = 100 // each reaches a generation of forks
	for range passes {
		pids, err := g.Own()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if pid == 0 {
				return fmt.Errorf("%s holds processes that can not be seen from here, of another PID namespace", g.file(""))
			}
			if err := to.Add(pid); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move process %d from %s to %s: %w", pid, g.path, to.path, err)
			}
		}
	}
	return fmt.Errorf("processes are forked in %s faster than they can be moved away", g.file(""))
}

// checkDomain refuses a group in which no process can be started because it is
// part of a threaded subtree.
func checkDomain(d *dir) error {
	kind, err := d.read("cgroup.type")
	switch {
	case errors.Is(err, unix.ENOENT): // the root of the host
		return nil
	case err != nil:
		return err
	case kind != "domain":
		return fmt.Errorf("%s is %q, not \"domain\": processes can not be started below it; "+
			"somebody enabled threaded controllers where processes live", d.Name(), kind)
	}
	return nil
}

// checkOffered refuses controllers that d does not have.
func checkOffered(d *dir, controllers []string) error {
	missing, err := missingIn(d, "cgroup.controllers", controllers)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s does not offer %s: the kernel has it disabled, or a cgroup above does not pass it on",
			d.Name(), strings.Join(missing, ", "))
	}
	return nil
}

// missingIn lists which words are not in a file of words.
func missingIn(d *dir, file string, words []string) ([]string, error) {
	text, err := d.read(file)
	if err != nil {
		return nil, err
	}
	have := strings.Fields(text)
	var missing []string
	for _, w := range words {
		if !slices.Contains(have, w) {
			missing = append(missing, w)
		}
	}
	return missing, nil
}

// Add moves the process pid into g (cgroup.procs). The number must be known to
// be the process meant: a child of the caller that it has not reaped.
func (g Group) Add(pid int) error {
	return g.write("cgroup.procs", strconv.Itoa(pid))
}

// SetOOMGroup tells the kernel to kill the group as a whole when it runs out of
// memory (memory.oom.group), or only one process of it. It writes nothing when
// that is so already.
func (g Group) SetOOMGroup(whole bool) error {
	want := "0"
	if whole {
		want = "1"
	}
	got, err := g.read("memory.oom.group")
	if err != nil || got == want {
		return err
	}
	if err := g.write("memory.oom.group", want); err != nil {
		return err
	}
	if got, err = g.read("memory.oom.group"); err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s holds %s after %s was written", g.file("memory.oom.group"), got, want)
	}
	return nil
}

// OpenDir opens the group's directory, for CLONE_INTO_CGROUP (clone(2)).
func (g Group) OpenDir() (*os.File, error) {
	d, err := g.open()
	if err != nil {
		return nil, err
	}
	return d.File, nil
}

// OpenEvents opens cgroup.events, which signals EPOLLPRI whenever the group
// becomes populated, empty, frozen or thawed.
func (g Group) OpenEvents() (*os.File, error) {
	d, err := g.open()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.openFile("cgroup.events", unix.O_RDONLY|unix.O_NONBLOCK)
}

// Notified are the files of a group that the kernel has news in, by itself.
var Notified = []string{"memory.events", "pids.events"}

func (g Group) open() (*dir, error) { return g.tree.open(g.path) }

// file is the absolute path of a file of the group, for messages.
func (g Group) file(name string) string { return path.Join(g.tree.root, g.path, name) }

func (g Group) read(name string) (string, error) {
	d, err := g.open()
	if err != nil {
		return "", err
	}
	defer d.Close()
	return d.read(name)
}

func (g Group) write(name, value string) error {
	d, err := g.open()
	if err != nil {
		return err
	}
	defer d.Close()
	return d.write(name, value)
}
