package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// Nobody has stopped it for good, and its last end is no news.
func TestNoteOfWhatIsHeld(t *testing.T) {
	held := &gladsheimv1.ServiceStatus{Phase: "held", LastExit: &gladsheimv1.ExitRecord{Verdict: gladsheimv1.Verdict_VERDICT_STOPPED}}
	require.Equal(t, "held, to save the battery", (&app{}).note(held))
}
