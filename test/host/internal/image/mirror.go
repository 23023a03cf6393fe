package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

const defaultMirror = "http://deb.debian.org/debian"

// findMirror returns the Debian mirror this machine's apt uses, from its configuration folder.
func findMirror(dir string) (string, error) {
	paths := []string{filepath.Join(dir, "sources.list")}
	for _, pattern := range []string{"*.sources", "*.list"} {
		more, err := filepath.Glob(filepath.Join(dir, "sources.list.d", pattern))
		if err != nil {
			return "", err
		}
		paths = append(paths, more...)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if mirror, found := mirrorIn(string(text)); found {
			return mirror, nil
		}
	}
	return defaultMirror, nil
}

// debianURI is the address of a whole Debian archive: one for updates only is called debian-security.
var debianURI = regexp.MustCompile(`(?:https?|file|copy)://?[^\s\]]*/debian/?(?:\s|$)`)

// mirrorIn finds it in either of the two formats apt reads.
func mirrorIn(sources string) (string, bool) {
	for _, line := range strings.Split(sources, "\n") {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "deb ") && !strings.HasPrefix(line, "deb\t") && !strings.HasPrefix(line, "URIs:") {
			continue
		}
		if uri := strings.TrimSpace(debianURI.FindString(line)); uri != "" {
			return strings.TrimSuffix(uri, "/"), true
		}
	}
	return "", false
}

// proxyOptions hands on the proxies of this machine's apt.
func proxyOptions(ctx context.Context) ([]string, error) {
	config, err := exec.CommandContext(ctx, "apt-config", "dump", "--format", "%f %v%n").Output()
	if err != nil {
		return nil, fmt.Errorf("apt-config: %w", err)
	}
	var options []string
	for _, line := range strings.Split(string(config), "\n") {
		name, value, _ := strings.Cut(line, " ")
		if value != "" && (strings.HasPrefix(name, "Acquire::http::Proxy") || strings.HasPrefix(name, "Acquire::https::Proxy")) {
			options = append(options, fmt.Sprintf("--aptopt=%s %q", name, value))
		}
	}
	return options, nil
}
