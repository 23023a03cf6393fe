package service

import (
	"strings"
	"time"
)

// Status is all that is known of one service at one moment. It is never
// changed after it was made, so it may be shared without a lock.
type Status struct {
	Name       Name
	Spec       *Spec  // as registered; not to be changed
	Source     string // file the definition came from, or "api"
	Generation uint64 // counts changes of the definition

	Machine     Machine
	Ref         Ref                // of the present incarnation, zero when there is none
	Applied     Applied            // limits of the present incarnation
	Warnings    Warnings           // levels of use worth a word
	Violations  Violations         // what the present incarnation does too much
	Measures    Measures           // what was done about such, since this agent knows of the service
	Fought      [NumResources]bool // limits that somebody else changes again and again, so that they are not repaired
	Log         string             // where its output goes: a file, "journal" or "null"; "" if nobody knows
	LogTrouble  LogTrouble         // that its log can not be written; zero when all is well
	Started     time.Time          // of the present or last incarnation
	Ended       time.Time          // of the last incarnation, zero while one lives
	FrozenBy    string             // the cgroup that keeps it frozen, its own or one above; "" when it runs
	NextAttempt time.Time          // in Backoff: when the next launch is due
	Error       string             // why it is not running although it should, "" when all is well
	WaitsFor    string             // in Waiting: for what, such as "waits for db to be ready"
	LastActor   string             // who asked for the last change, e.g. "uid 0 (root)"
	LastExit    *ExitRecord
	Notified    Notified // what it says of itself
	Hook        string   // the hook that is run now, "" for none; see Hook.String
	Timing      Timing   // of its schedule

	Health Health    // what its checks say; see Verdict
	Well   time.Time // since when its checks have said that it is healthy; zero while they do not
	Hung   Hang
}

// Verdict is how the service is: what its checks say, unless it hangs.
func (s *Status) Verdict() Health {
	h := s.Health
	if !s.Hung.Lasts() {
		return h
	}
	h.Message = strings.TrimSuffix("it hangs: "+s.Hung.Why+"; the check: "+h.Message, "; the check: ")
	if s.Spec != nil && s.Spec.Hang == HangUnhealthy {
		h.Status = Ill
	}
	return h
}

// PID is the main process, 0 when there is none.
func (s *Status) PID() int {
	if s.Machine.State.Alive() && s.Machine.State != Clearing {
		return s.Ref.PID
	}
	return 0
}

// LogTrouble is that the log of an incarnation can not be written, say because the
// disk is full, and that its policy deals with it.
type LogTrouble struct {
	Service     Name
	Incarnation uint64
	Policy      LogFull
	Why         string    // what the kernel says
	Began       time.Time // zero: there is no trouble
	Ended       time.Time // zero while it lasts
	Bytes       uint64    // dropped in it, as far as it is known
	Lines       uint64    // line ends among them
	Lost        bool      // it has ended because the shim did: what was held is lost, and nobody counted the rest
}

// Lasts tells whether there is trouble.
func (t LogTrouble) Lasts() bool { return !t.Began.IsZero() && t.Ended.IsZero() }

// HealthStatus is the verdict over a service's checks.
type HealthStatus uint8

// The health states, numbered as on the wire.
const (
	HealthUnknown HealthStatus = iota
	Healthy
	Ill
	Checking
	CheckTimedOut
	NumHealth
)

var healthNames = [NumHealth]string{"unknown", "healthy", "unhealthy", "checking", "timeout"}

func (h HealthStatus) String() string { return healthNames[h] }

// Health is what the checks of a service say.
type Health struct {
	Status    HealthStatus
	Strategy  CheckType
	Message   string
	LastCheck time.Time
	NextCheck time.Time
	Failures  int  // in a row
	Successes int  // likewise
	Failed    bool // the last check did, be it that it counted or not
}

// Notice is one thing worth telling people and subscribers, with how the service
// stood after it. It is all that is told of it, now or later.
type Notice struct {
	Sequence    uint64       `json:"-"` // counts notices without holes, over restarts of the agent as well
	Time        time.Time    `json:"-"`
	Service     Name         `json:"s"`
	Kind        NoticeKind   `json:"k,omitempty"`
	Reason      string       `json:"r,omitempty"` // a word, e.g. "own-limit OOM" or "asked"
	Detail      string       `json:"d,omitempty"` // a sentence
	State       State        `json:"m,omitempty"`
	Public      Public       `json:"u,omitempty"`
	Incarnation uint64       `json:"i,omitempty"`
	PID         int          `json:"p,omitempty"`
	Actor       string       `json:"a,omitempty"` // who asked for the last change
	Health      HealthStatus `json:"h,omitempty"` // of NoticeHealth
	Failures    int          `json:"f,omitempty"` // of its check in a row, of NoticeHealth
	Exit        *ExitRecord  `json:"x,omitempty"` // of NoticeExit
}

// Notice makes one of s as it stands. Who keeps it gives it its number and time.
func (s *Status) Notice(kind NoticeKind, reason, detail string) Notice {
	n := Notice{
		Service: s.Name, Kind: kind, Reason: reason, Detail: detail, State: s.Machine.State, Public: s.Machine.Public(),
		Incarnation: s.Machine.Incarnation, PID: s.PID(), Actor: s.LastActor,
	}
	switch kind {
	case NoticeExit:
		n.Exit = s.LastExit
	case NoticeHealth:
		n.Health, n.Failures = s.Health.Status, s.Health.Failures
	}
	return n
}

// NoticeKind says what a Notice is about.
type NoticeKind uint8

// The notices.
const (
	NoticeState        NoticeKind = iota // the machine changed its state
	NoticeExit                           // an incarnation ended; Exit tells how
	NoticeHealth                         // the verdict over its checks changed; Health is the new one
	NoticeLimits                         // limits were changed
	NoticeRegistered                     // a definition came or changed
	NoticeUnregistered                   // a definition went
	NoticeViolation                      // it began to use too much of something; Reason is the Violation
	NoticeFrozen                         // it was frozen
	NoticeThawed                         // it was thawed
	NoticePower                          // of the host: how far the battery is saved changed; Reason is the PowerLevel
	NoticeDrift                          // somebody else has changed a limit; Reason names it
	NoticeOver                           // a violation is over
	NoticeEnforced                       // something was done about one
	NoticeHung                           // it does nothing any more; Reason is a word for why
	NoticeHungOver                       // it goes on, or has ended
	numNotices
)

var noticeNames = [numNotices]string{
	"state", "exit", "health", "limits", "registered", "unregistered", "violation", "frozen", "thawed", "power", "drift",
	"violation-over", "enforced", "hung", "hung-over",
}

func (k NoticeKind) String() string { return noticeNames[k] }

// StartOptions change one start; the zero value is the definition as it is.
type StartOptions struct {
	Environment      map[string]string // over the definition's
	WorkingDirectory string            // instead of the definition's
	Args             []string          // instead of the definition's arguments
	Limits           Limits            // over the definition's
	Warnings         Warnings          // over the definition's
	Actor            string            // who asks
	Request          Request           `json:"-"` // this one; it is no part of what a restart repeats
}

// StopOptions change one stop; the zero value is the definition's policy.
type StopOptions struct {
	Force   bool           // kill at once
	Pause   bool           // its schedule is to rest, too; then it need not run
	Timeout *time.Duration // instead of the definition's
	Actor   string         // who asks
	Request Request        // this one
}
