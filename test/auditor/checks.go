package auditor

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// aliveStill is I1: what ran before the fault runs on, unless somebody asked for
// something else.
func aliveStill(v *view, e Expectation) (out []Finding) {
	for _, i := range e.Since.Instances {
		asked := slices.ContainsFunc(e.Acked, func(a Ack) bool { return a.Service == i.Service })
		if p := v.processes[i.PID]; !asked && (p == nil || p.start != i.Start || !p.alive()) {
			out = append(out, Finding{"I1", i.Service, fmt.Sprintf("it ran as process %d, and does not any more", i.PID)})
		}
	}
	return out
}

// oneInstance is I2: all that lives of a service is in one place.
func oneInstance(v *view, _ Expectation) (out []Finding) {
	places := map[string]map[string]bool{}
	for _, p := range v.processes {
		i, ok := v.of(p)
		if !ok || !p.alive() {
			continue
		}
		if places[i.service] == nil {
			places[i.service] = map[string]bool{}
		}
		places[i.service][i.place] = true
	}
	for service, all := range places {
		if len(all) > 1 {
			out = append(out, Finding{"I2", service, fmt.Sprintf("it lives %d times: in %v", len(all), slices.Sorted(maps.Keys(all)))})
		}
	}
	return out
}

// everyProcessKnown is I3: what lives where services live belongs to one that the
// records and the agent know as alive, and no cgroup of ours is without one.
func everyProcessKnown(v *view, _ Expectation) (out []Finding) {
	for pid, p := range v.processes {
		i, ours := v.of(p)
		switch {
		case !p.alive():
		case ours:
			if why := v.unknown(i); why != "" {
				out = append(out, Finding{"I3", i.service, fmt.Sprintf("process %d lives in %s, but %s", pid, i.place, why)})
			}
		case belowOurs(p.cgroup) && !slices.Contains(notServices, p.cgroup):
			out = append(out, Finding{"I3", "", fmt.Sprintf("process %d lives in %s, which is of no service", pid, p.cgroup)})
		}
	}
	for _, group := range v.groups {
		i, _ := ofGroup(group)
		if why := v.unknown(i); why != "" {
			out = append(out, Finding{"I3", i.service, fmt.Sprintf("the cgroup %s is there, but %s", group, why)})
		}
	}
	return out
}

