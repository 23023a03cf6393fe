package auditor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// What the agent may take, whatever clients and services do: a little for itself,
// and a little for each service that it knows.
const (
	maxFiles, maxFilesPerService = 512, 16 // open files: connections of clients among them
	maxThreads                   = 512
	maxMemory                    = 128 << 20 // resident, in bytes
)

// agentBounded is I10: the agent takes no more than its caps.
func agentBounded(v *view, _ Expectation) (out []Finding) {
	if v.answers == nil {
		return nil
	}
	files, err := v.files(v.answers.pid)
	if err != nil {
		return v.unseen("the agent itself (I10, I12)", err)
	}
	over := func(what string, has, cap int) {
		if has > cap {
			out = append(out, Finding{"I10", "", fmt.Sprintf("the agent has %d %s, and %d are its cap", has, what, cap)})
		}
	}
	status, err := v.status(v.answers.pid)
	if err != nil {
		return v.unseen("the agent itself (I10)", err)
	}
	over("open files", len(files), maxFiles+maxFilesPerService*len(v.answers.services))
	over("threads", status["Threads"], maxThreads)
	over("bytes of memory", status["VmRSS"]<<10, maxMemory)
	return out
}

// nothingHandedDown is I12: no service has a file of the agent's open, a variable
// of its environment, or its protection from the OOM killer.
func nothingHandedDown(v *view, e Expectation) (out []Finding) {
	agentFiles := map[string]bool{}
	var agentEnv []string
	agentScore := 0
	if v.answers != nil {
		files, err := v.files(v.answers.pid)
		for _, target := range files {
			agentFiles[target] = true
		}
		if err == nil {
			agentEnv, err = v.environment(v.answers.pid)
		}
		if err == nil {
			agentScore, err = v.oomScore(v.answers.pid)
		}
		if err != nil {
			return v.unseen("what services have of the agent's (I12)", err)
		}
	}
	for service, a := range v.actual {
		main := v.main(a)
		if main == nil || !a.Machine.State.alive() {
			continue
		}
		miss := func(format string, args ...any) {
			out = append(out, Finding{"I12", service, fmt.Sprintf(format, args...)})
		}
		bare := slices.Contains(e.Bare, service)
		files, err := v.files(main.pid)
		if err != nil {
			out = append(out, v.unseen("what "+service+" has of the agent's (I12)", err)...)
			continue
		}
		for fd, target := range files {
			switch {
			case bare && fd > 2:
				miss("descriptor %d is open: %s", fd, target)
			case within(target, v.host.State), within(target, v.host.Run):
				miss("descriptor %d is a file of the agent's: %s", fd, target)
			case fd != 1 && fd != 2 && private(target) && agentFiles[target]:
				miss("descriptor %d is the agent's as well: %s", fd, target)
			}
		}
		environment, err := v.environment(main.pid)
		if err != nil {
			out = append(out, v.unseen("what "+service+" has of the agent's (I12)", err)...)
			continue
		}
		for _, variable := range environment {
			name, value, _ := strings.Cut(variable, "=")
			given, defined := a.Spec.Environment[name]
			switch {
			case defined && given == value, name == "PATH":
			case bare, slices.Contains(agentEnv, variable) && !slices.Contains(everybodys, name):
				miss("the variable %s is not its definition's", name)
			}
		}
		score, err := v.oomScore(main.pid)
		if err == nil && score != a.Spec.OOMScoreAdj && (bare || v.answers != nil && score == agentScore) {
			miss("its oom_score_adj is %d, and its definition says %d", score, a.Spec.OOMScoreAdj)
		}
	}
	return out
}

// everybodys are variables that programs set by themselves, to what the agent may
// have too.
var everybodys = []string{"HOME", "LANG", "LOGNAME", "OLDPWD", "PWD", "SHELL", "SHLVL", "TERM", "TZ", "USER", "_"}

// private tells of the target of a descriptor that two processes have it both only
// if one has it from the other, or from whoever started both.
func private(target string) bool {
	return !strings.HasPrefix(target, "/dev/") && !strings.HasPrefix(target, "anon_inode:")
}

// unseen notes what could not be looked at. What went away meanwhile had nothing
// to show.
func (v *view) unseen(what string, err error) []Finding {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
		v.unchecked = append(v.unchecked, fmt.Sprintf("%s: %v", what, err))
	}
	return nil
}

func (v *view) proc(pid int, file string) string {
	return filepath.Join(v.host.Proc, strconv.Itoa(pid), file)
}

// files are the open files of a process, by their descriptors.
func (v *view) files(pid int) (map[int]string, error) {
	entries, err := os.ReadDir(v.proc(pid, "fd"))
	if err != nil {
		return nil, err
	}
	out := map[int]string{}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		target, err := os.Readlink(filepath.Join(v.proc(pid, "fd"), e.Name()))
		if errors.Is(err, fs.ErrNotExist) { // it was closed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		out[fd] = target
	}
	return out, nil
}

func (v *view) environment(pid int) ([]string, error) {
	text, err := os.ReadFile(v.proc(pid, "environ"))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(strings.Split(string(text), "\x00"), func(s string) bool { return s == "" }), nil
}

func (v *view) oomScore(pid int) (int, error) {
	text, err := os.ReadFile(v.proc(pid, "oom_score_adj"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(text)))
}

// status reads the numbers of /proc/PID/status.
func (v *view) status(pid int) (map[string]int, error) {
	text, err := os.ReadFile(v.proc(pid, "status"))
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if fields := strings.Fields(value); len(fields) > 0 {
			if n, err := strconv.Atoi(fields[0]); err == nil {
				out[name] = n
			}
		}
	}
	return out, nil
}
