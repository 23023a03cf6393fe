package launch

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
)

// newPlan turns a definition into what the gate has to do. Names of users and
// groups are looked up here, where an unknown one costs no fork.
func newPlan(req Request) (gate.Plan, error) {
	spec := &req.Launch.Spec
	if err := checkText(spec); err != nil {
		return gate.Plan{}, &service.Error{Op: "start", Service: req.Launch.Name, Kind: service.Unlaunchable,
			Reason: service.ReasonBadDefinition, Permanent: true, Err: err}
	}
	who, err := identify(spec.User, spec.Group)
	if err != nil {
		return gate.Plan{}, identityFailure(req.Launch.Name, err)
	}
	plan := gate.Plan{
		Path:        spec.Exec[0],
		Args:        spec.Exec,
		Env:         environment(&req.Launch),
		Directory:   spec.WorkingDirectory,
		Umask:       spec.Umask,
		OOMScoreAdj: int32(spec.OOMScoreAdj),
		Nice:        int32(spec.Nice),
		Policy:      policies[spec.Scheduling],
		Priority:    uint32(spec.Priority),
		Brand:       req.Brand,
		NoNewPrivs:  !spec.AllowNewPrivs,
		IgnorePipe:  !req.Launch.Stream.IsZero() || isPoured(&req.Launch),
		Become:      who.change,
		OwnUser:     spec.User == "" && spec.Group == "",
		UID:         who.uid,
		GID:         who.gid,
		Groups:      who.groups,
	}
	if plan.Directory == "" {
		plan.Directory = "/"
	}
	if files := req.Launch.Limits[service.NoFile]; files.Set {
		plan.NoFile = files.Value
	}
	for _, l := range req.Launch.Limits.OfProcesses() {
		if l.Kind != service.RlimitNoFile {
			plan.Rlimits = append(plan.Rlimits, gate.Rlimit{Resource: uint32(l.Kind), Soft: l.Soft, Hard: l.Hard})
		}
	}
	return plan, nil
}

// policies are the kernel's numbers (sched_setscheduler(2)).
var policies = map[service.Scheduling]uint32{
	service.SchedulingOther: unix.SCHED_NORMAL, service.SchedulingBatch: unix.SCHED_BATCH, service.SchedulingIdle: unix.SCHED_IDLE,
	service.SchedulingFIFO: unix.SCHED_FIFO, service.SchedulingRR: unix.SCHED_RR,
}

// checkText refuses what the C strings of execve can not carry.
func checkText(spec *service.Spec) error {
	if len(spec.Exec) == 0 {
		return errors.New("the definition names no program")
	}
	texts := append(slices.Clone(spec.Exec), spec.WorkingDirectory)
	for name, value := range spec.Environment {
		texts = append(texts, name, value)
	}
	for _, text := range texts {
		if strings.IndexByte(text, 0) >= 0 {
			return fmt.Errorf("%.40q holds a NUL byte", text)
		}
	}
	return nil
}

// environment is the definition's and nothing else, sorted, with PATH if it
// names none, and the socket to which it says how it is, if it asks for one.
func environment(l *service.Launch) []string {
	defined := l.Spec.Environment
	list := make([]string, 0, len(defined)+2)
	if l.NotifyPath != "" {
		list = append(list, "NOTIFY_SOCKET="+l.NotifyPath)
	}
	for name, value := range defined {
		list = append(list, name+"="+value)
	}
	if _, named := defined["PATH"]; !named {
		list = append(list, "PATH="+Path)
	}
	slices.Sort(list)
	return list
}
