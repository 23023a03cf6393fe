// Package unprivileged runs tests as a user without privileges, also where the tests
// are run by root.
package unprivileged

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// nobody is a user without any rights.
const nobody = 65534

// User is for the first line of a test that needs a user without privileges:
//
//	if !unprivileged.User(t) {
//		return // it was run as nobody
//	}
//
// It tells true when this process is one's. For root it runs the test once more
// in a fresh process of nobody's, which must pass, and tells false.
func User(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return true
	}
	dir, err := os.MkdirTemp("", "unprivileged")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	scratch := filepath.Join(dir, "tmp")
	require.NoError(t, os.Mkdir(scratch, 0o700))
	require.NoError(t, os.Chown(scratch, nobody, nobody))
	// The binary is where only its owner may look.
	binary := filepath.Join(dir, filepath.Base(os.Args[0]))
	publish(t, binary)
	cmd := exec.Command(binary, "-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.v", "-test.timeout=2m")
	cmd.Dir = scratch
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch, "HOME="+scratch)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	said, err := cmd.CombinedOutput()
	require.NoError(t, err, "as nobody: %s", said)
	require.Contains(t, string(said), "--- PASS: "+t.Name())
	return false
}

func publish(t *testing.T, path string) {
	t.Helper()
	in, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, err)
	require.NoError(t, out.Close())
	require.NoError(t, os.Chmod(path, 0o755))
}
