package service

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Spec is the definition of a service: what to run, as whom, within which
// limits, and how to tell that it is well. The zero value is not valid; see
// Validate.
type Spec struct {
	Name        Name
	Description string
	Type        Type
	Schedule    Schedule // of a oneshot

	Exec             []string          // program (absolute path) and arguments
	Environment      map[string]string // the whole environment, but for a fixed PATH when it names none
	WorkingDirectory string            // absolute; "" is /
	User             string            // name or number; "" is the agent's user
	Group            string            // name or number; "" is the user's group
	Umask            uint32            // of the process
	OOMScoreAdj      int               // -1000..1000, /proc/PID/oom_score_adj
	Nice             int               // -20..19, setpriority(2)
	Scheduling       Scheduling        // sched(7)
	Priority         int               // 1..99 with a real-time policy, else 0
	AllowNewPrivs    bool              // lets set-user-ID programs gain privileges; off by default

	Launch     LaunchMode
	Limits     Limits
	Warnings   Warnings
	Ladder     Ladder // what is done when they are exceeded
	Drift      DriftPolicy
	BestEffort bool // run even where a limit can not be enforced

	UsageHistory bool // what it uses is remembered for a day

	Ready   Check // how to tell that it is ready; Timeout bounds the whole start
	Bounded bool  // of a oneshot: Ready.Timeout bounds its job, too
	Health  Check // how to tell that it is well
	Hang    OnHang
	Restart RestartPolicy
	Stop    StopPolicy
	Hooks   Hooks
	Reload  Reload

	Requires []Need // it is not begun before these are as far as that
	After    []Need // nor while one of these is on its way up; their conditions do not count
	Binds    []Need // as Requires, and it ends with them

	Autostart     bool
	StartPriority int        // 0..1000: who starts first with the agent, and is stopped last for the battery
	Power         PowerClass // what becomes of it then
	LowBattery    LowBattery // of one that is deferrable: how
	Log           LogSink
	LogFull       LogFull     // of a log file
	Rotation      LogRotation // of a log file
	Custom        map[string]string
}

// Notifies tells whether what the service says of itself counts (sd_notify(3)). Then it is
// given a socket to say it to, and else none.
func (s *Spec) Notifies() bool {
	return s.Ready.Type == CheckNotify || s.Health.Type == CheckWatchdog
}

// LaunchMode chooses the way into a cgroup on hosts that have several.
type LaunchMode uint8

// The launch modes.
const (
	LaunchAuto   LaunchMode = iota // a scope where systemd runs, else a cgroup, else plain exec
	LaunchScope                    // a transient systemd scope
	LaunchCgroup                   // born in a cgroup of ours
	numLaunchModes
)

var launchModeNames = [numLaunchModes]string{"auto", "scope", "cgroup"}

func (m LaunchMode) String() string { return launchModeNames[m] }

// Scheduling is a policy by which the kernel gives out CPU time within a cgroup
// (sched(7)).
type Scheduling uint8

// The policies.
const (
	SchedulingOther Scheduling = iota // the usual one
	SchedulingBatch                   // for work that nobody waits for
	SchedulingIdle                    // below every nice
	SchedulingFIFO                    // real time, until it waits
	SchedulingRR                      // real time, in turns
	numSchedulings
)

var schedulingNames = [numSchedulings]string{"other", "batch", "idle", "fifo", "rr"}

func (s Scheduling) String() string { return schedulingNames[s] }

// RealTime tells whether s has priorities, and comes before all that has none.
func (s Scheduling) RealTime() bool { return s == SchedulingFIFO || s == SchedulingRR }

// LogSink says where output goes.
type LogSink uint8

// The sinks.
const (
	LogAuto LogSink = iota // the journal where there is one, else a file
	LogFile
	LogNull
	LogJournal
	numLogSinks
)

var logSinkNames = [numLogSinks]string{"auto", "file", "null", "journal"}

func (l LogSink) String() string { return logSinkNames[l] }

// LogFull says what becomes of output that a log file can not take, as when the disk
// is full.
type LogFull uint8

// The policies.
const (
	LogFullFail  LogFull = iota // the service writes its log itself, and is told
	LogFullDrop                 // it is dropped and counted, and the log says so in its place
	LogFullBlock                // the service waits
	numLogFulls
)

var logFullNames = [numLogFulls]string{"fail", "drop-count", "block"}

func (l LogFull) String() string { return logFullNames[l] }

// LogRotation says when the front of a log file is cut off, and how much is kept.
type LogRotation struct {
	Size  uint64        // bytes that it may grow to
	Age   time.Duration // that its oldest line may reach, 0 for any
	Total uint64        // bytes of all that is kept, with what was cut off
}

