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

// sysBlock lists the block devices by their numbers; a variable for tests.
var sysBlock = "/sys/dev/block"

// Disk is a whole disk: the kernel limits no part of one (ENODEV).
type Disk struct {
	Number string // MAJOR:MINOR
	Node   string // its device file
}

// FindDisk finds the disk that device names: its own number or device file, that of a
// part of it, or any file that lies on it.
func FindDisk(device string) (Disk, error) {
	number := device
	if strings.HasPrefix(device, "/") {
		var st unix.Stat_t
		if err := unix.Stat(device, &st); err != nil {
			return Disk{}, fmt.Errorf("%s: %w", device, err)
		}
		dev := st.Dev
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			dev = st.Rdev
		}
		number = fmt.Sprintf("%d:%d", unix.Major(uint64(dev)), unix.Minor(uint64(dev)))
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(sysBlock, number))
	if errors.Is(err, os.ErrNotExist) {
		return Disk{}, fmt.Errorf("%s is no disk and lies on none", device)
	}
	if err != nil {
		return Disk{}, err
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	text, err := os.ReadFile(filepath.Join(dir, "uevent"))
	if err != nil {
		return Disk{}, err
	}
	var major, minor, name string
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "MAJOR":
			major = value
		case "MINOR":
			minor = value
		case "DEVNAME":
			name = value
		}
	}
	if major == "" || minor == "" || name == "" {
		return Disk{}, fmt.Errorf("%s/uevent does not say which device it is", dir)
	}
	return Disk{major + ":" + minor, "/dev/" + name}, nil
}

// byNumber turns limits of devices into those of disks by their numbers, and tells
// which device each disk was named by.
func byNumber(q service.Quota) (limits []service.DeviceLimit, names map[string]string, err error) {
	names = map[string]string{}
	list, err := service.ParseDevices(q.Text)
	if err != nil {
		return nil, names, err
	}
	for _, limit := range list {
		if limit.Device, err = noteDisk(names, limit.Device); err != nil {
			return nil, names, err
		}
		limits = append(limits, limit)
	}
	return limits, names, nil
}

// noteDisk finds the number of the disk that device names, and refuses one that is among
// names already.
func noteDisk(names map[string]string, device string) (number string, err error) {
	disk, err := FindDisk(device)
	if err != nil {
		return "", err
	}
	if other, twice := names[disk.Number]; twice {
		return "", fmt.Errorf("%s and %s are the same disk, %s", other, device, disk.Node)
	}
	names[disk.Number] = device
	return disk.Number, nil
}

// SameDisks tells whether two limits of devices are the same, however they name them.
func SameDisks(r service.Resource, q, other service.Quota) bool {
	if r.Unit() == service.Weights {
		one, _, err := weightsByNumber(q)
		two, _, otherErr := weightsByNumber(other)
		return err == nil && otherErr == nil && slices.Equal(one, two)
	}
	one, _, err := byNumber(q)
	two, _, otherErr := byNumber(other)
	return err == nil && otherErr == nil && slices.Equal(one, two)
}

// named gives disks the names that asked uses for them.
func named(r service.Resource, q, asked service.Quota) service.Quota {
	if r.Unit() == service.Weights {
		_, names, err := weightsByNumber(asked)
		list, listErr := service.ParseDeviceWeights(q.Text)
		return renamed(q, list, names, errors.Join(err, listErr), func(w *service.DeviceWeight) *string { return &w.Device }, service.OfDeviceWeights)
	}
	_, names, err := byNumber(asked)
	list, listErr := service.ParseDevices(q.Text)
	return renamed(q, list, names, errors.Join(err, listErr), func(l *service.DeviceLimit) *string { return &l.Device }, service.OfDevices)
}

// renamed is the quota of list, which was read from q, with other names for disks; q
// itself after an error.
func renamed[T any](q service.Quota, list []T, names map[string]string, err error, device func(*T) *string, of func([]T) (service.Quota, error)) service.Quota {
	if err != nil {
		return q
	}
	for i := range list {
		if name, ok := names[*device(&list[i])]; ok {
			*device(&list[i]) = name
		}
	}
	out, err := of(list)
	if err != nil {
		return q
	}
	return out
}

// rateKeys are the rates in io.max (cgroup-v2.rst).
var rateKeys = [service.NumRates]string{"rbps", "wbps", "riops", "wiops"}

// decodeDevices reads io.max: a line for each disk that has a limit.
func decodeDevices(text string) (service.Quota, error) {
	var list []service.DeviceLimit
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		limit := service.DeviceLimit{Device: fields[0]}
		for r := range limit.Rates {
			limit.Rates[r] = service.Unlimited
		}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			r := slices.Index(rateKeys[:], key)
			if r < 0 {
				continue // of a later kernel
			}
			n, err := number(value)
			if err != nil {
				return service.Quota{}, err
			}
			limit.Rates[r] = n
		}
		list = append(list, limit)
	}
	return service.OfDevices(list)
}

// setDevices limits the disks that q names and no others, and reads that back.
func setDevices(d *dir, r service.Resource, q service.Quota) error {
	want, _, err := byNumber(q)
	if err != nil {
		return err
	}
	now, err := readLimit(d, r)
	if err != nil {
		return err
	}
	held, err := service.ParseDevices(now.Text)
	if err != nil {
		return err
	}
	write := func(limit service.DeviceLimit, of func(service.Rate) uint64) error {
		line := limit.Device
		for rate, key := range rateKeys {
			line += " " + key + "=" + rateText(of(service.Rate(rate)))
		}
		if err := d.write(limitFiles[r].name, line); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		return nil
	}
	for _, limit := range held {
		if !slices.ContainsFunc(want, func(w service.DeviceLimit) bool { return w.Device == limit.Device }) {
			if err := write(limit, func(service.Rate) uint64 { return service.Unlimited }); err != nil {
				return err
			}
		}
	}
	for _, limit := range want {
		if err := write(limit, func(rate service.Rate) uint64 { return limit.Rates[rate] }); err != nil {
			return err
		}
	}
	wanted, err := service.OfDevices(want)
	if err != nil {
		return err
	}
	now, err = readLimit(d, r)
	if err == nil && now != wanted {
		err = fmt.Errorf("%s/%s holds %s after %s was written", d.Name(), limitFiles[r].name, r.Format(now), r.Format(wanted))
	}
	return err
}

func rateText(n uint64) string {
	if n == service.Unlimited {
		return "max"
	}
	return strconv.FormatUint(n, 10)
}

// tighter is what holds of two limits of disks, by their numbers, or of huge pages, and
// whether the second makes a difference.
func tighter(r service.Resource, one, other service.Quota) (service.Quota, bool) {
	if r.Unit() == service.PerPage {
		return fewerHugePages(one, other)
	}
	list, err := service.ParseDevices(one.Text)
	more, moreErr := service.ParseDevices(other.Text)
	if err != nil || moreErr != nil {
		return one, false
	}
	differs := false
	for _, limit := range more {
		i := slices.IndexFunc(list, func(l service.DeviceLimit) bool { return l.Device == limit.Device })
		if i < 0 {
			list, differs = append(list, limit), true
			continue
		}
		for r, n := range limit.Rates {
			if n < list[i].Rates[r] {
				list[i].Rates[r], differs = n, true
			}
		}
	}
	q, err := service.OfDevices(list)
	return q, differs && err == nil
}
