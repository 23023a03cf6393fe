package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// Nobody has stopped it for good, and its last end is no news.
func TestNoteOfWhatIsHeld(t *testing.T) {
	held := &gladsheimv1.ServiceStatus{Phase: "held", LastExit: &gladsheimv1.ExitRecord{Verdict: gladsheimv1.Verdict_VERDICT_STOPPED}}
	require.Equal(t, "held, to save the battery", (&app{}).note(held))
}

// What hangs says so before all that is less urgent, in the list and in its status.
func TestWhatHangsSaysSo(t *testing.T) {
	since := now.Add(-5 * time.Second)
	hung := &gladsheimv1.ServiceStatus{
		ServiceName: "web", UnenforcedLimits: []string{"io_weight"}, ProcessId: 7,
		Hung: &gladsheimv1.Hang{SinceUnixMs: since.UnixMilli(), Why: "all threads are stopped (SIGSTOP)"},
	}
	var out strings.Builder
	a := &app{surroundings: surroundings{out: &out, now: func() time.Time { return now }}}
	require.Equal(t, "hangs: all threads are stopped (SIGSTOP)", a.note(hung))
	require.NoError(t, a.showStatus(&report{ServiceStatus: hung}))
	require.Regexp(t, `HANGS: since .*; 5s ago: all threads are stopped \(SIGSTOP\)\n`, out.String())
}
