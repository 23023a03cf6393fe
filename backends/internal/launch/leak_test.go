package launch

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/backends/internal/process"
)

// openFiles counts the descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}

// children counts the children of this process, zombies too.
func children(t *testing.T) int {
	t.Helper()
	return len(childPIDs())
}

func childPIDs() (pids []int) {
	threads, _ := filepath.Glob("/proc/self/task/*/children")
	for _, file := range threads {
		data, _ := os.ReadFile(file) // nothing when the thread has ended
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func TestTwoHundredStartsLeakNothing(t *testing.T) {
	w := newWatcher(t)
	dir := t.TempDir()
	kinds := []func() Request{
		func() Request { return request("/bin/true") },
		func() Request { return request("/bin/sleep", "1000") },
		func() Request { return request("/nowhere/program") },
		func() Request { return request(dir) },
		func() Request {
			r := request("/bin/true")
			r.Launch.Spec.WorkingDirectory = "/nowhere"
			return r
		},
		func() Request {
			r := request("/bin/true")
			r.Launch.Spec.User = "nosuchuser"
			return r
		},
		func() Request {
			r := request("/bin/true")
			r.Launch.LogFile = "/nowhere/web.log"
			return r
		},
	}
	round := func(i int) {
		c, err := Start(t.Context(), w, kinds[i%len(kinds)]())
		if err != nil {
			return
		}
		if i%5 == 0 {
			c.Abandon()
			return
		}
		if err := c.Open(t.Context()); err == nil {
			end(t, c)
		}
	}
	for i := range kinds { // what is allocated once
		round(i)
	}
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for i := range 200 {
		round(i)
	}
	require.Equal(t, files, openFiles(t))
	require.LessOrEqual(t, runtime.NumGoroutine(), goroutines)
	require.Zero(t, children(t))
}

func TestConcurrentStarts(t *testing.T) {
	w := newWatcher(t)
	const n = 32
	errs := make(chan error, n)
	for range n {
		go func() {
			c, err := Start(t.Context(), w, request("/bin/sleep", "1000"))
			if err == nil {
				err = c.Open(t.Context())
			}
			if err == nil {
				err = c.Process().Signal(syscall.SIGKILL)
				<-c.Process().Exited()
				c.Process().Close()
			}
			errs <- err
		}()
	}
	for range n {
		require.NoError(t, <-errs)
	}
	require.Zero(t, children(t))
}

// An agent that dies while the child waits at its gate takes the child along,
// and the program never runs.
func TestAgentDeathAtTheGate(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{actorVariable + "=1"}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	require.NoError(t, err)
	pidfd, err := unix.PidfdOpen(pid, 0)
	require.NoError(t, err)
	defer unix.Close(pidfd)
	require.Equal(t, "gladsheim-gate", processName(t, pid))

	require.NoError(t, cmd.Process.Kill())
	require.Eventually(t, func() bool { return process.Ended(pidfd) }, deadline, time.Millisecond)
	require.Error(t, cmd.Wait())
}

func TestGateIsNotTriggeredByAnInheritedVariable(t *testing.T) {
	// A mark among other variables is not one: the test binary runs as itself.
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = []string{"GLADSHEIM_GATE=1", "PATH=/bin"}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "no tests to run")
}
