package skirnir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ringFile is the name of the ring in the run directory.
const ringFile = "events.ring"

// openRing takes up the ring that an earlier agent of this boot left, or makes
// one. What holds no ring is set aside, and fault tells so. With an error that is
// transient the ring is good, but ends with this process.
//
// A new ring is numbered from the microseconds since 1970: no agent tells as many
// events as microseconds pass, so that these are beyond all numbers that were ever
// given unless the clock was set back. Beyond those that a damaged ring still
// knows of they are in any case.
func openRing(dir, boot string) (r *ring, fault, transient error) {
	path := filepath.Join(dir, ringFile)
	memory, err := readFile(path)
	if err == nil {
		r, err = readRing(memory, boot)
	}
	if err != nil {
		after := uint64(time.Now().UnixMicro())
		if known := believed(memory); known > 0 { // though overwritten it may stand there still
			after = max(after, known+2*units)
		}
		r = newRing(boot, after)
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, errOtherBoot):
	case notServed(err):
		return r, nil, fmt.Errorf("%w; it is left as it is", err)
	default:
		fault = setAside(os.Rename, path, err)
	}
	return r, fault, r.toFile(path)
}

// readFile reads a file of ours, as much of it as a ring may have and a byte.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	case info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()):
		return nil, fmt.Errorf("it belongs to uid %d", info.Sys().(*syscall.Stat_t).Uid)
	}
	memory := make([]byte, ringSize+1)
	n, err := io.ReadFull(f, memory)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return memory[:n], nil
}

// toFile moves the ring to a new file, mapped into memory, that takes the place of
// the one at path. What is mapped is the kernel's, and stays when the process dies;
// that a power cut takes it does no harm, since after one it is of no use. The file
// is written whole before, or the first touch of a page for which the disk has no
// room would be a fault.
func (r *ring) toFile(path string) (err error) {
	fresh := path + ".new"
	f, err := os.OpenFile(fresh, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		defer f.Close()
		_, err = f.Write(r.memory)
	}
	var mapped []byte
	if err == nil {
		mapped, err = unix.Mmap(int(f.Fd()), 0, ringSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		err = os.NewSyscallError("mmap "+fresh, err)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil { // the ring of before would have the next agent give our numbers again
		return errors.Join(err, unmap(mapped), removeFile(fresh), removeFile(path))
	}
	r.memory, r.mapped = mapped, true
	return nil
}

// leave lets go of the file; the ring is of no use after that.
func (r *ring) leave() error {
	if !r.mapped {
		return nil
	}
	return unmap(r.memory)
}

func unmap(memory []byte) error {
	if memory == nil {
		return nil
	}
	return os.NewSyscallError("munmap", unix.Munmap(memory))
}

func removeFile(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// guard runs f, which touches a ring. That the file can not be had any more, since
// somebody made it shorter or its disk broke, is a fault of the processor; here it
// is an error, and the agent lives.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch fault := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }:
			err = fmt.Errorf("it can not be touched any more: %v", fault)
		default:
			panic(fault)
		}
	}()
	return f()
}
