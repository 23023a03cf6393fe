package api

import (
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func toUsage(u service.Usage, measured time.Time) *gladsheimv1.ResourceUsage {
	out := &gladsheimv1.ResourceUsage{
		MemoryBytes:             u.Memory,
		MemoryMb:                float32(megabytes(u.Memory)),
		CpuPercent:              float32(u.CPUPercent),
		MeasuredAtUnix:          seconds(measured),
		MemoryPeakBytes:         optional(u.MemoryPeak),
		CpuTimeUsec:             micros(u.CPUTime),
		CpuUserUsec:             optional(u.User),
		CpuSystemUsec:           optional(u.System),
		CpuPeriods:              optional(u.Periods),
		ThrottledUsec:           optional(u.Throttled),
		ThrottledPeriods:        optional(u.ThrottledPeriods),
		PidsCurrent:             optional(u.Pids),
		PidsPeak:                optional(u.PidsPeak),
		MemorySwapBytes:         optional(u.Swap),
		MemoryAnonBytes:         optional(u.Anon),
		MemoryFileBytes:         optional(u.File),
		MemoryInactiveFileBytes: optional(u.Inactive),
		MemoryKernelBytes:       optional(u.Kernel),
		Source:                  u.Source,
		OomKills:                optional(u.OOMKills),
		Io:                      toIO(u.IO),
		MemoryPressure:          toPressure(u.MemoryPressure),
		CpuPressure:             toPressure(u.CPUPressure),
		IoPressure:              toPressure(u.IOPressure),
	}
	for _, d := range u.Devices {
		out.Devices = append(out.Devices, &gladsheimv1.DeviceUsage{Device: d.Device, Io: toIO(d.IO)})
	}
	return out
}

func toIO(u service.IO) *gladsheimv1.IOUsage {
	if u == (service.IO{}) {
		return nil
	}
	return &gladsheimv1.IOUsage{
		ReadBytes: optional(u.ReadBytes), WriteBytes: optional(u.WriteBytes), Reads: optional(u.Reads), Writes: optional(u.Writes),
	}
}

func toPressure(p service.Pressure) *gladsheimv1.Pressure {
	if p == (service.Pressure{}) {
		return nil
	}
	return &gladsheimv1.Pressure{Some: toStall(p.Some), Full: toStall(p.Full)}
}

func toStall(s service.Stall) *gladsheimv1.Stall {
	if !s.Set {
		return nil
	}
	return &gladsheimv1.Stall{Avg10Percent: s.Avg10, Avg60Percent: s.Avg60, TotalUsec: micros(s.Total)}
}
