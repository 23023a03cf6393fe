package options

import (
	"flag"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseRun(t *testing.T) {
	got, err := Parse([]string{
		"systemd", "-copy", "../options", "-copy=a/b:/etc/b", "-copy", "c:d/", "-out", "cover:/tmp/c:d", "-env", "A=b=c",
		"-timeout", "90s", "--", "sh", "-c", "exit 1", "--",
	})
	require.NoError(t, err)
	assert.Equal(t, "systemd", got.Host.Name)
	assert.Equal(t, []string{"sh", "-c", "exit 1", "--"}, got.Args)
	assert.Equal(t, []Pair{{"../options", "options"}, {"a/b", "/etc/b"}, {"c", "d/c"}}, got.Copy)
	assert.Equal(t, []Pair{{"cover", "/tmp/c:d"}}, got.Out)
	assert.Equal(t, []string{"A=b=c"}, got.Env)
	assert.Equal(t, 90*time.Second, got.Timeout)
}

func TestParseCopyOfTheWorkingDirectory(t *testing.T) {
	got, err := Parse([]string{"bare", "-copy", ".", "--", "true"})
	require.NoError(t, err)
	assert.Equal(t, []Pair{{".", "options"}}, got.Copy)
}

func TestParseRefuses(t *testing.T) {
	for name, args := range map[string][]string{
		"nothing":         {},
		"unknown host":    {"windows", "--", "true"},
		"no dashes":       {"systemd", "true"},
		"no command":      {"systemd", "--"},
		"nothing after":   {"systemd"},
		"unknown flag":    {"systemd", "-fast", "--", "true"},
		"bad pair":        {"systemd", "-out", "x", "--", "true"},
		"bad variable":    {"systemd", "-env", "=x", "--", "true"},
		"no time":         {"systemd", "-timeout", "0", "--", "true"},
		"user in machine": {"systemd", "-user", "--", "true"},
		"bare on a disk":  {"bare", "-disk", "x", "--", "true"},
		"unknown build":   {"-build", "windows"},
	} {
		_, err := Parse(args)
		assert.Error(t, err, name)
	}
}

func TestParseOthers(t *testing.T) {
	_, err := Parse([]string{"-h"})
	assert.ErrorIs(t, err, flag.ErrHelp)
	got, err := Parse([]string{"-list"})
	require.NoError(t, err)
	assert.True(t, got.List)
	got, err = Parse([]string{"-build"})
	require.NoError(t, err)
	assert.Len(t, got.Build, 4, "bare is not built")
}
