// Package pack carries files and folders between the runner and a machine, as tar.
package pack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Add puts the file or folder src into the tar under name. Sockets, pipes and devices are left out.
func Add(w *tar.Writer, src, name string) error {
	// What the caller named may be a link to it; links further down stay links.
	src, err := filepath.EvalSymlinks(src)
	if err != nil {
		return err
	}
	return filepath.WalkDir(src, func(at string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone while walking: the folder is in use
		}
		if err != nil {
			return err
		}
		below, err := filepath.Rel(src, at)
		if err != nil {
			return err
		}
		return addOne(w, at, path.Join(name, filepath.ToSlash(below)), info)
	})
}

func addOne(w *tar.Writer, src, name string, info fs.FileInfo) error {
	var link string
	switch info.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		var err error
		if link, err = os.Readlink(src); err != nil {
			return err
		}
	default:
		return nil
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name = strings.TrimPrefix(name, "/")
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
	if !info.Mode().IsRegular() {
		return w.WriteHeader(header)
	}

	file, err := os.Open(src)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	// A file being written may grow or shrink meanwhile: send the size that was promised.
	_, err = io.Copy(w, io.LimitReader(io.MultiReader(file, zeros{}), header.Size))
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Extract unpacks a tar. place says where each name goes.
func Extract(r io.Reader, place func(name string) (string, error)) error {
	tr := tar.NewReader(r)
	for {
		header, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("tar: %w", err)
		}
		if !filepath.IsLocal(header.Name) {
			return fmt.Errorf("tar: %q leads outside", header.Name)
		}
		dest, err := place(header.Name)
		if err != nil {
			return err
		}
		if err := extractOne(tr, header, dest); err != nil {
			return err
		}
	}
}

func extractOne(r io.Reader, header *tar.Header, dest string) error {
	mode := header.FileInfo().Mode()
	if header.Typeflag == tar.TypeDir {
		if err := os.MkdirAll(dest, 0o755); err != nil {
			return err
		}
		return os.Chmod(dest, mode)
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return err
	}
	// Replace, never write through: dest may be a running program or a link.
	if err := os.Remove(dest); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if header.Typeflag == tar.TypeSymlink {
		return os.Symlink(header.Linkname, dest)
	}
	file, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(file, r); err != nil {
		return err
	}
	if err := file.Chmod(mode); err != nil {
		return err
	}
	return file.Close()
}

// Under places names below root.
func Under(root string) func(string) (string, error) {
	return func(name string) (string, error) { return filepath.Join(root, name), nil }
}

// Numbered places what was added under "0", "1"… at the dests of that index.
func Numbered(dests []string) func(string) (string, error) {
	return func(name string) (string, error) {
		number, below, _ := strings.Cut(name, "/")
		for i, dest := range dests {
			if number == fmt.Sprint(i) {
				return filepath.Join(dest, below), nil
			}
		}
		return "", fmt.Errorf("tar: nobody asked for %q", name)
	}
}

// Copy copies the file or folder src to dest.
func Copy(src, dest string) error {
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		err := Add(tw, src, "0")
		if err == nil {
			err = tw.Close()
		}
		w.CloseWithError(err)
	}()
	defer r.Close()
	return Extract(r, Numbered([]string{dest}))
}
