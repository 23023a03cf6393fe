package launch

import (
	"bufio"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
	"github.com/gladsheim/gladsheim/backends/internal/process"
)

// reapWait is how long a killed gate may take to end. Only one that is stuck
// in the kernel takes longer; it is reaped whenever it ends.
const reapWait = 5 * time.Second

// discard kills the child, if it lives, and reaps it.
func (c *Child) discard() {
	_ = c.process.Signal(syscall.SIGKILL) // fails when it has ended, which is what is wanted
	letGo := func() {
		c.forget() // it may have been the program already
		c.process.Close()
	}
	select {
	case <-c.process.Exited():
		letGo()
	case <-time.After(reapWait):
		go func() {
			<-c.process.Exited()
			letGo()
		}()
	}
}

// discard kills and reaps a child that could not be taken up as a Process.
func discard(pidfd int) {
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	reaped := make(chan struct{})
	go func() {
		process.Await(pidfd)
		unix.Close(pidfd)
		close(reaped)
	}()
	select {
	case <-reaped:
	case <-time.After(reapWait):
	}
}

func failure(name service.Name, reason service.Reason, permanent bool, err error) error {
	return &service.Error{Op: "start", Service: name, Kind: service.Unlaunchable, Reason: reason, Permanent: permanent, Err: err}
}

// resourceFailure is a failure on our own side of the fork: what is missing
// may be there next time.
func resourceFailure(name service.Name, err error) error {
	var reason service.Reason
	if errno, ok := errors.AsType[syscall.Errno](err); ok && isShortage(errno) {
		reason = service.ReasonNoResources
	}
	return failure(name, reason, false, err)
}

func isShortage(errno syscall.Errno) bool {
	switch errno {
	case unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.ENOSPC, unix.EDQUOT:
		return true
	}
	return false
}

// interrupted is the error of a launch that its caller gave up.
func (c *Child) interrupted(ctx context.Context) error {
	return givenUp(ctx, c.name, fmt.Errorf("execute %s: %w", c.program, context.Cause(ctx)))
}

// givenUp is err, which came because ctx had ended.
func givenUp(ctx context.Context, name service.Name, err error) error {
	kind := service.Cancelled
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		kind = service.Timeout
	}
	return &service.Error{Op: "start", Service: name, Kind: kind, Err: err}
}

// died is the error of a gate that ended before it announced the execution.
func (c *Child) died(err error) error {
	if err != nil {
		c.discard()
		return resourceFailure(c.name, fmt.Errorf("hear the gate of %s: %w", c.program, err))
	}
	select {
	case <-c.process.Exited():
	case <-time.After(reapWait):
	}
	exit := c.process.Exit()
	c.discard()
	return failure(c.name, "", false, fmt.Errorf("the process ended before it could execute %s: %s", c.program, exit))
}

// refused turns what the gate says into an error.
func (c *Child) refused(answer gate.Answer) error {
	errno := answer.Errno
	switch answer.Step {
	case gate.StepExecute:
		return c.notExecuted(errno)
	case gate.StepDirectory:
		err := fmt.Errorf("change directory to %s: %w", c.dir, errno)
		if isShortage(errno) {
			return failure(c.name, service.ReasonNoResources, false, err)
		}
		return failure(c.name, service.ReasonBadDirectory, true, err)
	}
	err := fmt.Errorf("%s: %w", answer.Step, errno)
	switch {
	case answer.Step == gate.StepUser && errno != unix.EAGAIN, answer.Step == gate.StepGroup, answer.Step == gate.StepGroups:
		err = fmt.Errorf("%s to that of %q: %w; only root may", answer.Step, c.user, errno)
		return failure(c.name, service.ReasonNoPermission, true, err)
	case errno == unix.EPERM || errno == unix.EACCES:
		return failure(c.name, service.ReasonNoPermission, true, err)
	case isShortage(errno):
		return failure(c.name, service.ReasonNoResources, false, err)
	}
	return failure(c.name, "", false, err)
}

// notExecuted explains an errno of execve(2), which for ENOENT and EACCES does
// not say of what.
func (c *Child) notExecuted(errno syscall.Errno) error {
	why, reason, permanent := "", service.Reason(""), true
	switch errno {
	case unix.ENOENT, unix.ENOTDIR, unix.ENAMETOOLONG:
		reason, why = service.ReasonExecNotFound, missing(c.program)
	case unix.EACCES, unix.EPERM:
		reason, why = service.ReasonExecDenied, denied(c.program)
	case unix.ENOEXEC, unix.ELIBBAD, unix.EINVAL, unix.EISDIR:
		reason, why = service.ReasonExecFormat, "it is neither a binary for this machine nor a script that begins with #!"
	case unix.E2BIG:
		reason, why = service.ReasonExecTooBig, "the arguments and the environment together are too long"
	case unix.ETXTBSY:
		// Whoever writes to it will close it.
		reason, why, permanent = service.ReasonExecBusy, "somebody has it open for writing", false
	case unix.ELOOP:
		reason, why = service.ReasonExecLoop, "too many symbolic links, or scripts that interpret each other"
	default:
		permanent = false
		if isShortage(errno) {
			reason = service.ReasonNoResources
		}
	}
	if why != "" {
		why += ": "
	}
	return failure(c.name, reason, permanent, fmt.Errorf("execute %s: %s%w", c.program, why, errno))
}

// missing tells what execve did not find: the program, or its interpreter.
func missing(program string) string {
	if _, err := os.Stat(program); err != nil {
		return ""
	}
	if name := interpreter(program); name != "" {
		return fmt.Sprintf("its interpreter %s does not exist", name)
	}
	return ""
}

// interpreter is what program names in its #! line or its ELF header.
func interpreter(program string) string {
	file, err := os.Open(program)
	if err != nil {
		return ""
	}
	defer file.Close()
	line, _ := bufio.NewReader(io.LimitReader(file, 256)).ReadString('\n')
	if rest, ok := strings.CutPrefix(line, "#!"); ok {
		if fields := strings.Fields(rest); len(fields) > 0 {
			return fmt.Sprintf("%q", fields[0])
		}
		return ""
	}
	binary, err := elf.NewFile(file)
	if err != nil {
		return ""
	}
	for _, segment := range binary.Progs {
		if segment.Type == elf.PT_INTERP && segment.Filesz < 4096 {
			name := make([]byte, segment.Filesz)
			if _, err := segment.ReadAt(name, 0); err == nil {
				return fmt.Sprintf("%q", strings.TrimRight(string(name), "\x00"))
			}
		}
	}
	return ""
}

// denied tells why a program may not be executed, as far as the agent sees.
func denied(program string) string {
	info, err := os.Stat(program)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "a directory above it may not be entered"
	case err != nil:
		return ""
	case info.IsDir():
		return "it is a directory"
	case !info.Mode().IsRegular():
		return "it is not a regular file"
	case info.Mode()&0o111 == 0:
		return fmt.Sprintf("its mode, %04o, allows nobody to execute it", info.Mode().Perm())
	}
	var system unix.Statfs_t
	if err := unix.Statfs(program, &system); err == nil && system.Flags&unix.ST_NOEXEC != 0 {
		return "it lies on a file system mounted noexec"
	}
	if name := interpreter(program); name != "" {
		return fmt.Sprintf("it, a directory above it, or its interpreter %s may not be executed by this user", name)
	}
	return "it, or a directory above it, may not be executed by this user"
}

// isEnd tells whether err of a socket says that the other end is closed.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}
