package platform

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Findings is what a doctor says of the host: all that was looked at, well or
// not, in a fixed order.
func (f Facts) Findings() []service.Finding {
	findings := []service.Finding{f.kernelFinding(), f.userFinding(), f.systemdFinding(), f.cgroupFinding()}
	if f.Cgroup2.Has {
		findings = append(findings, f.controllerFinding(),
			found(f.BornInside, service.SeverityProblem, "processes are started inside of their cgroup",
				"Services can not be put into cgroups, so that nothing limits them.", "Run Linux 5.7 or newer, and allow clone3 in the sandbox."),
			found(f.CgroupKill, service.SeverityWarning, "a cgroup is killed as a whole",
				"Ending a service that forks quickly takes longer.", "Run Linux 5.14 or newer."))
	}
	return append(findings,
		found(f.Pidfd, service.SeverityProblem, "processes are held by pidfd",
			"No service can be started.", "Run Linux 5.4 or newer, and allow pidfd_open in the sandbox."),
		found(f.Pressure, service.SeverityWarning, "the kernel tells of pressure (PSI)",
			"Lack of memory, CPU or IO is not noticed before it hurts.", "Boot with psi=1."))
}

// found is a finding about one ability: the title says what holds, or why it
// does not, and then what follows and what to do.
func found(a Ability, severity service.Severity, holds, follows, fix string) service.Finding {
	if a.Has {
		return service.Finding{Level: service.SeverityOK, Title: holds}
	}
	return service.Finding{Level: severity, Title: a.Reason, Detail: follows, Fix: fix}
}

func (f Facts) kernelFinding() service.Finding {
	title := "Linux " + f.Kernel + " on " + f.Hostname
	if f.Container != "" {
		title += ", in a container (" + f.Container + ")"
	}
	return service.Finding{Level: service.SeverityOK, Title: title}
}

func (f Facts) userFinding() service.Finding {
	if f.UID == 0 {
		return service.Finding{Level: service.SeverityOK, Title: "the agent is root"}
	}
	return service.Finding{
		Level: service.SeverityWarning, Title: fmt.Sprintf("the agent is user %d, not root", f.UID),
		Detail: "Services can not run as other users, and systemd does not make scopes for it.",
		Fix:    "Install the agent as a service of the system.",
	}
}

// systemdFinding: a host without systemd is as good as one with it, but one
// whose systemd does not answer is not.
func (f Facts) systemdFinding() service.Finding {
	if !f.Systemd.Has {
		return service.Finding{Level: service.SeverityOK, Title: f.Systemd.Reason, Detail: "Services are launched without it."}
	}
	return found(f.Bus, service.SeverityProblem, "systemd is PID 1 and can be reached",
		"Services can not be launched as scopes.", "See systemctl status, and whether this user may reach the sockets.")
}

func (f Facts) cgroupFinding() service.Finding {
	return found(f.Cgroup2, service.SeverityProblem, "cgroup v2 is mounted at "+f.CgroupRoot,
		"No limit of memory, CPU or processes can be enforced; only services with best_effort start.", f.cgroupFix())
}

func (f Facts) cgroupFix() string {
	switch {
	case f.Cgroups == CgroupUnified && f.UID != 0:
		return "Run the agent as root."
	case f.Cgroups == CgroupUnified && f.Container != "":
		return "Have the container manager delegate a writable cgroup v2 hierarchy."
	case f.Cgroups == CgroupNone:
		return "Mount it: mount -t cgroup2 none /sys/fs/cgroup"
	}
	return "Boot with cgroup_no_v1=all and, where systemd runs, systemd.unified_cgroup_hierarchy=1."
}

func (f Facts) controllerFinding() service.Finding {
	var missing []string
	for _, c := range append(slices.Clone(needed), "io") {
		if !slices.Contains(f.Controllers, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) == 0 {
		return service.Finding{Level: service.SeverityOK, Title: "the controllers " + strings.Join(f.Controllers, ", ") + " are offered"}
	}
	return service.Finding{
		Level: service.SeverityWarning, Title: "cgroup v2 lacks the controllers " + strings.Join(missing, ", "),
		Detail: "Limits that need them can not be enforced.",
		Fix:    "Look for cgroup_disable= among the kernel's parameters, and for missing delegation in a container.",
	}
}
