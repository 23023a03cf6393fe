package main

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReadmeListsEveryMode(t *testing.T) {
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	var listed []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z-]+)( [^`]*)?`").FindAllStringSubmatch(string(text), -1) {
		listed = append(listed, row[1])
		usage, _, _ := strings.Cut(modes()[row[1]].usage, ":")
		if row[2] != "" && !strings.Contains(usage, "|") {
			require.Equal(t, strings.TrimSpace(row[2]), usage, "the arguments of %s", row[1])
		}
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(modes())), listed)
}

// A mode that no test launches proves nothing, whatever row stands beside it.
func TestEveryModeIsUsed(t *testing.T) {
	var tests strings.Builder
	require.NoError(t, filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		suite := strings.Contains(path, "backends/backendtest") && strings.HasSuffix(path, ".go")
		if err != nil || e.IsDir() || strings.Contains(path, "test/workload") || (!suite && !strings.HasSuffix(path, "_test.go")) {
			return err
		}
		text, err := os.ReadFile(path)
		tests.Write(text)
		return err
	}))
	for mode := range modes() {
		launched := regexp.MustCompile(`[({,]\s*"` + mode + `"\s*[,)}]`)
		require.True(t, launched.MatchString(tests.String()), "no test launches the mode %s", mode)
	}
}
