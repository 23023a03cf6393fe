package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/journal"
)

// hostName keys the readings of the whole machine in the meter; no service can
// have it.
var hostName service.Name

// Host describes the host and the agent on it.
func (a *Agent) Host(context.Context) (service.HostInfo, error) {
	capacity, err := a.capacity()
	if err != nil {
		return service.HostInfo{}, &service.Error{Op: "describe the host", Kind: service.HostUnavailable, Err: err}
	}
	a.mu.Lock()
	settings := a.settings
	a.mu.Unlock()
	info := service.HostInfo{
		Power:    a.powerInfo(),
		Hostname: a.cfg.Facts.Hostname, Kernel: a.cfg.Facts.Kernel, Version: a.cfg.Version, Started: a.started,
		States: a.registry.Statistics(), Platform: a.cfg.Platform, Backends: a.cfg.Facts.Backends(), MaxServices: settings.MaxServices,
		System: capacity.SystemUsage,
	}
	info.System.CPUPercent = a.busy(capacity)
	info.All, info.Uncounted = a.all()
	info.Budget, info.Promised = a.budgeted()
	for i := range info.Backends {
		b := &info.Backends[i]
		at := slices.IndexFunc(a.cfg.Backends, func(x backends.Backend) bool { return x.Name() == b.Name })
		if b.Selected = at >= 0; b.Selected {
			b.Capabilities = capabilities(a.cfg.Backends[at].Enforces())
		}
	}
	return info, nil
}

// all is what all services together use, or why nobody knows.
func (a *Agent) all() (u service.Usage, unknown string) {
	counter, err := a.counter()
	if err == nil {
		u, err = counter.Total()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return service.Usage{}, "no service has a cgroup now"
	}
	if err != nil {
		return service.Usage{}, err.Error()
	}
	u.CPUPercent = a.together.Percent(hostName, 0, a.started, time.Now(), u.CPUTime-a.usedAtStart)
	return u, ""
}

// counter is the backend that counts the services of all.
func (a *Agent) counter() (backends.Totaller, error) {
	for _, b := range a.cfg.Backends {
		if t, ok := b.(backends.Totaller); ok {
			return t, nil
		}
	}
	return nil, errors.New("no cgroup holds them, and nothing else counts what has ended")
}

func capabilities(e service.Enforcement) []string {
	var out []string
	for r, enforced := range e.Limits {
		if enforced {
			out = append(out, service.Resource(r).String())
		}
	}
	for word, has := range map[string]bool{"oom-verdict": e.OOMVerdict, "kill-all": e.KillAll, "born-inside": e.BornInside, "freeze": e.Freeze} {
		if has {
			out = append(out, word)
		}
	}
	slices.Sort(out)
	return out
}

// unenforced tells of each backend which limits it does not enforce here, and why. Of
// one that has no cgroups the findings about the host have told. What no definition asks
// for is no fault of the host.
func (a *Agent) unenforced() (findings []service.Finding) {
	for _, b := range a.cfg.Backends {
		can, asked := b.Enforces(), a.askedOf(b)
		limits := map[string][]string{}
		wanted := map[string]bool{}
		for r, why := range can.Why {
			if why != "" {
				limits[why] = append(limits[why], service.Resource(r).String())
				wanted[why] = wanted[why] || asked[r]
			}
		}
		for _, why := range slices.Sorted(maps.Keys(limits)) {
			f := service.Finding{
				Level: service.SeverityOK, Title: fmt.Sprintf("the %s backend does not enforce %s, and no definition asks for that", b.Name(), strings.Join(limits[why], ", ")),
				Detail: why + ".",
			}
			if wanted[why] {
				f = service.Finding{
					Level: service.SeverityWarning, Title: fmt.Sprintf("the %s backend does not enforce %s", b.Name(), strings.Join(limits[why], ", ")),
					Detail: "A service that asks for that is not started, unless it says best_effort: " + why + ".", Fix: "See to what is missing, then restart the agent.",
				}
			}
			findings = append(findings, f)
		}
	}
	return findings
}

// without tells of a limit that a service asks for and runs without.
func (a *Agent) without(s *service.Status, r service.Resource) service.Finding {
	f := service.Finding{
		Level: service.SeverityWarning, Title: fmt.Sprintf("%s runs without its limit %s", s.Name, r),
		Detail: "The host can not enforce it, and the definition says best_effort.", Fix: "Run it on a host with cgroup v2.",
	}
	for _, b := range a.cfg.Backends {
		can := b.Enforces()
		switch {
		case b.Name() != s.Ref.Backend:
		case can.Why[r] != "":
			f.Detail = "The definition says best_effort: " + can.Why[r] + "."
			f.Fix = "See to what is missing, then restart the agent and the service; or remove the limit from the definition."
		case can.Limits[r]: // and not as it is asked for
			f.Detail = "The host enforces that limit, but has not got what it names, such as a disk or a CPU, and the definition says best_effort."
			f.Fix = fmt.Sprintf("See what is asked for: gladsheim limits %s; then mend the definition, and restart it. Without best_effort the refusal says what is missing.", s.Name)
		}
	}
	return f
}

