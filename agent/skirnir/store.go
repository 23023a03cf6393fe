package skirnir

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Wanted is what shall be, and survives a reboot.
type Wanted struct {
	Name       service.Name     `json:"name"`
	Document   []byte           `json:"document,omitempty"` // registered by a caller; empty when a file of the host defines it
	Generation uint64           `json:"generation"`
	Changed    time.Time        `json:"changed"`
	Up         bool             `json:"up"`               // somebody started it and nobody stopped it since
	Paused     bool             `json:"paused,omitempty"` // somebody stopped it and nobody started it since: its schedule rests
	Limits     service.Limits   `json:"limits"`           // set over those of the definition
	Warnings   service.Warnings `json:"warnings"`         // likewise
	Over       string           `json:"over"`             // what the host's file held that they were set over, "" for none; once its digest
	// What the last start that somebody asked for wanted besides the definition.
	Options service.StartOptions `json:"options"`
	Begun   string               `json:"begun,omitempty"`  // the latest boot in which a launch was recorded
	Latest  uint64               `json:"latest,omitempty"` // the incarnation of that launch
	Timing  Timing               `json:"timing,omitzero"`
}

// Timing is how far a schedule was kept to.
type Timing struct {
	Table  string       `json:"table"` // of which schedule that is told, see service.Schedule
	Mark   service.Mark `json:"mark"`
	Ran    time.Time    `json:"ran,omitzero"`     // when a run was last begun by it
	Queued bool         `json:"queued,omitempty"` // a run waits for the end of the one before
}

// Actual is what is, and is worth nothing in another boot.
type Actual struct {
	Name    service.Name     `json:"name"`
	Machine service.Machine  `json:"machine"`
	Ref     service.Ref      `json:"ref"`
	Spec    service.Spec     `json:"spec"` // as started, options included
	Limits  service.Limits   `json:"limits"`
	Started time.Time        `json:"started"`
	LogFrom int64            `json:"log_from"`          // where its output begins in the log file
	Stream  service.Stream   `json:"stream,omitzero"`   // that it goes into instead
	Exit    *service.Exit    `json:"exit,omitempty"`    // how the main process ended, nil while nobody knows that it did
	Remains *service.Remains `json:"remains,omitempty"` // what it left behind, nil while something of it may live
	Ended   time.Time        `json:"ended,omitzero"`    // with Remains: when the main process ended
	Due     time.Duration    `json:"due_since_boot"`    // in Backoff: when the next launch is; 0 of an earlier version
	Failed  service.Failures `json:"failed,omitempty"`  // within the window of its policy, by the same clock
	Actor   string           `json:"actor"`
	Paused  string           `json:"paused,omitempty"` // who has stopped it with a signal, see thjalfi.Record
	Asked   []service.Asked  `json:"asked,omitempty"`  // requests with an id, the latest last
	BootID  string           `json:"boot_id"`
}

// KeptExits is how many exit records are kept of each service.
const KeptExits = 16

// KeptOutputs is of how many incarnations is kept that their output went into the
// journal.
const KeptOutputs = 64

// Store keeps records in two directories with two lifetimes: state for what
// is wanted (survives a reboot) and run for what is (does not). Every write is
// a temporary file and a rename, so a reader finds the old record or the new one;
// what survives a reboot is synced in between, and its directory afterwards.
// Records of different services may be written at once; those of one service must
// not.
type Store struct {
	wanted, actual, exits, outputs string // directories

	// Fault is nil but in tests: it is called before each system call, which then
	// fails with what it returns. It is set before the first.
	Fault func(call, path string) error

	again  func(dir string) error // makes dir anew, which has gone
	unread map[string]bool        // files that Load could not read: nothing is written in their stead
}

// format is the version of the records; a newer one is refused, not guessed at.
const format = 1

// errNewer says that a record was written by a later version.
var errNewer = errors.New("it was written by a later version")

