package skirnir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// anew makes what was removed.
func anew(dir string) error { return MakeDir(dir, 0o700) }

func openStore(t *testing.T) (*Store, string, string) {
	t.Helper()
	state, run := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "run")
	s, err := OpenStore(state, run, anew)
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

	again, err := OpenStore(state, run, anew)
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

// kinds are the four kinds of records, each with a file, how to write it and what
// a Load says of it.
var kinds = []struct {
	file  string
	write func(*Store) error
	held  func(Loaded) any
	want  any
}{
	{"state/services/web.json", func(s *Store) error { return s.SaveWanted(aWanted) }, func(l Loaded) any { return l.Wanted }, []Wanted{aWanted}},
	{"run/services/web.json", func(s *Store) error { return s.SaveActual(anActual) }, func(l Loaded) any { return l.Actual }, []Actual{anActual}},
	{"state/exits/web.json", func(s *Store) error { return s.SaveExits(anActual.Name, someExits) },
		func(l Loaded) any { return l.Exits }, map[service.Name][]service.ExitRecord{anActual.Name: someExits}},
	{"state/outputs/web.json", func(s *Store) error { return s.SaveOutputs(anActual.Name, someOutputs) },
		func(l Loaded) any { return l.Outputs }, map[service.Name][]service.Output{anActual.Name: someOutputs}},
}

var (
	aWanted     = Wanted{Name: service.MustName("web"), Generation: 5, Up: true}
	anActual    = Actual{Name: aWanted.Name, Machine: service.Machine{State: service.Running, Incarnation: 17}, BootID: "b"}
	someOutputs = []service.Output{
		{Incarnation: 16, Began: time.Unix(1795318870, 0).UTC(), LogFrom: 7, Stream: service.Stream{Mark: "m", PID: 4, BootID: "b", ID: "s"}}, {Incarnation: 17},
	}
	someExits = []service.ExitRecord{{Incarnation: 16, Exit: service.Exit{Signal: 9}, LastLines: []string{"bye"}}}
)

// TestEveryDamagedRecordIsSetAside cuts each kind of record at every byte and flips
// a bit in every byte: it is read whole, or set aside and reported.
func TestEveryDamagedRecordIsSetAside(t *testing.T) {
	for _, kind := range kinds {
		t.Run(filepath.Dir(kind.file), func(t *testing.T) {
			dir := t.TempDir()
			s, err := OpenStore(filepath.Join(dir, "state"), filepath.Join(dir, "run"), anew)
			require.NoError(t, err)
			require.NoError(t, kind.write(s))
			path := filepath.Join(dir, kind.file)
			whole, err := os.ReadFile(path)
			require.NoError(t, err)
			check := func(damaged []byte, what string, at int) {
				require.NoError(t, os.WriteFile(path, damaged, 0o600))
				l, err := s.Load()
				if len(l.Faults) == 0 && err == nil {
					require.Equal(t, kind.want, kind.held(l), "%s at %d changed the record", what, at)
					return
				}
				require.NoError(t, err, "%s at %d", what, at)
				require.Len(t, l.Faults, 1, "%s at %d vanished", what, at)
				require.Empty(t, kind.held(l), "%s at %d", what, at)
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
				flipped := slices.Clone(whole)
				flipped[i] ^= 1 << (i % 8)
				check(flipped, "a flipped bit", i)
			}
			check(append(slices.Clone(whole), "{}"...), "an addition", len(whole))
			require.NoError(t, kind.write(s))
			l, err := s.Load()
			require.NoError(t, err)
			require.Equal(t, kind.want, kind.held(l), "it is written anew")
		})
	}
}

// What stands in a record's place and is none is set aside, without waiting for it
// and without reading it through.
func TestNoRecord(t *testing.T) {
	for what, put := range map[string]func(t *testing.T, path string) error{
		"a directory":     func(_ *testing.T, path string) error { return os.Mkdir(path, 0o700) },
		"a link":          func(_ *testing.T, path string) error { return os.Symlink("/etc/passwd", path) },
		"a dangling link": func(_ *testing.T, path string) error { return os.Symlink("nowhere", path) },
		"a pipe":          func(_ *testing.T, path string) error { return syscall.Mkfifo(path, 0o600) },
		"nothing in it":   func(_ *testing.T, path string) error { return os.WriteFile(path, nil, 0o600) },
		"no record":       func(_ *testing.T, path string) error { return os.WriteFile(path, []byte("null"), 0o600) },
		"two gigabytes": func(_ *testing.T, path string) error {
			return errors.Join(os.WriteFile(path, []byte("{"), 0o600), os.Truncate(path, 2<<30))
		},
		"another user's": func(t *testing.T, path string) error {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			return errors.Join(os.WriteFile(path, []byte("{}"), 0o600), os.Chown(path, 65534, 65534))
		},
	} {
		for _, kind := range kinds {
			t.Run(what+" at "+filepath.Dir(kind.file), func(t *testing.T) {
				dir := t.TempDir()
				s, err := OpenStore(filepath.Join(dir, "state"), filepath.Join(dir, "run"), anew)
				require.NoError(t, err)
				path := filepath.Join(dir, kind.file)
				require.NoError(t, put(t, path))
				l, err := s.Load()
				require.NoError(t, err)
				require.Empty(t, kind.held(l))
				require.Len(t, l.Faults, 1)
				require.ErrorContains(t, l.Faults[0], path)
				require.ErrorContains(t, l.Faults[0], "set aside")
				require.NoError(t, kind.write(s))
				l, err = s.Load()
				require.NoError(t, err)
				require.Empty(t, l.Faults)
				require.Equal(t, kind.want, kind.held(l))
			})
		}
	}
}

// A record that is another user's and whole is no record either.
func TestRecordOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	s, state, _ := openStore(t)
	require.NoError(t, s.SaveWanted(aWanted))
	require.NoError(t, os.Chown(filepath.Join(state, "services", "web.json"), 65534, 65534))
	l, err := s.Load()
	require.NoError(t, err)
	require.Empty(t, l.Wanted)
	require.Len(t, l.Faults, 1)
	require.ErrorContains(t, l.Faults[0], "it belongs to user 65534, and this agent is of user 0")
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
	web := Wanted{Name: service.MustName("web")}
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, s.SaveWanted(web), "the directory is made anew")
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.WriteFile(dir, nil, 0o600))
	require.ErrorContains(t, s.SaveWanted(web), dir)
}

// Where the directories can not be taken again, nothing is written, however often it is
// tried.
func TestDirectoriesThatAreNotOurs(t *testing.T) {
	dir, asked := t.TempDir(), 0
	state := filepath.Join(dir, "state")
	notOurs := errors.New("it is another agent's")
	s, err := OpenStore(state, filepath.Join(dir, "run"), func(string) error { asked++; return notOurs })
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(state))
	for range 3 {
		require.ErrorIs(t, s.SaveWanted(Wanted{Name: service.MustName("web")}), notOurs)
		require.NoDirExists(t, state)
	}
	require.Equal(t, 3, asked)
}
