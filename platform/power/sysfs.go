// Package power tells how the host is powered: from its batteries and its mains in
// /sys/class/power_supply, or from UPower, with news from the kernel's uevents and
// from the bus. Nothing here polls.
package power

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// class is the directory of power supplies below the root of sysfs.
const class = "class/power_supply"

// errNoCharge is of a battery that does not tell its charge.
var errNoCharge = errors.New("it tells no charge")

// Sysfs reads the power supplies below root, which is /sys but in tests
// (sysfs-class-power of the kernel's ABI). A host without any has no battery; so has
// one that has only those of devices, as of a mouse. Batteries that can not be read
// are left out, and the error tells which; the rest holds all the same.
func Sysfs(root string) (service.Power, error) {
	dir := filepath.Join(root, class)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) { // of a kernel without power supplies
		return service.Power{}, nil
	}
	if err != nil {
		return service.Power{}, fmt.Errorf("cannot list the power supplies: %w", err)
	}
	var batteries []battery
	var mains mains
	var faults []error
	for _, e := range entries {
		s := supply{filepath.Join(dir, e.Name())}
		kind, err := s.text("type")
		if err != nil { // it is being removed, or broken
			if !gone(err) {
				faults = append(faults, err)
			}
			continue
		}
		scope, _ := s.text("scope") // few have one
		if scope == "Device" {
			continue
		}
		if kind != "Battery" && kind != "UPS" {
			online, err := s.text("online")
			mains.known = mains.known || err == nil
			mains.online = mains.online || err == nil && online != "0"
			continue
		}
		if present, err := s.text("present"); err == nil && present == "0" {
			continue
		}
		b, err := s.battery()
		if err != nil {
			if !gone(err) {
				faults = append(faults, err)
			}
			continue
		}
		batteries = append(batteries, b)
	}
	if len(batteries) == 0 {
		return service.Power{Source: "sysfs"}, errors.Join(faults...)
	}
	return service.Power{
		Battery: true, Draining: draining(batteries, mains), Percent: together(batteries), Source: "sysfs",
	}, errors.Join(faults...)
}

// gone tells of a supply that is being removed.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// mains are all supplies that are no batteries.
type mains struct{ known, online bool }

// battery is what one tells of itself.
type battery struct {
	status           string
	percent          float64
	energy, capacity amount // µWh; µAh
}

// amount is how much is in a battery, and how much would fit.
type amount struct{ now, full float64 }

func (a amount) known() bool { return a.full > 0 }

// draining tells whether the batteries power the host. Their own word counts: mains
// may be plugged in and give too little, and a port that only ever gives power tells
// that it is not online.
func draining(batteries []battery, m mains) bool {
	is := func(word string) bool {
		return slices.ContainsFunc(batteries, func(b battery) bool { return b.status == word })
	}
	switch {
	case is("Charging"):
		return false
	case is("Discharging"):
		return true
	case is("Full"), is("Not charging"):
		return false
	}
	return m.known && !m.online // they do not know
}

// together is the charge of all batteries. Where some tell energy and others charge
// there is no common measure, and each counts alike.
func together(batteries []battery) float64 {
	for _, of := range []func(battery) amount{
		func(b battery) amount { return b.energy },
		func(b battery) amount { return b.capacity },
	} {
		if slices.ContainsFunc(batteries, func(b battery) bool { return !of(b).known() }) {
			continue
		}
		var sum amount
		for _, b := range batteries {
			sum.now, sum.full = sum.now+of(b).now, sum.full+of(b).full
		}
		return percent(sum)
	}
	sum := 0.0
	for _, b := range batteries {
		sum += b.percent
	}
	return sum / float64(len(batteries))
}

func percent(a amount) float64 { return min(100, max(0, 100*a.now/a.full)) }

// supply is the directory of one power supply.
type supply struct{ dir string }

func (s supply) text(attribute string) (string, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, attribute))
	return strings.TrimSpace(string(data)), err
}

func (s supply) number(attribute string) (float64, error) {
	text, err := s.text(attribute)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s holds %.40q, which is no number", filepath.Join(s.dir, attribute), text)
	}
	return float64(n), nil
}

func (s supply) battery() (battery, error) {
	status, err := s.text("status")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return battery{}, err
	}
	b := battery{status: status, energy: s.amount("energy"), capacity: s.amount("charge")}
	p, err := s.number("capacity")
	switch {
	case err == nil:
		b.percent = min(100, max(0, p))
	case b.energy.known():
		b.percent = percent(b.energy)
	case b.capacity.known():
		b.percent = percent(b.capacity)
	case errors.Is(err, fs.ErrNotExist):
		return battery{}, fmt.Errorf("%s: %w", s.dir, errNoCharge)
	default:
		return battery{}, err
	}
	return b, nil
}

// amount is zero where the driver does not tell it, or firmware tells nonsense.
func (s supply) amount(of string) amount {
	now, err := s.number(of + "_now")
	full, err2 := s.number(of + "_full")
	if err != nil || err2 != nil || now < 0 || full <= 0 {
		return amount{}
	}
	return amount{now, full}
}
