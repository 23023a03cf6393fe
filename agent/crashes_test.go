package agent

import (
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// says has a service write a line into its log.
func (h *house) says(name service.Name, line string) {
	h.t.Helper()
	log, err := os.OpenFile(h.path("log/"+name.String()+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(h.t, err)
	_, err = fmt.Fprintln(log, line)
	require.NoError(h.t, err)
	require.NoError(h.t, log.Close())
}

// Ends that are the same but for times and numbers are counted as one, over the end of
// the agent and a reboot, and one that says something else is another.
func TestEndsAlikeAreCounted(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"restart": {"policy": "never"}`)
		began := time.Now()
		crash := func(line string, code int) service.ExitRecord {
			if h.status(web).Machine.State != service.Running { // which a reboot has brought back
				h.start(web)
			}
			h.says(web, line)
			h.host.Crash(web, service.Exit{Code: code})
			synctest.Wait()
			time.Sleep(time.Minute)
			exits, err := h.Exits(web, 1)
			require.NoError(t, err)
			return exits[0]
		}
		first := crash("2026-01-02 03:04:05 cannot reach 10.0.0.1:5432", 1)
		require.Equal(t, 1, first.Seen)
		second := crash("2027-02-03 04:05:06 cannot reach 10.0.0.2:5433", 1)
		require.Equal(t, first.Fingerprint, second.Fingerprint)
		require.Equal(t, 2, second.Seen)
		other := crash("2027-02-03 04:05:06 the disk is full", 1)
		require.NotEqual(t, first.Fingerprint, other.Fingerprint)
		require.Equal(t, 1, other.Seen)
		h.reopen()
		h.reboot()
		h.open()
		third := crash("2028-02-03 04:05:06 cannot reach 10.0.0.3:5433", 1)
		require.Equal(t, first.Fingerprint, third.Fingerprint)
		require.Equal(t, 3, third.Seen)
		require.True(t, third.FirstSeen.Equal(first.Ended), "%v", third.FirstSeen)
		require.WithinDuration(t, began, third.FirstSeen, time.Minute)
		require.Contains(t, third.Decision(), "it is not to be restarted (restart.policy)")
		require.Contains(t, h.log.String(), "service is given up")
		require.Contains(t, h.status(web).Error, "gladsheim history web --crashes")
	})
}

// A service that is not healthy yet has not run well, so that its row of failures goes on.
func TestARowOfFailuresIsOverWhenItIsHealthy(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		well := func(status service.HealthStatus) { h.keepHealth(web, service.Health{Status: status}) }
		well(service.Ill)
		require.Zero(t, h.well(web))
		well(service.Healthy)
		time.Sleep(time.Minute)
		well(service.Healthy)
		require.Equal(t, time.Minute, h.well(web))
		well(service.CheckTimedOut)
		require.Zero(t, h.well(web))
	})
}
