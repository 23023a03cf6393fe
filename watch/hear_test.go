package watch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// folder is a directory with an empty file of each name.
func folder(t testing.TB, names ...string) *os.File {
	t.Helper()
	dir, err := os.Open(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	for _, name := range names {
		write(t, dir, name)
	}
	return dir
}

func write(t testing.TB, dir *os.File, name string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir.Name(), name), os.O_WRONLY|os.O_CREATE, 0o600)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString("1")
	require.NoError(t, err)
}

func TestWhatIsWrittenIsHeard(t *testing.T) {
	w := newWatcher(t)
	dir, other := folder(t, "limit", "events"), folder(t, "limit")
	heard := make(chan string, 100)
	leave, err := w.Hear(dir, []string{"events", "not-there"}, func(file string) { heard <- file })
	require.NoError(t, err)
	write(t, other, "limit")
	for _, name := range []string{"limit", "events", "limit"} {
		write(t, dir, name)
		require.Equal(t, name, receive(t, heard))
	}
	leave()
	leave()
	again, err := w.Hear(other, nil, func(file string) { heard <- "other " + file })
	require.NoError(t, err)
	defer again()
	write(t, dir, "limit")
	write(t, other, "limit")
	require.Equal(t, "other limit", receive(t, heard))
}

// Whoever runs into his limit all the time does not wake the agent as often.
func TestWhatIsWrittenOftenIsHeardNowAndThen(t *testing.T) {
	w := newWatcher(t)
	dir := folder(t, "events")
	heard := make(chan time.Time, 1000)
	leave, err := w.Hear(dir, nil, func(string) { heard <- time.Now() })
	require.NoError(t, err)
	defer leave()
	f, err := os.OpenFile(filepath.Join(dir.Name(), "events"), os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	var last time.Time
	writes := 0
	for start := time.Now(); time.Since(start) < 4*rest; writes++ {
		last = time.Now()
		_, err := f.WriteAt([]byte("2"), 0)
		require.NoError(t, err)
	}
	times := 1
	for receive(t, heard).Before(last) {
		times++
	}
	require.Less(t, times, writes/20)
}

// One that leaves does not silence another for the same directory.
func TestSeveralListenToOneDirectory(t *testing.T) {
	w := newWatcher(t)
	dir := folder(t, "limit")
	heard := make(chan string, 100)
	first, err := w.Hear(dir, []string{"limit"}, func(string) { heard <- "first" })
	require.NoError(t, err)
	second, err := w.Hear(dir, []string{"limit"}, func(string) { heard <- "second" })
	require.NoError(t, err)
	write(t, dir, "limit")
	require.ElementsMatch(t, []string{"first", "second"}, []string{receive(t, heard), receive(t, heard)})
	first()
	write(t, dir, "limit")
	require.Equal(t, "second", receive(t, heard))
	second()
	require.Empty(t, w.hears.listeners)
}

// The queue of the kernel is bounded.
func TestLostNewsAreTold(t *testing.T) {
	w := newWatcher(t)
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	require.NoError(t, err)
	var most int
	_, err = fmt.Sscan(strings.TrimSpace(string(text)), &most)
	require.NoError(t, err)
	dir := folder(t, "one", "two")
	lost, stay := make(chan struct{}, 1), make(chan struct{})
	leave, err := w.Hear(dir, nil, func(file string) {
		<-stay
		if file == "" {
			lost <- struct{}{}
		}
	})
	require.NoError(t, err)
	defer leave()
	var files []*os.File
	for _, name := range []string{"one", "two"} { // by turns, for the kernel joins what is the same
		f, err := os.OpenFile(filepath.Join(dir.Name(), name), os.O_WRONLY, 0)
		require.NoError(t, err)
		defer f.Close()
		files = append(files, f)
	}
	for i := range most + 10_000 {
		_, err := files[i%2].WriteAt([]byte("2"), 0)
		require.NoError(t, err)
	}
	close(stay)
	receive(t, lost)
}

func TestARemovedDirectoryIsSilent(t *testing.T) {
	w := newWatcher(t)
	dir := folder(t, "limit")
	leave, err := w.Hear(dir, []string{"limit"}, func(string) {})
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(dir.Name()))
	leave()
	require.Empty(t, w.hears.listeners)
	leave, err = w.Hear(dir, []string{"limit"}, func(string) {}) // through the descriptor it is there, and silent
	require.NoError(t, err)
	leave()
}

func TestNothingIsHeardAfterTheEnd(t *testing.T) {
	w, err := New()
	require.NoError(t, err)
	dir := folder(t, "limit")
	leave, err := w.Hear(dir, nil, func(string) {})
	require.NoError(t, err)
	write(t, dir, "limit")
	require.NoError(t, w.Close())
	leave()
	_, err = w.Hear(dir, nil, func(string) {})
	require.ErrorIs(t, err, os.ErrClosed)
}
