package main

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// runReadDisk reads past the page cache, so that each read goes to the disk.
func runReadDisk(args []string) error {
	if len(args) < 2 {
		return errors.New("read-disk wants DEVICE BYTES")
	}
	total, err := number(args, 1)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(args[0], os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	const step = 128 << 10
	aligned, err := unix.Mmap(-1, 0, step, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for done := 0; done < total; done += step {
		if _, err := io.ReadFull(f, aligned); err != nil {
			return err
		}
	}
	ready(total)
	forever()
	return nil
}
