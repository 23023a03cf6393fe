package service

import "fmt"

// EventKind names what happened. Kinds up to Kill come from users, the others
// from the backend, timers and the health monitor.
type EventKind uint8

// The events.
const (
	Start        EventKind = iota // somebody asks for it to run
	Stop                          // somebody asks for it to end
	Restart                       // somebody asks for a fresh incarnation
	Kill                          // somebody asks for it to end at once
	Adopt                         // an earlier agent left a record of it
	Adopted                       // it lives, and we watch it
	AdoptFailed                   // the host would not say whether it lives
	Launched                      // its process runs
	LaunchFailed                  // it does not, and nothing was left behind
	Unrecorded                    // its launch could not be recorded, so it was not begun
	Ready                         // it serves
	Exited                        // its main process ended, or what was to be adopted is gone
	Cleared                       // nothing of the incarnation is left
	ClearFailed                   // something is left and could not be removed
	Unhealthy                     // its checks failed often enough
	Exceeded                      // it used too much for too long
	Stable                        // it has run well for long enough for old failures to be forgotten
	StartupOver                   // timer: it should have been ready by now
	GraceOver                     // timer: it should have ended by now
	BackoffOver                   // timer: the next attempt is due
	RetryOver                     // timer: try again to adopt, to kill or to clear
	Froze                         // the kernel keeps it from running
	Thawed                        // it runs on
	Hold                          // the battery is low
	Spare                         // the battery is low, and it is about to be frozen for that
	Unspare                       // whether it is frozen or not, it is not for the battery any more
	Pause                         // beside a Stop or Kill: its schedule is not to begin it any more
	Met                           // what it needs is there
	Unmet                         // what it needs can not be had
	Unbound                       // what it is bound to is ending or gone
	numEvents
)

var eventNames = [numEvents]string{
	"start", "stop", "restart", "kill", "adopt", "adopted", "adopt-failed", "launched", "launch-failed", "unrecorded", "ready", "exited", "cleared",
	"clear-failed", "unhealthy", "exceeded", "stable", "startup-over", "grace-over", "backoff-over", "retry-over", "frozen", "thawed",
	"hold", "spare", "unspare", "pause", "met", "unmet", "unbound",
}

func (k EventKind) String() string { return eventNames[k] }

// Event is one thing that happened to one incarnation of a service.
type Event struct {
	Kind        EventKind
	Incarnation uint64 // 0 for users' events; else news of another incarnation is ignored
	Exit        Exit   // of Exited and Cleared
	Silent      bool   // of Unhealthy: its watchdog found it so
	Permanent   bool   // of LaunchFailed: trying again can not help
	OOM         bool   // of Cleared: it was killed for want of memory, which no exit code makes clean
	Fingerprint string // of Cleared and LaunchFailed, "" when the end says nothing about the next
	Lacking     bool   // of what begins an incarnation, Exited, Cleared and LaunchFailed: what it requires is not there; of Unmet: it waits on all the same
	Early       bool   // of what begins an incarnation: one that it comes after is on its way up
	Recent      int    // of Cleared, LaunchFailed and Stable: failures within the policy's window before this event
}

// Effect is a request of the machine to its shell, carried out in order.
type Effect uint8

// The effects.
const (
	DoLaunch    Effect = iota // bring the incarnation to life; arm the startup timer once it waits at its gate
	DoAdopt                   // find what an earlier agent left
	DoAbort                   // give up the launch, or the wait for readiness, in flight
	DoAwait                   // wait until it is ready; arm the startup timer unless it runs
	DoTerminate               // send the stop signal to the main process, and arm the grace timer
	DoKill                    // kill everything in it
	DoClear                   // kill what is left, read the counters once more, remove scope or cgroup
	DoProbe                   // begin health checks
	DoUnprobe                 // end health checks
	ArmStable                 // start the timer of Stable
	ArmBackoff                // start the timer of BackoffOver
	ArmRetry                  // start the timer of RetryOver
	Disarm                    // stop the timer
	ArmJob                    // start the timer of StartupOver for what is left of the time that its job has, if that is bounded
	DoNeed                    // look at what it needs; if somebody asked for it to run, have that started
	numEffects
)

