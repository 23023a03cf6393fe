package agent

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// mortal is a house whose agents die in the middle of things, with or without the
// host. What an agent has on disk at that moment is what the next one finds; of
// what the dead one goes on to do nothing is seen, neither there nor on the host.
type mortal struct {
	*house
	agents int // that were there

	mu       sync.Mutex
	calls    int           // to the host until the agent dies, 0: it does not
	cut      bool          // and the host with it
	survives bool          // also what was not synced
	stall    time.Duration // that the next call to the host takes
	looked   bool          // for: by us, who want to change nothing
	dead     bool
	heard    uint64          // the latest notice that the dead one gave; 0: not known
	lost     []string        // directories, with the agent
	synced   map[string]bool // contents that are on disk for good
	lasting  map[string]string
	deaf     bool // a disk that does not do what it is told

	launched func(service.Launch, backends.Handle) backends.Handle // nil, or what is done to each launch
}

var errDead = errors.New("the agent is dead")

// mortal has the agents of a house that is not open yet able to die.
func (h *house) mortal() *mortal {
	m := &mortal{house: h, synced: map[string]bool{}, lasting: map[string]string{}}
	h.disk = m.onDisk
	return m
}

// arrive opens an agent; it may die of that.
func (m *mortal) arrive() {
	m.agents++
	b := fake.New(fake.Config{Host: m.host, Fault: func(string, service.Ref) error { return m.act() }})
	m.backends = []backends.Backend{watched{b, m}}
	a, err := Open(m.t.Context(), m.config())
	m.mu.Lock()
	m.Agent = a
	m.mu.Unlock()
	if err == nil {
		a.Autostart()
		synctest.Wait()
	}
	if !m.died() {
		require.NoError(m.t, err)
	}
}

// died tells whether the agent has died.
func (m *mortal) died() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

// act comes before each deed of an agent on the host. That takes its time when the
// host stalls; the disk does not, since time in a bubble stands still for who waits
// for a mutex that a sleeper holds.
func (m *mortal) act() error {
	m.mu.Lock()
	stall := m.stall
	m.stall = 0
	m.mu.Unlock()
	time.Sleep(stall)
	return m.breathe()
}

// breathe comes before each deed of an agent that outlasts it.
func (m *mortal) breathe() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.calls > 0 && !m.looked {
		if m.calls--; m.calls == 0 {
			m.die()
		}
	}
	if m.dead {
		return errDead
	}
	return nil
}

// watched is a backend whose children leave when the agent dies before the gate was
// opened.
type watched struct {
	*fake.Backend
	m *mortal
}

func (w watched) Launch(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
	identify := birth.Identify
	birth.Identify = func(ref service.Ref) error { return errors.Join(identify(ref), w.m.breathe()) }
	h, err := w.Backend.Launch(ctx, l, birth)
	if err == nil && w.m.launched != nil {
		h = w.m.launched(l, h)
	}
	return h, err
}

// onDisk is called before each system call of the store. What is synced when the
// next one comes is on disk for good (fsync(2)): of a file what it holds, of a
// directory which files are in it.
func (m *mortal) onDisk(call, path string) error {
	if err := m.breathe(); err != nil || call != "fsync" || m.deaf {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	info, err := os.Stat(path)
	require.NoError(m.t, err)
	if !info.IsDir() {
		m.synced[read(m.t, path)] = true
		return nil
	}
	maps.DeleteFunc(m.lasting, func(file, _ string) bool { return filepath.Dir(file) == path })
	for file, content := range files(m.t, path) {
		if !m.synced[content] {
			content = ""
		}
		m.lasting[file] = content
	}
	return nil
}

// die takes what is on disk now for what the agent has left. The caller holds mu.
func (m *mortal) die() {
	m.dead, m.calls, m.heard = true, 0, 0
	if m.Agent != nil {
		m.heard = m.Sequence()
	}
	left := map[string]string{}
	if !m.cut || m.survives {
		left = m.records()
	} else {
		maps.Copy(left, m.lasting)
	}
	for file, content := range left {
		m.write("left"+strings.TrimPrefix(file, m.dir), content)
	}
	if m.cut {
		m.host.Reboot()
	}
}

// records are all files of the agent.
func (m *mortal) records() map[string]string {
	all := files(m.t, m.path("state"))
	maps.Copy(all, files(m.t, m.path("run")))
	return all
}

func files(t require.TestingT, dir string) map[string]string {
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			found[path] = read(t, path)
		}
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(t, err)
	}
	return found
}

// read gives nothing of a file that was removed meanwhile.
func read(t require.TestingT, path string) string {
	content, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(t, err)
	}
	return string(content)
}

// bury puts what a dead agent has left where the next one looks, and tells whether
// there was one.
func (m *mortal) bury() bool {
	if !m.died() {
		return false
	}
	m.close()
	m.house.lose("state", "run")
	for _, dir := range []string{"state", "run"} {
		if err := os.Rename(m.path("left/"+dir), m.path(dir)); !errors.Is(err, fs.ErrNotExist) {
			require.NoError(m.t, err)
		}
	}
	m.house.lose("left")
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cut {
		m.boots++
		m.boot(m.bootID())
		m.lasting = map[string]string{}
		for file, content := range m.records() {
			if strings.HasPrefix(file, m.path("state")) {
				m.lasting[file], m.synced[content] = content, true
			}
		}
	}
	m.dead, m.cut = false, false
	return true
}

// lose takes directories away while no agent is there.
func (m *mortal) lose(dirs ...string) {
	m.house.lose(dirs...)
	maps.DeleteFunc(m.lasting, func(file, _ string) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(file, m.path(dir)) })
	})
}
