package power

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/gladsheim/gladsheim/agent/service"
)

const (
	systemBus = "unix:path=/run/dbus/system_bus_socket"

	upowerName    = "org.freedesktop.UPower"
	upowerPath    = dbus.ObjectPath("/org/freedesktop/UPower")
	displayDevice = dbus.ObjectPath("/org/freedesktop/UPower/devices/DisplayDevice")

	answerTime = 2 * time.Second
)

// The states of a device of UPower (org.freedesktop.UPower.Device) that tell whether it
// drains.
const (
	stateCharging      = 1
	stateDischarging   = 2
	stateFull          = 4
	statePendingCharge = 5
)

// upower is what UPower says, as long as it is on the bus. It knows batteries that the
// kernel does not, as of a UPS on USB, and asks those whose drivers tell nothing. It is
// not started for us.
type upower struct {
	address string
	told    func()                        // after a change
	now     atomic.Pointer[service.Power] // nil while it says nothing
	again   chan struct{}                 // full when it is to be asked anew, or a lost bus may be wanted back
}

// follow keeps up with UPower until ctx ends. A bus that is not there or lost is tried
// again when somebody looks.
func (u *upower) follow(ctx context.Context) {
	for {
		_ = u.listen(ctx) // without it sysfs tells
		if u.now.Swap(nil) != nil {
			u.told()
		}
		select {
		case <-ctx.Done():
			return
		case <-u.again:
		}
	}
}

// read is what UPower says, nil if it says nothing or knows of no battery.
func (u *upower) read() *service.Power {
	now := u.now.Load()
	if now == nil {
		u.ask()
	}
	return now
}

// ask has it asked anew.
func (u *upower) ask() {
	select {
	case u.again <- struct{}{}:
	default:
	}
}

// listen reads anew with every signal of UPower, and whenever it is told to, until the bus
// is lost. A bus that does not answer is none.
func (u *upower) listen(ctx context.Context) error {
	ctx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	patience := time.AfterFunc(answerTime, giveUp)
	defer patience.Stop()
	conn, err := dbus.Connect(u.address, dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("cannot reach the bus: %w", err)
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 1) // one that does not fit is of what is read after the one before
	conn.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, upowerName)},
		{dbus.WithMatchSender(upowerName), dbus.WithMatchMember("PropertiesChanged"), dbus.WithMatchPathNamespace(upowerPath)},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return fmt.Errorf("cannot listen to UPower: %w", err)
		}
	}
	patience.Stop()
	for {
		before, now := u.now.Load(), ask(ctx, conn)
		u.now.Store(now)
		if (before == nil) != (now == nil) || before != nil && *before != *now {
			u.told()
		}
		select {
		case <-conn.Context().Done():
			return conn.Context().Err()
		case <-signals:
		case <-u.again:
		}
	}
}

// ask asks UPower how the host is powered; nil if it does not say, or knows of no
// battery.
func ask(ctx context.Context, conn *dbus.Conn) *service.Power {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var device map[string]dbus.Variant
	var onBattery bool
	err := conn.Object(upowerName, displayDevice).
		CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", dbus.FlagNoAutoStart, upowerName+".Device").Store(&device)
	if err != nil {
		return nil
	}
	err = conn.Object(upowerName, upowerPath).
		CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", dbus.FlagNoAutoStart, upowerName, "OnBattery").Store(&onBattery)
	if err != nil {
		return nil
	}
	present, _ := device["IsPresent"].Value().(bool)
	percent, known := device["Percentage"].Value().(float64)
	if !present || !known {
		return nil
	}
	state, _ := device["State"].Value().(uint32)
	switch state {
	case stateCharging, stateFull, statePendingCharge:
		onBattery = false
	case stateDischarging:
		onBattery = true
	}
	return &service.Power{Battery: true, Draining: onBattery, Percent: min(100, max(0, percent)), Source: "upower"}
}
