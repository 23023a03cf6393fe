package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// oddComm ends a line of /proc/PID/stat and begins what looks like the rest of
// another one.
const oddComm = "x) R 1\n"

// runOddName executes itself once more for the long command line, then changes
// its name every millisecond between two that break parsers.
func runOddName(args []string) error {
	if len(args) == 0 {
		return syscall.Exec("/proc/self/exe", self("odd-name", strings.Repeat("y", 120<<10)), os.Environ())
	}
	wear := func(name string) error { return os.WriteFile("/proc/self/comm", []byte(name), 0) }
	if err := wear(oddComm); err != nil {
		return err
	}
	ready()
	for {
		for _, name := range []string{oddComm, ") Z 0 0 (", "\xff\x1b[2J\t\\", "a b c d e f g h"} {
			if err := wear(name); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// runExecSelf carries the number of the generation as a second argument.
func runExecSelf(args []string) error {
	rate, err := number(args, 0)
	if err != nil || rate == 0 {
		return fmt.Errorf("the rate must be a number above 0")
	}
	generation := 0
	if len(args) > 1 {
		if generation, err = number(args, 1); err != nil {
			return err
		}
	}
	if generation == 5 {
		ready(generation)
	}
	time.Sleep(time.Second / time.Duration(rate))
	return syscall.Exec("/proc/self/exe", self("exec-self", args[0], strconv.Itoa(generation+1)), os.Environ())
}