var effectNames = [numEffects]string{
	"launch", "adopt", "abort", "await", "terminate", "kill", "clear", "probe", "unprobe", "arm-stable", "arm-backoff",
	"arm-retry", "disarm", "arm-job", "need",
}

func (e Effect) String() string { return effectNames[e] }

// Cause says why an incarnation is being ended by us.
type Cause uint8

// The causes.
const (
	CauseNone      Cause = iota // it is not, or it ended by itself
	CauseAsked                  // somebody asked
	CauseUnhealthy              // its checks failed
	CauseStartup                // it was not ready in time
	CauseHeld                   // the battery is low
	CauseExceeded               // it used too much for too long
	CauseWatchdog               // it did not say that it is well, or said that it is not
	CauseUnbound                // what it is bound to is ending or gone
	numCauses
)

var causeNames = [numCauses]string{"none", "asked", "unhealthy", "startup timeout", "held", "used too much", "watchdog", "unbound"}

func (c Cause) String() string { return causeNames[c] }

// Machine is what one service is up to. It is a value: Next returns a new one.
type Machine struct {
	State       State
	Incarnation uint64 // counts launches; news of another one is stale
	Up          bool   // somebody asked for it to run, and nobody since for it to end: what a reboot brings back
	Again       bool   // launch again once nothing is left
	Patient     bool   `json:",omitzero"` // in Waiting: it waited by itself before somebody asked, and goes on if that can not be had
	Asked       bool   // Again was asked for by a person, so it is no failure; in Waiting: its start was, so that it ends where that can not be had
	Excused     bool   `json:",omitzero"` // what it requires was not there when its main process ended
	Cause       Cause  // why the present incarnation is being ended
	Killing     bool   // it is being killed; until then it is told to end
	Failed      bool   // the present incarnation ended other than cleanly
	Unready     bool   // the present incarnation has not been ready yet
	Frozen      bool   // it is starting or running, and frozen: nothing is expected of it
	Spared      bool   // it is frozen, or about to be, to save the battery
	Holding     bool   // it is ending for another reason, and the battery is low: what would follow waits
	Unbegun     bool   // the launch of Incarnation could not be recorded: it is still to come
	Once        bool   // it does a job and ends
	Done        bool   // then: the job of Incarnation is done, and nothing of it is left
	Paused      bool   // somebody asked for it to end, and nobody since for it to run: its schedule does not begin it
	Failures    int    // in a row: since it was started by somebody, or has run well for long enough
	Recent      int    `json:",omitzero"` // failures within the policy's window
	Alike       int    `json:",omitzero"` // of Failures those at the end that have Fingerprint
	Fingerprint string `json:",omitzero"` // of the latest failure
	GaveUp      GiveUp `json:",omitzero"` // why nothing will be tried by itself, in Crashed
	Restarts    uint32 // launches that nobody asked for, since the last one somebody did
	ForceKill   bool   // kill what outlives its grace
	Policy      RestartPolicy
}

type rule func(Machine, Event) (Machine, []Effect)

