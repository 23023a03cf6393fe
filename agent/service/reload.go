package service

import (
	"path/filepath"
	"syscall"
	"time"
)

// Reload says how a service is made to read its configuration anew; the zero value is not
// at all.
type Reload struct {
	Signal  syscall.Signal // to the main process
	Exec    []string       // instead of Signal: a program, absolute path, and its arguments, run beside the service
	Timeout time.Duration  // of Exec
}

// IsZero tells whether there is no way.
func (r Reload) IsZero() bool { return r.Signal == 0 && len(r.Exec) == 0 && r.Timeout == 0 }

// DefaultReloadTimeout is for how long Exec may run when nothing is said.
const DefaultReloadTimeout = 30 * time.Second

func (r Reload) validate(faults *faultList) {
	switch {
	case r.IsZero():
		return
	case r.Signal == 0 && len(r.Exec) == 0:
		faults.add("reload", "says no way: write signal or exec")
	case r.Signal != 0 && len(r.Exec) > 0:
		faults.add("reload.exec", "is beside signal; write one of the two")
	case r.Signal == syscall.SIGKILL || r.Signal == syscall.SIGSTOP:
		faults.add("reload.signal", "%s can not be heeded by any program", SignalName(r.Signal))
	case r.Signal != 0 && r.Timeout != 0:
		faults.add("reload.timeout", "belongs to exec: a signal takes no time")
	case len(r.Exec) > 0:
		if !filepath.IsAbs(r.Exec[0]) {
			faults.add("reload.exec[0]", "%q is not an absolute path", r.Exec[0])
		}
		if len(r.Exec) > maxArguments {
			faults.add("reload.exec", "has %d entries; at most %d are allowed", len(r.Exec), maxArguments)
		}
		for _, arg := range r.Exec {
			faults.text("reload.exec", arg)
		}
		faults.duration("reload.timeout", r.Timeout, 10*time.Millisecond, time.Hour)
	}
}
