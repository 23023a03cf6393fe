// Package wallclock tells when the clock of the wall is set, or the host was asleep: what
// waits for a time of day has to look anew.
package wallclock

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Clock is the clock of the wall, as far as it is set.
type Clock struct {
	timer *os.File // nil when nobody tells
	set   chan struct{}
	done  chan struct{}
}

// Open asks the kernel to tell whenever somebody sets the clock of the wall
// (CLOCK_REALTIME), and when the host wakes from a suspend (timerfd_create(2),
// TFD_TIMER_CANCEL_ON_SET); no clock is looked at for that. Where the kernel refuses it is
// logged, and nobody tells.
func Open(log *slog.Logger) *Clock {
	c := &Clock{set: make(chan struct{}, 1), done: make(chan struct{})}
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err == nil {
		if err = arm(fd); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		log.Warn("it will not be heard when somebody sets the clock", "error", err)
		close(c.done)
		return c
	}
	c.timer = os.NewFile(uintptr(fd), "timerfd")
	go c.listen()
	return c
}

// Set has a value when the clock was set since it was last received from.
func (c *Clock) Set() <-chan struct{} { return c.set }

// Close ends that.
func (c *Clock) Close() {
	if c.timer != nil {
		c.timer.Close()
	}
	<-c.done
}

// arm sets the timer far ahead, for what it tells is that it is cancelled; should it ever
// come, that is one piece of news more.
func arm(fd int) error {
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt32}}
	err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil)
	if err != nil && !errors.Is(err, unix.ECANCELED) { // that it was set meanwhile is no failure to arm it
		return fmt.Errorf("timerfd_settime: %w", err)
	}
	return nil
}

func (c *Clock) listen() {
	defer close(c.done)
	var expirations [8]byte
	for {
		if _, err := c.timer.Read(expirations[:]); err != nil && !errors.Is(err, unix.ECANCELED) {
			return // it is closed
		}
		select {
		case c.set <- struct{}{}:
		default:
		}
	}
}
