package main

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// sheet is what status prints: lines of a label and what it is.
type sheet struct {
	style
	strings.Builder
}

// line adds a line, unless there is nothing to say.
func (s *sheet) line(label, text string) {
	if text != "" {
		fmt.Fprintf(s, "%11s: %s\n", label, plain(text))
	}
}

// loud adds a line that nobody is to miss.
func (s *sheet) loud(label, text string) {
	fmt.Fprintf(s, "%11s: %s\n", label, s.paint(red, plain(text)))
}

// and joins the parts that are not empty, a blank between them.
func and(parts ...string) string { return join(parts, " ") }

// list joins the parts that are not empty, a comma between them.
func list(parts ...string) string { return join(parts, ", ") }

func join(parts []string, between string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), between)
}

// in is a list in parentheses, "" without parts.
func in(parts ...string) string {
	if text := list(parts...); text != "" {
		return "(" + text + ")"
	}
	return ""
}

// other is text, "" if it only says again what was said.
func other(text, said string) string {
	if text == said {
		return ""
	}
	return text
}

// labelled is a label and what it is, "" if that is nothing.
func labelled(label, text string) string {
	if text == "" {
		return ""
	}
	return label + " " + text
}

func (a *app) showStatus(r *report) error {
	s := &sheet{style: a.style}
	title := r.GetServiceName()
	if d := r.GetDescription(); d != "" {
		title += " - " + d
	}
	fmt.Fprintf(s, "%s %s\n", a.show(signOf(r.GetState())), plain(title))
	a.sayState(s, r.ServiceStatus)
	a.sayUsage(s, r.ServiceStatus)
	a.sayProcesses(s, r.GetProcesses())
	a.sayEvents(s, r)
	a.sayLines(s, r)
	if text := advice(r.ServiceStatus); text != "" {
		fmt.Fprintf(s, "Hint: %s\n", plain(text))
	}
	_, err := fmt.Fprint(a.out, s.String())
	return err
}

// advice is what to do about a service, "" when it needs nothing.
func advice(st *gladsheimv1.ServiceStatus) string {
	name := st.GetServiceName()
	switch {
	case st.GetLastExit().GetVerdict() == gladsheimv1.Verdict_VERDICT_OWN_LIMIT_OOM:
		return fmt.Sprintf("it needs more memory than it may have; try: gladsheim set %s memory_max=SIZE", name)
	case st.GetState() == gladsheimv1.ServiceState_SERVICE_STATE_CRASHED:
		return fmt.Sprintf("in which ways it failed: gladsheim history %s --crashes; to start it again: gladsheim start %s", name, name)
	}
	return ""
}

func (a *app) sayState(s *sheet, st *gladsheimv1.ServiceStatus) {
	start := ""
	if st.GetAutostart() {
		start = "autostart"
	}
	s.line("Loaded", and(st.GetSource(), in(fmt.Sprintf("generation %d", st.GetGeneration()), start)))
	s.line("Active", a.active(st))
	if st.GetProcessId() != 0 {
		s.line("Health", a.healthLine(st.GetHealthStatus()))
	}
	s.line("Runs now", st.GetHook())
	if n := st.GetNotified(); n != nil {
		s.line("Says", says(n))
	}
	s.line("Runner", and(st.GetBackend(), other(st.GetLaunch(), st.GetBackend()), st.GetUnit()))
	s.line("Cgroup", st.GetCgroup())
	s.line("Output", st.GetLog())
	if t := st.GetLogTrouble(); t != nil {
		s.loud("LOG FULL", a.logTrouble(t))
	}
	if h := st.GetHung(); h != nil {
		since := fromMillis(h.GetSinceUnixMs())
		s.loud("HANGS", fmt.Sprintf("since %s; %s: %s", moment(since), ago(a.now(), since), h.GetWhy()))
	}
	for _, v := range st.GetViolations() {
		since := fromMillis(v.GetSinceUnixMs())
		s.loud("EXCEEDS", fmt.Sprintf("%s since %s; %s", v.GetKind(), moment(since), ago(a.now(), since)))
	}
	if pid := st.GetProcessId(); pid != 0 {
		s.line("Main PID", and(number(pid), in(programOf(pid, st.GetProcesses()), labelled("user", st.GetUser()))))
	}
	s.line("Schedule", a.scheduleLine(st))
	s.line("Restarts", and(number(st.GetRestartCount()), in(maybe(st.RestartsLeft, func(n uint32) string { return number(n) + " left" }))))
	s.line("Asked by", st.GetLastActor())
	if x := st.GetLastExit(); x != nil {
		s.line("Last end", a.lastEnd(x))
		if m := x.GetMessage(); m != "" && !strings.Contains(how(x), m) {
			fmt.Fprintf(s, "%13s%s\n", "", plain(m))
		}
	}
	if st.ErrorMessage != nil {
		s.loud("Error", st.GetErrorMessage())
	}
	if missing := st.GetUnenforcedLimits(); len(missing) > 0 {
		s.loud("NOT ENFORCED", strings.Join(missing, ", ")+": this host can not; see gladsheim doctor")
	}
}

