package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// runEscape moves a child of its own out of the cgroup it was born in.
func runEscape(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("the path of a cgroup is needed")
	}
	runtime.LockOSThread()
	pid, errno := rawChild()
	if errno != 0 {
		return errno
	}
	if err := join(args[0], int(pid)); err != nil {
		fmt.Println("kept:", err)
	} else {
		fmt.Println("escaped")
	}
	ready(pid)
	forever()
	return nil
}

// join moves a process into the cgroup at path.
func join(path string, pid int) error {
	return os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// runTrespass tries each thing that a service has no business with, and prints
// what came of it.
func runTrespass(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("a socket, a process and a cgroup are needed")
	}
	pid, err := number(args, 1)
	if err != nil {
		return err
	}
	read := func(file string) error {
		f, err := os.Open(filepath.Join("/proc", args[1], file))
		if err != nil {
			return err
		}
		defer f.Close()
		if file == "fd" {
			_, err = f.Readdirnames(1)
		} else {
			_, err = f.Read(make([]byte, 1))
		}
		return err
	}
	for _, try := range []struct {
		name string
		do   func() error
	}{
		{"connect", func() error {
			c, err := net.Dial("unix", args[0])
			if err == nil {
				c.Close()
			}
			return err
		}},
		{"signal", func() error { return unix.Kill(pid, 0) }},
		{"ptrace", func() error {
			runtime.LockOSThread()
			return unix.PtraceSeize(pid)
		}},
		{"mem", func() error { return read("mem") }},
		{"environ", func() error { return read("environ") }},
		{"fd", func() error { return read("fd") }},
		{"cgroup", func() error { return join(args[2], os.Getpid()) }},
	} {
		fmt.Printf("%s: %v\n", try.name, try.do())
	}
	ready()
	forever()
	return nil
}
