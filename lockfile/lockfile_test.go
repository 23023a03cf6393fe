package lockfile

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/procfs"
)

// holder names the file that the test binary, played as an agent, locks.
const holder = "GLADSHEIM_TEST_HOLDER"

// As an agent it locks the file, has a child with the same descriptor, as one that was
// forked has, says so, and waits to be killed.
func TestMain(m *testing.M) {
	path := os.Getenv(holder)
	if path == "" {
		os.Exit(m.Run())
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = Lock(proc(), f)
	}
	if err == nil {
		child := exec.Command("cat") // until its input is closed
		child.Stdin, child.ExtraFiles = os.NewFile(3, "word"), []*os.File{f}
		err = child.Start()
	}
	if err != nil {
		panic(err)
	}
	os.Stdout.WriteString("locked\n")
	select {}
}

func proc() procfs.FS {
	fs, err := procfs.New("/proc")
	if err != nil {
		panic(err)
	}
	return fs
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.lock")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	ours := open()
	require.NoError(t, Lock(proc(), ours))
	require.NoError(t, Lock(proc(), ours), "once more")
	began := time.Now()
	require.ErrorIs(t, Lock(proc(), open()), ErrHeld)
	require.Less(t, time.Since(began), patience, "who lives is not waited for")
	require.NoError(t, ours.Close())
	require.NoError(t, Lock(proc(), open()))
}

// What an agent that was killed had just forked holds its lock for a while.
func TestLockOfADeadAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	defer f.Close()
	word, end, err := os.Pipe()
	require.NoError(t, err)
	defer end.Close()
	agent := exec.Command(os.Args[0])
	agent.Env, agent.ExtraFiles = append(os.Environ(), holder+"="+path), []*os.File{word}
	said, err := agent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, agent.Start())
	word.Close()
	_, err = io.ReadFull(said, make([]byte, len("locked\n")))
	require.NoError(t, err)
	require.ErrorIs(t, Lock(proc(), f), ErrHeld, "it lives")

	require.NoError(t, agent.Process.Kill())
	_ = agent.Wait()
	locked := make(chan error, 1)
	go func() { locked <- Lock(proc(), f) }()
	select {
	case err := <-locked:
		require.Fail(t, "its child holds the lock", "%v", err)
	case <-time.After(10 * pause):
	}
	require.NoError(t, end.Close())
	require.NoError(t, <-locked)
}

// Where nobody can tell whether the holder lives, it is taken to.
func TestLockWithoutProc(t *testing.T) {
	fs, err := procfs.New(t.TempDir())
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "agent.lock")
	for _, want := range []error{nil, ErrHeld} {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(t, err)
		defer f.Close()
		require.ErrorIs(t, Lock(fs, f), want)
	}
}
