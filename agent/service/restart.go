package service

import "time"

// RestartWhen says after which ends a service is started again.
type RestartWhen uint8

// The policies.
const (
	RestartOnFailure RestartWhen = iota
	RestartAlways
	RestartNever
	numRestartWhens
)

var restartNames = [numRestartWhens]string{"on-failure", "always", "never"}

func (w RestartWhen) String() string { return restartNames[w] }

// RestartPolicy bounds the restarts that nobody asked for.
type RestartPolicy struct {
	When        RestartWhen
	MaxAttempts int           // failures in a row, each less than Window apart, before giving up
	Window      time.Duration // running this long makes earlier failures forgotten
	Backoff     time.Duration // before the first retry; doubled for each further one
	MaxBackoff  time.Duration // the longest wait
}

// Delay is the wait before the attempt that follows the given number of
// failures in a row (1 or more).
func (p RestartPolicy) Delay(failures int) time.Duration {
	d := p.Backoff
	for i := 1; i < failures && d < p.MaxBackoff; i++ {
		d *= 2
	}
	return min(d, p.MaxBackoff)
}
