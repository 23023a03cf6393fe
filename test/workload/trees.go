package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// shared is a counter in memory that forked children go on sharing. file is
// the memory itself, for those that exec as well.
func shared(file int) (*atomic.Uint32, error) {
	page, err := unix.Mmap(file, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("cannot map the shared counter: %w", err)
	}
	return (*atomic.Uint32)(unsafe.Pointer(&page[0])), nil
}

// sharedFile makes the memory of a shared counter. It is inherited over exec.
func sharedFile() (int, error) {
	fd, err := unix.MemfdCreate("births", 0)
	if err != nil {
		return -1, fmt.Errorf("cannot make the shared counter: %w", err)
	}
	return fd, unix.Ftruncate(fd, 4096)
}

func runFork(args []string) error {
	n, err := number(args, 0)
	if err != nil {
		return err
	}
	forked, refusal := 0, syscall.Errno(0)
	runtime.LockOSThread()
	for range n {
		if _, errno := rawChild(); errno != 0 {
			refusal = errno
			break
		}
		forked++
	}
	if refusal != 0 {
		fmt.Printf("forked %d of %d: %v\n", forked, n, refusal)
	}
	ready(forked)
	forever()
	return nil
}

func runDoubleFork(args []string) error {
	root, err := syscall.BytePtrFromString("/")
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	pid, errno := rawFork()
	switch {
	case errno != 0:
		return errno
	case pid == 0:
		rawSetsid()
		if pid, _ := rawFork(); pid != 0 {
			rawExit(0)
		}
		rawDefaults()
		rawDaemon(root)
		rawSleep()
	}
	rawWait(pid)
	ready()
	if len(args) > 0 && args[0] == "stay" {
		forever()
	}
	return nil
}

func runTree(args []string) error {
	depth, err := number(args, 0)
	if err != nil || depth > 10 {
		return fmt.Errorf("the depth must be a number up to 10")
	}
	fd, err := sharedFile()
	if err != nil {
		return err
	}
	born, err := shared(fd)
	if err != nil {
		return err
	}
	for _, s := range []uintptr{uintptr(syscall.SIGHUP), uintptr(syscall.SIGINT), uintptr(syscall.SIGTERM)} {
		rawDisposition(s, sigIgnore)
	}
	runtime.LockOSThread()
	rawGrow(uintptr(depth), born)
	nodes := uint32(1)<<(depth+1) - 2
	for born.Load() < 2*nodes { // each is there, and has lost its parent
		time.Sleep(time.Millisecond)
	}
	ready(nodes)
	forever()
	return nil
}

// runForkBomb takes, when it executed itself, the descriptor of the counter as
// a third argument.
func runForkBomb(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("a kind and the most births are needed")
	}
	budget, err := number(args, 1)
	if err != nil {
		return err
	}
	fd, first := 0, len(args) < 3
	if first {
		fd, err = sharedFile()
	} else {
		fd, err = number(args, 2)
	}
	if err != nil {
		return err
	}
	born, err := shared(fd)
	if err != nil {
		return err
	}
	b := &bomb{budget: uint32(budget), born: born}
	switch args[0] {
	case "plain":
	case "setsid":
		b.setsid = true
	case "churn":
		b.churn = true
	case "vfork":
		b.clone = syscall.CLONE_VFORK
	case "exec":
		if err := b.becomeExec(self("fork-bomb", "exec", args[1], strconv.Itoa(fd))); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%q is not a kind of fork bomb", args[0])
	}
	for sig := range uintptr(16) {
		if s := syscall.Signal(sig); s == syscall.SIGTERM || s == syscall.SIGINT || s == syscall.SIGHUP {
			rawDisposition(sig, sigIgnore)
		}
	}
	runtime.LockOSThread()
	if first {
		ready()
		// The first one stays: it is the main process, which is not to end.
		if pid, errno := rawFork(); errno != 0 {
			return errno
		} else if pid == 0 {
			rawDefaults()
			rawStubborn()
			rawBomb(b)
		}
		forever()
	}
	rawBomb(b)
	return nil
}

func (b *bomb) becomeExec(command []string) (err error) {
	if b.path, err = syscall.BytePtrFromString("/proc/self/exe"); err != nil {
		return err
	}
	argv, err := syscall.SlicePtrFromStrings(command)
	if err != nil {
		return err
	}
	envp, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return err
	}
	b.argv, b.envp = &argv[0], &envp[0]
	return nil
}

func runZombies(args []string) error {
	n, err := number(args, 0)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	var children []int
	for i := range n {
		pid, errno := rawFork()
		switch {
		case errno != 0:
			return errors.Join(fmt.Errorf("after %d of %d: %w", i, n, errno), haveDied(children))
		case pid == 0:
			rawExit(0)
		}
		children = append(children, int(pid))
	}
	if err := haveDied(children); err != nil {
		return err
	}
	ready(n)
	forever()
	return nil
}

// haveDied waits until children have ended, and reaps none.
func haveDied(children []int) error {
	for _, pid := range children {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			return fmt.Errorf("wait for child %d: %w", pid, err)
		}
	}
	return nil
}

func runOrphans(args []string) error {
	n, err := number(args, 0)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	for i := range n {
		switch pid, errno := rawFork(); {
		case errno != 0:
			return fmt.Errorf("after %d of %d: %w", i, n, errno)
		case pid == 0:
			if pid, _ := rawFork(); pid == 0 {
				rawPause(1_000_000)
			}
			rawExit(0)
		default:
			rawWait(pid)
		}
	}
	ready(n)
	forever()
	return nil
}
