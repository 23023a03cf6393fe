package skirnir

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Wanted is what shall be, and survives a reboot.
type Wanted struct {
	Name       service.Name     `json:"name"`
	Document   []byte           `json:"document,omitempty"` // registered by a caller; empty when a file of the host defines it
	Generation uint64           `json:"generation"`
	Changed    time.Time        `json:"changed"`
	Up         bool             `json:"up"`       // somebody started it and nobody stopped it since
	Limits     service.Limits   `json:"limits"`   // set over those of the definition
	Warnings   service.Warnings `json:"warnings"` // likewise
	Over       string           `json:"over"`     // what the host's file held that they were set over, "" for none; once its digest
	// What the last start that somebody asked for wanted besides the definition.
	Options service.StartOptions `json:"options"`
}

// Actual is what is, and is worth nothing in another boot.
type Actual struct {
	Name    service.Name    `json:"name"`
	Machine service.Machine `json:"machine"`
	Ref     service.Ref     `json:"ref"`
	Spec    service.Spec    `json:"spec"` // as started, options included
	Limits  service.Limits  `json:"limits"`
	Started time.Time       `json:"started"`
	LogFrom int64           `json:"log_from"`       // where its output begins in the log
	Exit    *service.Exit   `json:"exit,omitempty"` // how the main process ended, nil while nobody knows that it did
	Due     time.Time       `json:"due"`            // in Backoff: when the next launch is
	Actor   string          `json:"actor"`
	Asked   []service.Asked `json:"asked,omitempty"` // requests with an id, the latest last
	BootID  string          `json:"boot_id"`
}

// KeptExits is how many exit records are kept of each service.
const KeptExits = 16

// Store keeps records in two directories with two lifetimes: state for what
// is wanted (survives a reboot) and run for what is (does not). Every write is
// a temporary file, fsync, rename, fsync of the directory, so a reader finds
// the old record or the new one. Records of different services may be written
// at once; those of one service must not.
type Store struct {
	wanted, actual, exits string // directories
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

// OpenStore makes the directories, readable by nobody else.
func OpenStore(stateDir, runDir string) (*Store, error) {
	s := &Store{
		wanted: filepath.Join(stateDir, "services"),
		exits:  filepath.Join(stateDir, "exits"),
		actual: filepath.Join(runDir, "services"),
	}
	for _, dir := range []string{s.wanted, s.exits, s.actual} {
		if err := MakeDir(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return s, nil
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
func (s *Store) SaveWanted(w Wanted) error { return save(s.wanted, w.Name, w) }

// SaveActual writes a.
func (s *Store) SaveActual(a Actual) error { return save(s.actual, a.Name, a) }

// SaveExits writes the exit records of a service, newest last, and drops all
// but the latest sixteen.
func (s *Store) SaveExits(name service.Name, exits []service.ExitRecord) error {
	return save(s.exits, name, exits[max(0, len(exits)-KeptExits):])
}

// Exits reads the exit records of a service, newest last.
func (s *Store) Exits(name service.Name) ([]service.ExitRecord, error) {
	var exits []service.ExitRecord
	err := read(filepath.Join(s.exits, name.String()+".json"), &exits)
	return exits, err
}

// Forget removes every record of a service.
func (s *Store) Forget(name service.Name) error {
	var all error
	for _, dir := range []string{s.actual, s.wanted, s.exits} {
		all = errors.Join(all, remove(dir, name))
	}
	return all
}

// ForgetActual removes the record of what a service is.
func (s *Store) ForgetActual(name service.Name) error { return remove(s.actual, name) }

func remove(dir string, name service.Name) error {
	err := os.Remove(filepath.Join(dir, name.String()+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, syncDir(dir))
}

// Loaded is everything the store holds. Faults names the files that hold no
// record and were set aside under another name, and those that the host would
// not let us read and that were left as they are; nothing of theirs is in the
// other fields.
type Loaded struct {
	Wanted []Wanted
	Actual []Actual
	Exits  map[service.Name][]service.ExitRecord
	Faults []error
}

// Load reads all records. Those of a later version are an error of Kind Invalid:
// they are neither guessed at nor overwritten.
func (s *Store) Load() (Loaded, error) {
	l := Loaded{Exits: map[service.Name][]service.ExitRecord{}}
	err := errors.Join(
		load(s.wanted, &l.Faults, func(name service.Name, w Wanted) error {
			if w.Name != name {
				return fmt.Errorf("it is the record of %q", w.Name)
			}
			l.Wanted = append(l.Wanted, w)
			return nil
		}),
		load(s.actual, &l.Faults, func(name service.Name, a Actual) error {
			if a.Name != name {
				return fmt.Errorf("it is the record of %q", a.Name)
			}
			l.Actual = append(l.Actual, a)
			return nil
		}),
		load(s.exits, &l.Faults, func(name service.Name, x []service.ExitRecord) error {
			l.Exits[name] = x
			return nil
		}),
	)
	return l, err
}

func save(dir string, name service.Name, body any) error {
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
	if err := renameio.WriteFile(path, append(data, '\n'), 0o600, renameio.WithTempDir(dir)); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return syncDir(dir)
}

// syncDir makes a rename or removal in dir last (fsync(2), NOTES).
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir, err)
	}
	return nil
}

// load reads every record in dir. A temporary file of a write that never
// ended is removed; a record that can not be read is set aside and reported.
func load[T any](dir string, faults *[]error, take func(service.Name, T) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", dir, err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		stem, isRecord := strings.CutSuffix(e.Name(), ".json")
		switch {
		case strings.HasPrefix(e.Name(), "."):
			if err := os.Remove(path); err != nil {
				*faults = append(*faults, err)
			}
			continue
		case !isRecord:
			continue // set aside earlier
		}
		name, err := service.ParseName(stem)
		var body T
		if err == nil {
			err = read(path, &body)
		}
		if err == nil {
			err = take(name, body)
		}
		switch {
		case err == nil:
		case errors.Is(err, errNewer):
			return &service.Error{Op: "use " + path, Kind: service.Invalid, Err: err}
		case notServed(err):
			*faults = append(*faults, fmt.Errorf("%w; it is left as it is", err))
		default:
			*faults = append(*faults, setAside(path, err))
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

func read(path string, body any) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
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
	}
	var r record
	if err := json.NewDecoder(f).Decode(&r); err != nil {
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

func setAside(path string, why error) error {
	aside := fmt.Sprintf("%s.corrupt-%d", path, time.Now().UnixNano())
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("cannot use %s (%w), nor set it aside: %w", path, why, err)
	}
	return fmt.Errorf("cannot use %s: %w; set aside as %s", path, why, filepath.Base(aside))
}
