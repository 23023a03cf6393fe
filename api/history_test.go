package api

import (
	"context"
	"math"
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

func TestRecommend(t *testing.T) {
	f := newFixture(t)
	f.put("web", service.Running).Advice = &service.Advice{
		Since: testTime, Watched: time.Hour, Step: time.Minute, Samples: 60, Confidence: service.ConfidenceMedium, Doubt: "a day is longer",
		Evidence: service.Evidence{HeldPeak: service.Of(100 << 20), CPUP95: service.Share{Percent: 12.5, Set: true}},
		Limits: []service.LimitAdvice{
			{Resource: service.MemoryMax, Now: service.Of(service.Unlimited), Advised: service.Of(105 << 20), Enforced: true, Why: "so"},
			{Resource: service.CPUMax, Advised: service.Of(14 * service.UsecPerPercent), Why: "so"},
		},
	}
	runtime := gladsheimv1.NewRuntimeServiceClient(f.conn)
	r, err := runtime.Recommend(callContext(t), &gladsheimv1.RecommendRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.Equal(t, gladsheimv1.Confidence_CONFIDENCE_MEDIUM, r.GetConfidence())
	require.EqualValues(t, 100<<20, r.GetEvidence().GetHeldPeakBytes())
	require.Nil(t, r.GetEvidence().MemoryPeakBytes, "absent is not zero")
	memory, cpu := r.GetLimits()[0], r.GetLimits()[1]
	require.True(t, math.IsInf(memory.GetCurrent(), 1))
	require.EqualValues(t, 105<<20, memory.GetRecommended())
	require.Equal(t, "105MiB", memory.GetValue())
	require.Nil(t, cpu.Current)
	require.True(t, memory.GetEnforced())
	require.False(t, cpu.GetEnforced())
	require.EqualValues(t, 14, cpu.GetRecommended())
	require.Equal(t, "14%", cpu.GetValue())

	_, err = runtime.Recommend(callContext(t), &gladsheimv1.RecommendRequest{ServiceName: "db"})
	refused(t, err, codes.FailedPrecondition, service.ReasonNoHistory)
	_, err = runtime.Recommend(callContext(t), &gladsheimv1.RecommendRequest{ServiceName: "nobody"})
	refused(t, err, codes.NotFound, service.ReasonServiceNotFound)
}
