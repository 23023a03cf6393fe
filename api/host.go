package api

import (
	"context"
	"fmt"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// Version is the version of the API that is served.
const Version = "gladsheim.v1"

// host serves what concerns the host and the agent.
type host struct {
	gladsheimv1.UnsafeHostServiceServer
	*Server
}

func (h *host) GetHost(ctx context.Context, _ *gladsheimv1.GetHostRequest) (*gladsheimv1.HostInfo, error) {
	info, err := h.agent.Host(ctx)
	if err != nil {
		return nil, err
	}
	out := &gladsheimv1.HostInfo{
		Hostname:        utf8(info.Hostname),
		Kernel:          utf8(info.Kernel),
		AgentVersion:    info.Version,
		ApiVersion:      Version,
		StartTimeUnixMs: millis(info.Started),
		Platform:        info.Platform,
		MaxServices:     uint32(max(0, info.MaxServices)),
		Usage:           toSystemUsage(info.System),
		StateCounts:     countStates(info.States),
		Power:           toPower(info.Power),

		MemoryPromisedBytes: info.Promised,
		ServicesUncounted:   clip(info.Uncounted, maxText),
	}
	if info.Uncounted == "" {
		out.ServicesUsage = toUsage(info.All, info.System.Measured)
	}
	if info.Budget > 0 {
		out.MemoryBudgetBytes = &info.Budget
	}
	for _, b := range info.Backends {
		out.Backends = append(out.Backends, &gladsheimv1.BackendInfo{
			Name: b.Name, Available: b.Available, Reason: utf8(b.Reason), Selected: b.Selected, Capabilities: b.Capabilities,
		})
	}
	return out, nil
}

func toPower(p service.PowerInfo) *gladsheimv1.PowerInfo {
	out := &gladsheimv1.PowerInfo{
		Battery: p.Battery, OnBattery: p.Battery && p.Draining, Source: p.Source, Level: p.Level.String(),
		StopServicesBelowPercent: uint32(max(0, p.StopBelow)), ReduceMonitoringBelowPercent: uint32(max(0, p.ReduceBelow)),
	}
	if p.Battery {
		out.Percent = &p.Percent
	}
	return out
}

func toSystemUsage(u service.SystemUsage) *gladsheimv1.SystemUsage {
	return &gladsheimv1.SystemUsage{
		MemoryTotalBytes:     u.MemoryTotal,
		MemoryAvailableBytes: u.MemoryAvailable,
		MemoryUsedBytes:      u.MemoryTotal - min(u.MemoryTotal, u.MemoryAvailable),
		CpuPercent:           u.CPUPercent,
		Cores:                uint32(max(0, u.Cores)),
		MeasuredAtUnixMs:     millis(u.Measured),
		MemoryLimitedBy:      utf8(u.MemoryBy),
		CoresLimitedBy:       utf8(u.CoresBy),
	}
}

func countStates(counts [service.NumPublic]int) []*gladsheimv1.StateCount {
	var out []*gladsheimv1.StateCount
	for state, n := range counts {
		if n > 0 {
			out = append(out, &gladsheimv1.StateCount{State: gladsheimv1.ServiceState(state), Count: uint32(n)})
		}
	}
	return out
}

func (h *host) Doctor(ctx context.Context, _ *gladsheimv1.DoctorRequest) (*gladsheimv1.DoctorReport, error) {
	out := &gladsheimv1.DoctorReport{}
	found := h.agent.Doctor(ctx)
	for i, f := range found {
		if i == maxFindings {
			f = service.Finding{Level: service.SeverityProblem, Title: fmt.Sprintf("%d more findings are not shown", len(found)-i)}
		} else if i > maxFindings {
			break
		}
		out.Findings = append(out.Findings, &gladsheimv1.Finding{
			Level: gladsheimv1.Finding_Level(f.Level), Title: clip(f.Title, maxFinding), Detail: clip(f.Detail, maxFinding), Fix: clip(f.Fix, maxFinding),
		})
	}
	return out, nil
}

// Caps on a report, so that it fits in an answer however much is wrong.
const (
	maxFindings = 500
	maxFinding  = 2 << 10 // bytes of each of its texts
)

func (h *host) GetConfig(context.Context, *gladsheimv1.GetConfigRequest) (*gladsheimv1.AgentConfig, error) {
	c := h.agent.Configuration()
	out := &gladsheimv1.AgentConfig{
		Json: utf8(string(c.Document)), Source: utf8(c.Source), LoadedUnixMs: millis(c.Loaded), ReloadError: clip(c.Refused, maxText),
	}
	for _, o := range c.Older {
		out.OlderDefaults = append(out.OlderDefaults, &gladsheimv1.OlderDefault{
			ServiceName: o.Service.String(), Limit: o.Limit.String(), Has: *amount(o.Limit, o.Has), Now: *amount(o.Limit, o.Now),
		})
	}
	return out, nil
}
