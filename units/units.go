// Package units names what Gladsheim leaves on a host, and reads the names
// back: the systemd scope and the cgroup directory of an incarnation, the slice
// and the anchor scope around them. A name is made of a service's name and the
// number of its incarnation alone, so it is known before the deed, and after
// the agent's death a name is enough to tell whose it is. It also holds the
// agent's own unit files. It does no IO.
package units

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

const (
	// Slice holds every scope of Gladsheim, and so every service. It lies
	// beside the agent's own unit, not below it: services outlive the agent.
	Slice = "gladsheim.slice"
	// AnchorScope is the delegated scope on systemd hosts in which the cgroupfs
	// backend keeps the services it launches directly.
	AnchorScope = "gladsheim-cgroups.scope"
)

const (
	scopePrefix = "gladsheim-"
	scopeSuffix = ".scope"
	dirPrefix   = "svc-"
)

// Scope is the name of the transient scope of one incarnation:
// gladsheim-<name>-<incarnation in at least eight hexadecimal digits>.scope.
func Scope(name service.Name, incarnation uint64) string {
	return scopePrefix + label(name, incarnation) + scopeSuffix
}

// ParseScope reads a name that Scope made; false for any other, AnchorScope
// among them.
func ParseScope(unit string) (service.Name, uint64, bool) {
	return parse(unit, scopePrefix, scopeSuffix)
}

// Dir is the name of the cgroup directory of one incarnation:
// svc-<name>-<incarnation in at least eight hexadecimal digits>. The prefix
// keeps it apart from the files of the kernel (cgroup.procs, memory.max), the
// digits from the directories of other incarnations.
func Dir(name service.Name, incarnation uint64) string {
	return dirPrefix + label(name, incarnation)
}

// ParseDir reads a name that Dir made; false for any other.
func ParseDir(dir string) (service.Name, uint64, bool) {
	return parse(dir, dirPrefix, "")
}

func label(name service.Name, incarnation uint64) string {
	return fmt.Sprintf("%s-%08x", name, incarnation)
}

// parse accepts exactly what label makes between prefix and suffix: a text that
// would be written differently is somebody else's.
func parse(text, prefix, suffix string) (service.Name, uint64, bool) {
	middle, ok := strings.CutPrefix(text, prefix)
	if !ok {
		return service.Name{}, 0, false
	}
	middle, ok = strings.CutSuffix(middle, suffix)
	if !ok {
		return service.Name{}, 0, false
	}
	dash := strings.LastIndexByte(middle, '-')
	if dash < 0 {
		return service.Name{}, 0, false
	}
	name, err := service.ParseName(middle[:dash])
	if err != nil {
		return service.Name{}, 0, false
	}
	incarnation, err := strconv.ParseUint(middle[dash+1:], 16, 64)
	if err != nil || label(name, incarnation) != middle {
		return service.Name{}, 0, false
	}
	return name, incarnation, true
}
