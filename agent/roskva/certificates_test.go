package roskva

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/vigil"
)

// deadFileServer is a directory of a file server that answers nobody until the test ends.
// Who may not mount one has a reader that hangs, as it would there.
func deadFileServer(t *testing.T) (dir string) {
	dir = t.TempDir()
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		hangReader(t)
		return dir
	}
	t.Cleanup(func() { unix.Close(server) })
	err = unix.Mount("dead", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server))
	if err != nil {
		hangReader(t)
		return dir
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// hangReader has nobody read a file of certificates until the test ends.
func hangReader(t *testing.T) {
	end := make(chan struct{})
	certificates.read = func(string) ([]byte, error) { <-end; return nil, context.Canceled }
	t.Cleanup(func() {
		close(end)
		require.Eventually(t, func() bool {
			certificates.mu.Lock()
			defer certificates.mu.Unlock()
			return len(certificates.reads) == 0
		}, 10*time.Second, time.Millisecond)
		certificates.read = readCertificates
	})
}

// A file on a file server that is dead holds up nobody for longer than a check may take.
func TestAskByAFileOfADeadServer(t *testing.T) {
	file := filepath.Join(deadFileServer(t), "ca.pem")
	for _, check := range []service.Check{
		{Type: service.CheckHTTP, URL: "https://127.0.0.1:1", TLS: &service.TLS{CA: file}},
		{Type: service.CheckGRPC, Address: "127.0.0.1:1", TLS: &service.TLS{CA: file}},
	} {
		t.Run(check.Type.String(), func(t *testing.T) {
			answer := make(chan error, 1)
			go func() {
				once, watch := vigil.Keep(t.Context(), 200*time.Millisecond)
				defer watch.Leave()
				question, _ := prepare(check, nil)
				answer <- question(once)
			}()
			select {
			case err := <-answer:
				require.EqualError(t, err, "cannot read tls.ca: "+file+": its file system does not answer in time: context deadline exceeded")
				require.ErrorIs(t, err, context.DeadlineExceeded)
			case <-time.After(10 * time.Second):
				t.Fatal("the check waits for the file server")
			}
		})
	}
}

// Reads that hang do not pile up, and what they bring at last serves who waits then.
func TestReadsThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var begun atomic.Int32
		answers := make(chan struct{})
		r := reader{reads: map[string]*reading{}, read: func(path string) ([]byte, error) {
			begun.Add(1)
			<-answers
			return []byte(path), os.ErrPermission
		}}
		in := func(d time.Duration, path string) ([]byte, error) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			return r.text(ctx, path)
		}
		for range 100 {
			_, err := in(time.Second, "a")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "a: its file system")
		}
		require.EqualValues(t, 1, begun.Load(), "of the same file there is one read under way")

		for i := range 2 * atOnce {
			_, err := in(time.Second, fmt.Sprint(i))
			require.Error(t, err)
		}
		require.EqualValues(t, atOnce, begun.Load(), "and of all of them no more than so many")
		_, err := in(time.Second, "z")
		require.True(t, notItsDoing(err), "that others hang is not the doing of who asks")
		require.ErrorContains(t, err, "cannot read z: 256 other files")

		time.AfterFunc(time.Second, func() { close(answers) })
		text, err := in(time.Minute, "a")
		require.Equal(t, "a", string(text))
		require.ErrorIs(t, err, os.ErrPermission)
		synctest.Wait()
		require.Empty(t, r.reads)
		text, _ = in(time.Minute, "z")
		require.Equal(t, "z", string(text))
		require.False(t, errors.Is(err, errHolds))
	})
}
