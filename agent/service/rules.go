package service

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
		if c != CauseAsked && c != CauseHeld {
			m = holdSpared(m)
		}
		m.State, m.Cause, m.Again, m.Asked, m.Frozen, m.Spared = Stopping, c, false, false, false, false
		m.Up = m.Up && c != CauseAsked
		return m, append([]Effect{Disarm}, do...)
	}
}

// holdSpared has what follows the end of one that is frozen to save the battery, or about
// to be, wait as what was stopped for that.
func holdSpared(m Machine) Machine {
	m.Holding = m.Holding || m.Spared
	return m
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
	if m.Cause == CauseNone {
		m = holdSpared(m)
	}
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
		m.CleanEnds++
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
