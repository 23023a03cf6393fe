package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// extractKernel takes the kernel and the modules out of the packages in debs.
func extractKernel(ctx context.Context, debs, work, dir string) error {
	packages, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	tree := filepath.Join(work, "kernel")
	for _, deb := range packages {
		if err := runTool(ctx, nil, "dpkg-deb", "-x", deb, tree); err != nil {
			return err
		}
	}
	image, err := findFile(tree, "vmlinuz*")
	if err != nil {
		return err
	}
	// As it is, compressed: unpacking it takes the machine some seconds, once, and makes every later start read less.
	if err := os.Rename(image, filepath.Join(dir, Kernel)); err != nil {
		return err
	}
	for _, name := range Modules {
		if err := extractModule(ctx, tree, name, dir); err != nil {
			return err
		}
	}
	return nil
}

// extractModule finds nothing when the kernel has the module built in.
func extractModule(ctx context.Context, tree, name, dir string) error {
	path, err := findFile(tree, name+".ko*")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if unpack, packed := unpackers[filepath.Ext(path)]; packed {
		cmd := exec.CommandContext(ctx, unpack, "-dc", path)
		if content, err = cmd.Output(); err != nil {
			return fmt.Errorf("%s %s: %w", unpack, path, err)
		}
	}
	return os.WriteFile(filepath.Join(dir, name+".ko"), content, 0o644)
}

// unpackers of the compressions that modules come in.
var unpackers = map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"}

// findFile returns the one file whose name matches.
func findFile(tree, pattern string) (string, error) {
	var found string
	err := filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if matched, _ := filepath.Match(pattern, entry.Name()); matched && entry.Type().IsRegular() {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	if err == nil && found == "" {
		err = fmt.Errorf("%s in the kernel's packages: %w", pattern, fs.ErrNotExist)
	}
	return found, err
}