// table is the whole behaviour. An empty cell means: the event is of no
// interest in this state, or, for a user's event, refused (see Refuses).
var table = [numStates][numEvents]rule{
	Stopped: {Start: launch, Restart: launch, Adopt: adopt, Hold: postpone, Pause: pause},
	Crashed: {Start: launch, Restart: launch, Stop: rest, Kill: rest, Pause: pause},
	Backoff: {
		Start: launch, Restart: launch, BackoffOver: relaunch,
		Stop: rest, Kill: rest, Hold: to(Held, Disarm), Pause: pause,
	},
	Held: {Start: launch, Restart: launch, Stop: rest, Kill: rest, Pause: pause},
	Waiting: {
		Start: launchWaiting, Restart: launchWaiting, Met: met, Unmet: unmet,
		Stop: rest, Kill: rest, Hold: holdWaiting, Pause: pause,
	},
	Adopting: {
		Adopted: resume, Exited: clear, LaunchFailed: cutOff, AdoptFailed: keep(ArmRetry), RetryOver: keep(DoAdopt),
		Stop: becauseAsked(), Kill: killing(becauseAsked()), Restart: again(), Hold: becauseHeld, Pause: pause,
	},
	Launching: {
		Launched: to(Starting, DoAwait), LaunchFailed: unlaunched, Unrecorded: unbegun,
		StartupOver: end(CauseStartup, DoAbort),
		Stop:        end(CauseAsked, DoAbort), Kill: killing(end(CauseAsked, DoAbort)), Restart: endAgain(DoAbort),
		Hold: end(CauseHeld, DoAbort), Unbound: end(CauseUnbound, DoAbort), Pause: pause,
	},
	Starting: {
		Ready: unfrozen(ready), Exited: clear, Froze: freeze(Disarm, DoAbort), Thawed: thaw(awaiting),
		StartupOver: unfrozen(end(CauseStartup, DoAbort, DoTerminate)),
		Exceeded:    unfrozen(end(CauseExceeded, DoAbort, DoTerminate)),
		Stop:        end(CauseAsked, DoAbort, DoTerminate), Kill: killing(end(CauseAsked, DoAbort, DoKill)), Restart: endAgain(DoAbort, DoTerminate),
		Hold: end(CauseHeld, DoAbort, DoTerminate), Unbound: end(CauseUnbound, DoAbort, DoTerminate), Pause: pause,
	},
	Running: {
		Exited: clear, Stable: unfrozen(forgive), Froze: freeze(Disarm, DoUnprobe), Thawed: thaw(running), StartupOver: unfrozen(overdue), Spare: unfrozen(spare), Unspare: unspare,
		Unhealthy: unfrozen(ill),
		Exceeded:  unfrozen(end(CauseExceeded, DoUnprobe, DoTerminate)),
		Stop:      end(CauseAsked, DoUnprobe, DoTerminate), Kill: killing(end(CauseAsked, DoUnprobe, DoKill)), Restart: endAgain(DoUnprobe, DoTerminate),
		Hold: end(CauseHeld, DoUnprobe, DoTerminate), Unbound: end(CauseUnbound, DoUnprobe, DoTerminate), Pause: pause,
	},
	Stopping: {
		// A launch that could not be given up in time.
		Launched: killing(keep(DoKill)), LaunchFailed: unlaunched,
		Exited: clear, GraceOver: graceOver, RetryOver: keep(DoKill),
		Stop: becauseAsked(), Kill: killing(becauseAsked(Disarm, DoKill)), Start: again(), Restart: again(), Hold: holdAfter, Pause: pause,
	},
	Clearing: {
		Cleared: cleared, ClearFailed: keep(ArmRetry), RetryOver: keep(DoClear),
		Stop: becauseAsked(), Kill: becauseAsked(), Start: again(), Restart: again(), Hold: holdAfter, Pause: pause,
	},
}

// Next is the only place where a service changes its state. It is total:
// stale news and events of no interest leave the machine as it is.
func Next(m Machine, ev Event) (Machine, []Effect) {
	if ev.Incarnation != 0 && ev.Incarnation != m.Incarnation {
		return m, nil
	}
	r := table[m.State][ev.Kind]
	if r == nil {
		return m, nil
	}
	return r(m, ev)
}

