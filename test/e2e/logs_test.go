package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestNoLineIsLostInACut: a service writes on while the front of its log is cut
// off, over and over, by agents that are killed. Every line is there once, in
// the files and for readers.
func TestNoLineIsLostInACut(t *testing.T) {
	native(t)
	for _, full := range []string{"fail", "block"} { // written by the service, and by the shim
		t.Run(full, func(t *testing.T) { noLineIsLost(t, full) })
	}
}

func noLineIsLost(t *testing.T, full string) {
	w := newWorld(t)
	const count = 24_000 // lines of 200 bytes, for six seconds
	w.register(workload(t, "talker", "talker", "log", fmt.Sprint(count), "200", "4000").with(fields{
		"launch": modes(t)[0], "log": "file", "log_full": full, "log_rotate": fields{"size": "64KiB", "total": "1GiB"},
	}))
	byGRPC{w}.start("talker")
	log := w.path("log", "talker.log")
	cuts := func() int {
		pieces, err := filepath.Glob(log + ".0*")
		require.NoError(t, err)
		return len(pieces)
	}
	for range 2 {
		before := cuts()
		eventually(t, "the log is cut", func() bool { return cuts() > before })
		w.leave(syscall.SIGKILL)
		w.begin()
	}
	var all []byte
	ended := func() bool {
		all = slices.Concat(contents(t, log+".0*"), bytes.TrimLeft(contents(t, log), "\x00"))
		return bytes.Count(all, []byte("\n")) == count
	}
	eventually(t, "all lines are there", ended)
	t.Logf("%d bytes in %d files", len(all), 1+cuts())
	lines := strings.Split(strings.TrimSuffix(string(all), "\n"), "\n")
	for i, line := range lines {
		if want := fmt.Sprintf("%010d %s", i+1, strings.Repeat("x", 188)); line != want {
			require.Equal(t, want, line)
		}
	}
	said := w.mustCLI("logs", "talker", "-n", "1000000")
	require.Equal(t, lines, strings.Split(strings.TrimSuffix(said, "\n"), "\n"))
}

// contents is what the files of a pattern hold, one after the other.
func contents(t *testing.T, pattern string) (all []byte) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	require.NoError(t, err)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		all = append(all, data...)
	}
	return all
}
