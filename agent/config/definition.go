package config

import (
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

// definition is the table of a service definition. Ranges repeat those of
// service.Spec.Validate, for the schema; a test holds the two together.
var definition = object[service.Spec]{keys: []key[service.Spec]{
	at("name", "Name of the service, and of its file: NAME.json.",
		name{}, func(s *service.Spec) *service.Name { return &s.Name }).needed(),
	at("description", "What the service is, in a line.",
		text{max: 1024, line: true}, func(s *service.Spec) *string { return &s.Description }),
	at("type", "service: it runs until somebody ends it; oneshot: it does a job and ends, and a start is over when the job is.",
		word[service.Type]{values: []service.Type{service.TypeService, service.TypeOneshot}},
		func(s *service.Spec) *service.Type { return &s.Type }),
	at("schedule", "When a oneshot is begun by itself. A stop lets the schedule rest until the next start.",
		schedule, func(s *service.Spec) *service.Schedule { return &s.Schedule }),
	at("launch", "Way into a cgroup: a transient systemd scope, a cgroup of the agent's own, or whatever suits the host.",
		word[service.LaunchMode]{values: []service.LaunchMode{service.LaunchAuto, service.LaunchScope, service.LaunchCgroup}},
		func(s *service.Spec) *service.LaunchMode { return &s.Launch }),
	at("exec", "The program's absolute path, then its arguments. No shell is involved.",
		texts{min: 1, first: &jsonschema.Schema{Type: "string", Pattern: "^/"}},
		func(s *service.Spec) *[]string { return &s.Exec }).needed(),
	at("environment", "The whole environment; only PATH is added where it names none.",
		dictionary{key: text{form: regexp.MustCompile(`^[^=\x00]+$`), say: "the name of a variable"}, max: 1024},
		func(s *service.Spec) *map[string]string { return &s.Environment }),
	at("working_directory", "Absolute path; / when left out.",
		text{form: regexp.MustCompile("^/"), say: "an absolute path"}, func(s *service.Spec) *string { return &s.WorkingDirectory }),
	at("user", "User to run as, by name or number; the agent's own when left out.",
		account{}, func(s *service.Spec) *string { return &s.User }),
	at("group", "Group to run as, by name or number; the user's when left out.",
		account{}, func(s *service.Spec) *string { return &s.Group }),
	at("umask", "File mode mask of the process, in octal digits.",
		octal{}, func(s *service.Spec) *uint32 { return &s.Umask }),
	at("oom_score_adj", "How gladly the kernel kills the service when the host runs out of memory (proc_pid_oom_score_adj(5)).",
		whole[int]{low: -1000, high: 1000}, func(s *service.Spec) *int { return &s.OOMScoreAdj }),
	at("nice", "How far the service steps back for others in its cgroup, -20 to 19 (setpriority(2)).",
		whole[int]{low: -20, high: 19}, func(s *service.Spec) *int { return &s.Nice }),
	at("scheduling", "Policy of the kernel's scheduler (sched(7)): other, batch, idle, or fifo and rr, which are real time and want a scheduling_priority.",
		word[service.Scheduling]{values: []service.Scheduling{
			service.SchedulingOther, service.SchedulingBatch, service.SchedulingIdle, service.SchedulingFIFO, service.SchedulingRR,
		}}, func(s *service.Spec) *service.Scheduling { return &s.Scheduling }),
	at("scheduling_priority", "Priority with scheduling fifo or rr.",
		whole[int]{low: 1, high: 99, zeroAbsent: true}, func(s *service.Spec) *int { return &s.Priority }),
	at("no_new_privs", "No program of the service gains privileges, as by a set-user-ID bit.",
		yesNo{negated: true}, func(s *service.Spec) *bool { return &s.AllowNewPrivs }),
	at("limits", "What the service may use. Where the host can not enforce a limit, the service does not start.",
		limits, func(s *service.Spec) *service.Spec { return s }),
	at("enforcement", "What is done about a service that uses too much for too long.",
		enforcement, func(s *service.Spec) *service.Ladder { return &s.Ladder }),
	at("usage_history", "Remember what the service uses for a day: 5 minutes by the second, an hour by 10 seconds, the rest by the minute. Without it what it uses is read for those who ask.",
		yesNo{}, func(s *service.Spec) *bool { return &s.UsageHistory }),
	unbounded(at("ready", "How to tell that a start succeeded.",
		readiness, func(s *service.Spec) *service.Check { return &s.Ready })),
	at("health", "How to tell that the service is well.",
		health, func(s *service.Spec) *service.Check { return &s.Health }),
	at("hang", "What is done when the service hangs, which is seen without its help: tell, it is told; unhealthy, it counts as unhealthy as well, and is ended and restarted by its policy; ignore, nobody looks.",
		word[service.OnHang]{values: []service.OnHang{service.HangTell, service.HangUnhealthy, service.HangIgnore}},
		func(s *service.Spec) *service.OnHang { return &s.Hang }),
	at("restart", "When the service is started again by itself.",
		restart, func(s *service.Spec) *service.RestartPolicy { return &s.Restart }),
	at("stop", "How the service is ended.",
		stop, func(s *service.Spec) *service.StopPolicy { return &s.Stop }),
	at("hooks", "Programs that are run before and after the service begins and ends, one after the other: as the service is run, in its cgroup. Each is the absolute path, then arguments.",
		hooks, func(s *service.Spec) *service.Hooks { return &s.Hooks }),
	at("reload", "How the service is made to read its configuration anew, by gladsheim reload.",
		reload, func(s *service.Spec) *service.Reload { return &s.Reload }),
	at("requires", "Services that have to be there before this one is begun; they are started for it. Each is a name, which wants it to be ready, or an object.",
		needs{conditions: true}, func(s *service.Spec) *[]service.Need { return &s.Requires }),
	at("after", "Services that this one waits for while they are on their way up, and is stopped before. They need not run.",
		needs{}, func(s *service.Spec) *[]service.Need { return &s.After }),
	at("binds", "As requires; and when such a service stops, crashes for good or begins anew, this one is stopped, and begun again when it is back.",
		needs{conditions: true}, func(s *service.Spec) *[]service.Need { return &s.Binds }),
	at("autostart", "Start it together with the agent.",
		yesNo{}, func(s *service.Spec) *bool { return &s.Autostart }),
	at("priority", "Who starts first with the agent, the highest first, and is stopped last of those with the same power when the battery is low.",
		whole[int]{low: 0, high: 1000}, func(s *service.Spec) *int { return &s.StartPriority }),
	at("power", "What becomes of the service when the battery is low: deferrable, it is stopped first; normal, it is stopped when all that is deferrable is; essential, it runs on.",
		word[service.PowerClass]{values: []service.PowerClass{service.PowerClassEssential, service.PowerClassNormal, service.PowerClassDeferrable}},
		func(s *service.Spec) *service.PowerClass { return &s.Power }),
	at("low_battery", "How a deferrable service is saved: stop, it is stopped and started again; freeze, it is frozen and thawed, and keeps its memory, where it has a cgroup, else it is stopped.",
		word[service.LowBattery]{values: []service.LowBattery{service.LowBatteryStop, service.LowBatteryFreeze}},
		func(s *service.Spec) *service.LowBattery { return &s.LowBattery }),
	at("log", "Where output goes: the journal, a file below the agent's log directory, or nowhere; auto is the journal where it can be written and read, else a file.",
		word[service.LogSink]{
			values: []service.LogSink{service.LogAuto, service.LogFile, service.LogJournal, service.LogNull},
		}, func(s *service.Spec) *service.LogSink { return &s.Log }),
	ofLogFile(at("log_full", "What becomes of output that the log file can not take, as when the disk is full: fail, the service gets the error of its write; drop-count, it is dropped, counted and told; block, the service waits. With one of the latter, auto is the file.",
		word[service.LogFull]{values: []service.LogFull{service.LogFullFail, service.LogFullDrop, service.LogFullBlock}},
		func(s *service.Spec) *service.LogFull { return &s.LogFull })),
	ofLogFile(at("log_rotate", "When the front of a log file is cut off into a file of its own, and how much is kept.",
		rotation, func(s *service.Spec) *service.LogRotation { return &s.Rotation })),
	at("custom", "Notes of your own; the agent keeps them with the definition and reads none of them.",
		dictionary{key: text{form: regexp.MustCompile("^.+$"), say: "a key of at least one letter", max: 128, line: true}, value: text{max: 4096, line: true}, max: 64},
		func(s *service.Spec) *map[string]string { return &s.Custom }),
},
	check: func(d *document, path string, n *node, s *service.Spec) {
		readTable(d, path, s)
		s.Bounded = s.Type == service.TypeOneshot && n.holds("ready", "timeout")
		for _, key := range []string{"log_full", "log_rotate"} {
			if offset, given := n.has(key); given && !mayHaveFile(s.Log) {
				d.fault(offset, join(path, key), "belongs to a log file; log here is %q", s.Log)
			}
		}
	},
	rules: func(s *jsonschema.Schema) {
		file := &jsonschema.Schema{Not: &jsonschema.Schema{Enum: []any{service.LogNull.String(), service.LogJournal.String()}}}
		s.DependentSchemas = map[string]*jsonschema.Schema{}
		for _, key := range []string{"log_full", "log_rotate"} {
			s.DependentSchemas[key] = &jsonschema.Schema{Properties: map[string]*jsonschema.Schema{"log": file}}
		}
	},
}

func mayHaveFile(l service.LogSink) bool { return l == service.LogAuto || l == service.LogFile }

// unbounded is ready without the timeout of a oneshot that gives none: the host's is for
// what has to be ready, and no bound for a job.
func unbounded(k key[service.Spec]) key[service.Spec] {
	write := k.write
	k.write = func(s service.Spec) any {
		value, ok := write(s).(ordered)
		if ok && s.Type == service.TypeOneshot && !s.Bounded {
			value = slices.DeleteFunc(value, func(e entry) bool { return e.key == "timeout" })
		}
		return value
	}
	return k
}

// ofLogFile is a key that says nothing where no file is written.
func ofLogFile(k key[service.Spec]) key[service.Spec] {
	write := k.write
	k.write = func(s service.Spec) any {
		if !mayHaveFile(s.Log) {
			return nil
		}
		return write(s)
	}
	return k
}

var limits = object[service.Spec]{keys: []key[service.Spec]{
	limit(service.MemoryMax, "Memory; when it is exceeded the kernel ends the service (cgroup v2: memory.max)."),
	limit(service.MemoryHigh, "Memory above which the kernel slows the service down and takes memory back (memory.high)."),
	limit(service.MemoryLow, "Memory that is taken from the service only when there is none to take from others (memory.low)."),
	limit(service.MemoryMin, "Memory that is never taken from the service; others are ended first (memory.min)."),
	limit(service.MemorySwapMax, "Swap (memory.swap.max)."),
	limit(service.CPUMax, "CPU time in percent of one core (cpu.max)."),
	limit(service.CPUBurst, "CPU time that may be saved up, in percent of one core, to go above cpu_percent for a tenth of a second (cpu.max.burst)."),
	limit(service.CPUWeight, "Share of the CPU against others when it is scarce; others have 100 (cpu.weight)."),
	limit(service.CPUIdle, "Get only the CPU time that nobody else wants (cpu.idle); not with cpu_weight."),
	limit(service.PidsMax, "Processes and threads (pids.max)."),
	limit(service.IOWeight, "Share of the disks against others when they are busy; others have 100 (io.weight)."),
	at(service.IOMax.String(), "How fast it may use each disk (io.max).",
		rates, func(s *service.Spec) *service.Quota { return &s.Limits[service.IOMax] }),
	at(service.IODeviceWeight.String(), "Share of some disks against others when they are busy, in the place of io_weight (io.weight); where iocost is enabled for the disk.",
		weights, func(s *service.Spec) *service.Quota { return &s.Limits[service.IODeviceWeight] }),
	at(service.HugetlbMax.String(), "Memory in huge pages, for each size of them (hugetlb.SIZE.max, hugetlb.SIZE.rsvd.max).",
		hugePages, func(s *service.Spec) *service.Quota { return &s.Limits[service.HugetlbMax] }),
	limit(service.MemoryZswapMax, "Compressed swap that is kept in memory (memory.zswap.max)."),
	limit(service.OOMGroup, "When memory runs out the kernel ends the whole service; with false, one process of it (memory.oom.group)."),
	limit(service.CPUSetCPUs, "CPUs that it may run on, by their numbers (cpuset.cpus)."),
	limit(service.CPUSetMems, "Memory nodes that it may have memory of, by their numbers (cpuset.mems)."),
	limit(service.NoFile, "Open files of each process (RLIMIT_NOFILE)."),
	at(service.Rlimits.String(), "Limits of each process by their names, a value or SOFT:HARD (setrlimit(2)).",
		rlimits{}, func(s *service.Spec) *service.Quota { return &s.Limits[service.Rlimits] }),
	at("memory_warning_percent", "Use of memory_max, in percent, from which on it is a violation.",
		warningLevel{}, func(s *service.Spec) *float64 { return &s.Warnings.Memory }),
	at("cpu_warning_percent", "Use of cpu_percent, in percent of it, likewise.",
		warningLevel{}, func(s *service.Spec) *float64 { return &s.Warnings.CPU }),
	pressure(service.MemoryPressure, "Time, in percent, for which some task is held up for memory (memory.pressure), from which on it is a violation."),
	pressure(service.CPUPressure, "Likewise for the CPU (cpu.pressure)."),
	pressure(service.IOPressure, "Likewise for disks (io.pressure)."),
	at("drift", "What becomes of a limit that somebody else changes while the service runs: it is repaired, or only told.",
		word[service.DriftPolicy]{values: []service.DriftPolicy{service.DriftRepair, service.DriftTell}},
		func(s *service.Spec) *service.DriftPolicy { return &s.Drift }),
	at("best_effort", "Start the service even where the host can not enforce its limits.",
		yesNo{}, func(s *service.Spec) *bool { return &s.BestEffort }),
}}

func pressure(p service.PressureOf, about string) key[service.Spec] {
	return at(p.String()+"_pressure_percent", about, warningLevel{}, func(s *service.Spec) *float64 { return &s.Warnings.Pressure[p] })
}

var steps = word[service.Step]{values: []service.Step{service.StepWarn, service.StepThrottle, service.StepStop}}

var enforcement = object[service.Ladder]{keys: []key[service.Ladder]{
	at("memory", "How far the agent goes while memory is above memory_warning_percent: warn, tell; throttle, set memory_high to that level; stop, also end the service, which is begun again if its restart policy says so.",
		steps, func(l *service.Ladder) *service.Step { return &l.Memory }),
	at("cpu", "Likewise for cpu_warning_percent and cpu_percent.",
		steps, func(l *service.Ladder) *service.Step { return &l.CPU }),
	at("throttle_after", "How long it has to be above the level to be throttled.",
		duration{time.Second, 24 * time.Hour}, func(l *service.Ladder) *time.Duration { return &l.ThrottleAfter }),
	at("stop_after", "How long it has to be above the level to be ended; longer than throttle_after.",
		duration{time.Second, 24 * time.Hour}, func(l *service.Ladder) *time.Duration { return &l.StopAfter }),
	at("livelock", "What is done when memory_high throttles the service so that it gets nothing else done: raise, lift memory_high so that memory_max decides (without one: stop); stop, end it, and begin it again if its restart policy says so; warn, tell.",
		word[service.OnLivelock]{values: []service.OnLivelock{service.LivelockRaise, service.LivelockStop, service.LivelockWarn}},
		func(l *service.Ladder) *service.OnLivelock { return &l.Livelock }),
}}

func limit(r service.Resource, about string) key[service.Spec] {
	return at(r.String(), about, quota{r}, func(s *service.Spec) *service.Quota { return &s.Limits[r] })
}

var restart = object[service.RestartPolicy]{
	keys: []key[service.RestartPolicy]{
		at("policy", "After which ends.",
			word[service.RestartWhen]{values: []service.RestartWhen{service.RestartOnFailure, service.RestartAlways, service.RestartNever}},
			func(p *service.RestartPolicy) *service.RestartWhen { return &p.When }),
		at("max_attempts", "Restarts after failures within window; one failure more, and it is given up.",
			whole[int]{low: 0, high: 1_000_000}, func(p *service.RestartPolicy) *int { return &p.MaxAttempts }),
		at("window", "Failures that are longer ago do not count towards max_attempts.",
			duration{time.Millisecond, 365 * 24 * time.Hour}, func(p *service.RestartPolicy) *time.Duration { return &p.Window }),
		at("backoff", "Wait before the first attempt, give or take a fifth; it doubles for each further end in a row, be it a failure or, with the policy always, a clean one.",
			duration{0, 24 * time.Hour}, func(p *service.RestartPolicy) *time.Duration { return &p.Backoff }),
		at("max_backoff", "The longest wait; backoff, if that is longer than what is the default here.",
			duration{0, 24 * time.Hour}, func(p *service.RestartPolicy) *time.Duration { return &p.MaxBackoff }),
		at("reset_after", "How long it has to run, and to be healthy if its health check asks, for a row of ends to be over, so that backoff begins anew; when left out, four times as long as it waited last, at least 10s.",
			optionalDuration{duration{time.Millisecond, 365 * 24 * time.Hour}}, func(p *service.RestartPolicy) *time.Duration { return &p.ResetAfter }),
		at("exit_codes", "What ends by themselves mean.",
			exitCodes, func(p *service.RestartPolicy) *service.RestartPolicy { return p }),
		at("deterministic", "Failures in a row with the same fingerprint after which it is given up; 0: however often.",
			whole[int]{low: 0, high: 1000}, func(p *service.RestartPolicy) *int { return &p.Deterministic }),
	},
	check: func(_ *document, _ string, n *node, p *service.RestartPolicy) {
		if _, given := n.has("max_backoff"); !given {
			p.MaxBackoff = max(p.MaxBackoff, p.Backoff)
		}
	},
}

var exitCodes = object[service.RestartPolicy]{
	absent: func(p service.RestartPolicy) bool { return p.Success.IsZero() && p.Never.IsZero() },
	keys: []key[service.RestartPolicy]{
		at("success", "Exit codes and signals that count as a clean end, besides 0.",
			ends{}, func(p *service.RestartPolicy) *service.Ends { return &p.Success }),
		at("never", "Exit codes and signals after which it is not restarted, and is crashed.",
			ends{}, func(p *service.RestartPolicy) *service.Ends { return &p.Never }),
	},
}

var stop = object[service.StopPolicy]{keys: []key[service.StopPolicy]{
	at("signal", "Signal to the main process, by name or number.",
		signal{}, func(p *service.StopPolicy) *syscall.Signal { return &p.Signal }),
	at("timeout", "How long it may take to end.",
		duration{0, time.Hour}, func(p *service.StopPolicy) *time.Duration { return &p.Timeout }),
	at("force_kill", "Kill what is left after timeout.",
		yesNo{}, func(p *service.StopPolicy) *bool { return &p.ForceKill }),
}}

var rotation = object[service.LogRotation]{
	keys: []key[service.LogRotation]{
		at("size", "What the file may grow to.",
			size{service.MinLogSize, service.MaxLogSize}, func(r *service.LogRotation) *uint64 { return &r.Size }),
		at("age", "What its oldest line may reach; any age when left out.",
			optionalDuration{duration{service.MinLogAge, service.MaxLogAge}}, func(r *service.LogRotation) *time.Duration { return &r.Age }),
		at("total", "What all files of the log may take together; beyond it the oldest are removed. Five times size, if that is more than what is the default here.",
			size{service.MinLogSize, service.MaxLogSize}, func(r *service.LogRotation) *uint64 { return &r.Total }),
	},
	check: func(_ *document, _ string, n *node, r *service.LogRotation) {
		if _, given := n.has("total"); !given {
			r.Total = max(r.Total, min(5*r.Size, service.MaxLogSize))
		}
	},
}

var nothing = &jsonschema.Schema{Not: &jsonschema.Schema{}}

// account is a user or group, by name or number. Spellings that other programs
// read as a number of their own (0x0, +0, 0day, 4294967295) are refused: a
// service must never become root by a misreading.
type account struct{}

var accountName = text{
	form: regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_.@-]*\$?|0|[1-9][0-9]{0,9})$`), say: "the name or number of an account", max: 256,
}

func (account) read(d *document, path string, n *node, v *string) {
	if n.kind == isNumber {
		d.fault(n.offset, path, "is a number; write it as a string, %q", n.text)
		return
	}
	var s string
	if accountName.read(d, path, n, &s); s == "" {
		return
	}
	// The highest number, (uid_t)-1, means "no change" to setuid(2) and others.
	if id, err := strconv.ParseUint(s, 10, 64); err == nil && id >= 1<<32-1 {
		d.fault(n.offset, path, "%s is not the number of an account; the range is 0 to %d", s, uint32(1<<32-2))
		return
	}
	*v = s
}

func (account) write(v string) any { return accountName.write(v) }

func (account) schema(string) *jsonschema.Schema { return accountName.schema("") }

// ParseDefinition reads a service definition. What it does not say is as in
// base: service.Defaults() or Agent.Base. File names the document in faults.
// With faults the Spec is zero.
func ParseDefinition(file string, data []byte, base service.Spec) (service.Spec, Faults) {
	d := newDocument(file, data)
	spec := readDefinition(d, base)
	return spec, d.sorted()
}

func readDefinition(d *document, base service.Spec) service.Spec {
	root := scan(d)
	if root == nil || !d.want(root, "", isObject) {
		return service.Spec{}
	}
	d.places[""] = root.offset
	spec := base
	definition.read(d, "", root, &spec)
	for _, f := range spec.Validate() {
		if !d.faulty(f.Field) {
			d.fault(d.place(f.Field), f.Field, "%s", f.Message)
		}
	}
	if len(d.faults) > 0 {
		return service.Spec{}
	}
	return spec
}

// Changes lists the fields in which two definitions differ, as paths such as
// "limits.memory_max".
func Changes(before, after service.Spec) []string { return definition.differ("", before, after) }
