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
	HookFailed                    // what is run when it is ready failed
	numEvents
)

var eventNames = [numEvents]string{
	"start", "stop", "restart", "kill", "adopt", "adopted", "adopt-failed", "launched", "launch-failed", "unrecorded", "ready", "exited", "cleared",
	"clear-failed", "unhealthy", "exceeded", "stable", "startup-over", "grace-over", "backoff-over", "retry-over", "frozen", "thawed",
	"hold", "spare", "unspare", "pause", "met", "unmet", "unbound", "hook-failed",
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
	DoAbort                   // give up the launch, the wait for readiness, or the hooks in flight
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
	CauseHook                   // what is run when it is ready failed
	numCauses
)

var causeNames = [numCauses]string{"none", "asked", "unhealthy", "startup timeout", "held", "used too much", "watchdog", "unbound", "hook"}

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
	CleanEnds   int    `json:",omitzero"` // in the same row, after which it was begun again
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
		Stop:        end(CauseAsked, DoAbort), Kill: killing(end(CauseAsked, DoAbort, DoKill)), Restart: endAgain(DoAbort),
		Hold: end(CauseHeld, DoAbort), Unbound: end(CauseUnbound, DoAbort), Pause: pause,
	},
	Starting: {
		Ready: unfrozen(ready), Exited: clear, Froze: freeze(Disarm, DoAbort), Thawed: thaw(awaiting),
		StartupOver: unfrozen(end(CauseStartup, DoAbort, DoTerminate)),
		Exceeded:    unfrozen(end(CauseExceeded, DoAbort, DoTerminate)),
		HookFailed:  unfrozen(end(CauseHook, DoAbort, DoTerminate)),
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
		Stop: becauseAsked(), Kill: becauseAsked(DoAbort), Start: again(), Restart: again(), Hold: holdAfter, Pause: pause,
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
