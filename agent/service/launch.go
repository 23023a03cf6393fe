package service

import "time"

// Launch is one request to a backend: everything an incarnation is made of,
// resolved and planned, so that the backend adds nothing of its own.
type Launch struct {
	Name        Name
	Incarnation uint64
	Spec        Spec
	Limits      Limits // as planned: the definition's over the defaults
	LogFile     string // file that stdout and stderr are appended to, "" for none
	NotifyPath  string // socket for what it says of itself (sd_notify(3)), "" for none
	Stream      Stream // to the journal, in the file's stead; with neither it is /dev/null
}

// Stream is a connection to the journal that carries the output of one incarnation.
type Stream struct {
	Mark   string `json:"mark"`           // its first line, which no other has
	PID    int    `json:"pid"`            // of the agent that wrote that
	BootID string `json:"boot_id"`        // likewise
	Unit   string `json:"unit,omitempty"` // that it runs in, to journald; "" for none
	ID     string `json:"id,omitempty"`   // what journald calls it, "" until it was asked
}

// IsZero tells whether s is no stream at all.
func (s Stream) IsZero() bool { return s == Stream{} }

// Output says where the output of an incarnation went.
type Output struct {
	Incarnation uint64    `json:"incarnation"`
	Began       time.Time `json:"began"`
	LogFrom     int64     `json:"log_from"`        // where the end of the log file was then
	Stream      Stream    `json:"stream,omitzero"` // to the journal; zero: into the log file
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
