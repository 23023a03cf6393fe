package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// runBrokenFiles makes, in a directory, one file for each way in which
// execve(2) fails, and stays to hold "busy" open for writing.
func runBrokenFiles(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("a directory is needed")
	}
	dir := args[0]
	files := []struct {
		name, text string
		mode       os.FileMode
	}{
		{"no-interpreter", "#!/nonexistent/interpreter\n", 0o755}, // ENOENT
		{"no-mode", "#!/bin/sh\nexit 0\n", 0o644},                 // EACCES
		{"no-format", "neither ELF nor script\n", 0o755},          // ENOEXEC
		{"script", "#!/bin/sh\nexit 0\n", 0o755},                  // runs; to be called with too much
	}
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, []byte(f.text), f.mode); err != nil {
			return err
		}
		if err := os.Chmod(path, f.mode); err != nil {
			return err
		}
	}
	if err := os.Symlink("loop-b", filepath.Join(dir, "loop-a")); err != nil { // ELOOP
		return err
	}
	if err := os.Symlink("loop-a", filepath.Join(dir, "loop-b")); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o755); err != nil { // EACCES
		return err
	}
	if err := copySelf(filepath.Join(dir, "busy")); err != nil {
		return err
	}
	busy, err := os.OpenFile(filepath.Join(dir, "busy"), os.O_WRONLY, 0) // ETXTBSY
	if err != nil {
		return err
	}
	defer busy.Close()
	ready()
	forever()
	return nil
}

func copySelf(to string) error {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, from); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