// The ranges of a LogRotation.
const (
	MinLogSize, MaxLogSize = 64 << 10, 1 << 40
	MinLogAge, MaxLogAge   = time.Minute, 10 * 365 * 24 * time.Hour
)

// StopPolicy says how a service is ended.
type StopPolicy struct {
	Signal    syscall.Signal // to the main process first
	Timeout   time.Duration  // how long it may take
	ForceKill bool           // kill everything that is left after Timeout
}

// Defaults is a Spec with every default filled in; decoders start from it.
func Defaults() Spec {
	return Spec{
		Umask:    0o022,
		Warnings: Warnings{Memory: 80, CPU: 80},
		Ladder:   Ladder{ThrottleAfter: 10 * time.Second, StopAfter: time.Minute},
		Ready:    Check{Type: CheckProcess, Timeout: 30 * time.Second},
		Health:   Check{Type: CheckProcess, Interval: 5 * time.Second, Timeout: 5 * time.Second, Threshold: 3, SuccessThreshold: 1},
		Restart: RestartPolicy{
			When: RestartOnFailure, MaxAttempts: 3, Window: 10 * time.Minute,
			Backoff: time.Second, MaxBackoff: time.Minute, Deterministic: 5,
		},
		Stop:     StopPolicy{Signal: syscall.SIGTERM, Timeout: 10 * time.Second, ForceKill: true},
		Rotation: LogRotation{Size: 10 << 20, Total: 50 << 20},

		StartPriority: 500,
	}
}

// Caps on a definition, so that one file can not hurt the agent.
const (
	maxArguments   = 4096
	maxEnvironment = 1024
	maxCustom      = 64
	maxTextLength  = 128 << 10 // MAX_ARG_STRLEN of execve(2)
)

// Validate finds everything that is wrong with s, each fault with the path of
// its field in a definition file.
func (s *Spec) Validate() []Fault {
	var faults faultList
	if s.Name.IsZero() {
		faults.add("name", "is required")
	}
	s.validateProcess(&faults)
	for r, q := range s.Limits {
		if err := Resource(r).Check(q); err != nil {
			faults.add("limits."+Resource(r).String(), "%v", err)
		}
	}
	faults = append(faults, s.Limits.Conflicts()...)
	faults.check("limits.memory_warning_percent", CheckWarning(s.Warnings.Memory))
	faults.check("limits.cpu_warning_percent", CheckWarning(s.Warnings.CPU))
	for p, level := range s.Warnings.Pressure {
		if level != 0 {
			faults.check("limits."+PressureOf(p).String()+"_pressure_percent", CheckWarning(level))
		}
	}
	s.Ladder.validate(&faults)
	s.validateReadiness(&faults)
	s.validateOneshot(&faults)
	s.validateHooks(&faults)
	s.Reload.validate(&faults)
	s.validateHealth(&faults)
	faults.number("restart.max_attempts", s.Restart.MaxAttempts, 0, 1_000_000)
	faults.duration("restart.window", s.Restart.Window, time.Millisecond, 365*24*time.Hour)
	faults.duration("restart.backoff", s.Restart.Backoff, 0, 24*time.Hour)
	faults.duration("restart.max_backoff", s.Restart.MaxBackoff, 0, 24*time.Hour)
	if s.Restart.MaxBackoff < s.Restart.Backoff {
		faults.add("restart.max_backoff", "%v is less than backoff, %v", s.Restart.MaxBackoff, s.Restart.Backoff)
	}
	if s.Restart.ResetAfter != 0 { // else it is computed
		faults.duration("restart.reset_after", s.Restart.ResetAfter, time.Millisecond, 365*24*time.Hour)
	}
	if s.Restart.Never.Has(Exit{}) {
		faults.add("restart.exit_codes.never", "0 is a clean end, and no failure that could be the last: write policy on-failure, after which a clean end is not begun again")
	}
	if both := s.Restart.Success.overlap(s.Restart.Never); !both.IsZero() {
		faults.add("restart.exit_codes.never", "%v is in success as well; an end is clean, or the last, not both", both)
	}
	faults.number("restart.deterministic", s.Restart.Deterministic, 0, 1000)
	faults.number("priority", s.StartPriority, 0, 1000)
	if s.LowBattery != LowBatteryStop && s.Power != PowerClassDeferrable {
		faults.add("low_battery", "%v is for power %v, and this is %v", s.LowBattery, PowerClassDeferrable, s.Power)
	}
	s.validateNeeds(&faults)
	faults.duration("stop.timeout", s.Stop.Timeout, 0, time.Hour)
	s.Rotation.validate(&faults)
	if len(s.Custom) > maxCustom {
		faults.add("custom", "has %d entries; at most %d are allowed", len(s.Custom), maxCustom)
	}
	return faults
}

