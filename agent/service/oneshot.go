package service

import "time"

// Type says what is expected of a service.
type Type uint8

// The types.
const (
	TypeService Type = iota // it runs until somebody ends it
	TypeOneshot             // it does a job and ends
	numTypes
)

var typeNames = [numTypes]string{"service", "oneshot"}

func (t Type) String() string { return typeNames[t] }

// Schedule says when a oneshot is begun by itself; the zero value is never.
type Schedule struct {
	Cron     string        // minute, hour, day of month, month, day of week; see package timetable
	Every    time.Duration // instead of Cron: from one run's beginning to the next's
	Timezone string        // of Cron, by its IANA name; "" is the host's
	Missed   Missed
	Overlap  Overlap
}

// IsZero tells whether there is no schedule.
func (s Schedule) IsZero() bool { return s == Schedule{} }

// Table is what Schedule says about times, as a text: another text is another one.
func (s Schedule) Table() string {
	switch {
	case s.Every > 0:
		return "every " + s.Every.String()
	case s.Timezone != "":
		return s.Cron + " " + s.Timezone
	}
	return s.Cron
}

// Missed says what is made up for of runs that were due while agent or host were down.
type Missed uint8

// The policies.
const (
	MissedSkip Missed = iota // nothing
	MissedRun                // one run, however many they were
	numMisseds
)

var missedNames = [numMisseds]string{"skip", "run"}

func (m Missed) String() string { return missedNames[m] }

// Overlap says what becomes of a run that is due while the one before goes on.
type Overlap uint8

// The policies.
const (
	OverlapSkip    Overlap = iota // nothing
	OverlapQueue                  // it is begun when that has ended; one waits at most
	OverlapReplace                // that is stopped first
	numOverlaps
)

var overlapNames = [numOverlaps]string{"skip", "queue", "replace"}

func (o Overlap) String() string { return overlapNames[o] }

// The range of Schedule.Every.
const MinEvery, MaxEvery = time.Second, 365 * 24 * time.Hour

func (s *Spec) validateOneshot(faults *faultList) {
	if s.Type != TypeOneshot {
		if !s.Schedule.IsZero() {
			faults.add("schedule", "is for type %s; the type here is %s", TypeOneshot, s.Type)
		}
		return
	}
	if s.Ready.Type != CheckProcess {
		faults.add("ready.type", "a %s is ready when its job is done, and %s tells nothing of that; leave it out", s.Type, s.Ready.Type)
	}
	if s.Ready.Settle > 0 {
		faults.add("ready.settle", "a %s is ready when its job is done, however soon; leave it out", s.Type)
	}
	if s.Health.Type != CheckProcess {
		faults.add("health.type", "a %s is not asked how it is, for it ends by itself; leave it out, and bound its time by ready.timeout", s.Type)
	}
	if s.Restart.When == RestartAlways {
		faults.add("restart.policy", "a %s ends when its job is done: write on-failure or never, and schedule to run it again and again", s.Type)
	}
	s.Schedule.validate(faults)
}

func (s Schedule) validate(faults *faultList) {
	switch {
	case s.IsZero():
	case s.Cron == "" && s.Every == 0:
		faults.add("schedule", "says no time: write cron or every")
	case s.Cron != "" && s.Every != 0:
		faults.add("schedule.every", "is beside cron; write one of the two")
	case s.Every != 0 && s.Timezone != "":
		faults.add("schedule.timezone", "belongs to cron: every counts time, whatever the clock says")
	case s.Every != 0:
		faults.duration("schedule.every", s.Every, MinEvery, MaxEvery)
	}
}

// Completed tells whether it is a oneshot whose job is done: its latest run, in this
// boot, ended well, and none was begun since.
func (s *Status) Completed() bool { return s.Machine.Done }

// Timing is what is known of the schedule of a service; zero when it has none, or is not
// known yet.
type Timing struct {
	Next time.Time // when the next run is due, zero while it is paused
	Last time.Time // when a run was last begun by it, zero for never
}

// Mark is until when all that was due by a schedule is dealt with: run, or passed over.
type Mark struct {
	Wall      time.Time     `json:"wall,omitzero"`
	SinceBoot time.Duration `json:"since_boot,omitzero"` // the same moment, by the boot that is named
	Boot      string        `json:"boot,omitempty"`
}
