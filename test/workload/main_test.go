package main

import (
	"maps"
	"os"
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
