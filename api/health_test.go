package api

import (
	"context"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (f *fixture) subscribe(t *testing.T, ctx context.Context, conn *grpc.ClientConn, name string) grpc.ServerStreamingClient[gladsheimv1.HealthUpdate] {
	t.Helper()
	s, err := gladsheimv1.NewGladsheimServiceClient(conn).SubscribeServiceHealth(ctx, &gladsheimv1.HealthSubscribeRequest{ServiceName: name})
	require.NoError(t, err)
	_, err = s.Recv()
	require.NoError(t, err)
	return s
}

var nextCheck = time.Unix(1_800_000_000, 0)

// judge changes a verdict, with much to say about it.
func (f *fixture) judge(name string, verdict service.HealthStatus) {
	much := string(make([]byte, maxText))
	f.agent.Change(name, service.NoticeHealth, "", much, func(st *service.Status) {
		st.Health.Status, st.Health.Message, st.Health.NextCheck = verdict, much, nextCheck
	})
}

// A subscriber who keeps up hears every change, and of each that it is one.
func TestASubscriberHearsEveryChange(t *testing.T) {
	f := newFixture(t)
	s := f.subscribe(t, callContext(t), f.conn, "web")
	verdicts := []service.HealthStatus{service.Checking, service.Healthy, service.Checking, service.Ill, service.CheckTimedOut, service.HealthUnknown}
	for _, v := range verdicts {
		f.judge("web", v)
		u, err := s.Recv()
		require.NoError(t, err)
		require.EqualValues(t, v, u.GetHealth().GetStatus())
		require.Equal(t, nextCheck.Unix(), u.GetHealth().GetNextCheckUnix())
		require.True(t, u.GetStateChanged())
	}
}

// What did not last is told too, in its order, and as it was then.
func TestASubscriberHearsWhatDidNotLast(t *testing.T) {
	f := newFixture(t)
	s := f.subscribe(t, callContext(t), f.conn, "web")
	for range 20 {
		f.agent.Change("web", service.NoticeHealth, "", "it is ill", func(st *service.Status) {
			st.Health.Status, st.Health.Failures, st.Health.Message = service.Ill, 3, "it is ill"
		})
		f.agent.Change("web", service.NoticeState, "", "", func(st *service.Status) { st.Health = service.Health{Message: "it does not run"} })
		f.judge("web", service.Healthy)
		var heard []service.HealthStatus
		for !slices.Contains(heard, service.Healthy) {
			u, err := s.Recv()
			require.NoError(t, err)
			require.True(t, u.GetStateChanged())
			heard = append(heard, service.HealthStatus(u.GetHealth().GetStatus()))
			if len(heard) == 1 {
				require.Equal(t, "it is ill", u.GetHealth().GetMessage())
				require.EqualValues(t, 3, u.GetHealth().GetConsecutiveFailures())
			}
		}
		require.Equal(t, service.Ill, heard[0])
	}
}

// For one that does not read no more is kept than its queue holds, and the latest.
func TestASlowSubscriberGetsTheLatest(t *testing.T) {
	f := newFixture(t)
	conn := f.dial("unix://"+f.path, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	s := f.subscribe(t, callContext(t), conn, "web")
	const changes = 2000 // some 8 MiB
	for i := range changes {
		f.judge("web", []service.HealthStatus{service.Healthy, service.Checking}[i%2])
	}
	f.judge("web", service.CheckTimedOut)
	heard := 0
	for last := service.HealthUnknown; last != service.CheckTimedOut; heard++ {
		u, err := s.Recv()
		require.NoError(t, err)
		last = service.HealthStatus(u.GetHealth().GetStatus())
	}
	require.Less(t, heard, changes/4)
}

// Of a client that is gone nothing stays, also if it never read.
func TestAGoneSubscriberLeavesNothing(t *testing.T) {
	f := newFixture(t)
	gone := func() bool { return f.agent.Watchers() == 0 }
	ctx, cancel := context.WithCancel(callContext(t))
	f.subscribe(t, ctx, f.conn, "web")
	require.Equal(t, 1, f.agent.Watchers())
	cancel()
	require.Eventually(t, gone, 10*time.Second, time.Millisecond)

	conn := f.dial("unix://"+f.path, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	f.subscribe(t, callContext(t), conn, "web")
	for i := range 100 {
		f.judge("web", []service.HealthStatus{service.Healthy, service.Checking}[i%2])
	}
	require.NoError(t, conn.Close())
	require.Eventually(t, gone, 10*time.Second, time.Millisecond)
}

// Without an interval, too, the end of the service ends the subscription.
func TestSubscriptionOfWhatIsUnregistered(t *testing.T) {
	f := newFixture(t)
	s := f.subscribe(t, callContext(t), f.conn, "db")
	require.NoError(t, f.agent.Unregister(context.Background(), service.MustName("db"), ""))
	_, err := s.Recv()
	refused(t, err, codes.NotFound, service.ReasonServiceNotFound)
}

// Whoever may not any more hears no more, on a stream that says nothing as well (row S16
// of the fault matrix).
func TestAStreamEndsWithThePermission(t *testing.T) {
	f := openSocket(t)
	var group atomic.Uint32
	group.Store(testGroup)
	f.server.policy.group = func() (uint32, bool) { return group.Load(), true }
	f.server.patrol = 20 * time.Millisecond
	member := dialAs(t, f.path, 1234, 1234, []uint32{testGroup})
	conn := f.dial("passthrough:///as", grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return member, nil }))
	health := f.subscribe(t, callContext(t), conn, "web")
	watch, err := gladsheimv1.NewEventServiceClient(conn).Watch(callContext(t), &gladsheimv1.WatchRequest{})
	require.NoError(t, err)
	require.Equal(t, []string{"synced 0"}, heard(t, watch))
	root := f.subscribe(t, callContext(t), f.conn, "web")

	f.judge("web", service.Ill)
	_, err = health.Recv()
	require.NoError(t, err)
	group.Store(testGroup + 1)
	_, err = health.Recv()
	refused(t, err, codes.PermissionDenied, "DENIED")
	for err = error(nil); err == nil; {
		_, err = watch.Recv()
	}
	refused(t, err, codes.PermissionDenied, "DENIED")

	_, err = root.Recv()
	require.NoError(t, err, "who owns the host goes on")
	require.Eventually(t, func() bool { return f.agent.Watchers() == 1 }, 10*time.Second, time.Millisecond)
}
