package service

import "time"

// Threads is what the threads of a main process were doing at one look.
type Threads struct {
	Stopped bool   // a signal keeps all of them from running (SIGSTOP and its like, signal(7)), and no tracer does
	Held    bool   // each is stopped, or waits in the kernel where no signal but SIGKILL can reach it (D of proc_pid_stat(5))
	Turns   uint64 // of Held: how often they have given up the CPU so far; while it stays the same, none has run
	Waits   string // of Held: the function of the kernel in which the first one waits; "" if that is not told
	Busy    bool   // the first one runs or wants to, or waits for a disk
}

// OnHang is what is done about a service that hangs.
type OnHang uint8

// The answers.
const (
	HangTell      OnHang = iota // it is told
	HangUnhealthy               // it is told, and counts as unhealthy
	HangIgnore                  // nobody looks
	numOnHangs
)

var hangNames = [numOnHangs]string{"tell", "unhealthy", "ignore"}

func (h OnHang) String() string { return hangNames[h] }

// Hang is that a service does nothing any more. The zero value is that it does not hang.
type Hang struct {
	Since time.Time
	Why   string // a sentence's worth for people
}

// Lasts tells whether it hangs.
func (h Hang) Lasts() bool { return !h.Since.IsZero() }
