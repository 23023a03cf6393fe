package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// birth is what the program was born with.
type birth struct {
	PID, Parent, Group, Session int

	Descriptors map[string]string // number → what it leads to
	Arguments   []string
	Environment []string
	Directory   string
	Umask       int

	UIDs, GIDs, Groups []int             // real, effective, saved, file system
	Capabilities       map[string]string // as /proc/self/status writes them
	NoNewPrivileges    bool

	Limits      map[string]string // resource → "soft hard"
	OOMScoreAdj int
	Nice        int
	Policy      int    // of the scheduler
	Affinity    string // list of CPUs
	Blocked     string // signal mask
	Ignored     string // signals; those the Go runtime handles are missing: see README.md

	Cgroup      string
	CgroupFiles map[string]string // files of its cgroup v2, read by itself
	Namespaces  map[string]string
}

// descriptors asks for each number, because a look into /proc/self/fd opens
// one more.
func descriptors() map[string]string {
	open := map[string]string{}
	for fd := range 1024 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			target := make([]byte, 4096)
			n, err := unix.Readlink("/proc/self/fd/"+strconv.Itoa(fd), target)
			if err != nil {
				n = copy(target, err.Error())
			}
			open[strconv.Itoa(fd)] = string(target[:n])
		}
	}
	return open
}

func runBirth([]string) error {
	b := birth{
		PID: os.Getpid(), Parent: os.Getppid(), Group: unix.Getpgrp(),
		Descriptors: descriptors(),
		Arguments:   os.Args,
		Environment: os.Environ(),
	}
	var err error
	if b.Session, err = unix.Getsid(0); err != nil {
		return err
	}
	if b.Directory, err = os.Getwd(); err != nil {
		return err
	}
	b.Umask = unix.Umask(0)
	if err := b.readStatus(); err != nil {
		return err
	}
	if err := b.readLimits(); err != nil {
		return err
	}
	if err := b.readProcess(); err != nil {
		return err
	}
	b.readCgroup()
	b.readNamespaces()
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(text, '\n'))
	return err
}

func (b *birth) readStatus() error {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	b.Capabilities = map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Uid":
			b.UIDs = numbers(value)
		case "Gid":
			b.GIDs = numbers(value)
		case "Groups":
			b.Groups = numbers(value)
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			b.Capabilities[key] = value
		case "NoNewPrivs":
			b.NoNewPrivileges = value == "1"
		case "Cpus_allowed_list":
			b.Affinity = value
		case "SigBlk":
			b.Blocked = value
		case "SigIgn":
			b.Ignored = value
		}
	}
	return nil
}

func numbers(fields string) []int {
	var out []int
	for _, f := range strings.Fields(fields) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// readLimits asks for the limits; the soft one of NOFILE is what the Go runtime
// has raised it to.
func (b *birth) readLimits() error {
	resources := map[string]int{
		"core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
		"memlock": unix.RLIMIT_MEMLOCK, "nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC,
		"rttime": unix.RLIMIT_RTTIME, "stack": unix.RLIMIT_STACK,
	}
	b.Limits = map[string]string{}
	for name, resource := range resources {
		var l unix.Rlimit
		if err := unix.Getrlimit(resource, &l); err != nil {
			return fmt.Errorf("cannot read the limit %s: %w", name, err)
		}
		b.Limits[name] = amount(l.Cur) + " " + amount(l.Max)
	}
	return nil
}

func amount(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}

func (b *birth) readProcess() error {
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return err
	}
	if b.OOMScoreAdj, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return err
	}
	// Fields 19 (nice) and 41 (policy) of proc_pid_stat(5), counted behind the
	// last parenthesis, which closes field 2.
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 39 {
		return fmt.Errorf("/proc/self/stat is too short: %q", stat)
	}
	if b.Nice, err = strconv.Atoi(fields[19-3]); err != nil {
		return err
	}
	b.Policy, err = strconv.Atoi(fields[41-3])
	return err
}

// readCgroup leaves out what this host does not have.
func (b *birth) readCgroup() {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			b.Cgroup = path
		}
	}
	b.CgroupFiles = map[string]string{}
	for _, file := range []string{
		"cpu.max", "cpu.weight", "io.weight", "memory.high", "memory.max", "memory.low", "memory.min", "cpu.max.burst", "memory.oom.group", "memory.swap.max", "memory.zswap.max", "pids.max",
	} {
		if value, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", b.Cgroup, file)); err == nil {
			b.CgroupFiles[file] = strings.TrimSpace(string(value))
		}
	}
}

func (b *birth) readNamespaces() {
	b.Namespaces = map[string]string{}
	entries, err := os.ReadDir("/proc/self/ns")
	if err != nil {
		return
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/ns/" + e.Name()); err == nil {
			b.Namespaces[e.Name()] = target
		}
	}
}
