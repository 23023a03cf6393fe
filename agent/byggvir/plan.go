// Package byggvir decides which limits a service gets before it is launched,
// and turns counters of the kernel into usage afterwards. Nothing here polls:
// a reading is taken when somebody asks for one.
package byggvir

import (
	"fmt"
	"slices"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Host is what limits have to fit into.
type Host struct {
	Cores    int
	Defaults service.Limits // for what a definition does not limit
}

// Plan decides the limits of one incarnation: those of the definition over
// the host's defaults. A limit of the definition that the backend does not
// enforce is refused with service.Unenforceable, never weakened in silence;
// with spec.BestEffort it stays in the plan, so that it is told as not
// enforced. A default that can not be enforced is left out: nobody asked for it.
// op is what the plan is made for, to name it in an error.
func Plan(op string, spec *service.Spec, host Host, backend string, enforces service.Enforcement) (service.Limits, error) {
	if missing := enforces.Missing(spec.Limits); len(missing) > 0 && !spec.BestEffort {
		return service.Limits{}, Unenforceable(op, spec.Name, backend, enforces.Explain(missing))
	}
	defaults := host.Defaults
	for _, r := range enforces.Missing(defaults) {
		defaults[r] = service.Quota{}
	}
	limits := spec.Limits.Over(defaults)
	if faults := misfits(spec, limits, host.Cores); len(faults) > 0 {
		return service.Limits{}, &service.Error{Op: op, Service: spec.Name, Kind: service.Invalid, Faults: faults}
	}
	return limits, nil
}

// misfits tells what does not fit this host.
func misfits(spec *service.Spec, limits service.Limits, cores int) (faults []service.Fault) {
	cpu, most := spec.Limits[service.CPUMax], service.Of(uint64(cores)*100*service.UsecPerPercent)
	if cpu.Set && cpu.Value != service.Unlimited && cpu.Value > most.Value {
		faults = append(faults, service.Fault{
			Field: "limits." + service.CPUMax.String(),
			Message: fmt.Sprintf("%s is more than this host has: %d cores are %s",
				service.CPUMax.Format(cpu), cores, service.CPUMax.Format(most)),
		})
	}
	if burst := spec.Limits[service.CPUBurst]; burst.Value > 0 && !limits[service.CPUMax].Set {
		faults = append(faults, service.Fault{
			Field: "limits." + service.CPUBurst.String(), Message: fmt.Sprintf("has nothing to save from: it wants a %s", service.CPUMax),
		})
	}
	own := spec.Limits.Conflicts()
	for _, f := range limits.Conflicts() {
		if !slices.Contains(own, f) {
			f.Message += " on this platform, unless the definition sets it"
		}
		faults = append(faults, f)
	}
	return faults
}

// Unenforceable is the refusal of limits that a backend does not enforce.
func Unenforceable(op string, name service.Name, backend, missing string) error {
	return &service.Error{Op: op, Service: name, Kind: service.Unenforceable, Reason: service.ReasonLimitUnenforceable,
		Err: fmt.Errorf(`the %s backend can not enforce %s on this host; remove it from the definition, or set "best_effort": true in its limits to run without`,
			backend, missing)}
}
