package agent

import (
	"fmt"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

// escapes finds processes that have left the cgroup of their service, as only
// those of root can. They are known as descendants of the main process; one
// whose parents have ended meanwhile is not.
func (a *Agent) escapes() []service.Finding {
	all, err := a.cfg.Procfs.Processes()
	if err != nil {
		return []service.Finding{{Level: service.SeverityProblem, Title: "the processes of this host can not be listed", Detail: err.Error()}}
	}
	family := map[int][]int{} // the living, by parent
	for _, p := range all {
		if p.Alive() {
			family[p.PPID] = append(family[p.PPID], p.PID)
		}
	}
	var findings []service.Finding
	for _, s := range a.registry.List() {
		if s.PID() == 0 || s.Ref.Cgroup == "" {
			continue
		}
		if away := a.outside(s.Ref.Cgroup, s.PID(), family); len(away) > 0 {
			findings = append(findings, service.Finding{
				Level:  service.SeverityWarning,
				Title:  fmt.Sprintf("processes of %s have left its cgroup: %s", s.Name, strings.Join(away, ", ")),
				Detail: "Its limits do not hold for them, they are not counted, and they go on when it is stopped.",
				Fix:    "Run it as a user without privileges, or end them by hand.",
			})
		}
	}
	return findings
}

// outside describes pid and its descendants that are not in cgroup.
func (a *Agent) outside(cgroup string, pid int, family map[int][]int) (away []string) {
	if at, err := a.cfg.Procfs.Cgroup(pid); err == nil && at != cgroup && !strings.HasPrefix(at, cgroup+"/") {
		away = append(away, fmt.Sprintf("%d in %s", pid, at))
	}
	for _, child := range family[pid] {
		away = append(away, a.outside(cgroup, child, family)...)
	}
	return away
}
