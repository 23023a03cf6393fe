package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// sequence is that of the latest event.
func (w *world) sequence() uint64 {
	w.t.Helper()
	stream, err := gladsheimv1.NewEventServiceClient(w.conn).Watch(contextFor(w.t), &gladsheimv1.WatchRequest{BacklogOnly: true})
	require.NoError(w.t, err)
	ev, err := stream.Recv()
	require.NoError(w.t, err)
	require.NotNil(w.t, ev.GetSynced())
	return ev.Sequence
}

// resume reads all events after one, which must be without a hole, and returns
// their kinds and the sequence of the last one.
func (w *world) resume(after uint64) (kinds []string, last uint64) {
	w.t.Helper()
	stream, err := gladsheimv1.NewEventServiceClient(w.conn).Watch(contextFor(w.t), &gladsheimv1.WatchRequest{AfterSequence: &after, BacklogOnly: true})
	require.NoError(w.t, err)
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return kinds, after
		}
		require.NoError(w.t, err)
		require.Nil(w.t, ev.GetGap(), "a hole")
		if ev.GetSynced() != nil {
			require.Equal(w.t, after, ev.GetSequence())
			continue
		}
		after++
		require.Equal(w.t, after, ev.GetSequence())
		kinds = append(kinds, ev.GetEvent().GetKind())
	}
}

// TestARequestOutlivesTheAgent: killed while a service is becoming ready, the
// agent's successor answers the retry of the start; there is one process and one
// incarnation, and no event is missing or told twice.
func TestARequestOutlivesTheAgent(t *testing.T) {
	native(t)
	w := newWorld(t)
	address := fmt.Sprintf("127.0.0.1:%d", port(15062))
	w.register(workload(t, "slow", "slow", "sleep").with(fields{"ready": fields{"type": "tcp", "address": address, "timeout": "5m"}}))
	token := w.sequence()
	start := func(id string) <-chan error {
		services, done := w.services(), make(chan error, 1)
		go func() {
			s, err := services.StartService(contextFor(t), &gladsheimv1.StartServiceRequest{ServiceName: "slow", RequestId: id})
			if err == nil && s.State != gladsheimv1.ServiceState_SERVICE_STATE_RUNNING {
				err = fmt.Errorf("answered that it is %s", s.State)
			}
			done <- err
		}()
		return done
	}
	phase := func(want string) {
		t.Helper()
		eventually(t, "it is "+want, func() bool { return byGRPC{w}.status("slow").Phase == want })
	}
	first := start("an id")
	phase("starting")
	before, told := byGRPC{w}.status("slow"), []string{}
	for range 3 {
		kinds, last := w.resume(token)
		told, token = append(told, kinds...), last
		w.leave(syscall.SIGKILL)
		if first != nil {
			// leave closes the connection of the test, too, once the agent is gone.
			require.Contains(t, []codes.Code{codes.Unavailable, codes.Canceled}, status.Code(<-first))
			first = nil
		}
		w.begin()
		phase("starting")
	}
	retry := start("an id")
	require.Equal(t, codes.AlreadyExists, status.Code(<-start("another")))
	_, err := w.services().StopService(contextFor(t), &gladsheimv1.StopServiceRequest{ServiceName: "slow", RequestId: "an id"})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	require.ErrorContains(t, err, "another request had this id")
	require.Empty(t, retry, "it waits")
	ready, err := net.Listen("tcp", address)
	require.NoError(t, err)
	defer ready.Close()
	require.NoError(t, <-retry)
	require.NoError(t, <-start("an id"))
	after := byGRPC{w}.status("slow")
	require.Equal(t, before.ProcessId, after.ProcessId)
	require.Equal(t, []int{int(before.ProcessId)}, marked(t, "slow"))
	require.EqualValues(t, 1, after.Incarnation)
	kinds, last := w.resume(token)
	count := map[string]int{}
	for _, kind := range append(told, kinds...) {
		count[kind]++
	}
	require.Equal(t, 1, count["starting"], "%v", count)
	require.Equal(t, 3, count["adopting"], "%v", count)
	require.Equal(t, 1, count["ready"], "%v", count)
	lines := strings.Split(strings.TrimSpace(w.mustCLI("-o", "jsonl", "events", "slow", "--since", "1h")), "\n")
	sequences := []uint64{}
	for _, line := range lines {
		ev := &gladsheimv1.WatchEvent{}
		require.NoError(t, protojson.Unmarshal([]byte(line), ev))
		if ev.GetEvent() != nil {
			sequences = append(sequences, ev.Sequence)
		}
	}
	require.Len(t, sequences, len(told)+len(kinds)+1, "since it was registered")
	require.Equal(t, last, sequences[len(sequences)-1])
	w.mustCLI("stop", "slow", "--request-id", "its end")
	w.leave(syscall.SIGKILL)
	w.begin()
	w.mustCLI("stop", "slow", "--request-id", "its end")
	require.Equal(t, 3, w.cli("stop", "slow").code)
}

// TestNoRoomForEvents: where the run directory has no room for them the agent
// serves all the same, and the doctor tells that they are forgotten.
func TestNoRoomForEvents(t *testing.T) {
	anywhere(t)
	if !limited(t) {
		t.Skip("nobody may mount on somebody's machine")
	}
	w := newWorld(t)
	w.leave(syscall.SIGTERM)
	run := w.path("run")
	require.NoError(t, unix.Mount("none", run, "tmpfs", 0, "size=1m,mode=750"))
	w.begin()
	require.Contains(t, w.cli("doctor").stdout, "events are forgotten when the agent ends")
	w.register(workload(t, "modest", "modest", "sleep"))
	w.mustCLI("start", "modest")
	require.Contains(t, w.mustCLI("events"), "ready")
	require.NoFileExists(t, filepath.Join(run, "events.ring"))
	last := w.sequence()
	w.leave(syscall.SIGTERM)
	require.NoError(t, unix.Mount("none", run, "", unix.MS_REMOUNT, "size=16m"))
	w.begin()
	require.NotContains(t, w.cli("doctor").stdout, "events are forgotten")
	stream, err := gladsheimv1.NewEventServiceClient(w.conn).Watch(contextFor(t), &gladsheimv1.WatchRequest{AfterSequence: &last})
	require.NoError(t, err)
	ev, err := stream.Recv()
	require.NoError(t, err)
	require.Equal(t, last+1, ev.GetGap().GetFromSequence(), "nothing is passed over in silence")
	w.mustCLI("stop", "modest")
	w.leave(syscall.SIGTERM)
	require.NoError(t, unix.Unmount(run, 0))
	w.begin()
}