// says is what a service has said of itself.
func says(n *gladsheimv1.Notified) string {
	var more []string
	for _, p := range []struct {
		is   bool
		text string
	}{
		{n.GetReloading(), "reloading"}, {n.GetStopping(), "stopping"},
		{n.GetErrno() != 0, fmt.Sprintf("errno %d", n.GetErrno())}, {n.GetBusError() != "", n.GetBusError()},
		{n.GetMainPid() != 0, fmt.Sprintf("main PID %d", n.GetMainPid())}, {n.GetDropped() > 0, fmt.Sprintf("%d messages of others dropped", n.GetDropped())},
	} {
		if p.is {
			more = append(more, p.text)
		}
	}
	return and(n.GetStatus(), in(more...))
}

// logTrouble says what is wrong with a log.
func (a *app) logTrouble(t *gladsheimv1.LogTrouble) string {
	since := fromMillis(t.GetSinceUnixMs())
	does := "what it writes is dropped and counted"
	if t.GetPolicy() == "block" {
		does = "it waits when it writes"
	}
	return fmt.Sprintf("%s since %s; %s: %s", t.GetReason(), moment(since), ago(a.now(), since), does)
}

// programOf is the name of the program that a process runs, "" if that is unknown.
func programOf(pid int32, processes []*gladsheimv1.Process) string {
	for _, p := range processes {
		if words := strings.Fields(p.GetCommand()); p.GetPid() == pid && len(words) > 0 {
			return filepath.Base(words[0])
		}
	}
	return ""
}

// active is the state, since when, and how long that is.
// scheduleLine is when it is begun by itself, "" if it is not.
func (a *app) scheduleLine(st *gladsheimv1.ServiceStatus) string {
	next, last := st.GetNextRunUnixMs(), ""
	if ms := st.GetLastRunUnixMs(); ms != 0 {
		last = "last run " + moment(fromMillis(ms))
	}
	switch {
	case st.GetSchedulePaused():
		return list("rests since it was stopped", last)
	case next == 0:
		return ""
	}
	return list("next run "+moment(fromMillis(next))+"; "+ago(a.now(), fromMillis(next)), last)
}

func (a *app) active(st *gladsheimv1.ServiceStatus) string {
	text := stateWord(st.GetState())
	if st.GetCompleted() {
		text += ", its job is done,"
	}
	if phase := st.GetPhase(); phase != "" && phase != text {
		text += " (" + phase + ")"
	}
	var since time.Time
	switch {
	case st.GetStopTimeUnix() != 0:
		since = time.Unix(st.GetStopTimeUnix(), 0)
	case st.GetStartTimeUnixMs() != 0:
		since = fromMillis(st.GetStartTimeUnixMs())
	default:
		return text
	}
	began := " since "
	if st.GetState() == gladsheimv1.ServiceState_SERVICE_STATE_STOPPING { // nobody keeps when that began
		began = "; started "
	}
	text += began + moment(since) + "; " + ago(a.now(), since)
	if st.GetFrozen() { // nobody keeps since when
		text += "; " + frozenNote(st)
	}
	if st.GetWaitingFor() != "" {
		text += "; " + st.GetWaitingFor()
	}
	if next := st.GetNextAttemptUnixMs(); next != 0 {
		text += "; next start " + ago(a.now(), fromMillis(next))
	}
	return text
}

func (a *app) healthLine(h *gladsheimv1.ServiceHealth) string {
	what := and(h.GetCheckStrategy(), h.GetTarget())
	if m := h.GetMessage(); m != "" {
		what += ": " + m
	}
	var failed, next string
	if n := h.GetConsecutiveFailures(); n > 0 {
		failed = fmt.Sprintf("%d of %d failed", n, h.GetThreshold())
	}
	if h.GetNextCheckUnix() != 0 {
		next = "next " + ago(a.now(), time.Unix(h.GetNextCheckUnix(), 0))
	}
	return strings.TrimSpace(healthWord(h.GetStatus()) + " - " + and(what, in(failed, next)))
}

func (a *app) lastEnd(x *gladsheimv1.ExitRecord) string {
	at := fromMillis(x.GetEndedUnixMs())
	text := fmt.Sprintf("%s; %s, after %s", ended(x), ago(a.now(), at), span(at.Sub(fromMillis(x.GetStartedUnixMs()))))
	return and(text, in(labelled("asked by", x.GetRequestedBy()), labelled("peak", maybe(x.MemoryPeakBytes, bytesOf)),
		labelled("limit of", x.GetOomLevel()), leftOver(x)))
}

