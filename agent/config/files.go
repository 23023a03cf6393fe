package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

const (
	suffix             = ".json"
	maxDefinitionFiles = 4096
)

// Trust says whose files are read.
type Trust uint8

// AnyFile is for looking at files, as a check by a person does. OwnFile is for
// acting on them: the file, and the directory of definitions, must belong to
// root or to the user of this process, and nobody else may be able to write it.
const (
	AnyFile Trust = iota
	OwnFile
)

// Definition is one definition that was read from a file.
type Definition struct {
	Spec     service.Spec
	Source   string // path of the file
	Document []byte // what it holds
}

// ReadDefinitions reads the definitions in dir: the files NAME.json, each with
// the definition of the service NAME. Other files are left alone, among them
// those whose names begin with a dot, which editors and installers put beside
// the one they write. What a definition does not say is as in base.
//
// It returns the good definitions, sorted by name, and the faults of the
// others; Faults.Hide tells whether a name that is missing was taken away or
// merely could not be read. A directory that does not exist has no definitions.
func ReadDefinitions(dir string, base service.Spec, trust Trust) ([]Definition, Faults) {
	d, files, err := openDir(dir, trust)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, Faults{{File: printable(dir), Message: err.Error()}}
	}
	defer d.Close()
	var (
		good   []Definition
		faults Faults
		stray  []*stray
	)
	for _, file := range files {
		path := filepath.Join(dir, file)
		data, err := readAt(d, file, trust)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went away since the directory was listed
		} else if err != nil {
			faults = append(faults, Fault{File: printable(path), Message: err.Error()})
			continue
		}
		doc := newDocument(path, data)
		spec := readDefinition(doc, base)
		switch {
		case len(doc.faults) > 0:
			faults = append(faults, doc.sorted()...)
		case file != spec.Name.String()+suffix:
			stray = append(stray, newStray(doc, file, spec.Name))
		default:
			good = append(good, Definition{Spec: spec, Source: path, Document: data})
		}
	}
	for _, s := range stray {
		faults = append(faults, s.fault(files, stray))
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return strings.Compare(a.File, b.File) })
	return good, faults
}

// stray is a definition in a file that does not have its name.
type stray struct {
	doc  *document
	file string
	name service.Name
}

func newStray(doc *document, file string, name service.Name) *stray {
	return &stray{doc: doc, file: file, name: name}
}

// fault says where the definition belongs, and which other files have it.
func (s *stray) fault(files []string, all []*stray) Fault {
	proper := s.name.String() + suffix
	message := fmt.Sprintf("is %q, which is defined in %s only, not in %s", s.name, proper, printable(s.file))
	if slices.Contains(files, proper) {
		message += fmt.Sprintf("; there is a %s too", proper)
	}
	for _, other := range all {
		if other != s && other.name == s.name {
			line, column := other.doc.position(other.doc.place("name"))
			message += fmt.Sprintf("; %s:%d:%d has the same name", other.doc.file, line, column)
		}
	}
	fault := s.doc.remark(s.doc.place("name"), "name", "%s", message)
	fault.Stray = s.name
	return fault
}

// ReadFile reads a regular file of at most 1 MiB, such as the agent's
// configuration. It follows no symbolic link at the end of the path, never
// blocks, and refuses a file that changes meanwhile. The error is a
// *service.Error that wraps fs.ErrNotExist where there is no such file.
func ReadFile(path string, trust Trust) ([]byte, error) {
	data, err := readAt(nil, path, trust)
	if err != nil {
		return nil, &service.Error{Op: "read " + printable(path), Kind: service.Invalid, Err: err}
	}
	return data, nil
}

// openDir opens dir and lists its definition files, sorted.
func openDir(dir string, trust Trust) (*os.File, []string, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open the directory: %w", err)
	}
	d := os.NewFile(uintptr(fd), dir)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && trust == OwnFile {
		err = checkOwner(st)
	}
	var files []string
	for err == nil {
		var names []string
		if names, err = d.Readdirnames(1024); err != nil {
			break
		}
		for _, name := range names {
			if strings.EqualFold(filepath.Ext(name), suffix) && !strings.HasPrefix(name, ".") {
				files = append(files, name)
			}
		}
		if len(files) > maxDefinitionFiles {
			err = fmt.Errorf("it has more than %d definition files", maxDefinitionFiles)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		d.Close()
		return nil, nil, err
	}
	slices.Sort(files)
	return d, files, nil
}

// readAt reads the file name in dir, or at the path name without one.
func readAt(dir *os.File, name string, trust Trust) ([]byte, error) {
	at := unix.AT_FDCWD
	if dir != nil {
		at = int(dir.Fd())
	}
	// Looked at before it is opened, since to open a device may already do
	// something; and again afterwards, since it may have been exchanged.
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	if err := checkFile(st, trust); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if err := checkFile(st, trust); err != nil {
		return nil, err
	}
	return readAll(fd, st)
}

// readAll reads fd, which was st a moment ago. It uses read(2) directly: an
// os.File would wait for data in those files of /proc that have none yet.
func readAll(fd int, before unix.Stat_t) ([]byte, error) {
	data := make([]byte, 0, before.Size+512)
	for {
		if len(data) > maxBytes {
			return nil, tooBig(int64(len(data)))
		}
		if len(data) == cap(data) {
			data = slices.Grow(data, 512)
		}
		n, err := unix.Read(fd, data[len(data):cap(data)])
		if err == unix.EINTR {
			continue
		} else if err != nil {
			return nil, err
		} else if n == 0 {
			break
		}
		data = data[:len(data)+n]
	}
	var after unix.Stat_t
	if err := unix.Fstat(fd, &after); err != nil {
		return nil, err
	}
	if after.Size != int64(len(data)) || after.Mtim != before.Mtim || after.Ctim != before.Ctim {
		return nil, errors.New("it was changed while it was read; write a new file beside it and rename that, then read again")
	}
	return data, nil
}

func tooBig(size int64) error {
	return fmt.Errorf("it has %d bytes; at most %d are read", size, maxBytes)
}

// checkFile refuses what is no plain file of a sensible size, and with OwnFile
// what somebody else could have written.
func checkFile(st unix.Stat_t, trust Trust) error {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("it is %s; only regular files are read", fileKind(st.Mode))
	}
	if st.Size > maxBytes {
		return tooBig(st.Size)
	}
	if trust != OwnFile {
		return nil
	}
	if st.Nlink > 1 {
		return fmt.Errorf("it has %d hard links; a file with another name elsewhere is not trusted", st.Nlink)
	}
	return checkOwner(st)
}

// checkOwner wants that only root and this process's user can write it. A POSIX
// ACL needs no look of its own: what it grants to others shows as the group's
// bits (acl(5), "correspondence between ACL entries and file permission bits").
func checkOwner(st unix.Stat_t) error {
	if euid := os.Geteuid(); st.Uid != 0 && int(st.Uid) != euid {
		return fmt.Errorf("it belongs to user %d and has mode %04o; it must belong to root or to user %d", st.Uid, st.Mode&0o7777, euid)
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("its mode is %04o, which lets others write it; run: chmod go-w", st.Mode&0o7777)
	}
	return nil
}

func fileKind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "a device"
	case unix.S_IFDIR:
		return "a directory"
	}
	return "not a file"
}
