package main

import (
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/apitest"
)

const mebibyte = 1 << 20

// hall is an agent with one service in each of the states that look different.
func hall(logDir string) *apitest.Agent {
	must(os.MkdirAll(logDir, 0o700))
	a := &apitest.Agent{Now: now, LogDir: logDir}
	a.Info = service.HostInfo{
		Hostname: "demeter", Kernel: "6.12.48-amd64", Version: "0.1.0", Started: now.Add(-50 * time.Hour), Platform: "asgard", MaxServices: 25,
		Backends: []service.BackendInfo{
			{Name: "systemd", Available: true, Selected: true, Capabilities: []string{"memory_max", "oom-verdict"}},
			{Name: "cgroupfs", Available: true},
			{Name: "exec", Reason: "it is for hosts that have nothing better"},
		},
		System: service.SystemUsage{MemoryTotal: 16 << 30, MemoryAvailable: 12 << 30, CPUPercent: 152, Cores: 4, Measured: now},
		Budget: 12 << 30, Promised: 5 << 30,
		All: service.Usage{Source: "cgroup", Memory: 424 * mebibyte, Swap: service.Of(0), CPUPercent: 24.8, CPUTime: 90 * time.Second, Pids: service.Of(76),
			IO:          service.IO{ReadBytes: service.Of(3 * mebibyte), WriteBytes: service.Of(1 << 30), Reads: service.Of(30), Writes: service.Of(1000)},
			CPUPressure: service.Pressure{Some: service.Stall{Set: true, Avg10: 2.5, Total: time.Second}}},
		Power: service.PowerInfo{Power: service.Power{Battery: true, Draining: true, Percent: 12.4, Source: "sysfs"}, Level: service.PowerLow, StopBelow: 15, ReduceBelow: 30},
	}
	a.Found = []service.Finding{
		{Level: service.SeverityOK, Title: "kernel 6.12, cgroup v2 at /sys/fs/cgroup"},
		{Level: service.SeverityWarning, Title: "systemd 252 is old", Detail: "a slower way is taken"},
		{Level: service.SeverityProblem, Title: "the controller io is not delegated", Detail: "io_weight has no effect", Fix: "systemctl set-property gladsheim.slice IOAccounting=yes"},
	}
	a.Config = []byte("{\n  \"gladsheim\": {}\n}\n")
	a.Older = []service.OlderDefault{{Service: service.MustName("api"), Limit: service.MemoryMax, Has: service.Of(512 * mebibyte), Now: service.Of(256 * mebibyte)}}
	api := running("api", 4121, 74*time.Hour)
	api.History = daily()
	api.Advice = advised()
	api.Checks = []service.Probe{
		{At: now.Add(-6 * time.Second), Took: 1234 * time.Microsecond, Status: service.Healthy, Message: "the check succeeded"},
		{At: now.Add(-time.Second), Took: 5 * time.Second, Failed: true, Status: service.Healthy, Message: "127.0.0.1:80 did not answer in time"},
	}
	a.Put(api)
	a.Put(billing())
	a.Put(stopped("batch"))
	a.Put(crashed("mailer"))
	a.Put(waiting("cache"))
	a.Change("billing", service.NoticeExit, "own-limit OOM", "pid 4160", func(*service.Status) {})
	a.Change("billing", service.NoticeState, "ready", "attempt 7, waited 16s", func(*service.Status) {})
	a.Change("batch", service.NoticeState, "asked", "", func(*service.Status) {})
	must(os.WriteFile(filepath.Join(logDir, "billing.log"), []byte("loading 1.2M invoices\n\x1b[31mWARN\x1b[0m heap near limit\n503 /ready: warming up\n"), 0o600))
	return a
}

func known(name, description string) service.Status {
	spec := service.Defaults()
	spec.Name, spec.Description, spec.Exec = service.MustName(name), description, []string{"/usr/bin/" + name}
	return service.Status{Name: spec.Name, Spec: &spec, Source: "/etc/gladsheim/services.d/" + name + ".json", Generation: 1,
		Machine: service.Machine{Policy: spec.Restart}}
}

func running(name string, pid int, up time.Duration) *apitest.Service {
	st := known(name, "")
	st.Machine = service.Machine{State: service.Running, Incarnation: 2, Policy: st.Spec.Restart}
	st.Ref = service.Ref{Backend: "systemd", Unit: "gladsheim-" + name + "-00000002.scope", Cgroup: "/gladsheim.slice/gladsheim-" + name + "-00000002.scope", PID: pid}
	st.Started = now.Add(-up)
	st.LastActor = "uid 0 (root)"
	st.Health = service.Health{Status: service.Healthy, LastCheck: now.Add(-time.Second), NextCheck: now.Add(4 * time.Second)}
	return &apitest.Service{
		Status: st, Document: []byte("{\"name\": \"" + name + "\", \"exec\": [\"/usr/bin/" + name + "\"]}\n"),
		Usage: service.Usage{Source: "cgroup", Memory: 212 * mebibyte, MemoryPeak: service.Of(391 * mebibyte), Swap: service.Of(0),
			CPUPercent: 12.4, CPUTime: 4100 * time.Millisecond, Throttled: service.Of(0), Pids: service.Of(38), OOMKills: service.Of(0)},
		Processes: []service.Process{{PID: pid, Parent: 1, Command: "/usr/bin/" + name}},
	}
}

