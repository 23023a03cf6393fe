package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// decodeWeights reads io.weight but for its first line, the weight of all disks that are
// not named (cgroup-v2.rst).
func decodeWeights(text string) (service.Quota, error) {
	var list []service.DeviceWeight
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || fields[0] == "default" {
			continue
		}
		if len(fields) != 2 {
			return service.Quota{}, errForm
		}
		n, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			return service.Quota{}, err
		}
		list = append(list, service.DeviceWeight{Device: fields[0], Weight: n})
	}
	return service.OfDeviceWeights(list)
}

// setWeights gives the disks that q names a weight of their own, and takes it from all
// others.
func setWeights(d *dir, q service.Quota) error {
	r := service.IODeviceWeight
	want, err := weightsByNumber(q)
	if err != nil {
		return err
	}
	now, err := readLimit(d, r)
	if err != nil {
		return err
	}
	held, err := service.ParseDeviceWeights(now.Text)
	if err != nil {
		return err
	}
	write := func(device, weight string) error {
		line := device + " " + weight
		if err := d.write(limitFiles[r].name, line); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		return nil
	}
	for _, h := range held {
		if !slices.ContainsFunc(want, func(w service.DeviceWeight) bool { return w.Device == h.Device }) {
			if err := write(h.Device, "default"); err != nil {
				return err
			}
		}
	}
	for _, w := range want {
		err := write(w.Device, strconv.FormatUint(w.Weight, 10))
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("nothing shares %s out by weight, %s: %w", w.Device, shareRemedy(w.Device), err)
		}
		if err != nil {
			return err
		}
	}
	wanted, err := service.OfDeviceWeights(want)
	if err != nil {
		return err
	}
	now, err = readLimit(d, r)
	if err == nil && now != wanted {
		err = fmt.Errorf("%s/%s holds %s after %s was written", d.Name(), limitFiles[r].name, r.Format(now), r.Format(wanted))
	}
	return err
}

// weightsByNumber is byNumber of weights.
func weightsByNumber(q service.Quota) (weights []service.DeviceWeight, err error) {
	list, err := service.ParseDeviceWeights(q.Text)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for i := range list {
		if list[i].Device, err = noteDisk(names, list[i].Device); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(a, b service.DeviceWeight) int { return strings.Compare(a.Device, b.Device) })
	return list, nil
}

const costFile = "io.cost.qos"

// lackOfWeights tells which disk of q has no weights, "" for none. By weight a disk is
// shared out by iocost alone, once it is enabled for the disk in the root (cgroup-v2.rst,
// io.cost.qos): without it the kernel refuses a weight of the disk (EOPNOTSUPP), and
// goes by no other. Of a tree whose root we do not see only the attempt tells.
func (t Tree) lackOfWeights(q service.Quota) string {
	if q.Text == "" {
		return ""
	}
	list, err := weightsByNumber(q)
	if err != nil {
		return err.Error()
	}
	text, err := t.Group("/").read(costFile)
	if err != nil {
		return ""
	}
	var none []string
	for _, w := range list {
		if !shared(text, w.Device) {
			none = append(none, fmt.Sprintf("nothing shares %s out by weight, %s", nodeOf(w.Device), shareRemedy(w.Device)))
		}
	}
	return strings.Join(none, "; ")
}

// shared tells whether iocost is enabled for the disk, by what io.cost.qos holds.
func shared(text, number string) bool {
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 0 && fields[0] == number {
			return slices.Contains(fields, "enable=1")
		}
	}
	return false
}

// shareRemedy is how to have a disk shared out.
func shareRemedy(number string) string {
	scheduler := ""
	if text, err := os.ReadFile(filepath.Join(sysBlock, number, "queue/scheduler")); err == nil && strings.Contains(string(text), "[bfq]") {
		scheduler = "its scheduler bfq has weights of its own, which are not served: choose another one, and "
	}
	return fmt.Sprintf("%senable iocost for it: write \"%s enable=1\" into /sys/fs/cgroup/%s", scheduler, number, costFile)
}

// nodeOf is the device file of a disk, for people.
func nodeOf(number string) string {
	if disk, err := FindDisk(number); err == nil {
		return disk.Node
	}
	return number
}
