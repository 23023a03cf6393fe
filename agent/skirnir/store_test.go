package skirnir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func openStore(t *testing.T) (*Store, string, string) {
	t.Helper()
	state, run := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "run")
	s, err := OpenStore(state, run)
	require.NoError(t, err)
	return s, state, run
}

func TestRecordsComeBack(t *testing.T) {
	s, state, run := openStore(t)
	web := service.MustName("web")
	spec := service.Defaults()
	spec.Name, spec.Exec, spec.Environment = web, []string{"/bin/true"}, map[string]string{"A": "b"}
	wanted := Wanted{Name: web, Document: []byte(`{"name":"web"}`), Generation: 3, Up: true}
	actual := Actual{Name: web, Machine: service.Machine{State: service.Running, Incarnation: 17},
		Ref: service.Ref{Name: web, PID: 42, StartTicks: 7, BootID: "b"}, Spec: spec, Actor: "uid 0"}
	actual.Limits[service.MemoryMax] = service.Of(1 << 30)
	require.NoError(t, s.SaveWanted(wanted))
	require.NoError(t, s.SaveActual(actual))
	var exits []service.ExitRecord
	for i := range 20 {
		exits = append(exits, service.ExitRecord{Incarnation: uint64(i), Exit: service.Exit{Signal: 9}, LastLines: []string{"bye"}})
	}
	require.NoError(t, s.SaveExits(web, exits))

	again, err := OpenStore(state, run)
	require.NoError(t, err)
	l, err := again.Load()
	require.NoError(t, err)
	require.Empty(t, l.Faults)
	require.Equal(t, []Wanted{wanted}, l.Wanted)
	require.Equal(t, []Actual{actual}, l.Actual)
	require.Len(t, l.Exits[web], KeptExits)
	require.EqualValues(t, 19, l.Exits[web][KeptExits-1].Incarnation)

	require.NoError(t, again.Forget(web))
	require.NoError(t, again.Forget(web), "forgetting twice is forgetting")
	l, err = again.Load()
	require.NoError(t, err)
	require.Empty(t, l.Wanted)
	require.Empty(t, l.Actual)
	require.Empty(t, l.Exits)
}

// TestEveryDamagedRecordIsSetAside truncates a record at every byte and flips
// a bit in every byte: it is read whole, or set aside and reported.
func TestEveryDamagedRecordIsSetAside(t *testing.T) {
	s, state, _ := openStore(t)
	web := service.MustName("web")
	want := Wanted{Name: web, Generation: 5, Up: true}
	require.NoError(t, s.SaveWanted(want))
	path := filepath.Join(state, "services", "web.json")
	whole, err := os.ReadFile(path)
	require.NoError(t, err)

	check := func(damaged []byte, what string, at int) {
		require.NoError(t, os.WriteFile(path, damaged, 0o600))
		l, err := s.Load()
		require.NoError(t, err)
		if len(l.Wanted) == 1 {
			require.Equal(t, want, l.Wanted[0], "%s at %d changed the record", what, at)
			return
		}
		require.Len(t, l.Faults, 1, "%s at %d vanished", what, at)
		aside, err := filepath.Glob(path + ".corrupt-*")
		require.NoError(t, err)
		require.Len(t, aside, 1)
		kept, err := os.ReadFile(aside[0])
		require.NoError(t, err)
		require.Equal(t, damaged, kept)
		require.NoError(t, os.Remove(aside[0]))
	}
	for i := range whole {
		check(whole[:i], "a cut", i)
		flipped := append([]byte(nil), whole...)
		flipped[i] ^= 0x04
		check(flipped, "a flipped bit", i)
	}
}

func TestForeignFilesDoNoHarm(t *testing.T) {
	s, state, _ := openStore(t)
	dir := filepath.Join(state, "services")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder.json"), 0o700))
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "link.json")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Not A Name.json"), []byte("{}"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "other.json"), []byte(`{"format":99,"body":{}}`), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".web.json123"), []byte("half"), 0o600))
	require.NoError(t, s.SaveWanted(Wanted{Name: service.MustName("mine")}))
	require.NoError(t, os.Rename(filepath.Join(dir, "mine.json"), filepath.Join(dir, "stolen.json")))
	l, err := s.Load()
	require.NoError(t, err)
	require.Empty(t, l.Wanted)
	require.Len(t, l.Faults, 5)
	require.NoFileExists(t, filepath.Join(dir, ".web.json123"), "what a torn write left is removed")
	l, err = s.Load()
	require.NoError(t, err)
	require.Empty(t, l.Faults, "what was set aside is not reported again")
}

// Records of a later version are neither guessed at nor lost.
func TestLaterVersion(t *testing.T) {
	s, state, _ := openStore(t)
	path := filepath.Join(state, "services", "web.json")
	later := fmt.Sprintf(`{"format":2,"crc32c":%d,"body":{}}`, checksum(2, []byte("{}")))
	require.NoError(t, os.WriteFile(path, []byte(later), 0o600))
	_, err := s.Load()
	require.Equal(t, service.Invalid, service.KindOf(err))
	require.ErrorContains(t, err, "later version")
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, later, string(kept))
}

// What the host does not let us read now is told, and left for the next agent.
func TestRecordThatCanNotBeReadNow(t *testing.T) {
	s, state, _ := openStore(t)
	web := service.MustName("web")
	require.NoError(t, s.SaveWanted(Wanted{Name: web}))
	err := &fs.PathError{Op: "read", Path: filepath.Join(state, "services", "web.json"), Err: syscall.EIO}
	require.True(t, notServed(fmt.Errorf("x: %w", err)))
	require.False(t, notServed(&fs.PathError{Op: "open", Path: "x", Err: syscall.ELOOP}), "a link is no record")
	require.False(t, notServed(errors.New("its checksum is wrong")))
	if os.Geteuid() == 0 {
		return // root may read every file
	}
	require.NoError(t, os.Chmod(err.Path, 0))
	l, loadErr := s.Load()
	require.NoError(t, loadErr)
	require.Len(t, l.Faults, 1)
	require.FileExists(t, err.Path)
}

// A record that would not be read back is not written.
func TestRecordThatIsTooLarge(t *testing.T) {
	s, _, _ := openStore(t)
	w := Wanted{Name: service.MustName("web"), Document: make([]byte, maxRecord)}
	require.ErrorContains(t, s.SaveWanted(w), "bytes")
	l, err := s.Load()
	require.NoError(t, err)
	require.Empty(t, l.Wanted)
}

func TestMakeDir(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, MakeDir(filepath.Join(dir, "a/b/c"), 0o700))
	require.NoError(t, MakeDir(filepath.Join(dir, "a/b/c"), 0o700))
	info, err := os.Stat(filepath.Join(dir, "a/b/c"))
	require.NoError(t, err)
	require.Equal(t, fs.ModeDir|0o700, info.Mode())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	require.ErrorIs(t, MakeDir(filepath.Join(dir, "file"), 0o700), syscall.ENOTDIR)
	require.Error(t, MakeDir(filepath.Join(dir, "file/x"), 0o700))
}

func TestAFailedWriteIsTold(t *testing.T) {
	s, state, _ := openStore(t)
	dir := filepath.Join(state, "services")
	require.NoError(t, os.RemoveAll(dir))
	err := s.SaveWanted(Wanted{Name: service.MustName("web")})
	require.ErrorContains(t, err, dir)
}
