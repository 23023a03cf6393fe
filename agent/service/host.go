package service

import "time"

// Process is one process of a service.
type Process struct {
	PID     int
	Parent  int    // its parent's PID
	Command string // its command line, or its name in brackets if it has none
}

// HostInfo describes the host and the agent on it.
type HostInfo struct {
	Hostname    string
	Kernel      string // release, as uname(2) tells it
	Version     string // of the agent
	Started     time.Time
	Platform    string        // whose profile is in force
	Backends    []BackendInfo // in the order of preference
	MaxServices int           // how many the platform allows
	System      SystemUsage
	Power       PowerInfo
	Budget      uint64         // bytes that services that run may have as memory_max together, 0 for any
	Promised    uint64         // that those have which run, or wait to run again
	States      [NumPublic]int // how many services are in each

	All       Usage  // of all services together, those that have ended included; see backends.Totaller
	Uncounted string // why that is not known, "" if it is
}

// BackendInfo describes one way to hold services on this host.
type BackendInfo struct {
	Name         string   // "systemd", "cgroupfs" or "exec"
	Available    bool     // this host offers it
	Reason       string   // why it does not
	Selected     bool     // the agent uses it
	Capabilities []string // what it can do here: memory_max …, oom-verdict, kill-all, born-inside
}

// SystemUsage is how busy the whole host is, or what of it the container or the cpuset
// that the agent is in may use.
type SystemUsage struct {
	MemoryTotal     uint64  // bytes
	MemoryAvailable uint64  // bytes that can be had without swapping
	MemoryBy        string  // what leaves less than the machine has, "" for nothing
	CPUPercent      float64 // of one core; all busy is 100 times Cores
	Cores           int     // that may be used
	CoresBy         string  // what leaves less than are online, "" for nothing
	Measured        time.Time
}

// Severity is how bad a Finding is.
type Severity uint8

// The severities, numbered as on the wire; 0 is none.
const (
	SeverityOK      Severity = iota + 1 // all is well
	SeverityWarning                     // it works, though not as well as it could
	SeverityProblem                     // something does not work
	NumSeverities
)

var severityNames = [NumSeverities]string{"", "ok", "warning", "problem"}

func (s Severity) String() string { return severityNames[s] }

// Finding is one thing that the doctor looked at.
type Finding struct {
	Level  Severity
	Title  string // what was found, in a line
	Detail string // what follows from it, "" for nothing
	Fix    string // what to do, "" when all is well
}

// Configuration is the agent's configuration in force.
type Configuration struct {
	Document []byte // JSON, defaults filled in
	Source   string // the file it was read from; empty when there is none
	Loaded   time.Time
	Refused  string // why the file as it is now was not taken; empty when it was
	Older    []OlderDefault
}

// OlderDefault is a limit that a running service was started with because that was the
// default, and the default is another by now.
type OlderDefault struct {
	Service  Name
	Limit    Resource
	Has, Now Quota
}