// advised is what is recommended for api.
func advised() *service.Advice {
	share := func(percent float64) service.Share { return service.Share{Percent: percent, Set: true} }
	return &service.Advice{
		Since: now.Add(-time.Hour), Watched: 50 * time.Minute, Step: time.Minute, Samples: 50, Confidence: service.ConfidenceLow, Doubt: "it was looked at for 50m0s",
		Evidence: service.Evidence{
			MemoryPeak: service.Of(391 * mebibyte), KernelPeak: service.Of(392 * mebibyte), HeldPeak: service.Of(196 * mebibyte), HeldP95: service.Of(190 * mebibyte),
			CPUMean: share(36), CPUP95: share(80), CPUPeak: share(80), PidsPeak: service.Of(40), OOMKills: service.Of(0),
			Pressure: [service.NumPressures]service.Share{share(0), share(1.25), share(0.5)},
		},
		Limits: []service.LimitAdvice{
			{Resource: service.MemoryMax, Now: service.Of(512 * mebibyte), Advised: service.Of(206 * mebibyte), Enforced: true, Why: "it held 196MiB at most, and 5 % more"},
			{Resource: service.MemoryHigh, Advised: service.Of(service.Unlimited), Enforced: true, Why: "it needs far more at times"},
			{Resource: service.CPUMax, Now: service.Of(service.Unlimited), Advised: service.Of(88 * service.UsecPerPercent), Enforced: true, Why: "10 % more"},
			{Resource: service.PidsMax, Now: service.Of(60), Advised: service.Of(60), Why: "it had 40 at most, and 20 more"},
		},
	}
}

// daily is a history of an hour up to now that goes up to 391 MiB and 80 % of a core,
// with a hole of ten minutes in its middle.
func daily() (samples []service.Sample) {
	for i := range 60 {
		if i/10 == 3 {
			continue
		}
		memory := uint64(i+1) * 391 * mebibyte / 60
		samples = append(samples, service.Sample{
			Began: now.Add(time.Duration(i-60) * time.Minute), Step: time.Minute, Measured: time.Minute,
			Memory: service.Of(memory - mebibyte), MemoryPeak: service.Of(memory), Held: service.Of(memory / 2), Pids: service.Of(38), PidsPeak: service.Of(40),
			CPU: service.Share{Percent: float64(i % 10 * 8), Set: true}, CPUPeak: service.Share{Percent: float64(i%10*8 + 8), Set: true},
		})
	}
	return samples
}