// Refuses tells why a user's event can not be taken in this state, or nil.
func (m Machine) Refuses(k EventKind) *Error {
	if k > Kill || table[m.State][k] != nil {
		return nil
	}
	if k == Start {
		return &Error{Op: k.String(), Kind: AlreadyRunning, Reason: ReasonAlreadyRunning, Err: fmt.Errorf("it is %s", m.State)}
	}
	return &Error{Op: k.String(), Kind: NotRunning, Reason: ReasonNotRunning, Err: fmt.Errorf("it is %s", m.State)}
}

func to(s State, do ...Effect) rule {
	return func(m Machine, _ Event) (Machine, []Effect) {
		m.State = s
		return m, do
	}
}

func ready(m Machine, _ Event) (Machine, []Effect) {
	m.State, m.Unready = Running, false
	return m, append([]Effect{Disarm}, running(m)...)
}

// running is what begins when it runs. The time of a job that is under way is bounded
// by its definition, if by anything.
func running(m Machine) []Effect {
	if m.Once {
		return []Effect{DoProbe, ArmJob}
	}
	return []Effect{DoProbe, ArmStable}
}

// overdue ends a job that takes too long.
func overdue(m Machine, ev Event) (Machine, []Effect) {
	if !m.Once {
		return m, nil
	}
	return end(CauseStartup, DoUnprobe, DoTerminate)(m, ev)
}

// pause keeps the schedule from beginning it, until somebody does.
func pause(m Machine, _ Event) (Machine, []Effect) {
	m.Paused = true
	return m, nil
}

// freeze notes that it is frozen; the effects end all that is expected of it.
func freeze(do ...Effect) rule {
	return unfrozen(func(m Machine, _ Event) (Machine, []Effect) {
		m.Frozen = true
		return m, do
	})
}

// thaw notes that it runs on; the effects begin anew what the freeze has ended.
func thaw(do func(Machine) []Effect) rule {
	return func(m Machine, _ Event) (Machine, []Effect) {
		if !m.Frozen {
			return m, nil
		}
		m.Frozen, m.Spared = false, false
		return m, do(m)
	}
}

func awaiting(Machine) []Effect { return []Effect{DoAwait} }

// spare notes that it is going to be frozen to save the battery, so that it is known for
// whom, also when the agent dies over it.
func spare(m Machine, _ Event) (Machine, []Effect) {
	m.Spared = true
	return m, nil
}

// unspare notes that it is not for the battery: the freeze came to nothing, or somebody
// else wants it as well.
func unspare(m Machine, _ Event) (Machine, []Effect) {
	m.Spared = false
	return m, nil
}

// unfrozen lets nothing follow from what is said of one that is frozen: that it does
// not answer is no failure, and it does not serve.
func unfrozen(r rule) rule {
	return func(m Machine, ev Event) (Machine, []Effect) {
		if m.Frozen {
			return m, nil
		}
		return r(m, ev)
	}
}

func keep(do ...Effect) rule {
	return func(m Machine, _ Event) (Machine, []Effect) { return m, do }
}

// end begins to end the incarnation; nothing follows unless the policy says so.
func end(c Cause, do ...Effect) rule {
	return func(m Machine, _ Event) (Machine, []Effect) {
		m.State, m.Cause, m.Again, m.Asked, m.Frozen, m.Spared = Stopping, c, false, false, false, false
		m.Up = m.Up && c != CauseAsked
		return m, append([]Effect{Disarm}, do...)
	}
}

// ill ends an incarnation that is not well, or does not say that it is.
func ill(m Machine, ev Event) (Machine, []Effect) {
	c := CauseUnhealthy
	if ev.Silent {
		c = CauseWatchdog
	}
	return end(c, DoUnprobe, DoTerminate)(m, ev)
}

// endAgain ends the incarnation because somebody asked for a fresh one.
func endAgain(do ...Effect) rule {
	return func(m Machine, ev Event) (Machine, []Effect) {
		m, do := end(CauseAsked, do...)(m, ev)
		m.Up, m.Again, m.Asked, m.Paused = true, true, true, false
		return m, do
	}
}

