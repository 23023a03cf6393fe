package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// coverage merges what every floor covered and returns the share of statements
// in percent; with enforce a share below the minimum is an error. Generated
// code and the tests' own programs do not count.
func coverage(enforce bool) (string, error) {
	dirs, err := dataDirs()
	if err != nil || len(dirs) == 0 {
		return "nothing measured", err
	}
	blocks := map[string]block{}
	for _, dir := range dirs { // each by itself: the floors do not count alike
		profile := filepath.Join(work, "profile.txt")
		out, err := exec.Command("go", "tool", "covdata", "textfmt", "-i="+dir, "-o="+profile).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("cannot read the coverage of %s: %w\n%s", dir, err, out)
		}
		if err := readProfile(profile, blocks); err != nil {
			return "", err
		}
	}
	all, ran := 0, 0
	for _, b := range blocks {
		all += b.statements
		if b.covered {
			ran += b.statements
		}
	}
	share := 100 * float64(ran) / float64(max(all, 1))
	text := fmt.Sprintf("%.1f %% of %d", share, all)
	if enforce && share < minimumCoverage {
		return text, fmt.Errorf("%.1f %% of the statements are covered, and %.0f %% are wanted", share, minimumCoverage)
	}
	return text, nil
}

// dataDirs are the folders that hold coverage data.
func dataDirs() ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(filepath.Join(work, "data"), func(path string, d os.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		metas, err := filepath.Glob(filepath.Join(path, "covmeta.*"))
		if len(metas) > 0 {
			dirs = append(dirs, path)
		}
		return err
	})
	return dirs, err
}

// block is a run of statements without a branch, as the profiles tell them apart.
type block struct {
	statements int
	covered    bool
}

// readProfile adds what a cover profile tells: lines of `file:block statements count`.
// A block that several binaries ran stands in it several times.
func readProfile(profile string, blocks map[string]block) error {
	f, err := os.Open(profile)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || strings.Contains(fields[0], "/test/") || strings.Contains(fields[0], ".pb.go:") ||
			strings.Contains(fields[0], "/backendtest/") {
			continue
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", profile, err)
		}
		blocks[fields[0]] = block{n, blocks[fields[0]].covered || fields[2] != "0"}
	}
	return lines.Err()
}
