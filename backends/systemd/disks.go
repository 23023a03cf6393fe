package systemd

import (
	sd "github.com/coreos/go-systemd/v22/dbus"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/cgroup"
)

// rateProperties carry io_max (systemd.resource-control(5)), each an a(st), devices
// with their limits.
var rateProperties = [service.NumRates]string{
	service.ReadBPS: "IOReadBandwidthMax", service.WriteBPS: "IOWriteBandwidthMax",
	service.ReadIOPS: "IOReadIOPSMax", service.WriteIOPS: "IOWriteIOPSMax",
}

type deviceRate struct {
	Device string
	Rate   uint64
}

// diskProperties say which disks are limited, and that no others are: an empty list
// takes back what was, and the next one adds to it. Disks that are no more were found by
// Tree.Lacks.
func diskProperties(q service.Quota) (properties []sd.Property) {
	list, _ := service.ParseDevices(q.Text)
	for rate, name := range rateProperties {
		properties = append(properties, property(name, []deviceRate{}))
		var limits []deviceRate
		for _, limit := range list {
			if disk, err := cgroup.FindDisk(limit.Device); err == nil && limit.Rates[rate] != service.Unlimited {
				limits = append(limits, deviceRate{disk.Node, limit.Rates[rate]})
			}
		}
		if len(limits) > 0 {
			properties = append(properties, property(name, limits))
		}
	}
	return properties
}

// weightProperties give disks weights, an a(st) as well, and take back what was.
func weightProperties(q service.Quota) []sd.Property {
	const name = "IODeviceWeight"
	list, _ := service.ParseDeviceWeights(q.Text)
	var weights []deviceRate
	for _, w := range list {
		if disk, err := cgroup.FindDisk(w.Device); err == nil {
			weights = append(weights, deviceRate{disk.Node, w.Weight})
		}
	}
	properties := []sd.Property{property(name, []deviceRate{})}
	if len(weights) > 0 {
		properties = append(properties, property(name, weights))
	}
	return properties
}