func (s *Spec) validateProcess(faults *faultList) {
	faults.program("exec", s.Exec)
	if len(s.Environment) > maxEnvironment {
		faults.add("environment", "has %d entries; at most %d are allowed", len(s.Environment), maxEnvironment)
	}
	for _, key := range sortedKeys(s.Environment) {
		if key == "" || strings.ContainsAny(key, "=\x00") {
			faults.add("environment", "%q can not be the name of a variable", key)
		}
		faults.text("environment."+key, s.Environment[key])
	}
	for _, name := range notifyVariables {
		if _, set := s.Environment[name]; set && s.Notifies() {
			faults.add("environment."+name, "is the agent's to set where ready.type is %s or health.type %s", CheckNotify, CheckWatchdog)
		}
	}
	if s.WorkingDirectory != "" && !filepath.IsAbs(s.WorkingDirectory) {
		faults.add("working_directory", "%q is not an absolute path", s.WorkingDirectory)
	}
	if strings.HasPrefix(filepath.Clean(s.WorkingDirectory), "/proc/") {
		faults.add("working_directory", "%q lies in /proc, whose links lead out of it", s.WorkingDirectory)
	}
	faults.text("working_directory", s.WorkingDirectory)
	faults.text("user", s.User)
	faults.text("group", s.Group)
	faults.number("oom_score_adj", s.OOMScoreAdj, -1000, 1000)
	faults.number("nice", s.Nice, -20, 19)
	switch {
	case s.Scheduling.RealTime() && s.Priority == 0:
		faults.add("scheduling_priority", "is required with scheduling %s: 1 to 99", s.Scheduling)
	case s.Scheduling.RealTime():
		faults.number("scheduling_priority", s.Priority, 1, 99)
	case s.Priority != 0:
		faults.add("scheduling_priority", "counts with fifo and rr alone; scheduling is %s", s.Scheduling)
	}
	if s.Umask > 0o777 {
		faults.add("umask", "%#o is above 0777", s.Umask)
	}
}

// notifyVariables tell a service where it may say how it is, and how often it has to.
var notifyVariables = []string{"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}

func (r LogRotation) validate(faults *faultList) {
	faults.size("log_rotate.size", r.Size, MinLogSize, MaxLogSize)
	faults.size("log_rotate.total", r.Total, MinLogSize, MaxLogSize)
	if r.Total < r.Size {
		faults.add("log_rotate.total", "%s is below size, %s", FormatSize(r.Total), FormatSize(r.Size))
	}
	if r.Age != 0 {
		faults.duration("log_rotate.age", r.Age, MinLogAge, MaxLogAge)
	}
}

// faultList collects faults.
type faultList []Fault

func (f *faultList) add(field, format string, args ...any) {
	*f = append(*f, Fault{Field: field, Message: fmt.Sprintf(format, args...)})
}

// program wants the absolute path of a program, and arguments.
func (f *faultList) program(field string, argv []string) {
	if len(argv) == 0 || argv[0] == "" {
		f.add(field, "is required: the program's absolute path, then its arguments")
	} else if !filepath.IsAbs(argv[0]) {
		f.add(field+"[0]", "%q is not an absolute path", argv[0])
	}
	if len(argv) > maxArguments {
		f.add(field, "has %d entries; at most %d are allowed", len(argv), maxArguments)
	}
	for i, arg := range argv {
		f.text(fmt.Sprintf("%s[%d]", field, i), arg)
	}
}

func (f *faultList) text(field, s string) {
	switch {
	case strings.ContainsRune(s, 0):
		f.add(field, "holds a NUL byte")
	case len(s) >= maxTextLength:
		f.add(field, "has %d bytes; fewer than %d are allowed", len(s), maxTextLength)
	}
}

func (f *faultList) number(field string, n, low, high int) {
	if n < low || n > high {
		f.add(field, "is %d; the range is %d to %d", n, low, high)
	}
}

func (f *faultList) duration(field string, d, low, high time.Duration) {
	if d < low || d > high {
		f.add(field, "is %v; the range is %v to %v", d, low, high)
	}
}

func (f *faultList) size(field string, n, low, high uint64) {
	if n < low || n > high {
		f.add(field, "is %s; the range is %s to %s", FormatSize(n), FormatSize(low), FormatSize(high))
	}
}

func (f *faultList) check(field string, err error) {
	if err != nil {
		f.add(field, "%v", err)
	}
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
