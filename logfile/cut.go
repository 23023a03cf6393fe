package logfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// cutMark is in the name of a piece that is being made:
// NAME.log.cut-OFFSET-UPTO. OFFSET becomes its name, and UPTO is where the live
// file's hole ends once its front is punched out.
//
// A cut is four steps, each whole or not done at all, whenever the agent dies:
//
//  1. copy the front and sync it   the copy counts for nothing: it is removed
//  2. punch the front out          now the copy alone has it: it is renamed
//  3. rename the copy to a piece   the live file begins behind the hole
//  4. collapse the hole            the live file begins at its front
//
// The hole is what tells a front that was punched out from one that was not.
const cutMark = ".cut-"

// errRoom says that a cut would not leave the service room to write.
var errRoom = errors.New("the disk is too full to copy what is to be cut off")

// cut takes about size bytes off the front of the live file, in whole blocks, and
// keeps them in a piece unless drop says otherwise. It tells how many it took:
// none if the file is not that long. The caller sees to it that cuts of a file
// take turns.
func (f *File) cut(live *os.File, size int64, drop bool) (int64, error) {
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(int(live.Fd()), &fsys); err != nil {
		return 0, fmt.Errorf("statfs: %w", err)
	}
	info, err := live.Stat()
	if err != nil {
		return 0, err
	}
	block := fsys.Bsize
	start, from, err := f.front(live)
	if err != nil {
		return 0, err
	}
	// Something has to stay: a collapse up to the end is refused.
	upto := min(from+max(size/block*block, block), (info.Size()-1)/block*block)
	if from%block != 0 {
		return 0, fmt.Errorf("the hole at its front is of %d bytes, which are no whole blocks of %d", from, block)
	}
	if upto <= from {
		return 0, nil
	}
	length := upto - from
	if drop {
		start, length = start+length, 0
	}
	for int64(fsys.Bavail)*block < 2*length {
		if !f.removeOldest() {
			return 0, errRoom
		}
		if err := unix.Fstatfs(int(live.Fd()), &fsys); err != nil {
			return 0, fmt.Errorf("statfs: %w", err)
		}
	}
	temporary := fmt.Sprintf("%s%s%d-%d", f.path, cutMark, start, upto)
	err = copyFront(live, info, temporary, from, length, block)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		err = f.named(info)
	}
	punched := false
	if drop && errors.Is(err, unix.ENOSPC) { // what goes makes room to note that it went
		if err = punch(live, from, upto-from); err == nil {
			punched = true
			err = copyFront(live, info, temporary, from, length, block)
		}
	}
	if err == nil && !punched {
		err = punch(live, from, upto-from)
	}
	if err == nil {
		err = os.Rename(temporary, f.piecePath(start))
	}
	if err != nil {
		f.loaded = false // what there is, is looked for anew
		return 0, err
	}
	if last := len(f.pieces) - 1; last >= 0 && f.pieces[last].start == start { // it was empty
		f.pieces = f.pieces[:last]
	}
	f.pieces = append(f.pieces, piece{start, length})
	f.start, f.hole, f.begun = start+length, upto, time.Now()
	f.collapse(live)
	return upto - from, nil
}

// front is the offset of the first byte of the live file, and where in the file that
// is. A file that is not the one it was, since somebody has moved that away, begins at
// its front.
func (f *File) front(live *os.File) (start, hole int64, err error) {
	found, err := leadingHole(live)
	f.mu.Lock()
	defer f.mu.Unlock()
	if found < f.hole {
		f.hole = 0
	}
	return f.start, f.hole, err
}

// named says whether a file has the name of the live file still, and what it had, or else
// why not: it was removed or emptied, and what is found from now on has nothing to do with
// what was copied.
func (f *File) named(live fs.FileInfo) error {
	now, err := os.Lstat(f.path)
	switch {
	case err != nil:
		return err
	case !os.SameFile(now, live):
		return fmt.Errorf("%s was replaced while it was cut", f.path)
	case now.Size() < live.Size():
		return fmt.Errorf("%s was emptied while it was cut", f.path)
	}
	return nil
}

