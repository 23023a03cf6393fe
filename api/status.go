package api

import (
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// toServiceStatus tells what is known without asking the host.
func toServiceStatus(st *service.Status) *gladsheimv1.ServiceStatus {
	out := &gladsheimv1.ServiceStatus{
		ServiceName:       st.Name.String(),
		State:             toState(st.Machine),
		ProcessId:         int32(st.PID()),
		StartTimeUnix:     seconds(st.Started),
		StartTimeUnixMs:   millis(st.Started),
		StopTimeUnix:      seconds(st.Ended),
		HealthStatus:      toHealth(st),
		RestartCount:      st.Machine.Restarts,
		Backend:           st.Ref.Backend,
		Launch:            launchOf(st.Ref),
		Unit:              st.Ref.Unit,
		Cgroup:            utf8(st.Ref.Cgroup),
		Incarnation:       st.Machine.Incarnation,
		Phase:             st.Machine.State.String(),
		LastExit:          toExit(st.LastExit),
		Source:            utf8(st.Source),
		NextAttemptUnixMs: millis(st.NextAttempt),
		WaitingFor:        utf8(st.WaitsFor),
		Hook:              clip(st.Hook, maxText),
		LastActor:         utf8(st.LastActor),
		Generation:        st.Generation,
		Log:               utf8(st.Log),
		Frozen:            st.FrozenBy != "",
		FrozenBy:          utf8(st.FrozenBy),
		Completed:         st.Completed(),
		NextRunUnixMs:     millis(st.Timing.Next),
		LastRunUnixMs:     millis(st.Timing.Last),
		GivenUp:           st.Machine.GaveUp.String(),
		RecentFailures:    uint32(max(0, st.Machine.Recent)),
		FailuresInARow:    uint32(max(0, st.Machine.Failures)),
	}
	if st.Error != "" {
		text := clip(st.Error, maxText)
		out.ErrorMessage = &text
	}
	if t := st.LogTrouble; t.Lasts() {
		out.LogTrouble = &gladsheimv1.LogTrouble{
			Reason: utf8(t.Why), Policy: t.Policy.String(), SinceUnixMs: millis(t.Began), Incarnation: t.Incarnation,
		}
	}
	if n := st.Notified; n != (service.Notified{}) {
		out.Notified = &gladsheimv1.Notified{
			Status: utf8(n.Status), Reloading: n.Reloading, Stopping: n.Stopping, Errno: int32(n.Errno), BusError: n.BusError,
			MainPid: int32(n.MainPID), AtUnixMs: millis(n.At), Dropped: n.Dropped,
		}
	}
	if h := st.Hung; h.Lasts() {
		out.Hung = &gladsheimv1.Hang{SinceUnixMs: millis(h.Since), Why: clip(h.Why, maxText)}
	}
	for v, since := range st.Violations {
		if !since.IsZero() {
			out.Violations = append(out.Violations, &gladsheimv1.Violation{Kind: service.Violation(v).String(), SinceUnixMs: millis(since)})
		}
	}
	for m, n := range st.Measures {
		if n > 0 {
			out.Enforcements = append(out.Enforcements, &gladsheimv1.EnforcementCount{Step: service.Measure(m).String(), Count: n})
		}
	}
	for _, r := range st.Applied.Unenforced() {
		out.UnenforcedLimits = append(out.UnenforcedLimits, r.String())
	}
	if spec := st.Spec; spec != nil {
		out.Type = spec.Type.String()
		out.SchedulePaused = st.Machine.Paused && !spec.Schedule.IsZero()
		out.Description, out.User, out.Autostart = utf8(spec.Description), utf8(spec.User), spec.Autostart
		if spec.Restart.When != service.RestartNever {
			left := uint32(max(0, spec.Restart.MaxAttempts-st.Machine.Recent))
			out.RestartsLeft = &left
		}
	}
	return out
}

// toState needs no table: service.Public has the numbers of the wire, and a
// test holds the two together.
func toState(m service.Machine) gladsheimv1.ServiceState {
	return gladsheimv1.ServiceState(m.Public())
}

// launchOf tells how an incarnation was launched by what holds it.
func launchOf(ref service.Ref) string {
	switch {
	case ref.Unit != "":
		return "scope"
	case ref.Cgroup != "":
		return "cgroup"
	case ref.Backend != "":
		return "exec"
	}
	return ""
}

func toHealth(st *service.Status) *gladsheimv1.ServiceHealth {
	h := st.Verdict()
	out := &gladsheimv1.ServiceHealth{
		ServiceName:         st.Name.String(),
		Status:              gladsheimv1.HealthStatus(h.Status),
		Message:             clip(h.Message, maxText),
		LastCheckUnix:       seconds(h.LastCheck),
		NextCheckUnix:       seconds(h.NextCheck),
		ConsecutiveFailures: uint32(max(0, h.Failures)),
		CheckStrategy:       h.Strategy.String(),

		ConsecutiveSuccesses: uint32(max(0, h.Successes)),
		LastCheckUnixMs:      millis(h.LastCheck),
		NextCheckUnixMs:      millis(h.NextCheck),
		LastCheckFailed:      h.Failed,
	}
	if st.Spec != nil {
		out.Target = utf8(st.Spec.Health.Target())
		out.Threshold = uint32(max(0, st.Spec.Health.Threshold))
		out.SuccessThreshold = uint32(max(0, st.Spec.Health.SuccessThreshold))
	}
	return out
}

func toProcesses(processes []service.Process) []*gladsheimv1.Process {
	out := make([]*gladsheimv1.Process, 0, len(processes))
	for _, p := range processes {
		out = append(out, &gladsheimv1.Process{Pid: int32(p.PID), Ppid: int32(p.Parent), Command: clip(p.Command, maxCommand)})
	}
	return out
}

// Caps on what a service can make an answer hold: it may have very many
// processes with very long command lines.
const (
	maxText      = 4 << 10
	maxCommand   = 1 << 10
	maxProcesses = 2048
)

// verdictOf is the one table from verdicts to the wire. That nobody knows is
// told by ExitRecord.unknown_reason.
var verdictOf = [...]gladsheimv1.Verdict{
	service.VerdictNone:         gladsheimv1.Verdict_VERDICT_UNSPECIFIED,
	service.VerdictClean:        gladsheimv1.Verdict_VERDICT_CLEAN,
	service.VerdictStopped:      gladsheimv1.Verdict_VERDICT_STOPPED,
	service.VerdictCrash:        gladsheimv1.Verdict_VERDICT_CRASH,
	service.VerdictOwnOOM:       gladsheimv1.Verdict_VERDICT_OWN_LIMIT_OOM,
	service.VerdictAncestorOOM:  gladsheimv1.Verdict_VERDICT_ANCESTOR_OOM,
	service.VerdictHostOOM:      gladsheimv1.Verdict_VERDICT_HOST_OOM,
	service.VerdictUnhealthy:    gladsheimv1.Verdict_VERDICT_UNHEALTHY,
	service.VerdictWatchdog:     gladsheimv1.Verdict_VERDICT_WATCHDOG,
	service.VerdictExceeded:     gladsheimv1.Verdict_VERDICT_EXCEEDED,
	service.VerdictHookFailed:   gladsheimv1.Verdict_VERDICT_HOOK_FAILED,
	service.VerdictKilled:       gladsheimv1.Verdict_VERDICT_KILLED_FROM_OUTSIDE,
	service.VerdictStartupTime:  gladsheimv1.Verdict_VERDICT_STARTUP_TIMEOUT,
	service.VerdictLaunchFailed: gladsheimv1.Verdict_VERDICT_LAUNCH_FAILED,
	service.VerdictUnknown:      gladsheimv1.Verdict_VERDICT_UNSPECIFIED,
}

func toExit(r *service.ExitRecord) *gladsheimv1.ExitRecord {
	if r == nil {
		return nil
	}
	out := &gladsheimv1.ExitRecord{
		Incarnation:        r.Incarnation,
		CoreDumped:         r.Exit.Core,
		Verdict:            verdictOf[r.Verdict],
		OomLevel:           utf8(r.Remains.OOMLevel),
		RequestedBy:        utf8(r.RequestedBy),
		StartedUnixMs:      millis(r.Started),
		EndedUnixMs:        millis(r.Ended),
		LeftoversKilled:    uint32(max(0, r.Remains.Leftovers)),
		KilledAfterTimeout: r.ForceKilled,
		Message:            clip(r.Message, maxText),
		Fingerprint:        utf8(r.Fingerprint),
		Seen:               uint32(max(0, r.Seen)),
		FirstSeenUnixMs:    millis(r.FirstSeen),
		Decision:           clip(r.Decision(), maxText),
		Violations:         r.Violations,
	}
	if after := r.After; after != nil {
		out.GivenUp = after.GaveUp.String()
		if after.State == service.Backoff {
			wait := uint64(max(0, r.Wait.Milliseconds()))
			out.RestartWaitMs = &wait
		}
	}
	switch {
	case r.Exit == service.NeverRan: // there was nothing to end
	case r.Exit.Unknown != "":
		reason := utf8(r.Exit.Unknown)
		out.UnknownReason = &reason
	case r.Exit.Signal != 0:
		signal := int32(r.Exit.Signal)
		out.Signal = &signal
	default:
		code := int32(r.Exit.Code)
		out.ExitCode = &code
	}
	if u := r.Remains.Usage; u.Source != "" {
		cpu := micros(u.CPUTime)
		out.MemoryPeakBytes, out.CpuTimeUsec, out.ThrottledUsec, out.PidsPeak = optional(u.MemoryPeak), &cpu, optional(u.Throttled), optional(u.PidsPeak)
	}
	for _, line := range r.LastLines {
		out.LastLines = append(out.LastLines, []byte(line))
	}
	return out
}

// optional keeps absent apart from zero.
func optional(q service.Quota) *uint64 {
	if !q.Set {
		return nil
	}
	return &q.Value
}

func micros(d time.Duration) uint64 { return uint64(max(0, d.Microseconds())) }

// seconds and millis are Unix times; 0 is never.
func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