// held is what of a limit holds, "" when there is none.
func held(st *gladsheimv1.ServiceStatus, name string, format func(float64) string) string {
	for _, l := range st.GetLimits() {
		if l.GetName() == name && l.GetEnforced() && l.Effective != nil && !math.IsInf(l.GetEffective(), 1) {
			return format(l.GetEffective())
		}
	}
	return ""
}

func (a *app) sayUsage(s *sheet, st *gladsheimv1.ServiceStatus) {
	u := st.GetResourceUsage()
	if u == nil {
		return
	}
	held := func(name string, format func(float64) string) string { return held(st, name, format) }
	s.line("CPU", list(and(percent(float64(u.GetCpuPercent())), labelled("of", held("cpu_percent", percent))),
		usecOf(u.GetCpuTimeUsec())+" in all", labelled("throttled", maybe(u.ThrottledUsec, usecOf))))
	s.line("Memory", and(bytesOf(u.GetMemoryBytes()), labelled("of", held("memory_max", size)),
		in(labelled("high", held("memory_high", size)), labelled("peak", maybe(u.MemoryPeakBytes, bytesOf)),
			labelled("swap", maybe(u.MemorySwapBytes, bytesOf)))))
	s.line("Tasks", and(maybe(u.PidsCurrent, number), labelled("of", held("pids_max", whole)), in(labelled("peak", maybe(u.PidsPeak, number)))))
	s.line("I/O", ioOf(u))
	s.line("Pressure", pressureOf(u))
	if u.GetOomKills() > 0 {
		s.loud("OOM kills", number(u.GetOomKills()))
	}
}

// ioOf is what was read from disks and written to them, "" when nobody tells.
func ioOf(u *gladsheimv1.ResourceUsage) string {
	io := u.GetIo()
	if io == nil {
		return ""
	}
	return list(labelled("read", maybe(io.ReadBytes, bytesOf)), labelled("written", maybe(io.WriteBytes, bytesOf)))
}

// pressureOf is what time was lost, and for what; "" when nobody tells.
func pressureOf(u *gladsheimv1.ResourceUsage) string {
	return list(labelled("memory", lost(u.GetMemoryPressure())), labelled("CPU", lost(u.GetCpuPressure())), labelled("I/O", lost(u.GetIoPressure())))
}

// lost is the share of the latest ten seconds that was lost, "" when nobody tells.
func lost(p *gladsheimv1.Pressure) string {
	if p.GetSome() == nil {
		return ""
	}
	return percent(p.GetSome().GetAvg10Percent())
}

// sayProcesses draws the tree; they come with parents before children.
func (a *app) sayProcesses(s *sheet, processes []*gladsheimv1.Process) {
	children, known := map[int32][]*gladsheimv1.Process{}, map[int32]bool{}
	for _, p := range processes {
		known[p.GetPid()] = true
	}
	var roots []*gladsheimv1.Process
	for _, p := range processes {
		if known[p.GetPpid()] && p.GetPpid() != p.GetPid() {
			children[p.GetPpid()] = append(children[p.GetPpid()], p)
		} else {
			roots = append(roots, p)
		}
	}
	middle, last, bar := "├─", "└─", "│ "
	if !a.unicode {
		middle, last, bar = "|-", "`-", "| "
	}
	label := "Processes:"
	say := func(indent string, p *gladsheimv1.Process) {
		fmt.Fprintf(s, "%12s %s%d %s\n", label, indent, p.GetPid(), plain(p.GetCommand()))
		label = ""
	}
	var below func(indent string, of int32)
	below = func(indent string, of int32) {
		kin := children[of]
		delete(children, of) // should they ever go in a circle
		for i, p := range kin {
			branch, deeper := middle, indent+bar
			if i == len(kin)-1 {
				branch, deeper = last, indent+"  "
			}
			say(indent+branch, p)
			below(deeper, p.GetPid())
		}
	}
	for _, p := range roots {
		say("", p)
		below("", p.GetPid())
	}
}

func (a *app) sayEvents(s *sheet, r *report) {
	if len(r.events) == 0 {
		return
	}
	fmt.Fprintln(s, "Events:")
	t := &table{style: a.style, blank: true}
	for _, ev := range r.events {
		t.add(noSign, "  "+clock(fromMillis(ev.GetTimeUnixMs())), ev.GetEvent().GetKind(), story(ev.GetEvent()))
	}
	_ = t.write(s) // a Builder takes everything
}

func (a *app) sayLines(s *sheet, r *report) {
	switch {
	case r.noLog != "":
		fmt.Fprintf(s, "Logs: %s\n", plain(r.noLog))
	case len(r.lines) > 0:
		fmt.Fprintf(s, "Logs (the last %d; more: gladsheim logs %s -f):\n", len(r.lines), r.GetServiceName())
		for _, l := range r.lines {
			said := plain(string(l.GetLine()))
			if l.GetDropped() > 0 {
				said = in("journald: " + said)
			}
			fmt.Fprintf(s, "  %s\n", said)
		}
	}
}
