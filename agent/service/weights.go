package service

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// DeviceWeight is the share of one disk against others.
type DeviceWeight struct {
	Device string // as in DeviceLimit
	Weight uint64 // 1 to 10000; others have that of IOWeight
}

// ParseDeviceWeights reads DEVICE:WEIGHT for each device, with blanks between. They come
// back in the order of their names, each named once.
func ParseDeviceWeights(text string) ([]DeviceWeight, error) {
	var list []DeviceWeight
	for word := range strings.FieldsSeq(text) {
		colon := strings.LastIndexByte(word, ':')
		if colon < 0 {
			return nil, fmt.Errorf("%.100q lacks its weight; write it as in /dev/sda:200", word)
		}
		n, err := strconv.ParseUint(word[colon+1:], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%.40q of %.100s is not a whole number", word[colon+1:], word[:colon])
		}
		list = append(list, DeviceWeight{word[:colon], n})
	}
	return list, checkWeights(list)
}

// checkWeights sorts list, and tells what is wrong with it.
func checkWeights(list []DeviceWeight) error {
	slices.SortFunc(list, func(a, b DeviceWeight) int { return cmp.Compare(a.Device, b.Device) })
	if len(list) > MaxDevices {
		return fmt.Errorf("names %d devices; at most %d are allowed", len(list), MaxDevices)
	}
	low, high, _ := IOWeight.Range()
	for i, d := range list {
		if err := checkDevice(d.Device); err != nil {
			return err
		}
		if d.Weight < low || d.Weight > high {
			return fmt.Errorf("the weight of %s is %d; the range is %d to %d", d.Device, d.Weight, low, high)
		}
		if i > 0 && list[i-1].Device == d.Device {
			return fmt.Errorf("%s is named twice", d.Device)
		}
	}
	return nil
}

// OfDeviceWeights is a Quota of list, Unlimited, which is no weight of its own for any
// disk, if that is empty.
func OfDeviceWeights(list []DeviceWeight) (Quota, error) {
	if len(list) == 0 {
		return Of(Unlimited), nil
	}
	err := checkWeights(list)
	words := make([]string, len(list))
	for i, d := range list {
		words[i] = d.Device + ":" + strconv.FormatUint(d.Weight, 10)
	}
	return OfText(strings.Join(words, " ")), err
}
