package service

// beginOrWait begins a fresh incarnation, or waits for what it needs. asked says that
// somebody asked for it just now, and hears if that can not be had.
func beginOrWait(m Machine, ev Event, asked bool) (Machine, []Effect) {
	if ev.Lacking || ev.Early {
		return await(m, asked)
	}
	return begin(m)
}

// launchWaiting is launch for what waits: if that was by itself, it does so on.
func launchWaiting(m Machine, ev Event) (Machine, []Effect) {
	patient := m.Patient || !m.Asked
	m, do := launch(m, ev)
	m.Patient = patient && m.State == Waiting
	return m, do
}

func await(m Machine, asked bool) (Machine, []Effect) {
	m.Patient = false
	m.State, m.Asked, m.Again, m.Cause, m.Killing, m.Done, m.Excused = Waiting, asked, false, CauseNone, false, false, false
	return m, []Effect{Disarm, DoNeed}
}

// met begins at once what somebody has asked for; what comes back by itself does not
// come at the same moment as all others that have waited for the same.
func met(m Machine, _ Event) (Machine, []Effect) {
	if m.Asked {
		return begin(m)
	}
	m.State = Backoff
	return m, []Effect{Disarm, ArmBackoff}
}

// unmet ends a start that somebody asked for, which is no failure of the service. One
// that waits on all the same goes on as if nobody had.
func unmet(m Machine, ev Event) (Machine, []Effect) {
	if !m.Asked {
		return m, nil
	}
	m.Asked = false
	if !ev.Lacking && !m.Patient {
		m.State = Stopped
	}
	return m, []Effect{Disarm}
}

func holdWaiting(m Machine, _ Event) (Machine, []Effect) {
	m.State, m.Asked = Held, false
	return m, []Effect{Disarm}
}

// excuses tells whether an end that is a failure otherwise is none, since what the
// service requires was not there when it ended, or is not now: then it waits for that.
func (m Machine) excuses(ev Event) bool {
	return (m.Excused || ev.Lacking) && m.Policy.When != RestartNever
}
