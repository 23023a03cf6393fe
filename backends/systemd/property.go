package systemd

import (
	"fmt"
	"math"
	"os"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/cgroup"
	"github.com/gladsheim/gladsheim/units"
)

func property(name string, value any) sd.Property {
	return sd.Property{Name: name, Value: dbus.MakeVariant(value)}
}

// limitProperties are the properties that carry the limits
// (org.freedesktop.systemd1(5), systemd.resource-control(5)). Each is a t, and
// its highest value means infinity, as Unlimited does, or of lists an ay, the bits of
// the numbers, and none means all. Limits of disks have four, see diskProperties.
var limitProperties = [service.NumResources]string{
	service.MemoryMax:     "MemoryMax",
	service.MemoryHigh:    "MemoryHigh",
	service.MemoryLow:     "MemoryLow",
	service.MemoryMin:     "MemoryMin",
	service.MemorySwapMax: "MemorySwapMax",
	service.CPUMax:        "CPUQuotaPerSecUSec",
	service.CPUWeight:     "CPUWeight",
	service.PidsMax:       "TasksMax",
	service.IOWeight:      "IOWeight",

	service.CPUSetCPUs:     "AllowedCPUs",
	service.CPUSetMems:     "AllowedMemoryNodes",
	service.MemoryZswapMax: "MemoryZSwapMax",
}

// unmanaged are the limits that systemd, or an older one, leaves alone: we write them
// ourselves. A weight that a disk had systemd leaves in the kernel.
var unmanaged = []service.Resource{service.CPUBurst, service.MemoryZswapMax, service.OOMGroup, service.IODeviceWeight}

// among are the limits that count among siblings. A scope has none in its cell, so the
// cell has them too. Its parent, the slice, has what its cells ask to be kept for them.
var among = append([]service.Resource{service.CPUWeight, service.CPUIdle, service.IOWeight, service.IODeviceWeight}, cgroup.Protections...)

// agentUnit is what the agent is installed as.
const agentUnit = "gladsheimd.service"

// scopeProperties describe the scope of l but for its processes.
func scopeProperties(l service.Launch, limits service.Limits, cell string, knows253 bool) []sd.Property {
	stop := l.Spec.Stop
	properties := []sd.Property{
		sd.PropDescription(fmt.Sprintf("Gladsheim service %s, incarnation %d", l.Name, l.Incarnation)),
		sd.PropSlice(cell),
		property("CollectMode", "inactive-or-failed"),
		property("Delegate", false),
		// When somebody else stops the scope, or the host goes down, the
		// program is treated as its definition says.
		property("KillSignal", int32(stop.Signal)),
		property("TimeoutStopUSec", uint64(max(stop.Timeout, time.Second)/time.Microsecond)),
		property("SendSIGHUP", false),
		// When the host goes down the agent is ended first: it would take the
		// end of the scope for one that calls for a restart.
		property("Before", []string{agentUnit}),
		property("CPUAccounting", true),
		property("MemoryAccounting", true),
		property("TasksAccounting", true),
		property("IOAccounting", true),
	}
	switch {
	case !knows253:
	case limits[service.OOMGroup] == service.Of(0):
		properties = append(properties, property("OOMPolicy", "continue"))
	default:
		properties = append(properties, property("OOMPolicy", "kill"))
	}
	if !limits[service.PidsMax].Set {
		// Else the host's DefaultTasksMax would hold.
		limits[service.PidsMax] = service.Of(service.Unlimited)
	}
	return append(properties, limitsAsProperties(limits, knows253)...)
}

// cellProperties describe the cell of l.
func cellProperties(l service.Launch, limits service.Limits) []sd.Property {
	properties := []sd.Property{
		sd.PropDescription(fmt.Sprintf("Counters of Gladsheim service %s, incarnation %d", l.Name, l.Incarnation)),
		property("CPUAccounting", true),
		property("MemoryAccounting", true),
		property("TasksAccounting", true),
		property("IOAccounting", true),
		property("TasksMax", uint64(math.MaxUint64)),
	}
	return append(properties, limitsAsProperties(amongSiblings(limits), true)...)
}

func amongSiblings(limits service.Limits) service.Limits { return only(limits, among) }

func only(limits service.Limits, these []service.Resource) (some service.Limits) {
	for _, r := range these {
		some[r] = limits[r]
	}
	return some
}

// left are the limits of l that are for us to write, when systemd has done its part:
// those that it does not know; those that are lifted, which it leaves as they are once it
// needs their controller no more; and memory_max, which a later systemd writes without
// waiting until what does not fit has gone (O_NONBLOCK, Linux 6.16).
func left(l service.Limits) service.Limits {
	ours := only(l, unmanaged)
	ours[service.MemoryMax] = l[service.MemoryMax]
	for r, q := range l {
		if unit := service.Resource(r).Unit(); q.Value == service.Unlimited && unit != service.PerProcess && unit != service.Devices {
			ours[r] = q
		}
	}
	return ours
}

func limitsAsProperties(limits service.Limits, knows253 bool) []sd.Property {
	var properties []sd.Property
	for i, q := range limits {
		r := service.Resource(i)
		switch name := limitProperties[r]; {
		case q.Set && r.Unit() == service.Devices:
			properties = append(properties, diskProperties(q)...)
		case q.Set && r.Unit() == service.Weights:
			properties = append(properties, weightProperties(q)...)
		case !q.Set || name == "" || r == service.MemoryZswapMax && !knows253:
		case r.Unit() == service.List:
			properties = append(properties, property(name, mask(q)))
		default:
			properties = append(properties, property(name, q.Value))
		}
	}
	const weight = "CPUWeight"
	switch idle := limits[service.CPUIdle]; {
	case idle == service.Of(1):
		properties = append(properties, property(weight, uint64(0))) // which means idle
	case idle.Set && !limits[service.CPUWeight].Set:
		// The usual one: with none systemd would take the controller away.
		properties = append(properties, property(weight, uint64(100)))
	}
	return properties
}

// mask is the bits of a list that has passed Resource.Check.
func mask(q service.Quota) []byte {
	list, _ := service.ParseNumbers(q.Text)
	return list.Mask()
}

// rounded returns limits as systemd will keep them, so that what is asked of
// it stays what it is. CPU quotas are whole percents, the next higher one: they
// are written to a drop-in file as such by systemd 252, and the rest would be
// lost at the next daemon-reload. Bytes become whole pages in the kernel.
func rounded(limits service.Limits) service.Limits {
	page := uint64(os.Getpagesize())
	for i, q := range limits {
		r := service.Resource(i)
		switch {
		case !q.Set || q.Value == service.Unlimited:
		case r == service.CPUMax:
			const percent = service.UsecPerPercent
			limits[r].Value = (q.Value + percent - 1) / percent * percent
		case r == service.CPUBurst:
			limits[r].Value = q.Value / 10 * 10 // whole microseconds in a period
		case r.Unit() == service.Bytes:
			limits[r].Value = q.Value / page * page
		}
	}
	return limits
}

// plan is what the unit names of an incarnation are and where its cgroups will
// be. A slice without a dash in its name lies in the root, one with a dash in
// the slice named by what is before it (systemd.slice(5)); the paths are still
// only a forecast, and read from /proc/PID/cgroup after the deed.
func plan(l service.Launch) (scope, cell, cgroupPath string) {
	scope = units.Scope(l.Name, l.Incarnation)
	cell = cellOf(scope)
	return scope, cell, cgroupOf(scope)
}

func cgroupOf(scope string) string { return "/" + units.Slice + "/" + cellOf(scope) + "/" + scope }
