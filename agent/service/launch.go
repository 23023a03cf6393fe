package service

// Launch is one request to a backend: everything an incarnation is made of,
// resolved and planned, so that the backend adds nothing of its own.
type Launch struct {
	Name        Name
	Incarnation uint64
	Spec        Spec
	Limits      Limits // as planned: the definition's over the defaults
	LogFile     string // file that stdout and stderr are appended to, "" for /dev/null
}

// Ref is what survives the agent: enough to find an incarnation again and to
// be sure that it is the same (pid and start ticks within a boot).
type Ref struct {
	Backend     string `json:"backend"`
	Name        Name   `json:"name"`
	Incarnation uint64 `json:"incarnation"`
	Unit        string `json:"unit,omitempty"`   // systemd scope
	Cgroup      string `json:"cgroup,omitempty"` // path below the cgroup root, with a leading slash
	PID         int    `json:"pid"`
	StartTicks  uint64 `json:"start_ticks"` // /proc/PID/stat field 22
	BootID      string `json:"boot_id"`     // /proc/sys/kernel/random/boot_id
}

// IsZero tells whether r refers to nothing.
func (r Ref) IsZero() bool { return r == Ref{} }
