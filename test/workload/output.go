package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/signal"
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

// runTalk numbers its lines and knows at its end how many it has written, so that
// whoever reads them knows whether that was all. With the newline each has SIZE bytes.
func runTalk(args []string) error {
	size, err := number(args, 0)
	if err != nil {
		return err
	}
	rate, err := number(args, 1)
	if err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	tick := time.NewTicker(time.Second / time.Duration(max(rate, 1)))
	for i := 1; ; i++ {
		select {
		case <-tick.C:
			fmt.Printf("%0*d\n", size-1, i)
		case <-end:
			fmt.Printf("%d lines\n", i-1)
			return nil
		}
	}
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