// record is the envelope of every file.
type record struct {
	Format int             `json:"format"`
	CRC    uint32          `json:"crc32c"` // see checksum
	Body   json.RawMessage `json:"body"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is that of a record of any format, so that a later version is told
// from damage.
func checksum(format int, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(strconv.AppendInt(nil, int64(format), 10), castagnoli), castagnoli, body)
}

// OpenStore makes the directories, readable by nobody else. One that has gone when
// something is written into it is made again by again.
func OpenStore(stateDir, runDir string, again func(dir string) error) (*Store, error) {
	s := &Store{
		again: again, unread: map[string]bool{},
		wanted:  filepath.Join(stateDir, "services"),
		exits:   filepath.Join(stateDir, "exits"),
		outputs: filepath.Join(stateDir, "outputs"),
		actual:  filepath.Join(runDir, "services"),
	}
	return s, s.makeDirs()
}

func (s *Store) makeDirs() error {
	for _, dir := range []string{s.wanted, s.exits, s.outputs, s.actual} {
		if err := MakeDir(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// MakeDir makes a directory, and those above it that there are none of, so that
// they last as the records in it do.
func MakeDir(dir string, mode fs.FileMode) error {
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("cannot make the directory %s: %w", dir, syscall.ENOTDIR)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot make the directory %s: %w", dir, err)
	}
	above := filepath.Dir(dir)
	if err := MakeDir(above, mode); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make the directory %s: %w", dir, err)
	}
	return syncDir(above)
}

// SaveWanted writes w.
func (s *Store) SaveWanted(w Wanted) error { return s.save(s.wanted, w.Name, w) }

// SaveActual writes a.
func (s *Store) SaveActual(a Actual) error { return s.save(s.actual, a.Name, a) }

// SaveExits writes the exit records of a service, newest last, and drops all
// but the latest sixteen.
func (s *Store) SaveExits(name service.Name, exits []service.ExitRecord) error {
	return s.save(s.exits, name, exits[max(0, len(exits)-KeptExits):])
}

// Exits reads the exit records of a service, newest last.
func (s *Store) Exits(name service.Name) ([]service.ExitRecord, error) {
	var exits []service.ExitRecord
	err := s.read(filepath.Join(s.exits, name.String()+".json"), &exits)
	return exits, err
}

// SaveOutputs writes where the output of a service went, oldest first.
func (s *Store) SaveOutputs(name service.Name, outputs []service.Output) error {
	return s.save(s.outputs, name, outputs)
}

// Forget removes every record of a service.
func (s *Store) Forget(name service.Name) error {
	var all error
	for _, dir := range []string{s.actual, s.wanted, s.exits, s.outputs} {
		all = errors.Join(all, s.forget(dir, name))
	}
	return all
}

// ForgetActual removes the record of what a service is.
func (s *Store) ForgetActual(name service.Name) error { return s.forget(s.actual, name) }

func (s *Store) forget(dir string, name service.Name) error {
	path := filepath.Join(dir, name.String()+".json")
	if err := s.spare(path); err != nil {
		return err
	}
	err := s.remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	last := s.last(dir)
	if errors.Is(last, fs.ErrNotExist) { // it went with its directory
		last = nil
	}
	return errors.Join(err, last)
}

// spare refuses to touch what could not be read: nobody knows what it holds.
func (s *Store) spare(path string) error {
	if s.unread[path] {
		return fmt.Errorf("%s could not be read when the agent started, so it is left as it is; mend that, then restart the agent", path)
	}
	return nil
}

// Loaded is everything the store holds. Faults names the files that hold no
// record and were set aside under another name, and those that the host would
// not let us read and that were left as they are; nothing of theirs is in the
// other fields.
type Loaded struct {
	Wanted  []Wanted
	Actual  []Actual
	Exits   map[service.Name][]service.ExitRecord
	Outputs map[service.Name][]service.Output
	Faults  []error

	LostExits []service.Name // whose exit records were set aside
}

// Load reads all records. Those of a later version are an error of Kind Invalid:
// they are neither guessed at nor overwritten.
func (s *Store) Load() (Loaded, error) {
	l := Loaded{Exits: map[service.Name][]service.ExitRecord{}, Outputs: map[service.Name][]service.Output{}}
	err := errors.Join(
		load(s, s.wanted, &l.Faults, nil, func(name service.Name, w Wanted) error {
			if w.Name != name {
				return fmt.Errorf("it is the record of %q", w.Name)
			}
			l.Wanted = append(l.Wanted, w)
			return nil
		}),
		load(s, s.actual, &l.Faults, nil, func(name service.Name, a Actual) error {
			if a.Name != name {
				return fmt.Errorf("it is the record of %q", a.Name)
			}
			l.Actual = append(l.Actual, a)
			return nil
		}),
		load(s, s.exits, &l.Faults, &l.LostExits, func(name service.Name, x []service.ExitRecord) error {
			l.Exits[name] = x
			return nil
		}),
		load(s, s.outputs, &l.Faults, nil, func(name service.Name, o []service.Output) error {
			l.Outputs[name] = o
			return nil
		}),
	)
	return l, err
}

func (s *Store) save(dir string, name service.Name, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("cannot encode the record of %s: %w", name, err)
	}
	data, err := json.Marshal(record{Format: format, CRC: checksum(format, raw), Body: raw})
	if err != nil {
		return fmt.Errorf("cannot encode the record of %s: %w", name, err)
	}
	if len(data) >= maxRecord {
		return fmt.Errorf("the record of %s has %d bytes; fewer than %d are kept", name, len(data), maxRecord)
	}
	path := filepath.Join(dir, name.String()+".json")
	if err := s.spare(path); err != nil {
		return err
	}
	fresh := filepath.Join(dir, "."+name.String()+".json")
	if err := s.write(fresh, append(data, '\n')); err != nil {
		return errors.Join(fmt.Errorf("cannot write the record of %s: %w", name, err), s.discard(fresh))
	}
	if err := s.rename(fresh, path); err != nil {
		return errors.Join(fmt.Errorf("cannot write the record of %s: %w", name, err), s.discard(fresh))
	}
	return s.last(dir)
}

// write writes a new file. One of that name is what a write left that failed.
func (s *Store) write(path string, data []byte) error {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := s.open(path, flags)
	if errors.Is(err, fs.ErrExist) {
		if err := s.remove(path); err != nil {
			return err
		}
		f, err = s.open(path, flags)
	}
	if errors.Is(err, fs.ErrNotExist) { // somebody has removed our directory
		if err := s.again(filepath.Dir(path)); err != nil {
			return err
		}
		f, err = s.open(path, flags)
	}
	if err != nil {
		return err
	}
	err = s.call("write", path, func() error { _, err := f.Write(data); return err })
	if err == nil && filepath.Dir(path) != s.actual {
		err = s.call("fsync", path, f.Sync)
	}
	return errors.Join(err, s.call("close", path, f.Close))
}

// discard removes what is left of a write that failed.
func (s *Store) discard(path string) error {
	if err := s.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// last makes a rename or removal in dir last (fsync(2), NOTES). What is does not
// last, whatever is done.
func (s *Store) last(dir string) error {
	if dir == s.actual {
		return nil
	}
	return s.call("fsync", dir, func() error { return syncDir(dir) })
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// The system calls of the store.

func (s *Store) open(path string, flags int) (f *os.File, err error) {
	err = s.call("open", path, func() error {
		f, err = os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		return err
	})
	return f, err
}

func (s *Store) rename(from, to string) error {
	return s.call("rename", from, func() error { return os.Rename(from, to) })
}

func (s *Store) remove(path string) error {
	return s.call("remove", path, func() error { return os.Remove(path) })
}

func (s *Store) call(name, path string, do func() error) error {
	if s.Fault != nil {
		if err := s.Fault(name, path); err != nil {
			return &fs.PathError{Op: name, Path: path, Err: err}
		}
	}
	return do()
}

// load reads every record in dir. A temporary file of a write that never
// ended is removed; a record that can not be read is set aside and reported, and
// lost gets its service unless it is nil.
func load[T any](s *Store, dir string, faults *[]error, lost *[]service.Name, take func(service.Name, T) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", dir, err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		stem, isRecord := strings.CutSuffix(e.Name(), ".json")
		switch {
		case strings.HasPrefix(e.Name(), "."):
			if err := s.remove(path); err != nil {
				*faults = append(*faults, err)
			}
			continue
		case !isRecord:
			continue // set aside earlier
		}
		name, err := service.ParseName(stem)
		var body T
		if err == nil {
			err = s.read(path, &body)
		}
		if err == nil {
			err = take(name, body)
		}
		switch {
		case err == nil:
		case errors.Is(err, errNewer):
			return &service.Error{Op: "use " + path, Kind: service.Invalid, Err: err}
		case notServed(err):
			s.unread[path] = dir != s.actual // what is gets known again
			*faults = append(*faults, fmt.Errorf("%w; it is left as it is", err))
		default:
			*faults = append(*faults, setAside(s.rename, path, err))
			if lost != nil && !name.IsZero() {
				*lost = append(*lost, name)
			}
		}
	}
	return nil
}

// notServed tells whether the host would not let us look at a file, which says
// nothing about what the file holds. A symbolic link is no record.
func notServed(err error) bool {
	return errors.As(err, new(*fs.PathError)) && !errors.Is(err, syscall.ELOOP)
}

// maxRecord is the size of the largest record worth reading.
const maxRecord = 8 << 20

func (s *Store) read(path string, body any) error {
	f, err := s.open(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("it is not a regular file")
	case info.Size() > maxRecord:
		return fmt.Errorf("it has %d bytes", info.Size())
	case !trusted(info):
		return fmt.Errorf("it belongs to user %d, and this agent is of user %d", info.Sys().(*syscall.Stat_t).Uid, os.Geteuid())
	}
	var r record
	var data []byte
	err = s.call("read", path, func() error { data, err = io.ReadAll(f); return err })
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	switch {
	case checksum(r.Format, r.Body) != r.CRC:
		return errors.New("its checksum is wrong")
	case r.Format > format:
		return fmt.Errorf("%w: it has format %d, and this agent reads %d", errNewer, r.Format, format)
	case r.Format < format:
		return fmt.Errorf("it has format %d, and this agent reads %d", r.Format, format)
	}
	return json.Unmarshal(r.Body, body)
}

// trusted tells whether a file is our user's or root's: nobody else may write down
// what we are to run.
func trusted(info fs.FileInfo) bool {
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	return owner == os.Geteuid() || owner == 0
}

func setAside(rename func(from, to string) error, path string, why error) error {
	aside := fmt.Sprintf("%s.corrupt-%d", path, time.Now().UnixNano())
	if err := rename(path, aside); err != nil {
		return fmt.Errorf("cannot use %s (%w), nor set it aside: %w", path, why, err)
	}
	return fmt.Errorf("cannot use %s: %w; set aside as %s", path, why, filepath.Base(aside))
}
