package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) setCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "set NAME… LIMIT=VALUE…",
		Short: "Change limits of services, at once if they run",
		Long: `Change limits of services, at once if they run, and for their coming starts.

LIMIT is memory_max, memory_high, memory_low, memory_min, memory_swap_max,
memory_zswap_max (bytes, or with KiB, MiB, GiB), cpu_percent, cpu_burst_percent (of one
core), cpu_weight, io_weight (1 to 10000), cpu_idle, oom_group (true or false),
cpuset_cpus, cpuset_mems (numbers, such as 0-3,8), pids_max, nofile, io_max
(DEVICE:RATE=N,RATE=N for each disk, with blanks between; RATE is read_bps, write_bps,
read_iops or write_iops; a device is also any file on it), io_device_weight
(DEVICE:WEIGHT for each disk, with blanks between), hugetlb_max (SIZE:BYTES for each
size of huge pages, with blanks between) or rlimits (NAME=VALUE or NAME=SOFT:HARD for
each, with blanks between, as in setrlimit(2)).
"max" lifts a limit. memory_warning_percent and cpu_warning_percent (1 to 100) say
from which share of a limit on it is a violation, memory_pressure_percent,
cpu_pressure_percent and io_pressure_percent for which share of the time the service
may be held up.

A lower memory_max kills nobody: memory is reclaimed first, and where that does not
do, or would hurt, nothing is changed. With --force the kernel kills what does not fit.`,
		Example:           "  gladsheim set web memory_max=256MiB cpu_percent=20 pids_max=max\n  gladsheim set web 'io_max=/dev/sda:read_bps=10MiB /srv/data:write_iops=100'",
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			var names, pairs []string
			for _, arg := range args {
				if strings.Contains(arg, "=") {
					pairs = append(pairs, arg)
				} else {
					names = append(names, arg)
				}
			}
			switch {
			case len(names) == 0:
				return usage(errors.New("cannot tell which service to change"))
			case len(pairs) == 0:
				return usage(errors.New("cannot tell what to set; write it as in: gladsheim set web memory_max=256MiB"))
			}
			limits, err := parseLimits(pairs)
			if err != nil {
				return err
			}
			asked := map[string]bool{}
			for _, pair := range pairs {
				name, _, _ := strings.Cut(pair, "=")
				asked[name] = true
			}
			head := a.headings(names)
			return each(cmd.Context(), a, names, answers[limitsOf]{
				ask: func(ctx context.Context, name string) (limitsOf, error) {
					ctx, cancel := a.question(ctx)
					defer cancel()
					l, err := a.client.SetResourceLimits(ctx, &gladsheimv1.ResourceLimitsRequest{ServiceName: name, Limits: limits, Force: force})
					return limitsOf{l, name}, err
				},
				show: func(l limitsOf) error {
					head(l.name)
					return a.showSet(l.ResourceLimits, maps.Clone(asked))
				},
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "lower memory_max at once, though the kernel kills what does not fit")
	return c
}

// level is a level of warning, which is no limit.
type level struct {
	name string
	at   func(*gladsheimv1.ResourceLimits) **float32
}

var levels = []level{
	{"memory_warning_percent", func(l *gladsheimv1.ResourceLimits) **float32 { return &l.MemoryWarningPercent }},
	{"cpu_warning_percent", func(l *gladsheimv1.ResourceLimits) **float32 { return &l.CpuWarningPercent }},
	{"memory_pressure_percent", func(l *gladsheimv1.ResourceLimits) **float32 { return &l.MemoryPressurePercent }},
	{"cpu_pressure_percent", func(l *gladsheimv1.ResourceLimits) **float32 { return &l.CpuPressurePercent }},
	{"io_pressure_percent", func(l *gladsheimv1.ResourceLimits) **float32 { return &l.IoPressurePercent }},
}

