package service

import "strings"

// parseText reads what is no number; an empty one is Unlimited.
func parseText(u Unit, text string) (Quota, error) {
	if len(strings.Fields(text)) == 0 {
		return Of(Unlimited), nil
	}
	switch u {
	case List:
		list, err := ParseNumbers(text)
		return OfText(list.String()), err
	case Devices:
		list, err := ParseDevices(text)
		return textOf(list, err, OfDevices)
	case PerPage:
		list, err := ParseHugePages(text)
		return textOf(list, err, OfHugePages)
	case Weights:
		list, err := ParseDeviceWeights(text)
		return textOf(list, err, OfDeviceWeights)
	}
	list, err := ParseRlimits(text)
	return OfRlimits(list), err
}

// textOf is the quota of a list, unless that is faulty.
func textOf[T any](list []T, err error, of func([]T) (Quota, error)) (Quota, error) {
	if err != nil {
		return Quota{}, err
	}
	return of(list)
}
