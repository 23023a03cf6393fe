package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
)

func runCloseStdout([]string) error {
	ready()
	// The runtime opens descriptors of its own at the first timer; afterwards
	// they would get the numbers that become free here.
	time.Sleep(time.Millisecond)
	for _, fd := range []int{1, 2} {
		if err := syscall.Close(fd); err != nil {
			return err
		}
	}
	forever()
	return nil
}

func runHandStdout(args []string) error {
	after, err := duration(args, 0)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	pid, errno := rawFork()
	switch {
	case errno != 0:
		return errno
	case pid == 0:
		if pid, _ := rawFork(); pid != 0 {
			rawExit(0)
		}
		rawDefaults()
		rawSleep()
	}
	rawWait(pid)
	ready()
	time.Sleep(after)
	return nil
}

// runLog prints lines "0000000001 xxx…"; with the newline each has SIZE bytes.
func runLog(args []string) error {
	lines, err := number(args, 0)
	if err != nil {
		return err
	}
	size, err := number(args, 1)
	if err != nil {
		return err
	}
	rate := 0
	if len(args) > 2 {
		if rate, err = number(args, 2); err != nil {
			return err
		}
	}
	const head = len("0000000001 ")
	filler := bytes.Repeat([]byte{'x'}, max(0, size-head-1))
	start := time.Now()
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	for i := range lines {
		if rate > 0 {
			if err := out.Flush(); err != nil {
				return err
			}
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		}
		fmt.Fprintf(out, "%010d %s\n", i+1, filler)
	}
	return out.Flush()
}

// runLongLine prints a line that holds NUL, invalid UTF-8, an escape sequence
// and a carriage return again and again.
func runLongLine(args []string) error {
	n, err := number(args, 0)
	if err != nil {
		return err
	}
	odd := []byte("\x00\xff\x1b[31mred\r")
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	for written := 0; written < n; written += len(odd) {
		if _, err := out.Write(odd[:min(len(odd), n-written)]); err != nil {
			return err
		}
	}
	if err := out.WriteByte('\n'); err != nil {
		return err
	}
	return out.Flush()
}
