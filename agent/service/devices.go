package service

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// DeviceLimit is how fast one disk may be used, in bytes and operations a second;
// Unlimited where nothing limits it.
type DeviceLimit struct {
	Device string // path of the disk, of a part of it, or of a file on it, or its number, MAJOR:MINOR
	Rates  [NumRates]uint64
}

// Rate is one way in which a disk is used.
type Rate uint8

// The rates.
const (
	ReadBPS Rate = iota
	WriteBPS
	ReadIOPS
	WriteIOPS
	NumRates
)

// Rates name the rates, by their numbers, as people write them.
var Rates = [NumRates]string{"read_bps", "write_bps", "read_iops", "write_iops"}

// Bytes tells whether r counts bytes, not operations.
func (r Rate) Bytes() bool { return r == ReadBPS || r == WriteBPS }

// high is the most that r may be: the kernel keeps operations in 32 bits.
func (r Rate) high() uint64 {
	if r.Bytes() {
		return 1 << 50
	}
	return 1<<32 - 1
}

// Parse reads a rate: bytes as ParseSize does, operations as a whole number, "max" for
// Unlimited.
func (r Rate) Parse(text string) (uint64, error) {
	if text == "max" {
		return Unlimited, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if r.Bytes() {
		n, err = ParseSize(text)
	} else if err != nil {
		err = fmt.Errorf("%.40q is not a whole number", text)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", Rates[r], err)
	}
	if n < 1 || n > r.high() {
		return 0, fmt.Errorf("%s is %s; the range is 1 to %s", Rates[r], r.Format(n), r.Format(r.high()))
	}
	return n, nil
}

// Format writes n as Parse reads it.
func (r Rate) Format(n uint64) string {
	switch {
	case n == Unlimited:
		return "max"
	case r.Bytes():
		return FormatSize(n)
	}
	return strconv.FormatUint(n, 10)
}

// unlimitedDevice is a device that nothing limits.
func unlimitedDevice(device string) DeviceLimit {
	return DeviceLimit{device, [NumRates]uint64{Unlimited, Unlimited, Unlimited, Unlimited}}
}

// MaxDevices bounds a list of devices.
const MaxDevices = 64

// ParseDevices reads limits as a person writes them, DEVICE:RATE=N,RATE=N for each
// device, with blanks between. They come back in the order of their names, each named
// once and with a limit at least.
func ParseDevices(text string) ([]DeviceLimit, error) {
	var list []DeviceLimit
	for word := range strings.FieldsSeq(text) {
		d, err := parseDevice(word)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, checkDevices(list)
}

func parseDevice(word string) (DeviceLimit, error) {
	colon := strings.LastIndexByte(word, ':')
	if colon < 0 {
		return DeviceLimit{}, fmt.Errorf("%.100q lacks its limits; write it as in /dev/sda:read_bps=10MiB,write_iops=100", word)
	}
	d := unlimitedDevice(word[:colon])
	for pair := range strings.SplitSeq(word[colon+1:], ",") {
		name, value, _ := strings.Cut(pair, "=")
		r := slices.Index(Rates[:], name)
		if r < 0 {
			return d, fmt.Errorf("%.100q of %s is none of %s", name, d.Device, strings.Join(Rates[:], ", "))
		}
		n, err := Rate(r).Parse(value)
		if err != nil {
			return d, fmt.Errorf("%s: %w", d.Device, err)
		}
		d.Rates[r] = n
	}
	return d, nil
}

// checkDevices sorts list, and tells what is wrong with it.
func checkDevices(list []DeviceLimit) error {
	slices.SortFunc(list, func(a, b DeviceLimit) int { return cmp.Compare(a.Device, b.Device) })
	if len(list) > MaxDevices {
		return fmt.Errorf("names %d devices; at most %d are allowed", len(list), MaxDevices)
	}
	for i, d := range list {
		if err := checkDevice(d.Device); err != nil {
			return err
		}
		switch {
		case d == unlimitedDevice(d.Device):
			return fmt.Errorf("%s has no limit", d.Device)
		case i > 0 && list[i-1].Device == d.Device:
			return fmt.Errorf("%s is named twice", d.Device)
		}
	}
	return nil
}

// checkDevice tells why device can not name a disk, or nil.
func checkDevice(device string) error {
	if !isDeviceNumber(device) && (!strings.HasPrefix(device, "/") || strings.ContainsFunc(device, func(c rune) bool { return c <= ' ' })) {
		return fmt.Errorf("%.100q is neither an absolute path without blanks nor a number such as 8:0", device)
	}
	return nil
}

func isDeviceNumber(device string) bool {
	major, minor, ok := strings.Cut(device, ":")
	_, majorErr := strconv.ParseUint(major, 10, 32)
	_, minorErr := strconv.ParseUint(minor, 10, 32)
	return ok && majorErr == nil && minorErr == nil
}

// FormatDevices writes list as ParseDevices reads it.
func FormatDevices(list []DeviceLimit) string {
	words := make([]string, len(list))
	for i, d := range list {
		var pairs []string
		for r, n := range d.Rates {
			if n != Unlimited {
				pairs = append(pairs, Rates[r]+"="+Rate(r).Format(n))
			}
		}
		words[i] = d.Device + ":" + strings.Join(pairs, ",")
	}
	return strings.Join(words, " ")
}

// OfDevices is a Quota of list, Unlimited if that is empty.
func OfDevices(list []DeviceLimit) (Quota, error) {
	if len(list) == 0 {
		return Of(Unlimited), nil
	}
	err := checkDevices(list)
	return OfText(FormatDevices(list)), err
}

var errNothing = errors.New("is empty")
