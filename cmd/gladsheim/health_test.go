package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// A check that was asked for says how it went, also where it counts for nothing; and
// nobody is told that a service is well which does not serve yet, or not any more.
func TestHealthCodes(t *testing.T) {
	well := &gladsheimv1.ServiceHealth{Status: gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY, LastCheckFailed: true}
	require.Equal(t, exitOK, (&vital{ServiceHealth: well}).code(true))
	require.Equal(t, exitFailure, (&vital{ServiceHealth: well, now: true}).code(true))
	for phase, want := range map[string]int{
		"launching": exitNotRunning, "starting": exitNotRunning, "stopping": exitNotRunning, "clearing": exitNotRunning, "backoff": exitNotRunning,
		"running": exitOK, "adopting": exitOK,
	} {
		v := &vital{&gladsheimv1.ServiceHealth{}, &gladsheimv1.ServiceStatus{Phase: phase, State: gladsheimv1.ServiceState_SERVICE_STATE_STARTING}, false}
		require.Equal(t, want, v.code(true), phase)
	}
}