// becauseAsked notes that somebody wants the end that is under way: whatever
// was to follow does not (invariant I5).
func becauseAsked(do ...Effect) rule {
	return func(m Machine, _ Event) (Machine, []Effect) {
		m.Up, m.Cause, m.Again, m.Asked, m.Holding = false, CauseAsked, false, false, false
		return m, do
	}
}

// again notes that somebody wants a fresh incarnation after the end under way.
func again() rule {
	return func(m Machine, _ Event) (Machine, []Effect) {
		m.Up, m.Cause, m.Again, m.Asked, m.Holding, m.Paused = true, CauseAsked, true, true, false, false
		return m, nil
	}
}

// killing notes that nothing of the incarnation is told to end any more.
func killing(r rule) rule {
	return func(m Machine, ev Event) (Machine, []Effect) {
		m.Killing = true
		return r(m, ev)
	}
}

// rest acknowledges an end that has already happened.
func rest(m Machine, _ Event) (Machine, []Effect) {
	m = unblemished(m)
	m.State, m.Up, m.Asked = Stopped, false, false
	return m, []Effect{Disarm}
}

// postpone is a start that has to wait until the battery is not low any more.
func postpone(m Machine, _ Event) (Machine, []Effect) {
	m.State, m.Up, m.Done = Held, true, false
	return m, []Effect{Disarm}
}

// becauseHeld has what is to be adopted end, unless something else has it end already.
func becauseHeld(m Machine, ev Event) (Machine, []Effect) {
	if m.Cause != CauseNone {
		return holdAfter(m, ev)
	}
	m.Cause = CauseHeld
	return m, nil
}

// holdAfter leaves an end that is under way what it is, a failure or none, and has what
// would follow it wait until the battery is not low any more. What somebody has stopped
// stays so.
func holdAfter(m Machine, _ Event) (Machine, []Effect) {
	switch {
	case m.Again:
		m.Cause, m.Again, m.Asked = CauseHeld, false, false
	case m.Cause != CauseAsked && m.Cause != CauseHeld:
		m.Holding = true
	}
	return m, nil
}

// launch begins a fresh incarnation that somebody asked for.
func launch(m Machine, ev Event) (Machine, []Effect) {
	m = unblemished(m)
	m.Up, m.Restarts, m.Paused = true, 0, false
	return beginOrWait(m, ev, true)
}

// relaunch begins a fresh incarnation by the policy.
func relaunch(m Machine, ev Event) (Machine, []Effect) {
	if ev.Lacking {
		m = excused(m)
	}
	m, do := beginOrWait(m, ev, false)
	if m.State == Launching {
		m.Restarts++
	}
	return m, do
}

func begin(m Machine) (Machine, []Effect) {
	m.State, m.Again, m.Asked, m.Cause, m.Killing, m.Failed, m.Unready, m.Frozen, m.Spared = Launching, false, false, CauseNone, false, false, true, false, false
	m.Excused = false
	if !m.Unbegun {
		m.Incarnation++
	}
	m.Unbegun, m.Done = false, false
	return m, []Effect{Disarm, DoLaunch}
}

func adopt(m Machine, _ Event) (Machine, []Effect) {
	m.State, m.Done = Adopting, false
	return m, []Effect{DoAdopt}
}

// resume takes up an adopted incarnation where the earlier agent left it: an
// end under way goes on, and so does a wait for readiness. Of one that was frozen
// nothing is expected until it is thawed, or is found to be.
func resume(m Machine, _ Event) (Machine, []Effect) {
	switch {
	case m.Killing:
		m.State, m.Frozen, m.Spared = Stopping, false, false
		return m, []Effect{DoKill}
	case m.Cause != CauseNone:
		m.State, m.Frozen, m.Spared = Stopping, false, false
		return m, []Effect{DoTerminate}
	case m.Unready && m.Frozen:
		m.State = Starting
		return m, nil
	case m.Unready:
		m.State = Starting
		return m, []Effect{DoAwait}
	}
	m.State = Running
	if m.Frozen {
		return m, nil
	}
	return m, running(m)
}

