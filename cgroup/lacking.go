package cgroup

import (
	"fmt"
	"slices"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Lacking tells why a limit is not enforced on groups such as g, and what to do: the
// kernel has not the controller, a group above does not pass it on, or there is only the
// file missing. It is "" for one that is no matter of cgroups.
func (g Group) Lacking(r service.Resource) (string, error) {
	f := limitFiles[r]
	if f.name == "" {
		return "", nil
	}
	for _, level := range g.lineage() {
		offered, err := level.Controllers()
		switch {
		case err != nil:
			return "", err
		case slices.Contains(offered, f.controller):
		case level.path == "/":
			return fmt.Sprintf("the kernel does not offer the controller %s (%s): look for cgroup_disable= among its parameters, "+
				"for cgroup v1 that holds it, and for delegation in a container", f.controller, level.file("cgroup.controllers")), nil
		default:
			return fmt.Sprintf("the controller %s ends in %s, which does not pass it on: write +%s into %s", f.controller,
				level.Parent().path, f.controller, level.Parent().file("cgroup.subtree_control")), nil
		}
	}
	return fmt.Sprintf("the controller %s is there, but %s is not: the kernel is too old for it, or built without", f.controller, g.file(f.name)), nil
}
