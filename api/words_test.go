package api

import (
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// Words that have the wire's numbers have its names too.
func TestWordsHaveTheWiresNumbers(t *testing.T) {
	for n, name := range gladsheimv1.ServiceState_name {
		require.Equal(t, "SERVICE_STATE_"+upper(service.Public(n).String()), name)
	}
	require.Len(t, gladsheimv1.ServiceState_name, int(service.NumPublic))
	for n, name := range gladsheimv1.HealthStatus_name {
		require.Equal(t, "HEALTH_STATUS_"+upper(service.HealthStatus(n).String()), name)
	}
	require.Len(t, gladsheimv1.HealthStatus_name, int(service.NumHealth))
	for a := service.Action(1); a < service.NumActions; a++ {
		require.Equal(t, "ACTION_"+upper(a.String()), gladsheimv1.DefinitionChange_Action_name[int32(a)])
	}
	for r := service.Reach(1); r < service.NumReaches; r++ {
		require.Equal(t, "EFFECT_"+upper(r.String()), gladsheimv1.DefinitionChange_Effect_name[int32(r)])
	}
	for c := service.Confidence(1); c < service.NumConfidences; c++ {
		require.Equal(t, "CONFIDENCE_"+upper(c.String()), gladsheimv1.Confidence_name[int32(c)])
	}
	for s := service.Severity(1); s < service.NumSeverities; s++ {
		require.Equal(t, "LEVEL_"+upper(s.String()), gladsheimv1.Finding_Level_name[int32(s)])
	}
	// Both tables end where the words do.
	require.Panics(t, func() { _ = service.Verdict(len(verdictOf)).String() })
	require.Panics(t, func() { _ = service.State(len(stateWords)).String() })
	require.NotContains(t, stateWords[:], "")
	// Every verdict of the wire is in the table.
	require.Len(t, distinct(verdictOf[:]), len(gladsheimv1.Verdict_name))
}

func upper(words string) string {
	out := []byte(words)
	for i, c := range out {
		switch {
		case c >= 'a' && c <= 'z':
			out[i] = c - 'a' + 'A'
		case c == ' ' || c == '-':
			out[i] = '_'
		}
	}
	return string(out)
}

func distinct(values any) map[any]bool {
	out := map[any]bool{}
	for i := range reflect.ValueOf(values).Len() {
		out[reflect.ValueOf(values).Index(i).Interface()] = true
	}
	return out
}

// Exactly one of the three is told of an end, and none where nothing ran.
func TestHowItEndedIsToldOnce(t *testing.T) {
	for _, tt := range []struct {
		x    service.ExitRecord
		told string
	}{
		{service.ExitRecord{Verdict: service.VerdictClean}, "code"},
		{service.ExitRecord{Exit: service.Exit{Signal: 9}, Verdict: service.VerdictKilled}, "signal"},
		{service.ExitRecord{Exit: service.Exit{Unknown: "agent_was_down"}, Verdict: service.VerdictUnknown}, "unknown"},
		{service.ExitRecord{Exit: service.NeverRan, Verdict: service.VerdictLaunchFailed}, ""},
		{service.ExitRecord{Exit: service.NeverRan, Verdict: service.VerdictStopped}, ""},
		{service.ExitRecord{Exit: service.NeverRan, Verdict: service.VerdictStartupTime}, ""},
	} {
		told, out := "", toExit(&tt.x)
		if out.ExitCode != nil {
			told += "code"
		}
		if out.Signal != nil {
			told += "signal"
		}
		if out.UnknownReason != nil {
			told += "unknown"
		}
		require.Equal(t, tt.told, told, "%+v", tt.x)
	}
}
