// Package hosts is the table of test hosts: what each is and what it offers.
package hosts

// Init says what a machine runs as process 1.
type Init string

// The inits there are.
const (
	Systemd Init = "systemd" // the distribution's, booted as it comes
	Own     Init = "own"     // the guest program: mounts, reaps, nothing else
)

// Host is one kind of host that tests run on.
type Host struct {
	Name   string
	About  string
	Suite  string // the Debian release of its programs and kernel; empty: this machine as it is
	Init   Init
	Offers []string // what a test may rely on
}

// Bare tells whether the host is this machine itself.
func (h Host) Bare() bool { return h.Suite == "" }

// All are the hosts, in the order people look for them.
var All = []Host{
	{"systemd", "Debian 13: systemd 257, kernel 6.12", "trixie", Systemd, []string{"systemd", "cgroup2", "exec"}},
	{"systemd-old", "Debian 12: systemd 252, kernel 6.1", "bookworm", Systemd, []string{"systemd", "cgroup2", "exec"}},
	{"systemd-new", "Debian sid: the newest systemd and kernel", "sid", Systemd, []string{"systemd", "cgroup2", "exec"}},
	{"cgroup2", "kernel 6.12 with cgroup v2, an init of our own, no systemd", "trixie", Own, []string{"cgroup2", "exec"}},
	{"bare", "this machine as it is", "", "", []string{"exec"}},
}

// Find returns the host of that name.
func Find(name string) (Host, bool) {
	for _, host := range All {
		if host.Name == name {
			return host, true
		}
	}
	return Host{}, false
}

// Names lists the hosts' names.
func Names() []string {
	var names []string
	for _, host := range All {
		names = append(names, host.Name)
	}
	return names
}
