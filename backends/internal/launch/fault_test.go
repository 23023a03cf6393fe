package launch

import (
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// errnos are what the kernel may say to a call.
var errnos = []syscall.Errno{unix.ENOMEM, unix.EIO, unix.EACCES, unix.ENOSPC, unix.EMFILE, unix.EINTR}

// Whatever call of a launch fails, and however: the error tells the errno, no
// program has run, neither a process, a descriptor nor a goroutine is left, and the
// next launch succeeds.
func TestEveryCallFails(t *testing.T) {
	w, log := newWatcher(t), filepath.Join(t.TempDir(), "web.log")
	launch := func(fault faults) error {
		req := request("/bin/sh", "-c", "echo it runs")
		req.Launch.LogFile, req.fault = log, fault
		c, err := Start(t.Context(), w, req)
		if err != nil {
			return err
		}
		if err := c.Ready(t.Context()); err != nil {
			return err
		}
		if err := c.Open(t.Context()); err != nil {
			return err
		}
		awaitExit(t, c)
		return c.Process().Close()
	}
	require.NoError(t, launch(nil)) // what is made once
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	hit := map[string]bool{}
	for _, errno := range errnos {
		for n := 1; ; n++ {
			left, failed := n, ""
			err := launch(func(call string) error {
				if left--; left != 0 {
					return nil
				}
				failed = call
				return errno
			})
			if failed == "" {
				require.NoError(t, err)
				break
			}
			hit[failed] = true
			if failed == "open" && errno == unix.EINTR {
				require.NoError(t, err, "it is made again")
			} else {
				require.ErrorIs(t, err, errno, failed)
				require.Equal(t, service.Unlaunchable, service.KindOf(err), failed)
				require.Equal(t, isShortage(errno), service.ReasonOf(err) == service.ReasonNoResources, "%s: %v", failed, err)
			}
			require.Zero(t, children(t), failed)
			require.Equal(t, files, openFiles(t), failed)
			for until := time.Now().Add(deadline); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
				require.True(t, time.Now().Before(until), "a goroutine is left after %s", failed)
			}
		}
	}
	for _, call := range []string{
		"open", "stat", "set to block", "make a socket pair", "set not to block", "fork", "take up the child", "send the plan", "hear the gate", "open the gate",
	} {
		require.True(t, hit[call], call)
	}
	require.NoError(t, launch(nil))
}
