package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// hashAll hashes files of dir, side by side.
func hashAll(dir string, names []string) (manifest, error) {
	var (
		hashes = make([]string, len(names))
		errs   = make([]error, len(names))
		wait   sync.WaitGroup
	)
	for i, name := range names {
		wait.Go(func() { hashes[i], errs[i] = HashFile(filepath.Join(dir, name)) })
	}
	wait.Wait()
	m := manifest{}
	for i, name := range names {
		m[name] = hashes[i]
	}
	return m, errors.Join(errs...)
}

const blockSize = 64 << 10

var zeroBlock = make([]byte, blockSize)

// HashFile hashes a file by its length and its blocks that are not zero, each with its place.
// A machine's memory is mostly holes: so they cost nothing, and a copy that filled them in has the same hash.
func HashFile(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}

	hash := sha256.New()
	place := func(n int64) { hash.Write(binary.BigEndian.AppendUint64(nil, uint64(n))) }
	place(info.Size())
	block := make([]byte, blockSize)
	for at := int64(0); at < info.Size(); at += blockSize {
		if at, err = nextData(file, at); err != nil || at < 0 {
			break
		}
		var n int
		if n, err = file.ReadAt(block, at); err != nil && err != io.EOF {
			break
		}
		err = nil
		if !bytes.Equal(block[:n], zeroBlock[:n]) {
			place(at)
			hash.Write(block[:n])
		}
	}
	return hex.EncodeToString(hash.Sum(nil)), err
}

// nextData returns the start of the block with the next data at or after at; -1 when only holes follow.
func nextData(file *os.File, at int64) (int64, error) {
	data, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return -1, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return at, nil // a filesystem that does not know its holes
	case err != nil:
		return 0, err
	}
	return max(at, data-data%blockSize), nil
}
