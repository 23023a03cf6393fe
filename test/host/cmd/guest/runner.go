package main

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/test/host/internal/pack"
	"github.com/gladsheim/gladsheim/test/host/internal/wire"
)

const (
	cgroupRoot  = "/sys/fs/cgroup"
	payloadDisk = "/dev/vdb"
	systemPath  = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// runner does one job and then waits for the machine to be switched off.
func runner() error {
	testGroup, err := splitGroup()
	if err != nil {
		return err
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		if err := awaitBoot(); err != nil {
			return err
		}
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(wire.WorkDir, 0o755); err != nil {
		return err
	}
	conn := wire.NewConn(port)
	// The snapshot holds all memory in use; leave no garbage in it.
	runtime.GC()
	unix.Sync()
	if err := conn.Send(wire.Ready, nil); err != nil {
		return err
	}

	job, err := receiveJob(conn)
	if err != nil {
		return err
	}
	if err := freshen(job); err != nil {
		return err
	}
	if err := unpack(job.Payload); err != nil {
		return err
	}
	code := run(conn, job, testGroup)
	missing, err := sendFiles(conn, job.Out)
	if err != nil {
		return err
	}
	if err := conn.SendJSON(wire.Done, wire.Outcome{Code: code, Missing: missing}); err != nil {
		return err
	}
	for {
		_ = unix.Pause()
	}
}

// splitGroup moves this process to a leaf of the control group it was started in, and returns another leaf for the command:
// so a test can hand out controllers in the group they share.
func splitGroup() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	_, own, found := strings.Cut(strings.TrimSpace(string(text)), "0::")
	if !found {
		return "", fmt.Errorf("no cgroup v2 in %q", text)
	}
	runnerGroup := filepath.Join(cgroupRoot, own, "runner")
	testGroup := filepath.Join(cgroupRoot, own, "test")
	for _, dir := range []string{runnerGroup, testGroup} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
	}
	return testGroup, os.WriteFile(filepath.Join(runnerGroup, "cgroup.procs"), []byte("0"), 0)
}

// awaitBoot returns when systemd has nothing left to start, and fails if anything did not: a snapshot would keep that for good.
func awaitBoot() error {
	state, _ := exec.Command("systemctl", "is-system-running", "--wait").Output()
	if text := strings.TrimSpace(string(state)); text != "running" {
		failed, _ := exec.Command("systemctl", "--failed", "--no-legend", "--plain").Output()
		return fmt.Errorf("systemd is %s\n%s", text, failed)
	}
	return nil
}

func openPort() (*os.File, error) {
	ports, err := filepath.Glob("/dev/vport*p1")
	if err != nil || len(ports) != 1 {
		return nil, fmt.Errorf("want one virtio-serial port, found %v", ports)
	}
	return os.OpenFile(ports[0], os.O_RDWR, 0)
}

func receiveJob(conn *wire.Conn) (wire.Job, error) {
	var job wire.Job
	kind, payload, err := conn.Receive()
	if err != nil {
		return job, fmt.Errorf("waiting for a job: %w", err)
	}
	if kind != wire.Start {
		return job, fmt.Errorf("frame %d instead of a job", kind)
	}
	return job, json.Unmarshal(payload, &job)
}

// freshen takes back what the snapshot froze: the time, and the randomness that all its restores would share.
func freshen(job wire.Job) error {
	now := unix.NsecToTimespec(job.Clock)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	random, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer random.Close()
	if err := addEntropy(random, job.Seed); err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	return unix.IoctlSetInt(int(random.Fd()), unix.RNDRESEEDCRNG, 0)
}

// addEntropy credits the seed, unlike a mere write.
func addEntropy(random *os.File, seed []byte) error {
	var info struct {
		bits, size int32
		seed       [64]byte
	}
	n := copy(info.seed[:], seed)
	info.bits, info.size = int32(8*n), int32(n)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, random.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		return errno
	}
	return nil
}

// unpack reads the tar on the payload disk to where its names say.
func unpack(size int64) error {
	if size == 0 {
		return nil
	}
	disk, err := os.Open(payloadDisk)
	if err != nil {
		return err
	}
	defer disk.Close()
	// While the snapshot was made another disk was here, and the kernel still holds its first blocks.
	if err := unix.IoctlSetInt(int(disk.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("flush %s: %w", payloadDisk, err)
	}
	if err := pack.Extract(bufio.NewReaderSize(io.LimitReader(disk, size), 1<<20), pack.Under("/")); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

// run runs the command in its group and returns its exit code.
func run(conn *wire.Conn, job wire.Job, group string) int {
	fail := func(err error) int {
		fmt.Fprintf(conn.Writer(wire.Stderr), "%s: %v\n", job.Args[0], err)
		return 127
	}
	dir, err := os.Open(group)
	if err != nil {
		return fail(err)
	}
	defer dir.Close()
	env := environment(job.Env)
	program, err := lookPath(job.Args[0], env)
	if err != nil {
		return fail(err)
	}
	cmd := &exec.Cmd{
		Path: program,
		Args: job.Args,
		Env:  env,
		Dir:  wire.WorkDir,
		SysProcAttr: &unix.SysProcAttr{
			Setsid:      true,
			UseCgroupFD: true,
			CgroupFD:    int(dir.Fd()),
		},
	}
	var s streams
	if job.Screen != nil {
		s, err = onTerminal(cmd, *job.Screen)
	} else {
		s, err = onPipes(cmd, job.Stdin)
	}
	if err != nil {
		return fail(err)
	}
	err = cmd.Start()
	s.started()
	if err != nil {
		return fail(err)
	}
	go s.feed(conn)
	outputs := s.forward(conn)
	err = cmd.Wait()
	outputs.finish()

	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		return fail(err)
	}
	status := exit.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// environment is the machine's own, and over it the job's.
func environment(job []string) []string {
	path := wire.BinDir + ":" + systemPath
	// Debian keeps the server's programs out of the way of the several versions it could have.
	if postgres, err := filepath.Glob("/usr/lib/postgresql/*/bin"); err == nil {
		path = strings.Join(append([]string{path}, postgres...), ":")
	}
	return append([]string{
		"PATH=" + path, "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/bash", "LANG=C.UTF-8",
	}, job...)
}

// lookPath finds a program as the command's own PATH has it.
func lookPath(name string, env []string) (string, error) {
	for _, pair := range env {
		if path, found := strings.CutPrefix(pair, "PATH="); found {
			if err := os.Setenv("PATH", path); err != nil {
				return "", err
			}
		}
	}
	if strings.Contains(name, "/") && !filepath.IsAbs(name) {
		name = filepath.Join(wire.WorkDir, name)
	}
	return exec.LookPath(name)
}

// sendFiles sends what the job wants out as one tar, each under its number, and names what could not be sent.
func sendFiles(conn *wire.Conn, paths []string) (missing []string, err error) {
	if len(paths) == 0 {
		return nil, nil
	}
	buffered := bufio.NewWriterSize(conn.Writer(wire.Files), 256<<10)
	w := tar.NewWriter(buffered)
	for i, path := range paths {
		if !filepath.IsAbs(path) {
			path = filepath.Join(wire.WorkDir, path)
		}
		if err := pack.Add(w, path, fmt.Sprint(i)); err != nil {
			missing = append(missing, err.Error())
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return missing, buffered.Flush()
}
