package skirnir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// usageHead is how long the head of a UsageFile is: a page, so that what follows lies
// in as many pages as it has to.
const usageHead = 4 << 10

// usageSuffix ends the names of UsageFiles.
const usageSuffix = ".ring"

// UsageFile keeps what one service used in this boot, in the run directory. Of what is
// in it the store knows the size alone. Nothing is synced: what was written outlives the
// process, and is of no use in another boot.
type UsageFile struct{ file *os.File }

// ReadAt is that of io.ReaderAt.
func (u *UsageFile) ReadAt(b []byte, at int64) (int, error) {
	return u.file.ReadAt(b, at+usageHead)
}

// WriteAt is that of io.WriterAt.
func (u *UsageFile) WriteAt(b []byte, at int64) (int, error) {
	return u.file.WriteAt(b, at+usageHead)
}

// Close leaves the file as it is.
func (u *UsageFile) Close() error { return u.file.Close() }

// usageBody tells whose file it is.
type usageBody struct {
	Name   service.Name `json:"name"`
	BootID string       `json:"boot_id"`
	Size   int64        `json:"size"` // of what follows the head
}

// usageReserve is how much room UsageFiles leave: the run directory is there for records
// first. A small file system has a quarter left.
const usageReserve = 64 << 20

// ErrNoRoom says that there is too little room for a UsageFile.
var ErrNoRoom = errors.New("what room is left is for records")

// OpenUsage opens the file of a service as an earlier agent of this boot left it, if
// check finds nothing wrong with it, or, told to, makes one of zeros; else the file is
// nil. Fault tells that one was set aside. A file of another boot is of no use, and
// nothing is said of it.
func (s *Store) OpenUsage(name service.Name, boot string, size int64, check func(io.ReaderAt) error, make bool) (u *UsageFile, fault, err error) {
	path := s.usagePath(name)
	u, err = s.readUsage(path, usageBody{name, boot, size}, check)
	switch {
	case err == nil:
		return u, nil, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errOtherBoot):
	case notServed(err):
		return nil, nil, err
	default:
		fault = setAside(s.rename, path, err)
	}
	if !make {
		return nil, fault, nil
	}
	u, err = s.makeUsage(path, usageBody{name, boot, size})
	return u, fault, err
}

func (s *Store) usageDir() string { return filepath.Join(s.runDir(), "usage") }

func (s *Store) usagePath(name service.Name) string {
	return filepath.Join(s.usageDir(), name.String()+usageSuffix)
}

func (s *Store) readUsage(path string, want usageBody, check func(io.ReaderAt) error) (*UsageFile, error) {
	f, err := s.open(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if err := s.checkUsage(f, want, check); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &UsageFile{f}, nil
}

func (s *Store) checkUsage(f *os.File, want usageBody, check func(io.ReaderAt) error) error {
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("it is not a regular file")
	case !trusted(info):
		return fmt.Errorf("it belongs to user %d, and this agent is of user %d", info.Sys().(*syscall.Stat_t).Uid, os.Geteuid())
	case info.Size() < usageHead:
		return fmt.Errorf("it has %d bytes", info.Size())
	}
	head := make([]byte, usageHead)
	if err := s.call("read", f.Name(), func() error { _, err := f.ReadAt(head, 0); return err }); err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal([]byte(strings.TrimRight(string(head), "\x00")), &r); err != nil {
		return fmt.Errorf("its head: %w", err)
	}
	var body usageBody
	switch {
	case checksum(r.Format, r.Body) != r.CRC:
		return errors.New("the checksum of its head is wrong")
	case r.Format != format:
		return fmt.Errorf("it has format %d, and this agent reads %d", r.Format, format)
	}
	if err := json.Unmarshal(r.Body, &body); err != nil {
		return fmt.Errorf("its head: %w", err)
	}
	switch {
	case body.BootID != want.BootID:
		return errOtherBoot
	case body != want:
		return fmt.Errorf("it is of %q and %d bytes, not of %q and %d", body.Name, body.Size, want.Name, want.Size)
	case info.Size() != usageHead+want.Size:
		return fmt.Errorf("it has %d bytes instead of %d", info.Size(), usageHead+want.Size)
	}
	return check(&UsageFile{f})
}

// makeUsage writes all of a new file, so that it has its room from now on.
func (s *Store) makeUsage(path string, body usageBody) (u *UsageFile, err error) {
	if err := s.makeUsageDir(); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(record{Format: format, CRC: checksum(format, raw), Body: raw})
	if err != nil {
		return nil, err
	}
	fresh := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	f, err := s.open(fresh, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	err = s.call("write", fresh, func() error {
		_, err := f.Write(append(data, make([]byte, usageHead+body.Size-int64(len(data)))...))
		return err
	})
	if err == nil {
		err = s.rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), s.discard(fresh))
	}
	return &UsageFile{f}, nil
}

func (s *Store) makeUsageDir() error {
	dir := s.usageDir()
	if _, err := os.Stat(s.runDir()); errors.Is(err, fs.ErrNotExist) { // somebody has removed it
		return s.again(dir)
	}
	err := s.call("mkdir", dir, func() error { return os.Mkdir(dir, 0o700) })
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var room unix.Statfs_t
	if err := unix.Statfs(dir, &room); err != nil {
		return &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if left := room.Bavail * uint64(room.Bsize); left < usageReserve && room.Bavail < room.Blocks/4 {
		return fmt.Errorf("%s: %w", dir, ErrNoRoom)
	}
	return nil
}

// ForgetUsage removes the file of a service, if there is one.
func (s *Store) ForgetUsage(name service.Name) error { return s.discard(s.usagePath(name)) }

// SweepUsage removes the files of services that are not to be kept, and what was left
// half made.
func (s *Store) SweepUsage(keep func(service.Name) bool) error {
	entries, err := os.ReadDir(s.usageDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	all := err
	for _, e := range entries {
		stem, isRing := strings.CutSuffix(e.Name(), usageSuffix)
		if !isRing { // set aside earlier
			continue
		}
		name, err := service.ParseName(stem)
		if err == nil && keep(name) {
			continue
		}
		all = errors.Join(all, s.discard(filepath.Join(s.usageDir(), e.Name())))
	}
	return all
}
