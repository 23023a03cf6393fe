package main

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// runHogMemory maps memory itself: the garbage collector shall not have a say.
func runHogMemory(args []string) error {
	total, err := number(args, 0)
	if err != nil {
		return err
	}
	step := 1 << 20
	if len(args) > 1 {
		if step, err = number(args, 1); err != nil {
			return err
		}
	}
	if len(args) > 2 {
		children, err := number(args, 2)
		if err != nil {
			return err
		}
		runtime.LockOSThread()
		for range children {
			if _, errno := rawChild(); errno != 0 {
				return errno
			}
		}
	}
	for held := 0; held < total; held += step {
		chunk, err := unix.Mmap(-1, 0, min(step, total-held), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		for i := 0; i < len(chunk); i += 4096 {
			chunk[i] = 1
		}
	}
	ready(total)
	forever()
	return nil
}

func runHogCPU(args []string) error {
	n, err := number(args, 0)
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(n + 1)
	ready()
	for range n {
		go func() {
			runtime.LockOSThread()
			for {
			}
		}()
	}
	forever()
	return nil
}
