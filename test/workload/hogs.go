package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"

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
	if err := touch(total, step); err != nil {
		return err
	}
	ready(total)
	forever()
	return nil
}

func touch(total, step int) error {
	for held := 0; held < total; held += step {
		chunk, err := unix.Mmap(-1, 0, min(step, total-held), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		for i := 0; i < len(chunk); i += 4096 {
			chunk[i] = 1
		}
	}
	return nil
}

// runSawtooth goes up to a known peak and falls to nothing.
func runSawtooth(args []string) error {
	total, err := number(args, 0)
	if err != nil {
		return err
	}
	if len(args) < 2 {
		return errors.New("sawtooth wants BYTES PERIOD")
	}
	period, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	const steps = 16
	for first := true; ; first = false {
		memory, err := unix.Mmap(-1, 0, total, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		for step := range steps {
			for i := total / steps * step; i < total/steps*(step+1); i += 4096 {
				memory[i] = 1
			}
			time.Sleep(period * 2 / 3 / steps)
		}
		if first {
			ready(total)
		}
		time.Sleep(period / 3)
		if err := unix.Munmap(memory); err != nil {
			return err
		}
	}
}

// runCache reads files until they have filled the page cache, in the order of their
// names, or as much of a disk. What is in the cache already is dropped first: it would be somebody else's.
func runCache(args []string) error {
	if len(args) < 3 {
		return errors.New("cache wants DIR|DISK SKIP BYTES [MEMORY]")
	}
	skip, err := number(args, 1)
	if err != nil {
		return err
	}
	total, err := number(args, 2)
	if err != nil {
		return err
	}
	if len(args) > 3 {
		memory, err := number(args, 3)
		if err == nil {
			err = touch(memory, 1<<20)
		}
		if err != nil {
			return err
		}
	}
	if info, err := os.Stat(args[0]); err == nil && info.Mode()&fs.ModeDevice != 0 {
		return cacheDisk(args[0], skip, total)
	}
	passed := 0
	err = filepath.WalkDir(args[0], func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if passed += int(info.Size()); passed <= skip {
			return nil
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, f); err != nil {
			return err
		}
		if passed >= skip+total {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return err
	}
	if passed < skip+total {
		return fmt.Errorf("%s has %d bytes in all", args[0], passed)
	}
	ready(total)
	forever()
	return nil
}

// cacheDisk reads a part of a disk into the page cache. It keeps the disk open: what
// is cached of one goes with the last who has it open.
func cacheDisk(disk string, skip, total int) error {
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), int64(skip), int64(total), unix.FADV_DONTNEED); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, io.NewSectionReader(f, int64(skip), int64(total))); err != nil {
		return err
	}
	ready(total)
	forever()
	return nil
}

// runHogNoise fills memory so that it compresses to a half, and no better.
func runHogNoise(args []string) error {
	total, err := number(args, 0)
	if err != nil {
		return err
	}
	const page = 4096
	held, err := unix.Mmap(-1, 0, total, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	noise := rand.NewChaCha8([32]byte{})
	for at := 0; at+page <= total; at += page {
		_, _ = noise.Read(held[at : at+page/2]) // never fails
	}
	ready(total)
	forever()
	return nil
}

// runHogHuge maps huge pages one by one and touches each.
func runHogHuge(args []string) error {
	total, err := number(args, 0)
	if err != nil {
		return err
	}
	const page = 2 << 20 // that of the hosts; another size is refused (EINVAL)
	held := 0
	for ; held < total; held += page {
		const size2MiB = 21 << unix.MAP_HUGE_SHIFT
		chunk, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB|size2MiB)
		if err != nil {
			fmt.Printf("held %d of %d: %v\n", held, total, err)
			break
		}
		chunk[0] = 1
	}
	ready(held)
	forever()
	return nil
}

// runPulse is busy for a time, then sleeps for another, again and again.
func runPulse(args []string) error {
	if len(args) < 2 {
		return errors.New("pulse wants BUSY IDLE")
	}
	busy, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	idle, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	ready()
	for {
		for start := time.Now(); time.Since(start) < busy; {
		}
		time.Sleep(idle)
	}
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
