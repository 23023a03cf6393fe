package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func runExit(args []string) error {
	code, err := number(args, 0)
	if err != nil {
		return err
	}
	after, err := duration(args, 1)
	if err != nil {
		return err
	}
	time.Sleep(after)
	os.Exit(code)
	return nil
}

// runSignal takes the runtime's own handler away first: it would turn a
// SIGSEGV into a traceback and exit code 2.
func runSignal(args []string) error {
	n, err := number(args, 0)
	if err != nil {
		return err
	}
	if len(args) > 1 && args[1] == "core" {
		big := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		if err := unix.Setrlimit(unix.RLIMIT_CORE, &big); err != nil {
			return fmt.Errorf("cannot allow core dumps: %w", err)
		}
	}
	runtime.LockOSThread()
	rawDisposition(uintptr(n), sigDefault)
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), syscall.Signal(n)); err != nil {
		return err
	}
	time.Sleep(time.Second)
	return fmt.Errorf("it outlived signal %d", n)
}

func runSleep(args []string) error {
	after, err := duration(args, 0)
	if err != nil {
		return err
	}
	ready()
	if after == 0 {
		forever()
	}
	time.Sleep(after)
	return nil
}

func runMark(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("a file and a mode are needed")
	}
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	m, ok := modes()[args[1]]
	if !ok {
		return fmt.Errorf("%q is not a mode", args[1])
	}
	return m.run(args[2:])
}

func runIgnoreTerm([]string) error {
	arrived := make(chan os.Signal, 64)
	signal.Notify(arrived)
	// The runtime sends SIGURG to its own threads all the time.
	signal.Reset(syscall.SIGURG)
	ready()
	for s := range arrived {
		fmt.Printf("signal %d\n", s.(syscall.Signal))
	}
	return nil
}

func runStopSelf([]string) error {
	ready()
	if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
		return err
	}
	forever()
	return nil
}
