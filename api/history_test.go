package api

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// hourly is a history of an hour up to testTime.
func hourly() (samples []service.Sample) {
	for i := range 60 {
		samples = append(samples, service.Sample{
			Began: testTime.Add(time.Duration(i-60) * time.Minute), Step: time.Minute, Measured: 50 * time.Second,
			Memory: service.Of(uint64(i)), MemoryPeak: service.Of(uint64(2 * i)), CPU: service.Share{Percent: 1.5, Set: true},
		})
	}
	return samples
}

func TestUsageHistory(t *testing.T) {
	f := newFixture(t)
	f.put("web", service.Running).History = hourly()
	ask := func(req *gladsheimv1.GetUsageHistoryRequest) (*gladsheimv1.UsageHistory, error) {
		return gladsheimv1.NewRuntimeServiceClient(f.conn).GetUsageHistory(callContext(t), req)
	}
	h, err := ask(&gladsheimv1.GetUsageHistoryRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, "web", h.GetServiceName())
	require.Len(t, h.GetSamples(), 60)
	s := h.GetSamples()[30]
	require.Equal(t, testTime.Add(-30*time.Minute).UnixMilli(), s.GetBeganUnixMs())
	require.EqualValues(t, 60_000, s.GetStepMs())
	require.EqualValues(t, 50_000, s.GetMeasuredMs())
	require.EqualValues(t, 30, s.GetMemoryBytes())
	require.EqualValues(t, 60, s.GetMemoryPeakBytes())
	require.EqualValues(t, 1.5, s.GetCpuPercent())
	require.Nil(t, s.ThrottledPercent, "absent is not zero")
	require.Nil(t, s.Pids)
	require.NotNil(t, h.GetSamples()[0].MemoryBytes, "zero is not absent")

	h, err = ask(&gladsheimv1.GetUsageHistoryRequest{ServiceName: "web", SinceUnixMs: testTime.Add(-30 * time.Minute).UnixMilli(), UntilUnixMs: testTime.Add(-10 * time.Minute).UnixMilli()})
	require.NoError(t, err)
	require.Len(t, h.GetSamples(), 20)
	h, err = ask(&gladsheimv1.GetUsageHistoryRequest{ServiceName: "web", MaxSamples: 7})
	require.NoError(t, err)
	require.Len(t, h.GetSamples(), 7)

	_, err = ask(&gladsheimv1.GetUsageHistoryRequest{ServiceName: "db"})
	refused(t, err, codes.FailedPrecondition, service.ReasonNoHistory)
	_, err = ask(&gladsheimv1.GetUsageHistoryRequest{ServiceName: "nobody"})
	refused(t, err, codes.NotFound, service.ReasonServiceNotFound)
}

// What watches of usage hold ends with them.
func TestWatchUsage(t *testing.T) {
	f := newFixture(t)
	f.put("web", service.Running).History = hourly()
	runtime := gladsheimv1.NewRuntimeServiceClient(f.conn)
	ctx, cancel := context.WithCancel(callContext(t))
	defer cancel()
	s, err := runtime.WatchUsage(ctx, &gladsheimv1.WatchUsageRequest{ServiceNames: []string{"web"}})
	require.NoError(t, err)
	for i := range 60 {
		u, err := s.Recv()
		require.NoError(t, err)
		require.Equal(t, "web", u.GetServiceName())
		require.EqualValues(t, i, u.GetUsage().GetMemoryBytes())
	}
	require.Equal(t, 1, f.agent.UsageWatchers())
	cancel()
	require.Eventually(t, func() bool { return f.agent.UsageWatchers() == 0 }, 10*time.Second, 5*time.Millisecond)

	for _, tt := range []struct {
		req    *gladsheimv1.WatchUsageRequest
		code   codes.Code
		reason service.Reason
	}{
		{&gladsheimv1.WatchUsageRequest{ServiceNames: []string{"web", "nobody"}}, codes.NotFound, service.ReasonServiceNotFound},
		{&gladsheimv1.WatchUsageRequest{IntervalMs: 3_600_001}, codes.InvalidArgument, "INVALID"},
		{&gladsheimv1.WatchUsageRequest{ServiceNames: make([]string, 1025)}, codes.InvalidArgument, "INVALID"},
	} {
		s, err := runtime.WatchUsage(callContext(t), tt.req)
		require.NoError(t, err)
		_, err = s.Recv()
		refused(t, err, tt.code, tt.reason)
	}
}
