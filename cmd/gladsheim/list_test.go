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

func TestScheduleIsShown(t *testing.T) {
	a := &app{surroundings: surroundings{now: func() time.Time { return now }}}
	st := &gladsheimv1.ServiceStatus{
		Completed: true, LastExit: &gladsheimv1.ExitRecord{EndedUnixMs: now.Add(-time.Minute).UnixMilli()},
		NextRunUnixMs: now.Add(3 * time.Hour).UnixMilli(), LastRunUnixMs: now.Add(-time.Hour).UnixMilli(),
	}
	require.Equal(t, "done 1m 0s ago, next run in 3h 0m", a.note(st))
	require.Equal(t, "next run "+moment(now.Add(3*time.Hour))+"; in 3h 0m, last run "+moment(now.Add(-time.Hour)), a.scheduleLine(st))
	st.SchedulePaused, st.NextRunUnixMs = true, 0
	require.Equal(t, "done 1m 0s ago, its schedule rests", a.note(st))
	require.Contains(t, a.scheduleLine(st), "rests since it was stopped, last run ")
}