// showSet shows what was asked for, as it is now, and empties asked of levels.
func (a *app) showSet(l *gladsheimv1.ResourceLimits, asked map[string]bool) error {
	for _, level := range levels {
		if percent := *level.at(l); asked[level.name] && percent != nil {
			fmt.Fprintf(a.out, "%s is %g\n", level.name, *percent)
		}
		delete(asked, level.name)
	}
	if len(asked) == 0 {
		return nil
	}
	return a.limitTable(l.GetReports(), asked)
}

// parseLimits reads LIMIT=VALUE as a definition does, all faults at once.
func parseLimits(pairs []string) (*gladsheimv1.ResourceLimits, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	out := &gladsheimv1.ResourceLimits{}
	var faults []string
	known := map[string]bool{}
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		if known[name] {
			faults = append(faults, name+" is there twice")
			continue
		}
		known[name] = true
		if i := slices.IndexFunc(levels, func(l level) bool { return l.name == name }); i >= 0 {
			percent, err := parseLevel(name, value)
			if err != nil {
				faults = append(faults, err.Error())
			}
			*levels[i].at(out) = percent
			continue
		}
		r, err := service.ParseResource(name)
		if err != nil {
			faults = append(faults, unknownLimit(name, err))
			continue
		}
		q, err := r.Parse(value)
		if err != nil {
			faults = append(faults, err.Error())
			continue
		}
		put(out, r, q)
	}
	if len(faults) > 0 {
		return nil, usage(errors.New("cannot set limits: " + strings.Join(faults, "; ")))
	}
	return out, nil
}

// ofDefinitions are what stands beside limits in a definition, and is changed there alone.
var ofDefinitions = []string{"drift", "best_effort", "enforcement", "nice", "oom_score_adj", "scheduling", "scheduling_priority"}

// unknownLimit says that name is no limit, as err does, and what else it might be.
func unknownLimit(name string, err error) string {
	if slices.Contains(ofDefinitions, name) {
		return name + " is changed in the definition, for the next start on"
	}
	var names []string
	for _, level := range levels {
		names = append(names, level.name)
	}
	return err.Error() + "; levels are " + strings.Join(names, ", ")
}

func parseLevel(name, value string) (*float32, error) {
	percent, err := strconv.ParseFloat(value, 32)
	if err != nil {
		return nil, fmt.Errorf("%s: %q is not a number of percent", name, value)
	}
	if err := service.CheckWarning(percent); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	level := float32(percent)
	return &level, nil
}

func put(out *gladsheimv1.ResourceLimits, r service.Resource, q service.Quota) {
	small := uint32(q.Value) // a weight, at most 10000
	yes, text := q.Value != 0, r.Format(q)
	switch r {
	case service.MemoryMax:
		out.MaxMemoryBytes = q.Value
	case service.MemoryHigh:
		out.MemoryHighBytes = &q.Value
	case service.MemorySwapMax:
		out.MemorySwapMaxBytes = &q.Value
	case service.CPUMax:
		out.MaxCpuPercent = float32(q.Percent())
	case service.CPUWeight:
		out.CpuWeight = &small
	case service.PidsMax:
		out.PidsMax = &q.Value
	case service.IOWeight:
		out.IoWeight = &small
	case service.NoFile:
		out.Nofile = &q.Value
	case service.MemoryLow:
		out.MemoryLowBytes = &q.Value
	case service.MemoryMin:
		out.MemoryMinBytes = &q.Value
	case service.CPUIdle:
		out.CpuIdle = &yes
	case service.OOMGroup:
		out.OomGroup = &yes
	case service.MemoryZswapMax:
		out.MemoryZswapMaxBytes = &q.Value
	case service.CPUSetCPUs:
		out.CpusetCpus = &text
	case service.Rlimits:
		out.Rlimits = &text
	case service.IOMax:
		out.IoMax = &text
	case service.IODeviceWeight:
		out.IoDeviceWeight = &text
	case service.HugetlbMax:
		out.HugetlbMax = &text
	case service.CPUSetMems:
		out.CpusetMems = &text
	case service.CPUBurst:
		burst := float32(q.Percent())
		out.CpuBurstPercent = &burst
	}
}
