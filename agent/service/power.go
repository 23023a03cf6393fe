package service

import "fmt"

// Power is how the host is powered at one moment. The zero value is a host
// without a battery.
type Power struct {
	Battery  bool    // a battery powers the host, or would without mains
	Draining bool    // it does now
	Percent  float64 // charge of all its batteries together, 0 to 100; of use with Battery alone
	Source   string  // who tells: "sysfs" or "upower"; "" if nobody does
}

func (p Power) String() string {
	switch {
	case !p.Battery:
		return "no battery"
	case p.Draining:
		return fmt.Sprintf("on battery, %.0f%%", p.Percent)
	}
	return fmt.Sprintf("on AC, battery at %.0f%%", p.Percent)
}

// PowerLevel is how far the agent goes to save the battery.
type PowerLevel uint8

// The levels, each with all that those before it do.
const (
	PowerFull    PowerLevel = iota // nothing is saved
	PowerReduced                   // health checks and sampling are fewer
	PowerLow                       // services that are not essential are stopped
	NumPowerLevels
)

var powerLevelNames = [NumPowerLevels]string{"full", "reduced", "low"}

func (l PowerLevel) String() string { return powerLevelNames[l] }

// PowerInfo is how the host is powered, and what follows from it.
type PowerInfo struct {
	Power
	Level       PowerLevel
	StopBelow   int // charge in percent below which services are stopped, 0 for never
	ReduceBelow int // likewise health checks are fewer
}

// PowerClass says what becomes of a service when the battery is low.
type PowerClass uint8

// The classes.
const (
	PowerClassNormal     PowerClass = iota // it is stopped when all that is deferrable is
	PowerClassEssential                    // it runs on
	PowerClassDeferrable                   // it is stopped first
	numPowerClasses
)

var powerClassNames = [numPowerClasses]string{"normal", "essential", "deferrable"}

func (c PowerClass) String() string { return powerClassNames[c] }

// LowBattery is how a service is saved that is not to run while the battery is low.
type LowBattery uint8

// The ways.
const (
	LowBatteryStop   LowBattery = iota // it is stopped
	LowBatteryFreeze                   // it is frozen, where that can be; its memory stays
	numLowBatteries
)

var lowBatteryNames = [numLowBatteries]string{"stop", "freeze"}

func (l LowBattery) String() string { return lowBatteryNames[l] }
