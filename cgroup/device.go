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

// byNumber turns limits of devices into those of disks by their numbers.
func byNumber(q service.Quota) (limits []service.DeviceLimit, err error) {
	names := map[string]string{}
	list, err := service.ParseDevices(q.Text)
	if err != nil {
		return nil, err
	}
	for _, limit := range list {
		if limit.Device, err = noteDisk(names, limit.Device); err != nil {
			return nil, err
		}
		limits = append(limits, limit)
	}
	return limits, nil
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

// Numbered is q, limits or weights of disks, with disks by their numbers, which stay when
// their files do not; q itself if one can not be found.
func Numbered(r service.Resource, q service.Quota) service.Quota {
	if by, err := numbered(r, q); err == nil {
		return by
	}
	return q
}

func numbered(r service.Resource, q service.Quota) (service.Quota, error) {
	if r.Unit() == service.Weights {
		list, err := weightsByNumber(q)
		if err != nil {
			return service.Quota{}, err
		}
		return service.OfDeviceWeights(list)
	}
	list, err := byNumber(q)
	if err != nil {
		return service.Quota{}, err
	}
	return service.OfDevices(list)
}

// named gives disks the names that asked uses for them, as far as those lead to them still.
func named(r service.Resource, q, asked service.Quota) service.Quota {
	if r.Unit() == service.Weights {
		return renamed(q, asked, service.ParseDeviceWeights, service.OfDeviceWeights, func(w *service.DeviceWeight) *string { return &w.Device })
	}
	return renamed(q, asked, service.ParseDevices, service.OfDevices, func(l *service.DeviceLimit) *string { return &l.Device })
}

func renamed[T any](q, asked service.Quota, parse func(string) ([]T, error), of func([]T) (service.Quota, error), device func(*T) *string) service.Quota {
	list, err := parse(q.Text)
	wanted, wantedErr := parse(asked.Text)
	if err != nil || wantedErr != nil {
		return q
	}
	for i := range wanted {
		name := *device(&wanted[i])
		disk, err := FindDisk(name)
		for j := range list {
			if at := device(&list[j]); err == nil && *at == disk.Number {
				*at = name
			}
		}
	}
	out, err := of(list)
	if err != nil {
		return q
	}
	return out
}

// lost tells whether a disk that asked limits is limited no more: its name leads nowhere,
// and none that has another is limited so. Its file may go while the disk stays.
func lost(held, asked service.Quota) bool {
	list, err := service.ParseDevices(held.Text)
	wanted, wantedErr := service.ParseDevices(asked.Text)
	if err != nil || wantedErr != nil {
		return true
	}
	var nameless []service.DeviceLimit
	for _, want := range wanted {
		disk, err := FindDisk(want.Device)
		if err != nil {
			nameless = append(nameless, want)
			continue
		}
		list = slices.DeleteFunc(list, func(l service.DeviceLimit) bool { return l.Device == disk.Number })
	}
	for _, want := range nameless {
		at := slices.IndexFunc(list, func(l service.DeviceLimit) bool { return l.Rates == want.Rates })
		if at < 0 {
			return true
		}
		list = slices.Delete(list, at, at+1)
	}
	return false
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
	want, err := byNumber(q)
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