// unclaimed notes who carries a mark of some agent's exec backend, and of no service
// that is known here: it is another agent's, or of one that was forgotten.
func (v *view) unclaimed() []string {
	var pids []int
	for pid, p := range v.processes {
		if _, ours := v.of(p); p.brand != 0 && !ours && p.alive() {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil
	}
	slices.Sort(pids)
	return []string{fmt.Sprintf("processes %v carry a mark of an agent, of a service that is not registered here", pids)}
}

// unknown tells why an incarnation is none that may be alive, "" if it may be.
func (v *view) unknown(i instance) string {
	a, recorded := v.actual[i.service]
	same := func(incarnation uint64) bool {
		return incarnation == i.incarnation || a.Ref.Backend == "exec" && uint64(uint32(incarnation)) == i.incarnation
	}
	switch {
	case !recorded:
		return "no record is there of it"
	case !same(a.Machine.Incarnation):
		return fmt.Sprintf("incarnation %d is on record, not %d", a.Machine.Incarnation, i.incarnation)
	case !a.Machine.State.alive():
		return "its record says that nothing of it is alive"
	case v.answers == nil:
		return ""
	}
	s := v.answers.services[i.service]
	switch {
	case s == nil:
		return "the agent does not know it"
	case !same(s.GetIncarnation()):
		return fmt.Sprintf("the agent says that incarnation %d is the present one, not %d", s.GetIncarnation(), i.incarnation)
	case s.GetState() == gladsheimv1.ServiceState_SERVICE_STATE_STOPPED, s.GetState() == gladsheimv1.ServiceState_SERVICE_STATE_CRASHED:
		return "the agent says that it does not run"
	}
	return ""
}

// acknowledgedKept is I4: what a caller was told is on disk, and what the agent
// says. That records can be read at all was seen to by the look.
func acknowledgedKept(v *view, e Expectation) (out []Finding) {
	for service, acks := range byService(e.Acked) {
		miss := func(format string, args ...any) {
			out = append(out, Finding{"I4", service, fmt.Sprintf(format, args...)})
		}
		w, onDisk := v.wanted[service]
		if ack, ok := last(acks, Registered, Unregistered); ok {
			kept := onDisk && len(w.Document) > 0
			switch {
			case ack.Deed == Registered && (!kept || !bytes.Equal(w.Document, ack.Document)):
				miss("its registration was acknowledged, and the definition on disk is another or none")
			case ack.Deed == Unregistered && kept:
				miss("that it was unregistered was acknowledged, and its definition is on disk")
			}
			if v.answers != nil && (v.answers.services[service] != nil) != (ack.Deed == Registered) {
				miss("the %s was acknowledged, and the agent says otherwise", ack.Deed)
			}
		}
		ack, ok := last(acks, Started, Stopped)
		if !ok {
			continue
		}
		if w.Up != (ack.Deed == Started) {
			miss("the %s was acknowledged, and the disk says up: %v", ack.Deed, w.Up)
		}
		if v.answers == nil || ack.Deed == Stopped {
			continue
		}
		s := v.answers.services[service]
		if s.GetState() == gladsheimv1.ServiceState_SERVICE_STATE_STOPPED || s.GetIncarnation() < ack.Incarnation {
			miss("the start of incarnation %d was acknowledged, and the agent says that incarnation %d is %s",
				ack.Incarnation, s.GetIncarnation(), s.GetPhase())
		}
	}
	return out
}

func byService(acks []Ack) map[string][]Ack {
	out := map[string][]Ack{}
	for _, a := range acks {
		out[a.Service] = append(out[a.Service], a)
	}
	return out
}

// last finds the latest of some deeds.
func last(acks []Ack, deeds ...Deed) (Ack, bool) {
	for _, a := range slices.Backward(acks) {
		if slices.Contains(deeds, a.Deed) {
			return a, true
		}
	}
	return Ack{}, false
}

// stopsKept is I5: of what somebody stopped nothing lives, and nothing is going to.
func stopsKept(v *view, e Expectation) (out []Finding) {
	for service, acks := range byService(e.Acked) {
		ack, ok := last(acks, Started, Stopped)
		if !ok || ack.Deed != Stopped {
			continue
		}
		undone := func(format string, args ...any) {
			out = append(out, Finding{"I5", service, "its stop was acknowledged, but " + fmt.Sprintf(format, args...)})
		}
		for pid, p := range v.processes {
			if i, ours := v.of(p); ours && i.service == service && p.alive() {
				undone("process %d of it lives", pid)
			}
		}
		if m := v.actual[service].Machine; m.State != stopped || m.Incarnation > ack.Incarnation {
			undone("its record says state %d of incarnation %d, after %d", m.State, m.Incarnation, ack.Incarnation)
		}
		if v.answers == nil {
			continue
		}
		if s := v.answers.services[service]; s != nil && s.GetState() != gladsheimv1.ServiceState_SERVICE_STATE_STOPPED {
			undone("the agent says that it is %s", s.GetPhase())
		}
	}
	return out
}

// exitsWhole is I6: every end has one record, which tells a code, a signal or why
// neither is known.
func exitsWhole(v *view, _ Expectation) (out []Finding) {
	for service, exits := range v.exits {
		miss := func(format string, args ...any) {
			out = append(out, Finding{"I6", service, fmt.Sprintf(format, args...)})
		}
		for i, x := range exits {
			if n := exits[max(0, i-1)].Incarnation; i > 0 && x.Incarnation == n {
				miss("incarnation %d ended twice", n)
			} else if i > 0 && x.Incarnation != n+1 {
				miss("no record is there of how the incarnations between %d and %d ended", n, x.Incarnation)
			}
			if told := x.Exit; told.Code < 0 || told.Code > 255 || told.Signal < 0 || told.Signal > 64 ||
				told.Code != 0 && told.Signal != 0 || told.Unknown != "" && (told.Code != 0 || told.Signal != 0) {
				miss("the end of incarnation %d can not be: code %d, signal %d, unknown %q", x.Incarnation, told.Code, told.Signal, told.Unknown)
			}
			if x.Verdict <= 0 || x.Verdict >= noVerdicts {
				miss("the end of incarnation %d was not judged", x.Incarnation)
			}
		}
	}
	for service, a := range v.actual {
		if v.answers != nil && a.Machine.State.runs() && a.Ref.PID != 0 && v.main(a) == nil {
			out = append(out, Finding{"I6", service, fmt.Sprintf("its record says that it runs as process %d, which is no more", a.Ref.PID)})
		}
		ended, latest := a.Machine.Incarnation, uint64(0)
		if a.Machine.State.alive() {
			ended--
		}
		if exits := v.exits[service]; len(exits) > 0 {
			latest = exits[len(exits)-1].Incarnation
		}
		if a.Machine.Incarnation > 0 && latest != ended && !(latest < ended && v.exitsLost(service)) {
			out = append(out, Finding{"I6", service, fmt.Sprintf("incarnation %d has ended, and the last record is of %d", ended, latest)})
		}
	}
	return out
}

// changes are the methods whose calls change something.
var changes = map[string]Deed{
	"/gladsheim.v1.GladsheimService/StartService":      Started,
	"/gladsheim.v1.GladsheimService/StopService":       Stopped,
	"/gladsheim.v1.GladsheimService/RestartService":    Started,
	"/gladsheim.v1.GladsheimService/SetResourceLimits": "set limits",
	"/gladsheim.v1.RuntimeService/Kill":                Stopped,
	"/gladsheim.v1.RuntimeService/Signal":              "signal",
	"/gladsheim.v1.RuntimeService/Freeze":              "freeze",
	"/gladsheim.v1.RuntimeService/Thaw":                "thaw",
	"/gladsheim.v1.CatalogService/Register":            Registered,
	"/gladsheim.v1.CatalogService/Unregister":          Unregistered,
	"/gladsheim.v1.CatalogService/Apply":               "apply",
}

// changesLogged is I7: before every change stands in the log who asks for it, and
// after it what came of it. That an agent began anew stands for the outcomes that
// the one before could not write any more.
func changesLogged(v *view, e Expectation) (out []Finding) {
	if v.host.AgentLog == "" {
		return nil
	}
	miss := func(service, format string, args ...any) {
		out = append(out, Finding{"I7", service, fmt.Sprintf(format, args...)})
	}
	type call struct{ method, actor, pid, service string }
	open, excused, done := map[call]int{}, map[call]int{}, map[string]int{}
	for _, line := range v.log {
		c := call{line["method"], line["actor"], line["pid"], line["service"]}
		deed, isChange := changes[c.method]
		switch {
		case line["msg"] == "listening": // an agent began
			for c, n := range open {
				excused[c] += n
			}
			clear(open)
			continue
		case !isChange || line["msg"] != "call begun" && line["msg"] != "call":
			continue
		case c.actor == "":
			miss(c.service, "the log does not say who asked for %q", line["msg"])
			continue
		case line["msg"] == "call begun":
			open[c]++
			continue
		case refused(line["outcome"]):
			continue
		case line["outcome"] == "OK":
			done[string(deed)+" "+c.service]++
		}
		if open[c]+excused[c] == 0 {
			c.service = "" // of a document it is not known before it was read
		}
		switch {
		case open[c] > 0:
			open[c]--
		case excused[c] > 0:
			excused[c]--
		default:
			miss(line["service"], "the log tells an outcome of %s at %s, and not before who asked for it", c.method, line["time"])
		}
	}
	for c, n := range open {
		if n > 0 && e.Quiet {
			miss(c.service, "the log tells that %s asked for %s, and not what came of it", c.actor, c.method)
		}
	}
	acked := map[string]int{}
	for _, a := range e.Acked {
		acked[string(a.Deed)+" "+a.Service]++
		if key := string(a.Deed) + " " + a.Service; acked[key] > done[key] {
			miss(a.Service, "the %s was acknowledged, and the log does not tell of it", a.Deed)
		}
	}
	return out
}

// refused tells of an outcome that nothing was begun, so that nobody had to be
// named before.
func refused(outcome string) bool {
	return outcome == "PermissionDenied" || outcome == "Unauthenticated"
}

// nothingOutside is I8: nothing of ours is where others live, and nobody who is
// none of ours was touched.
func nothingOutside(v *view, e Expectation) (out []Finding) {
	for _, b := range e.Bystanders {
		p := v.processes[b.PID]
		switch {
		case p == nil || p.start != b.Start || !p.alive():
			out = append(out, Finding{"I8", "", fmt.Sprintf("process %d, which is none of ours, does not live any more", b.PID)})
		case p.cgroup != b.Cgroup:
			out = append(out, Finding{"I8", "", fmt.Sprintf("process %d, which is none of ours, was moved from %s to %s", b.PID, b.Cgroup, p.cgroup)})
		}
	}
	for _, group := range v.groups {
		if !belowOurs(group) {
			i, _ := ofGroup(group)
			out = append(out, Finding{"I8", i.service, fmt.Sprintf("the cgroup %s is not below one of ours", group)})
		}
	}
	children := map[int][]*process{}
	for _, p := range v.processes {
		if p.alive() {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	for service, a := range v.actual {
		main := v.main(a)
		if main == nil || a.Ref.Cgroup == "" {
			continue
		}
		for family := []*process{main}; len(family) > 0; family = family[1:] {
			p := family[0]
			if !within(p.cgroup, a.Ref.Cgroup) {
				out = append(out, Finding{"I8", service, fmt.Sprintf("its process %d lives in %s, outside of %s", p.pid, p.cgroup, a.Ref.Cgroup)})
			}
			family = append(family, children[p.pid]...)
		}
	}
	return out
}

// restartsFounded is I11: as many ends that call for a restart are on record as
// there were restarts. Of more than are kept nobody can say.
func restartsFounded(v *view, e Expectation) (out []Finding) {
	for service, a := range v.actual {
		since := e.Since.Restarts[service]
		if a.Machine.Restarts < since.Count { // counted anew since somebody asked for a start
			since = Restarts{}
		}
		ends, kept := uint32(0), len(v.exits[service])
		for _, x := range v.exits[service] {
			failed := x.Verdict != verdictStopped && (x.Verdict != verdictClean || a.Machine.Policy.When == restartAlways)
			if (failed || x.waits()) && x.Incarnation >= since.Incarnation {
				ends++
			}
		}
		if risen := a.Machine.Restarts - since.Count; kept < keptExits && risen > ends {
			out = append(out, Finding{"I11", service, fmt.Sprintf("it was restarted %d times, and %d failures are on record", risen, ends)})
		}
	}
	return out
}

// keptExits is how many exit records the agent keeps of a service.
const keptExits = 16
