// Package cache keeps what is slow to make: each entry is a folder, made once under a lock, complete or absent,
// and checked by hash before it is used.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	manifestName = "manifest.json" // the hashes; written last
	stampName    = "checked.json"  // the files as they were when last found equal to the hashes
	unusedFor    = 14 * 24 * time.Hour
)

// Store is a folder of entries.
type Store struct {
	Dir string
	Log func(format string, args ...any)
}

// Key is the name for what was made from parts.
func Key(parts ...string) string {
	hash := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(hash, "%d:%s\n", len(part), part)
	}
	return hex.EncodeToString(hash.Sum(nil))[:16]
}

// Entry is one complete folder and the hash over all in it.
type Entry struct {
	Dir  string
	Hash string
}

// Path is a file of the entry.
func (e Entry) Path(name string) string { return filepath.Join(e.Dir, name) }

// Get returns the entry of that name and key. When it is not there, or is not what was stored, build makes it in an empty folder.
func (s Store) Get(ctx context.Context, name, key string, build func(ctx context.Context, dir string) error) (Entry, error) {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return Entry{}, err
	}
	dir := filepath.Join(s.Dir, name+"-"+key)
	if entry, err := open(dir); err == nil {
		return entry, nil
	}

	unlock, err := s.lock(ctx, dir+".lock")
	if err != nil {
		return Entry{}, err
	}
	defer unlock()
	entry, err := open(dir)
	if err == nil {
		return entry, nil // someone else made it while we waited
	}
	if !errors.Is(err, fs.ErrNotExist) {
		s.Log("%s: made anew: %v", filepath.Base(dir), err)
	}
	if err := s.make(ctx, dir, build); err != nil {
		return Entry{}, err
	}
	s.prune(name, dir)
	return open(dir)
}

// make builds beside dir and moves the result there whole.
func (s Store) make(ctx context.Context, dir string, build func(ctx context.Context, dir string) error) error {
	building := dir + ".building"
	for _, old := range []string{building, dir} {
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	if err := os.Mkdir(building, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(building)
	if err := build(ctx, building); err != nil {
		return err
	}
	if err := seal(building); err != nil {
		return err
	}
	return os.Rename(building, dir)
}

// lock holds path until unlock is called or the process ends, however it ends.
func (s Store) lock(ctx context.Context, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return func() { file.Close() }, nil
	}
	s.Log("%s: another run is making it, waiting", strings.TrimSuffix(filepath.Base(path), ".lock"))
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(int(file.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-locked:
		return func() { file.Close() }, err
	case <-ctx.Done():
		return nil, ctx.Err() // the process is about to end and takes the lock's file along
	}
}

// prune removes entries of this name which nobody used for long.
func (s Store) prune(name, keep string) {
	stamps, _ := filepath.Glob(filepath.Join(s.Dir, name+"-????????????????", stampName))
	for _, stamp := range stamps {
		dir := filepath.Dir(stamp)
		info, err := os.Stat(stamp)
		if err == nil && dir != keep && time.Since(info.ModTime()) > unusedFor {
			os.RemoveAll(dir)
			os.Remove(dir + ".lock")
		}
	}
}

// manifest is what an entry holds.
type manifest map[string]string // name → hash

// seal writes the hashes of all files in dir, and sees that all of it is on the disk.
func seal(dir string) error {
	names, err := list(dir)
	if err != nil {
		return err
	}
	m, err := hashAll(dir, names)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, manifestName), text, 0o644); err != nil {
		return err
	}
	for _, name := range append(names, manifestName, ".") {
		if err := syncFile(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// open returns the entry at dir if it is there and is what was sealed.
func open(dir string) (Entry, error) {
	text, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return Entry{}, err
	}
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return Entry{}, fmt.Errorf("%s: %w", manifestName, err)
	}
	if err := m.check(dir); err != nil {
		return Entry{}, err
	}
	hash := sha256.Sum256(text)
	return Entry{Dir: dir, Hash: hex.EncodeToString(hash[:])}, nil
}

// check compares the files with their hashes. Files untouched since the last time, in this boot of this machine, are not read again.
func (m manifest) check(dir string) error {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	now, err := stampOf(dir, names)
	if err != nil {
		return err
	}
	stampPath := filepath.Join(dir, stampName)
	if before, err := os.ReadFile(stampPath); err == nil && string(before) == now {
		_ = os.Chtimes(stampPath, time.Time{}, time.Now()) // tells prune that it is used
		return nil
	}

	got, err := hashAll(dir, names)
	if err != nil {
		return err
	}
	for name, want := range m {
		if got[name] != want {
			return fmt.Errorf("%s is not what was stored", name)
		}
	}
	// Losing the stamp, or a race for it, costs a second reading, no more.
	if temp, err := os.CreateTemp(dir, ".stamp-*"); err == nil {
		_, err := temp.WriteString(now)
		if err = errors.Join(err, temp.Close()); err == nil {
			err = os.Rename(temp.Name(), stampPath)
		}
		if err != nil {
			os.Remove(temp.Name())
		}
	}
	return nil
}

// stampOf changes when one of the files is written, replaced or moved, and when this machine boots:
// a crash may lose what the page cache still showed.
func stampOf(dir string, names []string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	files := map[string]string{}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		files[name] = fmt.Sprintf("%d %d %d %d.%09d %d.%09d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
	}
	text, err := json.MarshalIndent(map[string]any{"boot": strings.TrimSpace(string(boot)), "files": files}, "", "  ")
	return string(text), err
}

func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			return nil, fmt.Errorf("%s: entries hold plain files only", entry.Name())
		}
		names = append(names, entry.Name())
	}
	return names, nil
}

func syncFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}
