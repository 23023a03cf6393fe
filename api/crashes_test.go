package api

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func TestCrashesAreGrouped(t *testing.T) {
	first, at := time.UnixMilli(1_000_000), time.UnixMilli(9_000_000)
	after := func(state service.State, g service.GiveUp) *service.Machine {
		return &service.Machine{State: state, GaveUp: g, Failures: 2, Recent: 3, Alike: 5, Fingerprint: "aa", Policy: service.RestartPolicy{MaxAttempts: 3, Window: time.Minute}}
	}
	out := toCrashes([]service.ExitRecord{ // latest first
		{Incarnation: 9, Exit: service.Exit{Code: 3}, Verdict: service.VerdictCrash, Fingerprint: "aa", Seen: 7, FirstSeen: first, Ended: at,
			LastLines: []string{"boom"}, Violations: []string{"memory-warning"}, After: after(service.Crashed, service.GaveUpDeterministic)},
		{Incarnation: 8, Verdict: service.VerdictStopped},
		{Incarnation: 7, Verdict: service.VerdictClean, Fingerprint: "cc", Seen: 1, After: after(service.Stopped, service.GaveUpNot)},
		{Incarnation: 6, Verdict: service.VerdictUnhealthy, Fingerprint: "bb", Seen: 1, FirstSeen: at, Ended: at, Wait: 1500 * time.Millisecond, After: after(service.Backoff, service.GaveUpNot)},
		{Incarnation: 5, Exit: service.Exit{Code: 3}, Verdict: service.VerdictCrash, Fingerprint: "aa", Seen: 6, FirstSeen: first, Ended: first},
	})
	require.Len(t, out.GetCrashes(), 2)
	aa, bb := out.GetCrashes()[0], out.GetCrashes()[1]
	require.Equal(t, "aa", aa.GetFingerprint())
	require.EqualValues(t, 7, aa.GetCount())
	require.EqualValues(t, 1_000_000, aa.GetFirstUnixMs())
	require.EqualValues(t, 9_000_000, aa.GetLastUnixMs())
	require.Equal(t, []uint64{9, 5}, aa.GetIncarnations())
	require.Equal(t, []byte("boom"), aa.GetLatest().GetLastLines()[0])
	require.Equal(t, "deterministic", aa.GetLatest().GetGivenUp())
	require.Contains(t, aa.GetLatest().GetDecision(), "given up, since it is deterministic")
	require.Nil(t, aa.GetLatest().RestartWaitMs)
	require.Equal(t, []string{"memory-warning"}, aa.GetLatest().GetViolations())
	require.Equal(t, gladsheimv1.Verdict_VERDICT_UNHEALTHY, bb.GetLatest().GetVerdict())
	require.EqualValues(t, 1500, bb.GetLatest().GetRestartWaitMs())
	require.Equal(t, "restarted after 1.5s; failure 2 in a row, attempt 3 of 3 within 1m0s", bb.GetLatest().GetDecision())
}
