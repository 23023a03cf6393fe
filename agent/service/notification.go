package service

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Notification is one message in which a service tells of itself (sd_notify(3)).
type Notification struct {
	Ready     bool // READY=1: it has started, or reloaded
	Reloading bool // RELOADING=1
	Stopping  bool // STOPPING=1

	// Monotonic is CLOCK_MONOTONIC when it began to reload (MONOTONIC_USEC=), 0 if it does
	// not say.
	Monotonic time.Duration

	Status    string // STATUS=: one line for people
	HasStatus bool   // Status may be there and empty

	Errno    int    // ERRNO=: why it fails, 0 if it does not say
	BusError string // BUSERROR=: likewise, as the name of a D-Bus error
	MainPID  int    // MAINPID=: the process that it calls its main one, 0 if it does not say

	// Extend is the time within which it says so again, or is done with its start or its end
	// (EXTEND_TIMEOUT_USEC=); 0 if it does not say.
	Extend time.Duration

	Alive    bool          // WATCHDOG=1
	Trigger  bool          // WATCHDOG=trigger: it calls itself ill
	Watchdog time.Duration // WATCHDOG_USEC=: the interval from now on, 0 if it does not say
}

// The caps of a message.
const (
	MaxNotification = 4096           // bytes, as systemd has it
	maxStatusText   = 512            // bytes of a STATUS that are kept
	maxExtend       = 24 * time.Hour // as long as a start may take
)

// ParseNotification reads a message. What it does not know it passes over, as sd_notify(3)
// wants; what can not be read is passed over as well, and the error tells the first of it.
func ParseNotification(message string) (Notification, error) {
	var n Notification
	if len(message) > MaxNotification {
		return n, fmt.Errorf("it has %d bytes; at most %d are read", len(message), MaxNotification)
	}
	var first error
	for line := range strings.Lines(message) {
		name, value, is := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !is {
			continue
		}
		if err := n.assign(name, value); err != nil && first == nil {
			first = fmt.Errorf("%s=%.40q: %w", name, value, err)
		}
	}
	return n, first
}

func (n *Notification) assign(name, value string) (err error) {
	switch name {
	case "READY":
		n.Ready = value == "1"
	case "RELOADING":
		n.Reloading = value == "1"
	case "STOPPING":
		n.Stopping = value == "1"
	case "MONOTONIC_USEC":
		n.Monotonic, err = microseconds(value, time.Duration(1<<63-1))
	case "STATUS":
		n.Status, n.HasStatus = statusText(value), true
	case "ERRNO":
		n.Errno, err = within(value, 1, 4095) // MAX_ERRNO of the kernel
	case "BUSERROR":
		if !isBusName(value) {
			return fmt.Errorf("it is not the name of a D-Bus error")
		}
		n.BusError = value
	case "MAINPID":
		n.MainPID, err = within(value, 1, 1<<22) // PID_MAX_LIMIT
	case "EXTEND_TIMEOUT_USEC":
		n.Extend, err = microseconds(value, maxExtend)
	case "WATCHDOG":
		n.Alive, n.Trigger = n.Alive || value == "1", n.Trigger || value == "trigger"
	case "WATCHDOG_USEC":
		n.Watchdog, err = microseconds(value, maxExtend)
	}
	return err
}

// IsZero tells whether a message says nothing that counts.
func (n Notification) IsZero() bool { return n == Notification{} }

// microseconds reads a number of them above 0; more than most is most.
func microseconds(text string, most time.Duration) (time.Duration, error) {
	usec, err := strconv.ParseUint(text, 10, 64)
	switch {
	case err != nil || usec == 0:
		return 0, fmt.Errorf("it is not a number of microseconds above 0")
	case usec > uint64(most/time.Microsecond):
		return most, nil
	}
	return time.Duration(usec) * time.Microsecond, nil
}

func within(text string, low, high int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("it is not a number from %d to %d", low, high)
	}
	return n, nil
}

// statusText is a STATUS as it may be shown: one line of UTF-8, not too long.
func statusText(text string) string {
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r // what is no UTF-8 becomes U+FFFD
	}, text))
	if len(text) <= maxStatusText {
		return text
	}
	cut := maxStatusText
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut]
}

// isBusName tells whether text has the form of the name of a D-Bus error.
func isBusName(text string) bool {
	const most = 255
	parts := strings.Split(text, ".")
	for _, part := range parts {
		if part == "" || strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" || part[0] >= '0' && part[0] <= '9' {
			return false
		}
	}
	return len(parts) > 1 && len(text) <= most
}

// Heard is what came to the socket of an incarnation.
type Heard struct {
	Said    Notification
	Dropped uint64 // messages so far that were dropped
	Why     string // of the first of them, with it alone; or what was not understood of Said
}

// Notified is what the present incarnation has said of itself. The agent's end forgets it.
type Notified struct {
	Status    string    // its last one
	Reloading bool      // it began to, and has not said READY since
	Stopping  bool      // it began to end
	Errno     int       // the last that it told, 0 if none
	BusError  string    // likewise
	MainPID   int       // the process that it calls its main one, 0 if none
	At        time.Time // of its last message
	Dropped   uint64    // messages to its socket that were not its own, or too long
}

// After is what is known after one more message. A service that is ready again has
// reloaded, and has no error any more.
func (was Notified) After(h Heard, now time.Time) Notified {
	is, n := was, h.Said
	is.Dropped = h.Dropped
	if n.IsZero() {
		return is
	}
	is.At = now
	if n.Ready {
		is.Reloading, is.Errno, is.BusError = false, 0, ""
	}
	if n.HasStatus {
		is.Status = n.Status
	}
	if n.Errno != 0 {
		is.Errno = n.Errno
	}
	if n.BusError != "" {
		is.BusError = n.BusError
	}
	if n.MainPID != 0 {
		is.MainPID = n.MainPID
	}
	is.Reloading = is.Reloading || n.Reloading && !n.Ready
	is.Stopping = is.Stopping || n.Stopping
	return is
}
