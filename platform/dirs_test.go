package platform

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRunDir(t *testing.T) {
	env := map[string]string{"HOME": "/home/anna", "XDG_RUNTIME_DIR": "/run/user/1000"}
	getenv := func(name string) string { return env[name] }
	require.Equal(t, "/run/gladsheim", RunDir(0, getenv))
	require.Equal(t, "/run/user/1000/gladsheim", RunDir(1000, getenv))
	env["XDG_RUNTIME_DIR"] = "relative" // to be ignored, says the specification
	require.Equal(t, "/home/anna/.cache/gladsheim", RunDir(1000, getenv))
}
