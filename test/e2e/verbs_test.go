package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// TestVerbs: what a person says to a host besides the main story.
func TestVerbs(t *testing.T) {
	oneOfAKind(t)
	w := newWorld(t)
	d := byCLI{w}
	dir := w.path("definitions")
	require.NoError(t, os.Mkdir(dir, 0o755))
	for _, name := range []string{"one", "two"} {
		writeFile(t, w.path("definitions", name+".json"), workload(t, name, name, "ignore-term").with(fields{
			"limits": limits(t, fields{"pids_max": 64}), "stop": fields{"timeout": "100ms"},
		}).json(t))
	}

	w.mustCLI("apply", "-f", dir, "--dry-run")
	require.Equal(t, 4, w.cli("status", "one").code, "a dry run registers nothing")
	w.mustCLI("apply", "-f", dir)
	var stored fields
	require.NoError(t, json.Unmarshal([]byte(w.mustCLI("definition", "one")), &stored))
	require.Equal(t, "one", stored["name"])

	w.mustCLI("start", "one", "two")
	s := d.status("one")
	require.Equal(t, 9, w.cli("start", "one", "two").code, "both run")
	checkPlace(t, s, modes(t)[0]) // the best that the host has
	table := w.mustCLI("status", "one")
	require.Contains(t, table, "one")
	require.Contains(t, strings.ToLower(table), "running")
	require.Contains(t, w.mustCLI("limits", "one"), "pids_max")
	require.Contains(t, w.mustCLI("stats"), "2")

	w.mustCLI("signal", "one", "SIGUSR1")
	eventually(t, "the signal arrives", func() bool {
		return strings.Contains(w.mustCLI("logs", "one"), "signal 10\n")
	})
	w.mustCLI("stop", "one", "two")
	w.nothingLeft()

	events := w.mustCLI("events", "--since", "1h")
	for _, word := range []string{"one", "two", "ready", "stopped"} {
		require.Contains(t, strings.ToLower(events), word)
	}
	require.Contains(t, strings.ToLower(w.mustCLI("history", "one", "--exits")), "stopped")

	require.Contains(t, w.mustCLI("config", "show"), `"max_services": 300`)
	w.mustCLI("config", "check", w.path("gladsheim.json"))
	require.True(t, json.Valid([]byte(w.mustCLI("config", "schema"))))
	host := read(d, &gladsheimv1.HostInfo{}, "system")
	require.NotEmpty(t, host.Backends)
	require.Contains(t, w.mustCLI("version"), "gladsheim")
	require.Contains(t, w.mustCLI("completion", "bash"), "gladsheim")
	if limited(t) { // elsewhere that nothing is limited is a finding
		require.Contains(t, w.mustCLI("doctor"), "Linux")
	}

	w.mustCLI("unregister", "one", "two")
	require.EqualValues(t, 0, d.list().TotalCount)
}