func billing() *apitest.Service {
	s := running("billing", 4188, 41*time.Second)
	st := &s.Status
	st.Spec.Description, st.Spec.Autostart, st.Spec.User = "Billing workers", true, "billing"
	st.Spec.Health.Type, st.Spec.Health.URL = service.CheckHTTP, "http://127.0.0.1:8081/ready"
	st.Log = "/var/log/gladsheim/billing.log"
	st.Machine.Restarts, st.Machine.Failures, st.Machine.Recent = 7, 1, 1
	st.Health = service.Health{Status: service.Ill, Strategy: service.CheckHTTP, Message: "503 Service Unavailable", Failures: 3,
		LastCheck: now.Add(-time.Second), NextCheck: now.Add(4 * time.Second)}
	held := func(r service.Resource, n uint64) {
		st.Applied[r] = service.LimitReport{Requested: service.Of(n), Applied: service.Of(n), Effective: service.Of(n), Enforced: true}
	}
	held(service.MemoryMax, 128*mebibyte)
	held(service.MemoryHigh, 112*mebibyte)
	st.Applied[service.MemoryHigh].Requested, st.Applied[service.MemoryHigh].Instead = service.Quota{}, service.Of(112*mebibyte)
	st.Measures = service.Measures{service.MeasureWarn: 3, service.MeasureThrottle: 1}
	held(service.PidsMax, 64)
	st.Applied[service.CPUMax] = service.LimitReport{Requested: service.Of(4_000_000), Applied: service.Of(4_000_000),
		Effective: service.Of(2_000_000), SetBy: "/gladsheim.slice", Enforced: true}
	st.Applied[service.CPUWeight] = service.LimitReport{Applied: service.Of(100), Effective: service.Of(100), Enforced: true}
	st.Applied[service.IOWeight] = service.LimitReport{Requested: service.Of(50)}
	st.Applied[service.CPUMax].AtRestart = service.Of(2_500_000)
	s.Usage.Memory, s.Usage.MemoryPeak = 61*mebibyte+200<<10, service.Of(128*mebibyte)
	s.Usage.OOMKills, s.Usage.Pids, s.Usage.CPUPercent = service.Of(7), service.Of(9), 0.3
	s.Usage.PidsPeak, s.Usage.Kernel = service.Of(12), service.Of(2*mebibyte)
	s.Usage.IO = service.IO{ReadBytes: service.Of(3 * mebibyte), WriteBytes: service.Of(0), Reads: service.Of(40), Writes: service.Of(0)}
	s.Usage.Devices = []service.DeviceIO{{Device: "8:0", IO: s.Usage.IO}}
	s.Usage.MemoryPressure.Some = service.Stall{Set: true, Avg10: 12.5, Avg60: 3, Total: 9 * time.Second}
	s.Processes = []service.Process{
		{PID: 4188, Parent: 1, Command: "/usr/bin/billing --workers 2"},
		{PID: 4190, Parent: 4188, Command: "billing: worker 1"},
		{PID: 4192, Parent: 4190, Command: "evil\x1b]0;title\x07 \u202egnp.exe"},
		{PID: 4191, Parent: 4188, Command: "billing: worker 2"},
	}
	s.Exits = []service.ExitRecord{oomExit(), {
		Incarnation: 1, Exit: service.Exit{Code: 0}, Verdict: service.VerdictStopped, RequestedBy: "uid 1000 (anna)",
		Started: now.Add(-3 * time.Hour), Ended: now.Add(-2 * time.Hour), ForceKilled: true,
	}}
	st.LastExit = &s.Exits[0]
	return s
}

func oomExit() service.ExitRecord {
	return service.ExitRecord{
		Incarnation: 2, Exit: service.Exit{Signal: syscall.SIGKILL}, Verdict: service.VerdictOwnOOM,
		Remains: service.Remains{OOM: service.OOMOwn, OOMLevel: "/gladsheim.slice/gladsheim-billing-00000002.scope", Leftovers: 1,
			Usage: service.Usage{Source: "cgroup", MemoryPeak: service.Of(128 * mebibyte), CPUTime: 9 * time.Second, Throttled: service.Of(1500)}},
		Started: now.Add(-142 * time.Second), Ended: now.Add(-58 * time.Second), Message: "it reached memory_max, 128MiB, and was killed",
	}
}

func stopped(name string) *apitest.Service {
	return &apitest.Service{Status: known(name, "Nightly batch"), Document: []byte(`{"name":"` + name + `"}`)}
}

func crashed(name string) *apitest.Service {
	st := known(name, "")
	st.Machine = service.Machine{State: service.Crashed, Incarnation: 5, Policy: st.Spec.Restart, Failures: 4, Recent: 4, GaveUp: service.GaveUpAttempts, Restarts: 3}
	st.Started, st.Ended = now.Add(-3*time.Minute), now.Add(-2*time.Minute)
	st.Error = "it failed 4 times in a row; given up"
	st.LastExit = &service.ExitRecord{
		Incarnation: 5, Exit: service.Exit{Code: 78}, Verdict: service.VerdictCrash, Started: st.Started, Ended: st.Ended,
		Message: "exit code 78", Fingerprint: "0123456789abcdef", Seen: 4, FirstSeen: now.Add(-time.Hour), After: &st.Machine,
		LastLines: []string{"reading mailer.conf", "no such key: \x1b[31mrelay\x1b[0m"}, Violations: []string{"memory-warning"},
		Remains: service.Remains{Usage: service.Usage{Source: "cgroup", MemoryPeak: service.Of(12 * mebibyte), CPUTime: 90 * time.Millisecond, PidsPeak: service.Of(3)}},
	}
	st.Spec.Log = service.LogNull
	return &apitest.Service{Status: st, Document: []byte(`{"name":"` + name + `"}`), Exits: []service.ExitRecord{*st.LastExit}}
}

func waiting(name string) *apitest.Service {
	st := known(name, "")
	st.Machine = service.Machine{State: service.Backoff, Incarnation: 3, Policy: st.Spec.Restart, Failures: 2, Recent: 2, Restarts: 2}
	st.Started, st.Ended = now.Add(-20*time.Second), now.Add(-10*time.Second)
	st.NextAttempt = now.Add(2 * time.Second)
	st.LastExit = &service.ExitRecord{Incarnation: 3, Exit: service.Exit{Unknown: "agent_was_down"}, Verdict: service.VerdictUnknown, Started: st.Started, Ended: st.Ended}
	return &apitest.Service{Status: st, Document: []byte(`{"name":"` + name + `"}`)}
}
