package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

const (
	// longestStep is as long as anything is remembered.
	longestStep = 24 * time.Hour
	// The intervals of WatchUsage.
	minUsageInterval, maxUsageInterval = time.Second, time.Hour
)

func (r *runtime) GetUsageHistory(_ context.Context, req *gladsheimv1.GetUsageHistoryRequest) (*gladsheimv1.UsageHistory, error) {
	st, err := r.find("tell the usage history of", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	step := time.Duration(min(req.GetStepMs(), uint64(longestStep.Milliseconds()))) * time.Millisecond
	samples, err := r.agent.UsageHistory(st.Name, sinceTime(req.GetSinceUnixMs()), step, int(req.GetMaxSamples()))
	if err != nil {
		return nil, err
	}
	out := &gladsheimv1.UsageHistory{ServiceName: st.Name.String()}
	for _, s := range samples {
		if until := req.GetUntilUnixMs(); until == 0 || s.Began.UnixMilli() < until {
			out.Samples = append(out.Samples, toSample(s))
		}
	}
	return out, nil
}

// sinceTime is a time that a request names; 0 is the beginning.
func sinceTime(unixMillis int64) time.Time {
	if unixMillis == 0 {
		return time.Time{}
	}
	return time.UnixMilli(unixMillis)
}

func (r *runtime) WatchUsage(req *gladsheimv1.WatchUsageRequest, ss grpc.ServerStreamingServer[gladsheimv1.UsageUpdate]) error {
	invalid := func(text string) error {
		return &service.Error{Op: "watch usage", Kind: service.Invalid, Err: errors.New(text)}
	}
	interval := max(time.Duration(req.GetIntervalMs())*time.Millisecond, minUsageInterval)
	switch {
	case interval > maxUsageInterval:
		return invalid(fmt.Sprintf("interval_ms is %d; at most %d is allowed", req.GetIntervalMs(), maxUsageInterval.Milliseconds()))
	case len(req.GetServiceNames()) > maxWatched:
		return invalid("too many services are named; name none to watch all")
	}
	var names []service.Name
	for _, text := range req.GetServiceNames() {
		st, err := r.find("watch the usage of", text)
		if err != nil {
			return err
		}
		names = append(names, st.Name)
	}
	for u := range r.agent.WatchUsage(ss.Context(), interval, names...) {
		if err := ss.Send(&gladsheimv1.UsageUpdate{ServiceName: u.Service.String(), Usage: toSample(u.Sample)}); err != nil {
			return err
		}
	}
	return ss.Context().Err()
}

func toSample(s service.Sample) *gladsheimv1.UsageSample {
	return &gladsheimv1.UsageSample{
		BeganUnixMs:           millis(s.Began),
		StepMs:                uint64(s.Step.Milliseconds()),
		MeasuredMs:            uint64(s.Measured.Milliseconds()),
		MemoryBytes:           optional(s.Memory),
		MemoryPeakBytes:       optional(s.MemoryPeak),
		MemoryHeldBytes:       optional(s.Held),
		CpuPercent:            toPercent(s.CPU),
		CpuPeakPercent:        toPercent(s.CPUPeak),
		ThrottledPercent:      toPercent(s.Throttled),
		Pids:                  optional(s.Pids),
		PidsPeak:              optional(s.PidsPeak),
		ReadBytes:             optional(s.ReadBytes),
		WriteBytes:            optional(s.WriteBytes),
		OomKills:              optional(s.OOMKills),
		MemoryPressurePercent: toPercent(s.Pressure[service.MemoryPressure]),
		CpuPressurePercent:    toPercent(s.Pressure[service.CPUPressure]),
		IoPressurePercent:     toPercent(s.Pressure[service.IOPressure]),
	}
}

func toPercent(s service.Share) *float64 {
	if !s.Set {
		return nil
	}
	return &s.Percent
}

func (r *runtime) Recommend(ctx context.Context, req *gladsheimv1.RecommendRequest) (*gladsheimv1.Recommendation, error) {
	st, err := r.find("recommend limits for", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	a, err := r.agent.Recommend(ctx, st.Name, sinceTime(req.GetSinceUnixMs()))
	if err != nil {
		return nil, err
	}
	e := a.Evidence
	out := &gladsheimv1.Recommendation{
		ServiceName: st.Name.String(), SinceUnixMs: millis(a.Since), WatchedMs: uint64(a.Watched.Milliseconds()),
		Samples: uint32(a.Samples), StepMs: uint64(a.Step.Milliseconds()), Confidence: gladsheimv1.Confidence(a.Confidence), Doubt: a.Doubt,
		Evidence: &gladsheimv1.UsageEvidence{
			MemoryPeakBytes:       optional(e.MemoryPeak),
			KernelPeakBytes:       optional(e.KernelPeak),
			HeldPeakBytes:         optional(e.HeldPeak),
			HeldP95Bytes:          optional(e.HeldP95),
			CpuPercent:            toPercent(e.CPUMean),
			CpuP95Percent:         toPercent(e.CPUP95),
			CpuPeakPercent:        toPercent(e.CPUPeak),
			ThrottledPercent:      toPercent(e.Throttled),
			PidsPeak:              optional(e.PidsPeak),
			OomKills:              optional(e.OOMKills),
			MemoryPressurePercent: toPercent(e.Pressure[service.MemoryPressure]),
			CpuPressurePercent:    toPercent(e.Pressure[service.CPUPressure]),
			IoPressurePercent:     toPercent(e.Pressure[service.IOPressure]),
		},
	}
	for _, l := range a.Limits {
		out.Limits = append(out.Limits, &gladsheimv1.LimitRecommendation{
			Name: l.Resource.String(), Current: amount(l.Resource, l.Now), Recommended: *amount(l.Resource, l.Advised), Value: l.Resource.Format(l.Advised), Enforced: l.Enforced, Why: l.Why,
		})
	}
	return out, nil
}
