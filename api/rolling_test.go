package api

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// rolled is what a rolling restart told, and how it ended.
func (f *fixture) rolled(t *testing.T, req *gladsheimv1.RollingRestartRequest) (steps []string, last *gladsheimv1.RollingRestartProgress, err error) {
	t.Helper()
	s, err := gladsheimv1.NewRuntimeServiceClient(f.conn).RollingRestart(callContext(t), req)
	require.NoError(t, err)
	for {
		p, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return steps, last, nil
		}
		if err != nil {
			return steps, last, err
		}
		step := strings.ToLower(strings.TrimPrefix(p.GetStep().String(), "ROLLING_STEP_"))
		steps, last = append(steps, step+" "+p.GetServiceName()), p
	}
}

func TestRollingRestart(t *testing.T) {
	f := newFixture(t)
	steps, last, err := f.rolled(t, &gladsheimv1.RollingRestartRequest{
		ServiceNames: []string{"web", "db", "mail"}, TimeoutMs: ptr(uint32(9000)), ForceStop: true, StopTimeoutMs: ptr(uint32(1500)),
	})
	require.NoError(t, err)
	require.Equal(t, []string{"restarting web", "done web", "restarting db", "done db", "restarting mail", "done mail"}, steps)
	require.Equal(t, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING, last.GetStatus().GetState())
	require.Len(t, f.agent.Calls(), 3)
	o := f.lastCall(t).(service.StopOptions)
	require.True(t, o.Force)
	require.Equal(t, 1500*time.Millisecond, *o.Timeout)
	require.NotEmpty(t, o.Actor)
	for _, name := range []string{"web", "db", "mail"} { // each is on record, before and after
		require.Regexp(t, `msg="call begun" method=\S+/RollingRestart .*service=`+name, f.log.String())
		require.Regexp(t, `msg=call method=\S+/RollingRestart .*service=`+name+` outcome=OK`, f.log.String())
	}
}

func TestARollingRestartThatFails(t *testing.T) {
	f := newFixture(t)
	restarts := 0
	f.agent.Before = func(_ context.Context, method string) error {
		if method != "Restart" {
			return nil
		}
		if restarts++; restarts == 2 {
			return &service.Error{Op: "start", Service: service.MustName("db"), Kind: service.Unlaunchable, Reason: service.ReasonExitedEarly,
				LastLines: []string{"no room"}, Err: errors.New("it ended: exit code 3")}
		}
		return nil
	}
	steps, _, err := f.rolled(t, &gladsheimv1.RollingRestartRequest{ServiceNames: []string{"web", "db", "mail"}})
	s := refused(t, err, codes.FailedPrecondition, service.ReasonExitedEarly)
	require.Equal(t, []string{"restarting web", "done web", "restarting db", "failed db", "untouched mail"}, steps)
	require.Equal(t, "no room", string(s.Details()[0].(*gladsheimv1.GladsheimError).GetLastLines()[0]))
	require.Regexp(t, `msg=call method=\S+/RollingRestart .*service=db outcome=FailedPrecondition`, f.log.String())
	require.NotContains(t, f.log.String(), "service=mail")
}

func TestARollingRestartThatIsRefused(t *testing.T) {
	f := newFixture(t)
	for name, c := range map[string]struct {
		names  []string
		code   codes.Code
		reason service.Reason
	}{
		"none":     {nil, codes.InvalidArgument, "INVALID"},
		"twice":    {[]string{"web", "db", "web"}, codes.InvalidArgument, "INVALID"},
		"too many": {make([]string, maxWatched+1), codes.InvalidArgument, "INVALID"},
		"unknown":  {[]string{"web", "nobody"}, codes.NotFound, service.ReasonServiceNotFound},
		"no name":  {[]string{"web", "a/b"}, codes.InvalidArgument, service.ReasonBadName},
	} {
		t.Run(name, func(t *testing.T) {
			steps, _, err := f.rolled(t, &gladsheimv1.RollingRestartRequest{ServiceNames: c.names})
			refused(t, err, c.code, c.reason)
			require.Empty(t, steps)
		})
	}
	require.Empty(t, f.agent.Calls())
}

// After its caller has gone no further one is begun.
func TestARollingRestartWithoutItsCaller(t *testing.T) {
	f := newFixture(t)
	entered, left := make(chan struct{}), make(chan struct{})
	f.agent.Before = func(ctx context.Context, method string) error {
		if method == "Restart" {
			close(entered) // twice would panic
			<-ctx.Done()
			close(left)
		}
		return nil
	}
	ctx, cancel := context.WithCancel(callContext(t))
	s, err := gladsheimv1.NewRuntimeServiceClient(f.conn).RollingRestart(ctx, &gladsheimv1.RollingRestartRequest{ServiceNames: []string{"web", "db"}})
	require.NoError(t, err)
	<-entered
	cancel()
	<-left
	_, err = s.Recv()
	for err == nil {
		_, err = s.Recv()
	}
	require.Equal(t, codes.Canceled, status.Code(err))
	require.Eventually(t, func() bool { return strings.Contains(f.log.String(), "outcome=Canceled") }, 10*time.Second, 5*time.Millisecond)
	require.Len(t, f.agent.Calls(), 1)
}
