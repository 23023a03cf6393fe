package api

import (
	"context"

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
	}
	for _, b := range info.Backends {
		out.Backends = append(out.Backends, &gladsheimv1.BackendInfo{
			Name: b.Name, Available: b.Available, Reason: utf8(b.Reason), Selected: b.Selected, Capabilities: b.Capabilities,
		})
	}
	return out, nil
}

func toSystemUsage(u service.SystemUsage) *gladsheimv1.SystemUsage {
	return &gladsheimv1.SystemUsage{
		MemoryTotalBytes:     u.MemoryTotal,
		MemoryAvailableBytes: u.MemoryAvailable,
		MemoryUsedBytes:      u.MemoryTotal - min(u.MemoryTotal, u.MemoryAvailable),
		CpuPercent:           u.CPUPercent,
		Cores:                uint32(max(0, u.Cores)),
		MeasuredAtUnixMs:     millis(u.Measured),
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
	for _, f := range h.agent.Doctor(ctx) {
		out.Findings = append(out.Findings, &gladsheimv1.Finding{
			Level: gladsheimv1.Finding_Level(f.Level), Title: utf8(f.Title), Detail: utf8(f.Detail), Fix: utf8(f.Fix),
		})
	}
	return out, nil
}

func (h *host) GetConfig(context.Context, *gladsheimv1.GetConfigRequest) (*gladsheimv1.AgentConfig, error) {
	c := h.agent.Configuration()
	return &gladsheimv1.AgentConfig{
		Json: utf8(string(c.Document)), Source: utf8(c.Source), LoadedUnixMs: millis(c.Loaded), ReloadError: clip(c.Refused, maxText),
	}, nil
}