// copyFront copies length bytes of live from an offset on into a new file, which
// is on the disk when it returns.
func copyFront(live *os.File, info fs.FileInfo, path string, from, length, block int64) (err error) {
	_ = os.Remove(path) // of an attempt that failed
	to, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if to.Close(); err != nil {
			_ = os.Remove(path)
		}
	}()
	if err := canPunch(to, block); err != nil {
		return err
	}
	if _, err := live.Seek(from, io.SeekStart); err != nil {
		return err
	}
	n, err := io.CopyN(to, live, length) // in the kernel: copy_file_range(2)
	if err == nil && n != length {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("copy to %s: %w", path, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = to.Chown(int(st.Uid), int(st.Gid)) // a plain user may not
	}
	if err := to.Chmod(info.Mode().Perm()); err != nil {
		return err
	}
	// What was on the disk must be there still when the power fails.
	return to.Sync()
}

// canPunch finds out, on a file that is empty, whether its file system makes holes
// and tells where they are.
func canPunch(f *os.File, block int64) error {
	for _, at := range []int64{0, block} {
		if _, err := f.WriteAt([]byte{'x'}, at); err != nil {
			return err
		}
	}
	if err := punch(f, 0, block); err != nil {
		return err
	}
	hole, err := leadingHole(f)
	if err == nil && hole != block {
		err = fmt.Errorf("the file system of %s does not tell where holes are: %w", f.Name(), unix.EOPNOTSUPP)
	}
	_, seekErr := f.Seek(0, io.SeekStart) // from where the data was found
	return errors.Join(err, seekErr, f.Truncate(0))
}

// punch makes a hole of length bytes in a file.
func punch(f *os.File, from, length int64) error {
	if err := fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, length); err != nil {
		return fmt.Errorf("punch a hole into %s: %w", f.Name(), err)
	}
	return nil
}

// collapse removes the hole at the front of the live file, if the file system can
// (ext4, xfs). The caller holds mu.
func (f *File) collapse(live *os.File) {
	if fallocate(live, unix.FALLOC_FL_COLLAPSE_RANGE, 0, f.hole) == nil {
		f.hole = 0
	}
}

func fallocate(f *os.File, mode uint32, from, length int64) error {
	for {
		if err := unix.Fallocate(int(f.Fd()), mode, from, length); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// settle makes a copy whose original is punched out a piece, and removes any other.
// Rest is what follows cutMark in its name.
func (f *File) settle(rest string) (start int64, isPiece bool, err error) {
	first, second, _ := strings.Cut(rest, "-")
	start, err = strconv.ParseInt(first, 10, 64)
	upto, err2 := strconv.ParseInt(second, 10, 64)
	path := f.path + cutMark + rest
	if err != nil || err2 != nil || f.hole < upto {
		return 0, false, os.Remove(path)
	}
	return start, true, os.Rename(path, f.piecePath(start))
}

// removeOldest removes the oldest piece. The newest stays: it tells where the live
// file begins.
func (f *File) removeOldest() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.pieces) < 2 {
		return false
	}
	if err := os.Remove(f.piecePath(f.pieces[0].start)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	f.pieces = f.pieces[1:]
	return true
}

// trim cuts what is due by a policy, and removes pieces beyond its total. What the
// service writes meanwhile waits for the next look, or it could go on for ever.
func (f *File) trim(live *os.File, policy service.LogRotation, now time.Time) error {
	info, err := live.Stat()
	if err != nil {
		return err
	}
	f.mu.RLock()
	length := info.Size() - f.hole
	f.mu.RUnlock()
	for size, total := int64(policy.Size), int64(policy.Total); ; {
		f.mu.RLock()
		aged := policy.Age > 0 && !f.begun.IsZero() && !f.begun.Add(policy.Age).After(now)
		f.mu.RUnlock()
		var took int64
		switch {
		case length > total: // a piece of that would not last
			took, err = f.cut(live, length-total, true)
		case length >= size || aged:
			took, err = f.cut(live, size, false)
		}
		if err != nil {
			return err
		}
		length -= took
		f.prune(length, total)
		if took == 0 {
			return nil
		}
	}
}

// ages is when the live file will be old enough to be cut, zero if that is not
// to be waited for: it has no age, or will be cut as soon as it is long enough.
func (f *File) ages(policy service.LogRotation, now time.Time) time.Time {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if at := f.begun.Add(policy.Age); policy.Age > 0 && !f.begun.IsZero() && at.After(now) {
		return at
	}
	return time.Time{}
}

// prune removes the oldest pieces until all that is left has at most total bytes.
func (f *File) prune(live, total int64) {
	for f.kept()+live > total && f.removeOldest() {
	}
}

func (f *File) kept() (bytes int64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, p := range f.pieces {
		bytes += p.size
	}
	return bytes
}