// askedOf tells which limits some definition that is launched by b names, or have defaults.
func (a *Agent) askedOf(b backends.Backend) (asked [service.NumResources]bool) {
	asked[service.MemoryMax], asked[service.CPUMax], asked[service.PidsMax] = true, true, true
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.definitions {
		if by, err := backends.Choose(a.cfg.Backends, d.spec.Launch); err != nil || by.Name() != b.Name() {
			continue
		}
		for r, q := range d.spec.Limits {
			asked[r] = asked[r] || q.Set
		}
	}
	return asked
}

// Doctor tells what it found of the host, of the definitions and of services.
func (a *Agent) Doctor(ctx context.Context) []service.Finding {
	a.writeAgain(ctx)
	findings := append(a.cfg.Facts.Findings(), a.outputFinding(ctx))
	findings = append(findings, a.cfg.Findings...)
	findings = append(findings, a.unenforced()...)
	a.mu.Lock()
	findings = append(append(findings, a.scars...), a.complaints...)
	findings = append(findings, a.unwritable()...)
	findings = append(findings, a.unseenQueues()...)
	if a.refused != "" {
		findings = append(findings, service.Finding{
			Level: service.SeverityProblem, Title: "the configuration was refused at the last reload", Detail: a.refused,
			Fix: "Mend the file, then reload the agent.",
		})
	}
	for _, name := range slices.SortedFunc(maps.Keys(a.strangers), byName) {
		findings = append(findings, a.strangers[name].finding())
	}
	for _, name := range slices.SortedFunc(maps.Keys(a.unkept), byName) {
		findings = append(findings, a.unkept[name].finding(name))
	}
	known := slices.Collect(maps.Keys(a.definitions))
	a.mu.Unlock()
	findings = append(findings, a.unclaimed(ctx, known)...)
	if err := a.registry.Transient(); err != nil {
		findings = append(findings, service.Finding{
			Level: service.SeverityWarning, Title: "events are forgotten when the agent ends", Detail: err.Error(),
			Fix: "See to the run directory, then restart the agent.",
		})
	}
	findings = append(findings, a.powerFindings()...)
	findings = append(findings, a.fullLogs()...)
	failures := a.cfg.Logs.Failures()
	for _, path := range slices.Sorted(maps.Keys(failures)) {
		findings = append(findings, service.Finding{
			Level: service.SeverityProblem, Title: path + " can not be cut, and grows on", Detail: failures[path],
			Fix: "Make room, or keep logs on a file system that can punch holes; the agent tries again every minute.",
		})
	}
	for _, s := range a.registry.List() {
		if s.Source == sourceGone {
			findings = append(findings, service.Finding{
				Level: service.SeverityWarning, Title: fmt.Sprintf("%s has lost its definition", s.Name),
				Detail: "It goes on as it was started.", Fix: "Define it again, or stop it and reload the agent.",
			})
		}
		for r, fought := range s.Fought {
			if fought && s.Machine.State.Alive() {
				findings = append(findings, service.Finding{
					Level: service.SeverityProblem, Title: fmt.Sprintf("somebody fights over %s of %s", service.Resource(r), s.Name),
					Detail: "It was changed behind the agent's back again and again, and is not repaired any more.",
					Fix:    fmt.Sprintf("Find out who does that, then set it anew: gladsheim set %s %s=…", s.Name, service.Resource(r)),
				})
			}
		}
		for _, r := range s.Applied.Unenforced() {
			findings = append(findings, a.without(s, r))
		}
		findings = append(findings, a.logFindings(s)...)
		if pid := s.PID(); pid != 0 && !a.streamOf(s.Name, s.Machine.Incarnation).IsZero() && journal.Ended(pid) {
			findings = append(findings, service.Finding{
				Level: service.SeverityProblem, Title: fmt.Sprintf("%s writes into the journal, which does not take it any more", s.Name),
				Detail: "journald was stopped since it was started. It runs on, and what it writes is lost.", Fix: "Restart it.",
			})
		}
		if s.Machine.State == service.Stopped && s.Error != "" {
			findings = append(findings, service.Finding{
				Level: service.SeverityProblem, Title: fmt.Sprintf("%s was to be started with the agent, and was not", s.Name), Detail: s.Error,
				Fix: "Mend that, then start it.",
			})
		}
		if s.Machine.State == service.Crashed {
			findings = append(findings, service.Finding{
				Level: service.SeverityProblem, Title: fmt.Sprintf("%s has crashed", s.Name), Detail: s.Error,
				Fix: fmt.Sprintf("See `gladsheim status %s`, then start it.", s.Name),
			})
		}
	}
	return append(findings, a.escapes()...)
}

// Configuration is the configuration in force.
func (a *Agent) Configuration() service.Configuration {
	older := a.olderDefaults()
	a.mu.Lock()
	defer a.mu.Unlock()
	return service.Configuration{
		Document: config.FormatAgent(a.settings), Source: a.settings.Source, Loaded: a.settings.Loaded, Refused: a.refused, Older: older,
	}
}
