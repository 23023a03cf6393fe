package agent

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// TestALogThatIsFull: who looks, and who follows events, is told that a log can not
// be written, by the next agent too, and that it can be again.
func TestALogThatIsFull(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"log_full": "drop-count"`)
		h.start(web)
		began := time.Now()
		trouble := service.LogTrouble{Service: web, Incarnation: 1, Policy: service.LogFullDrop, Why: "no space left on device", Began: began}
		told := func() (out []string) {
			for _, n := range h.Kept(0) {
				if n.Reason == "log_disk_full" || n.Reason == "log_disk_recovered" || n.Reason == "log_lost" {
					out = append(out, n.Reason+": "+n.Detail)
				}
			}
			return out
		}
		full := "log_disk_full: the log of incarnation 1 can not be written: no space left on device; what the service writes is dropped and counted until it can"
		finding := "the log of web can not be written: no space left on device: Since " + began.Format(time.DateTime) + ", what it writes is dropped and counted."
		h.host.Trouble(trouble)
		h.host.Trouble(trouble) // as when the connection to the shim was lost
		require.Equal(t, trouble, h.status(web).LogTrouble)
		require.Equal(t, []string{full}, told())
		require.Equal(t, []string{finding}, h.doctor())
		require.Equal(t, service.Running, h.status(web).Machine.State)

		h.reopen()
		require.Equal(t, []string{full, full}, told(), "by each agent")
		require.Equal(t, []string{finding}, h.doctor())

		trouble.Ended, trouble.Bytes, trouble.Lines = began.Add(1500*time.Millisecond), 12345, 67
		h.host.Trouble(trouble)
		require.Equal(t, []string{full, full, "log_disk_recovered: the log of incarnation 1 is written again after 1.5s; 12345 bytes in 67 lines are missing, and it says where"}, told())
		require.Zero(t, h.status(web).LogTrouble)
		require.Empty(t, h.doctor())
	})
}

// TestTroubleOfTwoIncarnations: the end of one's is not the end of the other's.
func TestTroubleOfTwoIncarnations(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"log_full": "block"`)
		h.start(web)
		first := service.LogTrouble{Service: web, Incarnation: 1, Policy: service.LogFullBlock, Why: "disk quota exceeded", Began: time.Now()}
		second := first
		second.Incarnation = 2
		h.host.Trouble(first)
		require.Equal(t, []string{"the log of web can not be written: disk quota exceeded: Since " + first.Began.Format(time.DateTime) + ", it waits when it writes."}, h.doctor())
		h.host.Trouble(second)
		first.Ended = time.Now()
		h.host.Trouble(first)
		require.Equal(t, second, h.status(web).LogTrouble)
		second.Ended, second.Lost = time.Now(), true
		h.host.Trouble(second)
		require.Zero(t, h.status(web).LogTrouble)
		kept := h.Kept(0)
		require.Equal(t, "log_lost", kept[len(kept)-1].Reason)

		h.host.Trouble(service.LogTrouble{Service: db, Incarnation: 3, Began: time.Now()}) // of a service that was forgotten
		require.Empty(t, h.doctor())
	})
}
