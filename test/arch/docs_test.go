package arch

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTheDiagramInTheDocsIsTheMachine holds docs/architecture.md against what
// the machine's own golden test prints.
func TestTheDiagramInTheDocsIsTheMachine(t *testing.T) {
	diagram, err := os.ReadFile("../../agent/service/testdata/machine.mmd")
	require.NoError(t, err)
	doc, err := os.ReadFile("../../docs/architecture.md")
	require.NoError(t, err)
	require.Contains(t, string(doc), "```mermaid\n"+string(diagram)+"```\n")
}
