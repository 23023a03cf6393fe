package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ownInit is process 1 of a host without systemd. It returns only when the runner is gone.
func ownInit() error {
	for _, m := range []struct {
		kind, at string
		flags    uintptr
		data     string
	}{
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"cgroup2", cgroupRoot, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate,memory_recursiveprot"},
	} {
		if err := mount(m.kind, m.at, m.kind, m.flags, m.data); err != nil {
			return err
		}
	}
	if err := os.WriteFile(cgroupRoot+"/cgroup.subtree_control", []byte("+cpuset +cpu +io +memory +pids +hugetlb"), 0); err != nil {
		return err
	}
	if err := keepQuota(); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	// The folders that packages want under /run; it needs no running systemd, and must not look as if there were one.
	tmpfiles := exec.Command("systemd-tmpfiles", "--create", "--exclude-prefix=/dev", "--exclude-prefix=/sys", "--exclude-prefix=/run/systemd")
	if out, err := tmpfiles.CombinedOutput(); err != nil {
		log.Printf("systemd-tmpfiles: %v\n%s", err, out)
	}
	runner, err := os.StartProcess(programPath, []string{programPath, "runner"}, &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{nil, os.Stdout, os.Stderr},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	return reapUntil(runner.Pid)
}

// keepQuota makes a CPU quota that nobody meets; units/quota.slice tells why.
func keepQuota() error {
	dir := filepath.Join(cgroupRoot, "quota")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cpu.max"), []byte("1000000 100000"), 0)
}

// reapUntil reaps every orphan until that one process ended.
func reapUntil(last int) error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case pid == last:
			return fmt.Errorf("the runner ended: %#x", int(status))
		}
	}
}

// loopbackUp gives the machine 127.0.0.1.
func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return nil
}