func graceOver(m Machine, _ Event) (Machine, []Effect) {
	if !m.ForceKill {
		return m, nil
	}
	m.Killing = true
	return m, []Effect{DoKill}
}

// clear begins to remove what is left of an incarnation whose main process ended.
func clear(m Machine, ev Event) (Machine, []Effect) {
	m.State, m.Failed, m.Frozen, m.Spared = Clearing, !m.Policy.Clean(ev.Exit), false, false
	m.Excused = ev.Lacking
	return m, []Effect{Disarm, DoAbort, DoUnprobe, DoClear}
}

// cutOff begins again what the end of an earlier agent kept from being
// launched: that is no failure of the service.
func cutOff(m Machine, ev Event) (Machine, []Effect) {
	switch {
	case m.Cause != CauseNone:
		return unlaunched(m, ev)
	case m.Holding:
		m.State, m.Holding = Held, false
		return m, []Effect{Disarm}
	}
	return beginOrWait(m, ev, false)
}

// unlaunched decides what follows a launch that came to nothing.
func unlaunched(m Machine, ev Event) (Machine, []Effect) {
	m.Failed = true
	if ev.Permanent && m.Cause == CauseNone {
		m = blemish(m, ev)
		m.State, m.Holding, m.GaveUp = Crashed, false, GaveUpPermanent
		return m, []Effect{Disarm}
	}
	return settle(m, ev)
}

// unbegun waits until a launch can be recorded: that it can not be is no failure of
// the service.
func unbegun(m Machine, _ Event) (Machine, []Effect) {
	m.State, m.Unbegun = Backoff, true
	m.Restarts -= min(m.Restarts, 1)
	return m, []Effect{Disarm, ArmBackoff}
}

// cleared is settle for an incarnation that was launched, unless the end of an
// earlier agent kept its program from running.
func cleared(m Machine, ev Event) (Machine, []Effect) {
	if ev.Exit == NeverRan {
		return cutOff(m, ev)
	}
	m.Failed = m.Failed || ev.OOM
	return settle(m, ev)
}

// settle decides what follows an incarnation of which nothing is left.
func settle(m Machine, ev Event) (Machine, []Effect) {
	holding := m.Holding
	m.Holding = false
	switch {
	case m.Again && m.Asked:
		return launch(m, ev)
	case m.Cause == CauseAsked:
		m = unblemished(m)
		m.State, m.Cause = Stopped, CauseNone
		return m, []Effect{Disarm}
	}
	if m.Cause == CauseHeld {
		m.State, m.Cause = Held, CauseNone // which is no failure; earlier ones are not forgotten
		return m, []Effect{Disarm}
	}
	unbound := m.Cause == CauseUnbound
	last := m.Cause == CauseNone && m.Policy.Never.Has(ev.Exit)
	failed := m.Failed || m.Cause != CauseNone || last
	m.Cause, m.Recent = CauseNone, ev.Recent
	switch {
	case unbound || failed && !last && m.excuses(ev):
		if !holding {
			return await(m, false)
		}
	case !failed:
		m.Alike, m.Fingerprint = 0, ""
		if m.Once {
			m = unblemished(m)
			m.State, m.Done, m.Up = Stopped, true, false // a reboot brings nothing back
			return m, []Effect{Disarm}
		}
		if m.Policy.When != RestartAlways {
			m.State = Stopped
			return m, []Effect{Disarm}
		}
	default:
		m = blemish(m, ev)
		if m.GaveUp = m.givesUp(last); m.GaveUp != GaveUpNot {
			m.State = Crashed
			return m, []Effect{Disarm}
		}
	}
	if holding {
		m.State = Held
		return m, []Effect{Disarm}
	}
	m.State = Backoff
	return m, []Effect{Disarm, ArmBackoff}
}
