// Package logfile keeps the output of services in files, and cuts those before
// they grow large.
//
// A service appends to NAME.log by a descriptor of its own, for which nobody
// can open another file in its stead. So what is old is copied to a file beside
// it, a piece, and then taken off the front of NAME.log: with
// FALLOC_FL_COLLAPSE_RANGE, which the kernel does between two writes of the
// service; or, where the file system has only that, by a hole, which leaves
// zeros at the front and no block on the disk. Nothing is lost, nothing is there
// twice, and an agent that is killed half-way leaves what the next one finishes
// or undoes.
//
// Pieces and NAME.log are one stream of bytes. An offset counts from the first
// byte that the service ever wrote, so no cut moves it. A piece is called
// NAME.log.OFFSET by its first byte, and names sort as the stream goes. A piece
// and what follows it may part in the midst of a line.
//
// Only one process may use the logs of a directory through this package.
package logfile

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRemoved says that bytes were asked for which have been removed meanwhile,
// to make room for later ones.
var ErrRemoved = errors.New("what comes next was removed to make room for later output")

// File is the output of one service. Its methods may be called by many
// goroutines at once.
type File struct {
	path string

	mu     sync.RWMutex // held for writing while pieces come and go, and the front of the live file with them
	loaded bool
	pieces []piece   // oldest first
	start  int64     // offset of the first byte that is in the live file alone
	hole   int64     // where in the live file that byte is
	begun  time.Time // since when that has been so; zero if nobody knows
}

// piece is a file with what was cut off.
type piece struct{ start, size int64 }

func (p piece) end() int64 { return p.start + p.size }

// New is the output that is kept at path and beside it. Nothing need be there.
func New(path string) *File { return &File{path: path} }

// Path is where the service writes.
func (f *File) Path() string { return f.path }

func (f *File) piecePath(start int64) string { return fmt.Sprintf("%s.%015d", f.path, start) }

// Stream is a reader's view of a File, with a descriptor of its own of the file
// that had the name when it was opened.
type Stream struct {
	file *File
	live *os.File // nil if there was none
}

