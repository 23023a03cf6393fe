// Package cgroup is a cgroup v2 tree under a root: create a group, limit it and
// read back what the kernel made of it, count what it used, find out at which
// level memory ran out, kill all of it and remove it.
//
// Every file is reached through a directory that was opened step by step from
// the root without following links, and whose filesystem was verified to be
// cgroup2, so nothing outside the tree can be written. What the kernel does not
// offer is reported as absent, never as zero. The files are described in the
// kernel's Documentation/admin-guide/cgroup-v2.rst.
package cgroup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is a cgroup v2 hierarchy. It holds no resources, so it needs no Close;
// it may be copied and used by many goroutines at once.
type Tree struct {
	root  string
	magic int64 // filesystem type that every opened directory must have
	fault *func(call, path string) error
}

// WithFault is t for tests: fault is called before each system call on the tree,
// which then fails with what it returns.
func (t Tree) WithFault(fault func(call, path string) error) Tree {
	t.fault = &fault
	return t
}

// call makes a system call, again when a signal interrupts it. The error says which
// call, and of what.
func (t Tree) call(name, path string, do func() error) error {
	for {
		var err error
		if t.fault != nil {
			err = (*t.fault)(name, path)
		}
		if err == nil {
			err = do()
		}
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EINTR):
			return &fs.PathError{Op: name, Path: path, Err: err}
		}
	}
}

// Open takes up the hierarchy mounted at root, "/sys/fs/cgroup" on most hosts.
// It refuses a directory that is not on cgroup2 (statfs(2)), such as the tmpfs
// that holds the hierarchies of cgroup v1.
func Open(root string) (Tree, error) {
	return openTree(root, unix.CGROUP2_SUPER_MAGIC)
}

// OpenFixture takes up a plain directory whose files were made beforehand to
// look like a hierarchy. It is for tests, and refuses cgroup2 itself: a tree
// that it returns can not write to a real one.
func OpenFixture(root string) (Tree, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return Tree{}, &fs.PathError{Op: "statfs", Path: root, Err: err}
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return Tree{}, fmt.Errorf("%s is a real cgroup2 filesystem, not a fixture", root)
	}
	return openTree(root, st.Type)
}

func openTree(root string, magic int64) (Tree, error) {
	t := Tree{root: filepath.Clean(root), magic: magic}
	d, err := t.open("/")
	if err != nil {
		return Tree{}, err
	}
	return t, d.Close()
}

// Group names the group at p, a path below the root with a leading slash; "/"
// is the root itself. The path is cleaned so that it can not lead out of the
// tree. Nothing is opened: the group need not exist.
func (t Tree) Group(p string) Group {
	return Group{tree: t, path: path.Clean("/" + p)}
}

// open opens the directory of a group, one step at a time.
func (t Tree) open(group string) (*dir, error) {
	fd, err := t.openat(unix.AT_FDCWD, t.root, t.root, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	var root unix.Stat_t
	if err := t.verify(fd, t.root, &root); err != nil {
		unix.Close(fd)
		return nil, err
	}
	at := t.root
	for step := range strings.SplitSeq(strings.Trim(group, "/"), "/") {
		if step == "" {
			continue
		}
		at = filepath.Join(at, step)
		next, err := t.openat(fd, step, at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		unix.Close(fd)
		if err != nil {
			return nil, err
		}
		fd = next
	}
	var last unix.Stat_t
	if err := t.verify(fd, at, &last); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if last.Dev != root.Dev {
		unix.Close(fd)
		return nil, fmt.Errorf("%s lies on another filesystem than %s", at, t.root)
	}
	return &dir{File: os.NewFile(uintptr(fd), at), tree: t, dev: root.Dev}, nil
}

// verify refuses a directory that is not on the tree's kind of filesystem.
func (t Tree) verify(fd int, at string, st *unix.Stat_t) error {
	var sf unix.Statfs_t
	if err := t.call("statfs", at, func() error { return unix.Fstatfs(fd, &sf) }); err != nil {
		return err
	}
	if sf.Type != t.magic {
		return fmt.Errorf("%s is not on a cgroup2 filesystem (type %#x, want %#x)", at, sf.Type, t.magic)
	}
	return t.call("stat", at, func() error { return unix.Fstat(fd, st) })
}

// openat is openat(2), closed on exec.
func (t Tree) openat(at int, name, path string, flags int) (fd int, err error) {
	err = t.call("open", path, func() error {
		fd, err = unix.Openat(at, name, flags|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// dir is an open, verified directory of the tree.
type dir struct {
	*os.File
	tree Tree
	dev  uint64
}

// openFile opens one file of d, never a link and never one on another
// filesystem.
func (d *dir) openFile(name string, flags int) (*os.File, error) {
	full := filepath.Join(d.Name(), name)
	fd, err := d.openFD(name, full, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), full), nil
}

// openFD is openFile for those who read so many that an os.File of each costs.
func (d *dir) openFD(name, full string, flags int) (int, error) {
	fd, err := d.tree.openat(int(d.Fd()), name, full, flags|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := d.tree.call("stat", full, func() error { return unix.Fstat(fd, &st) }); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Dev != d.dev {
		unix.Close(fd)
		return -1, fmt.Errorf("%s lies on another filesystem than its directory", full)
	}
	return fd, nil
}

// read reads a file of d, without the white space around it.
func (d *dir) read(name string) (string, error) {
	f, err := d.openFile(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var text []byte
	err = d.tree.call("read", f.Name(), func() error { text, err = io.ReadAll(f); return bare(err) })
	return strings.TrimSpace(string(text)), err
}

// write writes value to a file of d in one write(2), as cgroup files want it.
func (d *dir) write(name, value string) error {
	f, err := d.openFile(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	return d.tree.call("write", f.Name(), func() error { _, err := f.WriteString(value); return bare(err) })
}

// bare is the errno in an error of package os, which names the file already.
func bare(err error) error {
	if named, ok := errors.AsType[*fs.PathError](err); ok {
		return named.Err
	}
	return err
}

// has tells whether d holds a file of that name.
func (d *dir) has(name string) (bool, error) {
	var st unix.Stat_t
	err := d.tree.call("stat", filepath.Join(d.Name(), name), func() error {
		return unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	switch {
	case err == nil:
		return true, nil
	case gone(err):
		return false, nil
	}
	return false, err
}

// children lists the names of the groups in d.
func (d *dir) children() ([]string, error) {
	var entries []os.DirEntry
	err := d.tree.call("list", d.Name(), func() error {
		_, err := d.Seek(0, io.SeekStart)
		if err == nil {
			entries, err = d.ReadDir(-1)
		}
		return bare(err)
	})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// gone tells whether err says that the group, or the file, is not there: ENOENT
// by its path, ENODEV through a descriptor opened before it was removed.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}
