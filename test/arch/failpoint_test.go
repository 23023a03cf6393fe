package arch

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/failpoint"
)

// TestAReleaseHoldsNoFailpoint searches the daemon as it is released for the names
// of points and for their machinery; and one with the tag, where all are found.
func TestAReleaseHoldsNoFailpoint(t *testing.T) {
	signs := []string{"failpoint.(*Set)", "failpoints.sock"}
	for _, p := range failpoint.Points() {
		signs = append(signs, string(p))
	}
	require.Empty(t, found(t, signs))
	require.ElementsMatch(t, signs, found(t, signs, "-tags=failpoints"))
}

// found are the signs that the daemon holds which is built so.
func found(t *testing.T, signs []string, flags ...string) (in []string) {
	t.Helper()
	daemon := filepath.Join(t.TempDir(), "gladsheimd")
	cmd := exec.Command("go", append(append([]string{"build", "-buildvcs=false", "-ldflags=-s -w", "-o", daemon}, flags...), "../../cmd/gladsheimd")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	binary, err := os.ReadFile(daemon)
	require.NoError(t, err)
	for _, sign := range signs {
		if bytes.Contains(binary, []byte(sign)) {
			in = append(in, sign)
		}
	}
	return in
}
