package config

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestExamples(t *testing.T) {
	schema := resolved(t, DefinitionSchema())
	for dir, want := range map[string][]string{
		"../../examples/services": {"flaky", "hog", "web"},
		"../../examples/real":     {"nginx", "postgres", "redis"},
		"../../examples/jobs":     {"etc-backup"},
	} {
		definitions, faults := ReadDefinitions(dir, asgard(t).Base(), AnyFile)
		require.Empty(t, faults)
		require.Equal(t, want, names(definitions))
		for _, d := range definitions {
			require.NoError(t, schema.Validate(decode(t, d.Document)), d.Source)
		}
	}
}

// TestSamplesStartEverywhere: the samples of make run ask for no privilege, and
// start on hosts that enforce nothing.
func TestSamplesStartEverywhere(t *testing.T) {
	definitions, _ := ReadDefinitions("../../examples/services", service.Defaults(), AnyFile)
	for _, d := range definitions {
		require.True(t, d.Spec.BestEffort, d.Source)
		require.Empty(t, d.Spec.User, d.Source)
		require.Equal(t, service.LaunchAuto, d.Spec.Launch, d.Source)
		require.FileExists(t, filepath.Clean(d.Spec.Exec[0]))
	}
}

func TestExampleConfiguration(t *testing.T) {
	file := "../../examples/gladsheim.json"
	_, faults := ParseAgent(file, read(t, file), asgard(t))
	require.Empty(t, faults)
}
