package api

import (
	"fmt"
	"math"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

const mebibyte = 1 << 20

func megabytes(n uint64) float64 {
	if n == service.Unlimited {
		return math.Inf(1)
	}
	return float64(n) / mebibyte
}

// fromLimits reads what a caller asks for; all that is wrong is told at once.
// What is absent, or 0 where the field can not be absent, asks for nothing.
//
// best_effort belongs to the definition: a caller that sends what the definition
// says is served, one that would change it is refused rather than ignored.
func fromLimits(in *gladsheimv1.ResourceLimits, spec *service.Spec) (service.Limits, service.Warnings, error) {
	var limits service.Limits
	var warnings service.Warnings
	var faults []service.Fault
	set := func(field string, r service.Resource, q service.Quota, err error) {
		if err == nil {
			err = r.Check(q)
		}
		if err != nil {
			faults = append(faults, service.Fault{Field: field, Message: err.Error()})
		}
		limits[r] = q
	}
	setWhole := func(field string, r service.Resource, value *uint64) {
		if value != nil {
			set(field, r, service.Of(*value), nil)
		}
	}
	setText := func(field string, r service.Resource, value *string) {
		if value != nil {
			q, err := r.Parse(*value)
			set(field, r, q, err)
		}
	}
	if in.GetMaxMemoryBytes() != 0 {
		set("max_memory_bytes", service.MemoryMax, service.Of(in.GetMaxMemoryBytes()), nil)
	} else if in.GetMaxMemoryMb() != 0 {
		q, err := memoryQuota(float64(in.GetMaxMemoryMb()))
		set("max_memory_mb", service.MemoryMax, q, err)
	}
	if in.GetMaxCpuPercent() != 0 {
		q, err := service.CPUMax.OfPercent(float64(in.GetMaxCpuPercent()))
		set("max_cpu_percent", service.CPUMax, q, err)
	}
	if in != nil {
		setWhole("memory_low_bytes", service.MemoryLow, in.MemoryLowBytes)
		setWhole("memory_min_bytes", service.MemoryMin, in.MemoryMinBytes)
		if in.CpuBurstPercent != nil {
			q, err := service.CPUBurst.OfPercent(float64(*in.CpuBurstPercent))
			set("cpu_burst_percent", service.CPUBurst, q, err)
		}
		setWhole("cpu_idle", service.CPUIdle, zeroOrOne(in.CpuIdle))
		setWhole("memory_zswap_max_bytes", service.MemoryZswapMax, in.MemoryZswapMaxBytes)
		setWhole("oom_group", service.OOMGroup, zeroOrOne(in.OomGroup))
		setText("cpuset_cpus", service.CPUSetCPUs, in.CpusetCpus)
		setText("cpuset_mems", service.CPUSetMems, in.CpusetMems)
		setText("io_max", service.IOMax, in.IoMax)
		setText("rlimits", service.Rlimits, in.Rlimits)
		setText("hugetlb_max", service.HugetlbMax, in.HugetlbMax)
		setText("io_device_weight", service.IODeviceWeight, in.IoDeviceWeight)
		setWhole("memory_high_bytes", service.MemoryHigh, in.MemoryHighBytes)
		setWhole("memory_swap_max_bytes", service.MemorySwapMax, in.MemorySwapMaxBytes)
		setWhole("cpu_weight", service.CPUWeight, widen(in.CpuWeight))
		setWhole("pids_max", service.PidsMax, in.PidsMax)
		setWhole("io_weight", service.IOWeight, widen(in.IoWeight))
		setWhole("nofile", service.NoFile, in.Nofile)
		warn := func(field string, asked *float32, level *float64) {
			if asked == nil {
				return
			}
			*level = float64(*asked)
			if err := service.CheckWarning(*level); err != nil {
				faults = append(faults, service.Fault{Field: field, Message: err.Error()})
			}
		}
		warn("memory_warning_percent", in.MemoryWarningPercent, &warnings.Memory)
		warn("cpu_warning_percent", in.CpuWarningPercent, &warnings.CPU)
		warn("memory_pressure_percent", in.MemoryPressurePercent, &warnings.Pressure[service.MemoryPressure])
		warn("cpu_pressure_percent", in.CpuPressurePercent, &warnings.Pressure[service.CPUPressure])
		warn("io_pressure_percent", in.IoPressurePercent, &warnings.Pressure[service.IOPressure])
		if in.BestEffort != nil && *in.BestEffort != spec.BestEffort {
			faults = append(faults, service.Fault{Field: "best_effort", Message: fmt.Sprintf("is set in the definition, to %v, and can only be changed there", spec.BestEffort)})
		}
	}
	if len(faults) > 0 {
		return service.Limits{}, service.Warnings{}, &service.Error{Op: "set limits of", Service: spec.Name, Kind: service.Invalid, Faults: faults}
	}
	return limits, warnings, nil
}

// memoryQuota turns megabytes into a quota of bytes.
func memoryQuota(mb float64) (service.Quota, error) {
	switch {
	case math.IsInf(mb, 1):
		return service.Of(service.Unlimited), nil
	case math.IsNaN(mb) || mb < 0 || mb > 1<<30:
		return service.Quota{}, fmt.Errorf("%v is not an amount of memory in megabytes", mb)
	}
	return service.Of(uint64(math.Round(mb * mebibyte))), nil
}

func zeroOrOne(v *bool) *uint64 {
	if v == nil {
		return nil
	}
	var n uint64
	if *v {
		n = 1
	}
	return &n
}

func widen(v *uint32) *uint64 {
	if v == nil {
		return nil
	}
	wide := uint64(*v)
	return &wide
}

// toLimits tells what holds of each limit: what was read back from the kernel,
// else what was asked for.
func toLimits(applied service.Applied, st *service.Status) *gladsheimv1.ResourceLimits {
	out := &gladsheimv1.ResourceLimits{
		MemoryWarningPercent:  level(st.Warnings.Memory),
		CpuWarningPercent:     level(st.Warnings.CPU),
		MemoryPressurePercent: level(st.Warnings.Pressure[service.MemoryPressure]),
		CpuPressurePercent:    level(st.Warnings.Pressure[service.CPUPressure]),
		IoPressurePercent:     level(st.Warnings.Pressure[service.IOPressure]),
		MemoryHighBytes:       holds(applied, service.MemoryHigh),
		MemorySwapMaxBytes:    holds(applied, service.MemorySwapMax),
		PidsMax:               holds(applied, service.PidsMax),
		CpuWeight:             narrow(holds(applied, service.CPUWeight)),
		IoWeight:              narrow(holds(applied, service.IOWeight)),
		Nofile:                holds(applied, service.NoFile),
		MemoryLowBytes:        holds(applied, service.MemoryLow),
		MemoryMinBytes:        holds(applied, service.MemoryMin),
		CpuIdle:               yes(holds(applied, service.CPUIdle)),
		MemoryZswapMaxBytes:   holds(applied, service.MemoryZswapMax),
		OomGroup:              yes(holds(applied, service.OOMGroup)),
		CpusetCpus:            holdsText(applied, service.CPUSetCPUs),
		CpusetMems:            holdsText(applied, service.CPUSetMems),
		IoMax:                 holdsText(applied, service.IOMax),
		Rlimits:               holdsText(applied, service.Rlimits),
		HugetlbMax:            holdsText(applied, service.HugetlbMax),
		IoDeviceWeight:        holdsText(applied, service.IODeviceWeight),
		BestEffort:            &st.Spec.BestEffort,
		Reports:               toReports(applied),
	}
	for r, fought := range st.Fought {
		if fought && st.Machine.State.Alive() {
			out.FoughtOver = append(out.FoughtOver, service.Resource(r).String())
		}
	}
	if n := holds(applied, service.MemoryMax); n != nil {
		out.MaxMemoryBytes, out.MaxMemoryMb = *n, float32(megabytes(*n))
	}
	if n := holds(applied, service.CPUMax); n != nil {
		out.MaxCpuPercent = float32(service.Of(*n).Percent())
	}
	if n := holds(applied, service.CPUBurst); n != nil {
		burst := float32(service.Of(*n).Percent())
		out.CpuBurstPercent = &burst
	}
	return out
}

func yes(v *uint64) *bool {
	if v == nil {
		return nil
	}
	is := *v != 0
	return &is
}

// holdsText is what holds of a limit that is no number, as people write it.
func holdsText(applied service.Applied, r service.Resource) *string {
	q := applied[r].Applied
	if !q.Set {
		q = applied[r].Requested
	}
	return words(r, q)
}

// level is nil for none.
func level(percent float64) *float32 {
	if percent == 0 {
		return nil
	}
	p := float32(percent)
	return &p
}

func holds(applied service.Applied, r service.Resource) *uint64 {
	if q := applied[r].Applied; q.Set {
		return &q.Value
	}
	return optional(applied[r].Requested)
}

func narrow(v *uint64) *uint32 {
	if v == nil {
		return nil
	}
	n := uint32(min(*v, math.MaxUint32))
	return &n
}

const notEnforced = "this host does not enforce it; gladsheim doctor tells why"

func toReports(applied service.Applied) []*gladsheimv1.LimitReport {
	out := make([]*gladsheimv1.LimitReport, 0, len(applied))
	for i, a := range applied {
		r := service.Resource(i)
		report := &gladsheimv1.LimitReport{
			Name: r.String(), Requested: amount(r, a.Requested), Applied: amount(r, a.Applied), Instead: amount(r, a.Instead),
			Effective: amount(r, a.Effective), SetBy: utf8(a.SetBy), Enforced: a.Enforced, AtRestart: amount(r, a.AtRestart),
			RequestedText: words(r, a.Requested), AppliedText: words(r, a.Applied), EffectiveText: words(r, a.Effective), AtRestartText: words(r, a.AtRestart),
		}
		if !a.Enforced {
			report.Reason = notEnforced
		}
		out = append(out, report)
	}
	return out
}

// words is a quota that is no number, as people write it; nil when it is not set, or a
// number.
func words(r service.Resource, q service.Quota) *string {
	if !q.Set || r.Unit().IsNumber() {
		return nil
	}
	text := r.Format(q)
	return &text
}

// amount is a quota in the unit that people know; nil when it is not set, or no number.
func amount(r service.Resource, q service.Quota) *float64 {
	if !q.Set || !r.Unit().IsNumber() {
		return nil
	}
	v := float64(q.Value)
	switch {
	case q.Value == service.Unlimited:
		v = math.Inf(1)
	case r.Unit() == service.Percent:
		v = q.Percent()
	}
	return &v
}
