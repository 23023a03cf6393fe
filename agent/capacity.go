package agent

import (
	"hash/fnv"
	"io"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/procfs"
)

// capacity is what services may use of this machine: all that it has, or what the container
// or the cpuset that we are in leaves of it. Nothing is told of how busy the CPUs are.
type capacity struct {
	service.SystemUsage
	machine procfs.System
	cpus    service.Numbers // that may be used; none where that is all
}

// capacity looks anew.
func (a *Agent) capacity() (capacity, error) {
	machine, err := a.cfg.Procfs.System()
	if err != nil {
		return capacity{}, err
	}
	left, err := a.cfg.Facts.Room()
	if err != nil {
		return capacity{}, err
	}
	c := capacity{machine: machine, SystemUsage: service.SystemUsage{
		Measured: time.Now(), MemoryTotal: machine.MemoryTotal, MemoryAvailable: machine.MemoryAvailable, Cores: len(machine.CPUs),
	}}
	if limit := left.Memory; limit.Set && limit.Value < c.MemoryTotal {
		c.MemoryTotal, c.MemoryBy = limit.Value, left.MemoryBy
		c.MemoryAvailable = min(c.MemoryAvailable, limit.Value-min(limit.Value, left.Used))
	}
	// /proc/stat may be made up for a container (lxcfs), with numbers of its own.
	if cpus := left.CPUs; len(cpus) > 0 && cpus.Count() < c.Cores {
		c.cpus, c.Cores, c.CoresBy = cpus, cpus.Count(), left.CPUsBy
	}
	return c, nil
}

// busy is percent of one core, of the CPUs that may be used together.
func (a *Agent) busy(c capacity) float64 {
	// What was read of other CPUs is of no use.
	which := fnv.New64a()
	_, _ = io.WriteString(which, c.cpus.String()) // a hash takes everything
	return a.meter.Percent(hostName, which.Sum64(), a.started, c.Measured, c.machine.Busy(a.atStart, c.cpus))
}
