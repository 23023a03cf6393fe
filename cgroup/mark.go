package cgroup

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// marks are the extended attributes that hold a mark, the preferred one first.
// That in "trusted" is for CAP_SYS_ADMIN alone. In the user namespace of a
// container nobody has that, and "user" serves whoever may write to the directory
// (Linux 5.7, Documentation/filesystems/api-summary, kernfs).
var marks = [...]string{"trusted.gladsheim", "user.gladsheim"}

// maxMark is the size of the largest mark.
const maxMark = 64

// SetMark notes text on the group, for as long as it exists. Where the kernel
// takes no such note the error is errors.ErrUnsupported.
func (g Group) SetMark(text string) error {
	d, err := g.open()
	if err != nil {
		return err
	}
	defer d.Close()
	for _, name := range marks {
		err = g.tree.call("mark", d.Name(), func() error { return unix.Fsetxattr(int(d.Fd()), name, []byte(text), 0) })
		if !notServed(err) {
			break
		}
	}
	if notServed(err) {
		return &fs.PathError{Op: "mark", Path: d.Name(), Err: errors.ErrUnsupported}
	}
	return err
}

// Mark is what SetMark has noted, "" for nothing.
func (g Group) Mark() (string, error) {
	d, err := g.open()
	if err != nil {
		return "", err
	}
	defer d.Close()
	var text [maxMark]byte
	for _, name := range marks {
		var n int
		err := g.tree.call("read the mark of", d.Name(), func() (err error) { n, err = unix.Fgetxattr(int(d.Fd()), name, text[:]); return err })
		switch {
		case err == nil:
			return string(text[:n]), nil
		case !errors.Is(err, unix.ENODATA) && !notServed(err):
			return "", err
		}
	}
	return "", nil
}

// notServed tells whether the kernel, or who we are, allows no such attribute.
func notServed(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP)
}
