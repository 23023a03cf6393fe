// Package byggvir decides which limits a service gets before it is launched,
// and turns counters of the kernel into usage afterwards. Nothing here polls:
// a reading is taken when somebody asks for one.
package byggvir

import (
	"fmt"
	"strings"

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
func Plan(spec *service.Spec, host Host, backend string, enforces service.Enforcement) (service.Limits, error) {
	if most := service.Of(uint64(host.Cores) * 100 * service.UsecPerPercent); spec.Limits[service.CPUMax].Set &&
		spec.Limits[service.CPUMax].Value != service.Unlimited && spec.Limits[service.CPUMax].Value > most.Value {
		return service.Limits{}, &service.Error{Op: "start", Service: spec.Name, Kind: service.Invalid, Faults: []service.Fault{{
			Field: "limits." + service.CPUMax.String(),
			Message: fmt.Sprintf("%s is more than this host has: %d cores are %s", service.CPUMax.Format(spec.Limits[service.CPUMax]),
				host.Cores, service.CPUMax.Format(most)),
		}}}
	}
	if missing := enforces.Missing(spec.Limits); len(missing) > 0 && !spec.BestEffort {
		return service.Limits{}, Unenforceable("start", spec.Name, backend, missing)
	}
	defaults := host.Defaults
	for _, r := range enforces.Missing(defaults) {
		defaults[r] = service.Quota{}
	}
	return spec.Limits.Over(defaults), nil
}

// Unenforceable is the refusal of limits that a backend does not enforce.
func Unenforceable(op string, name service.Name, backend string, missing []service.Resource) error {
	words := make([]string, len(missing))
	for i, r := range missing {
		words[i] = r.String()
	}
	return &service.Error{Op: op, Service: name, Kind: service.Unenforceable, Reason: service.ReasonLimitUnenforceable,
		Err: fmt.Errorf(`the %s backend can not enforce %s on this host; remove it from the definition, or set "best_effort": true in its limits to run without`,
			backend, strings.Join(words, ", "))}
}