// Open opens the output to be read. There need be none: it has no bytes then.
func (f *File) Open() (*Stream, error) {
	live, err := f.open(os.O_RDONLY)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s := &Stream{f, live}
	if err = f.load(); err == nil {
		_, err = s.End() // takes notice of a file that is not the one it was
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// open opens the live file. Its place may have been taken by anything: only a
// regular file is served.
func (f *File) open(mode int) (*os.File, error) {
	live, err := os.OpenFile(f.path, mode|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := live.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", f.path)
	}
	if err != nil {
		live.Close()
		return nil, err
	}
	return live, nil
}

// Close closes the view.
func (s *Stream) Close() error {
	if s.live == nil {
		return nil
	}
	return s.live.Close()
}

// Live is the file that the service writes, nil if there was none.
func (s *Stream) Live() *os.File { return s.live }

// Oldest is the offset from which on every byte is there.
func (s *Stream) Oldest() int64 {
	s.file.mu.RLock()
	defer s.file.mu.RUnlock()
	return s.file.oldest()
}

func (f *File) oldest() int64 {
	at := f.start
	for _, p := range slices.Backward(f.pieces) {
		if p.end() != at {
			break
		}
		at = p.start
	}
	return at
}

// Start is the offset from which on bytes are in the live file.
func (s *Stream) Start() int64 {
	s.file.mu.RLock()
	defer s.file.mu.RUnlock()
	return s.file.start
}

// End is the offset of the byte that the service writes next.
func (s *Stream) End() (int64, error) {
	f := s.file
	f.mu.RLock()
	end, stale, err := f.end(s.live)
	f.mu.RUnlock()
	if stale {
		f.mu.Lock()
		defer f.mu.Unlock()
		if end, stale, err = f.end(s.live); stale {
			f.hole = 0
		}
	}
	return end, err
}

// end is End, and tells whether the live file has become shorter than the hole
// that was at its front: somebody has emptied it.
func (f *File) end(live *os.File) (end int64, emptied bool, err error) {
	if live == nil {
		return f.start, false, nil
	}
	info, err := live.Stat()
	if err != nil {
		return 0, false, err
	}
	size := info.Size()
	if size < f.hole {
		return f.start + size, true, nil
	}
	return f.start + size - f.hole, false, nil
}

// ReadAt reads from an offset of the stream (io.ReaderAt). Bytes that are there
// no more are ErrRemoved.
func (s *Stream) ReadAt(data []byte, offset int64) (int, error) {
	n := 0
	for n < len(data) {
		m, err := s.read(data[n:], offset+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// read is ReadAt for as much as one file has.
func (s *Stream) read(data []byte, offset int64) (int, error) {
	f := s.file
	f.mu.RLock()
	if offset >= f.start {
		defer f.mu.RUnlock() // not before it is read: a cut would move it
		if s.live == nil {
			return 0, io.EOF
		}
		return s.live.ReadAt(data, offset-f.start+f.hole)
	}
	at := slices.IndexFunc(f.pieces, func(p piece) bool { return p.start <= offset && offset < p.end() })
	if at < 0 {
		f.mu.RUnlock()
		return 0, ErrRemoved
	}
	p := f.pieces[at]
	f.mu.RUnlock()
	file, err := os.OpenFile(f.piecePath(p.start), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) { // somebody else has removed it
		f.mu.Lock()
		f.pieces = slices.DeleteFunc(f.pieces, func(gone piece) bool { return gone == p })
		f.mu.Unlock()
		return 0, ErrRemoved
	}
	if err != nil {
		return 0, err
	}
	defer file.Close()
	n, err := file.ReadAt(data[:min(int64(len(data)), p.end()-offset)], offset-p.start)
	if errors.Is(err, io.EOF) {
		err = ErrRemoved // somebody has cut it
	}
	return n, err
}

// Made is when the oldest byte can have been written at the earliest, zero if
// nobody knows.
func (s *Stream) Made() time.Time {
	if s.live == nil {
		return time.Time{}
	}
	made := birth(s.live)
	// The live file lives through every cut, unless somebody has made it anew.
	if oldest := s.Oldest(); oldest < s.Start() {
		info, err := os.Lstat(s.file.piecePath(oldest))
		if err != nil || info.ModTime().Before(made) {
			return time.Time{}
		}
	}
	return made
}

// birth tells when a file was made; long ago if its file system does not tell.
func birth(f *os.File) time.Time {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st)
	if err != nil || st.Mask&unix.STATX_BTIME == 0 {
		return time.Time{}
	}
	return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
}

// load finds what there is, once, and finishes or undoes a cut that an earlier
// agent did not come to the end of.
func (f *File) load() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loaded {
		return nil
	}
	f.pieces, f.start, f.hole, f.begun = nil, 0, 0, time.Time{}
	live, err := f.open(os.O_RDWR)
	switch {
	case err == nil:
		defer live.Close()
		f.begun = birth(live)
		if f.hole, err = leadingHole(live); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	names, err := f.beside()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := f.take(name); err != nil {
			return err
		}
	}
	slices.SortFunc(f.pieces, func(a, b piece) int { return cmp.Compare(a.start, b.start) })
	if n := len(f.pieces); n > 0 {
		f.start = f.pieces[n-1].end()
	}
	if live != nil && f.hole > 0 {
		f.collapse(live) // where it can be; else the hole stays
	}
	f.loaded = true
	return nil
}

// unload has what there is found anew.
func (f *File) unload() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loaded, f.pieces, f.start, f.hole = false, nil, 0, 0
}

// beside are the files whose names begin as the live file's does, without that.
// They are sorted, so that a cut that is still to be settled comes last.
func (f *File) beside() ([]string, error) {
	dir, err := os.Open(filepath.Dir(f.path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	all, err := dir.Readdirnames(-1)
	var names []string
	for _, name := range all {
		if rest, ours := strings.CutPrefix(name, filepath.Base(f.path)); ours && rest != "" {
			names = append(names, rest)
		}
	}
	slices.Sort(names)
	return names, err
}

// take makes a file beside the live one a piece, if it is one or can be made one.
func (f *File) take(name string) error {
	start, isPiece := offset(strings.TrimPrefix(name, "."))
	if rest, isCut := strings.CutPrefix(name, cutMark); isCut {
		var err error
		if start, isPiece, err = f.settle(rest); err != nil {
			return err
		}
	}
	if !isPiece {
		return nil
	}
	info, err := os.Lstat(f.piecePath(start))
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		f.pieces = slices.DeleteFunc(f.pieces, func(p piece) bool { return p.start == start }) // it was empty, and was replaced
		f.pieces = append(f.pieces, piece{start, info.Size()})
		f.begun = info.ModTime()
	}
	return nil
}

// offset reads the name of a piece.
func offset(text string) (int64, bool) {
	n, err := strconv.ParseUint(text, 10, 63)
	return int64(n), err == nil && text == fmt.Sprintf("%015d", n)
}

// leadingHole is how many bytes at the front of a file are a hole.
func leadingHole(f *os.File) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	switch {
	case err == nil:
		return at, nil
	case errors.Is(err, unix.ENXIO): // it has no data
		info, err := f.Stat()
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // no file system with holes
		return 0, nil
	}
	return 0, fmt.Errorf("look for a hole in %s: %w", f.Name(), err)
}
