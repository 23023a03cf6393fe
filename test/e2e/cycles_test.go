package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// cycled are the services of the cycles, all at once. A start that fails has
// nothing to stop.
func cycled(t *testing.T, mode string) map[string]struct {
	def   fields
	fails bool
} {
	nobodyThere := fields{"type": "tcp", "address": "127.0.0.1:1"}
	kinds := map[string]struct {
		def   fields
		fails bool
	}{
		"no-program":   {fields{"exec": []string{"/nonexistent/program"}}, true},
		"no-directory": {fields{"exec": []string{"/bin/true"}, "working_directory": "/nonexistent"}, true},
		"never-ready":  {workload(t, "", "cycle", "sleep").with(fields{"ready": nobodyThere.with(fields{"timeout": "100ms"})}), true},
		"early-death":  {workload(t, "", "cycle", "exit", "3").with(fields{"ready": nobodyThere}), true},
		"stubborn":     {workload(t, "", "cycle", "tree", "1").with(fields{"stop": fields{"timeout": "1ms"}}), false},
		"plain-a":      {workload(t, "", "cycle", "sleep"), false},
		"plain-b":      {workload(t, "", "cycle", "sleep"), false},
		"plain-c":      {workload(t, "", "cycle", "sleep"), false},
		"plain-d":      {workload(t, "", "cycle", "sleep"), false},
		"plain-e":      {workload(t, "", "cycle", "sleep"), false},
	}
	for name, k := range kinds {
		k.def = k.def.with(fields{"name": name, "launch": mode, "restart": fields{"policy": "never"}})
		kinds[name] = k
	}
	return kinds
}

// TestCyclesLeaveNothing: a thousand starts and stops, failing ones included,
// leave no fd, no goroutine, no cgroup, no unit, no process and no file behind.
func TestCyclesLeaveNothing(t *testing.T) {
	eachMode(t, func(t *testing.T, w *world, mode string) {
		kinds := cycled(t, mode)
		for _, k := range kinds {
			w.register(k.def.with(fields{"log": "file"})) // the journal is asked now and then, for which files are open
		}
		cycle := func(times int) {
			var all errgroup.Group
			for name, k := range kinds {
				all.Go(func() error {
					for range times {
						_, err := w.services().StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: name})
						if k.fails != (err != nil) {
							return fmt.Errorf("start %s: %v", name, err)
						}
						if k.fails {
							continue
						}
						if _, err = w.services().StopService(contextFor(t), &gladsheimv1.StopServiceRequest{ServiceName: name}); err != nil {
							return fmt.Errorf("stop %s: %w", name, err)
						}
					}
					return nil
				})
			}
			require.NoError(t, all.Wait())
		}
		const few = 3
		cycle(few)
		idle := w.goroutines()
		w.begin()
		cycle(few) // what is made once and kept is no leak
		fds, files := w.fds(), w.files()
		cycle(cycles(t) / len(kinds))
		// A stop is answered before the last of its files is closed.
		eventually(t, "the agent has no more files open than before", func() bool {
			if more := moreThan(fds, w.fds()); len(more) > 0 {
				t.Logf("more open files of the agent: %v", more)
				return false
			}
			return true
		})
		require.Equal(t, files, w.files())
		w.nothingLeft()
		// What is about to end is no leak: that is there every time.
		const looks = 3
		for n := 1; ; n++ {
			more := moreThan(idle, w.goroutines())
			if len(more) == 0 {
				break
			}
			require.Less(t, n, looks, "goroutines of the agent by what made them: %v", more)
			w.begin()
			cycle(few)
		}
		w.begin()
	})
}

// moreThan is what of has is more than was.
func moreThan(was, has map[string]int) map[string]int {
	more := map[string]int{}
	for what, n := range has {
		if n > was[what] {
			more[what] = n - was[what]
		}
	}
	return more
}

// cycles is how often to go round: a thousand times in a soak, and where that is
// a matter of seconds, which an emulated machine is not.
func cycles(t *testing.T) int {
	switch {
	case soak:
		return 1000
	case offers(t, "systemd"):
		return 30
	case offers(t, "cgroup2"):
		return 200
	}
	return 1000
}

// fds counts the files that the agent has open, by what they are.
func (w *world) fds() map[string]int {
	dir := fmt.Sprintf("/proc/%d/fd", w.daemon.Process.Pid)
	list, err := os.ReadDir(dir)
	require.NoError(w.t, err)
	open := map[string]int{}
	for _, entry := range list {
		what, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed since
		}
		require.NoError(w.t, err)
		kind, _, _ := strings.Cut(what, ":[") // socket:[inode]
		open[kind]++
	}
	return open
}

// files are those that the agent keeps.
func (w *world) files() []string {
	var out []string
	for _, dir := range []string{"state", "run", "log"} {
		err := filepath.WalkDir(w.path(dir), func(path string, _ fs.DirEntry, err error) error {
			out = append(out, path)
			return err
		})
		require.NoError(w.t, err)
	}
	return out
}

// goroutines ends the agent in the one way that makes a Go program tell of its
// goroutines, and counts them by who made them.
func (w *world) goroutines() map[string]int {
	before := len(w.daemonLog())
	w.leave(syscall.SIGQUIT)
	made := map[string]int{}
	for goroutine := range strings.SplitSeq(w.daemonLog()[before:], "\n\n") {
		if !strings.HasPrefix(goroutine, "goroutine ") {
			continue
		}
		_, by, ok := strings.Cut(goroutine, "\ncreated by ")
		if !ok || strings.HasPrefix(by, "runtime.") {
			continue // the first, and the collector's own, which come and go
		}
		by, _, _ = strings.Cut(by, " in goroutine ")
		made[by]++
	}
	require.NotEmpty(w.t, made, w.daemonLog())
	return made
}
