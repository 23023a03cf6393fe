package api

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func TestDeadlines(t *testing.T) {
	f := newFixture(t)
	seen := make(chan time.Duration, 16)
	f.agent.Before = func(ctx context.Context, method string) error {
		switch method {
		case "Usage", "Start", "Stop", "Restart":
			deadline, set := ctx.Deadline()
			if !set {
				seen <- -1
			} else {
				seen <- time.Until(deadline).Round(time.Second)
			}
		}
		return nil
	}
	ctx := context.Background()
	_, err := f.gladsheim().GetResourceUsage(ctx, &gladsheimv1.ResourceUsageRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, answerTimeout, <-seen)
	_, err = f.gladsheim().StartService(ctx, &gladsheimv1.StartServiceRequest{ServiceName: "db"})
	require.NoError(t, err)
	require.Equal(t, 10*time.Second+30*time.Second+lifecycleMargin, <-seen, "as long as the definition allows, and a margin")
	ms := uint32(7000)
	_, err = f.gladsheim().RestartService(ctx, &gladsheimv1.RestartServiceRequest{ServiceName: "db", StopTimeoutMs: &ms})
	require.NoError(t, err)
	require.Equal(t, 37*time.Second+lifecycleMargin, <-seen)
	_, err = f.gladsheim().StopService(ctx, &gladsheimv1.StopServiceRequest{ServiceName: "db"})
	require.NoError(t, err)
	require.Equal(t, 10*time.Second+lifecycleMargin, <-seen)

	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = f.gladsheim().GetResourceUsage(short, &gladsheimv1.ResourceUsageRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.LessOrEqual(t, <-seen, 5*time.Second, "the caller's own deadline holds")

	past, cancel := context.WithDeadline(ctx, time.Now().Add(-time.Second))
	defer cancel()
	_, err = f.gladsheim().StopService(past, &gladsheimv1.StopServiceRequest{ServiceName: "web"})
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	require.Empty(t, seen, "what is too late is not begun")
}

func TestACallerThatLeaves(t *testing.T) {
	f := newFixture(t)
	entered, left := make(chan struct{}), make(chan error, 1)
	f.agent.Before = func(ctx context.Context, method string) error {
		if method != "Start" {
			return nil
		}
		close(entered)
		<-ctx.Done()
		left <- ctx.Err()
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(callContext(t))
	go func() { <-entered; cancel() }()
	_, err := f.gladsheim().StartService(ctx, &gladsheimv1.StartServiceRequest{ServiceName: "db"})
	require.Equal(t, codes.Canceled, status.Code(err))
	require.ErrorIs(t, <-left, context.Canceled)
	require.Eventually(t, func() bool { return strings.Contains(f.log.String(), "outcome=Canceled") }, 5*time.Second, time.Millisecond)
}

func TestLoopback(t *testing.T) {
	f := newFixture(t)
	l, err := Listen("tcp://127.0.0.1:0")
	require.NoError(t, err)
	f.serve(l)
	conn := f.dial(l.Addr().String())
	_, err = gladsheimv1.NewGladsheimServiceClient(conn).StopService(callContext(t), &gladsheimv1.StopServiceRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, "tcp", f.lastCall(t).(service.StopOptions).Actor)
	for m, known := range methods {
		if known.local {
			refused(t, call(callContext(t), conn, m, nothing), codes.PermissionDenied, "DENIED")
		}
	}
}

func TestStop(t *testing.T) {
	f := newFixture(t)
	entered, released := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	f.agent.Before = func(_ context.Context, method string) error {
		if method == "Stop" {
			close(entered)
			<-released
		}
		return nil
	}
	watch, err := gladsheimv1.NewEventServiceClient(f.conn).Watch(callContext(t), &gladsheimv1.WatchRequest{})
	require.NoError(t, err)
	_, err = watch.Recv()
	require.NoError(t, err)
	finished := make(chan error, 1)
	go func() {
		_, err := f.gladsheim().StopService(context.Background(), &gladsheimv1.StopServiceRequest{ServiceName: "web"})
		finished <- err
	}()
	<-entered
	stopped := make(chan struct{})
	go func() { f.server.Stop(context.Background()); close(stopped) }()
	_, err = watch.Recv()
	refused(t, err, codes.Unavailable, ReasonAgentLeaving)
	require.Eventually(t, func() bool {
		_, err := os.Stat(f.path)
		return errors.Is(err, fs.ErrNotExist)
	}, 10*time.Second, time.Millisecond)
	select {
	case <-stopped:
		require.Fail(t, "a call under way is waited for")
	default:
	}
	release()
	require.NoError(t, <-finished)
	<-stopped
	f.server.Stop(context.Background()) // may be told twice
}

func TestStopThatWillNotWait(t *testing.T) {
	f := newFixture(t)
	entered := make(chan struct{})
	f.agent.Before = func(ctx context.Context, method string) error {
		if method == "Stop" {
			close(entered)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	finished := make(chan error, 1)
	go func() {
		_, err := f.gladsheim().StopService(context.Background(), &gladsheimv1.StopServiceRequest{ServiceName: "web"})
		finished <- err
	}()
	<-entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f.server.Stop(ctx)
	require.Error(t, <-finished)
}
