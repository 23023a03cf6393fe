package config

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/platform"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file, or writes it with -update.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(file, got, 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got), "run: go test ./agent/config -update")
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	return data
}

// write makes a file that only we can write.
func write(t *testing.T, dir, file, content string) string {
	t.Helper()
	path := filepath.Join(dir, file)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func asgard(t *testing.T) Agent {
	t.Helper()
	p, err := platform.Choose("asgard", platform.Facts{})
	require.NoError(t, err)
	return DefaultAgent(p)
}

// parse is ParseDefinition of a document that is to be good.
func parse(t *testing.T, document string) service.Spec {
	t.Helper()
	spec, faults := ParseDefinition("test.json", []byte(document), service.Defaults())
	require.Empty(t, faults)
	return spec
}
