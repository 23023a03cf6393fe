package config

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestDefinitionSaysEverything(t *testing.T) {
	spec, faults := ParseDefinition("web.json", read(t, "testdata/web.json"), service.Defaults())
	require.Empty(t, faults)
	want := service.Defaults()
	want.Name = service.MustName("web")
	want.Description = "Front page"
	want.Exec = []string{"/usr/sbin/nginx", "-g", "daemon off;"}
	want.Environment = map[string]string{"TZ": "UTC"}
	want.WorkingDirectory, want.User, want.Group = "/srv/web", "www-data", "www-data"
	want.Umask, want.OOMScoreAdj, want.AllowNewPrivs = 0o027, -100, true
	want.Limits = service.Limits{
		service.MemoryMax: service.Of(256 << 20), service.MemoryHigh: service.Of(200 << 20), service.MemorySwapMax: service.Of(0),
		service.CPUMax: service.Of(500_000), service.CPUWeight: service.Of(100), service.PidsMax: service.Of(512),
		service.IOWeight: service.Of(100), service.NoFile: service.Of(4096),
	}
	want.Ready = service.Check{Type: service.CheckHTTP, URL: "http://127.0.0.1:8080/", Timeout: 30 * time.Second}
	want.Health.Type, want.Health.URL = service.CheckHTTP, "http://127.0.0.1:8080/health"
	want.Rotation = service.LogRotation{Size: 1 << 20, Age: 24 * time.Hour, Total: 8 << 20}
	db, cache := service.MustName("db"), service.MustName("cache")
	want.Requires = []service.Need{{Service: db}, {Service: cache, Condition: service.ConditionHealthy}}
	want.After = []service.Need{{Service: service.MustName("log")}}
	want.Binds = []service.Need{{Service: service.MustName("disk"), Condition: service.ConditionStarted}}
	want.StartPriority, want.Power = 700, service.PowerClassEssential
	want.Custom = map[string]string{"team": "hall"}
	require.Equal(t, want, spec)
}

func TestDefinitionSaysNothing(t *testing.T) {
	base := service.Defaults()
	base.Stop.Timeout, base.Health.Interval = 3*time.Second, time.Minute
	spec, faults := ParseDefinition("a.json", []byte(`{"name": "a", "exec": ["/bin/true"], "health": {}, "stop": {"signal": "INT"}}`), base)
	require.Empty(t, faults)
	base.Name, base.Exec, base.Stop.Signal = service.MustName("a"), []string{"/bin/true"}, syscall.SIGINT
	require.Equal(t, base, spec)
}

func TestDefinitionFaultsAllAtOnce(t *testing.T) {
	spec, faults := ParseDefinition("faulty.json", read(t, "testdata/faulty.json"), service.Defaults())
	require.Zero(t, spec)
	golden(t, "testdata/faulty.txt", []byte(faults.Error()+"\n"))
	err := faults.Err("register")
	told, ok := errors.AsType[*service.Error](err)
	require.True(t, ok)
	require.Equal(t, service.Invalid, told.Kind)
	require.Equal(t, []service.Fault(faults), told.Faults)
	require.NoError(t, Faults(nil).Err("register"))
}

func TestDefinitionFaults(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	for _, c := range []struct{ members, want string }{
		{`"exec": []`, "exec: is required: the program's absolute path, then its arguments"},
		{`"exec": ["true"]`, `exec[0]: "true" is not an absolute path`},
		{`"exec": ["/bin/true", 1, null]`, "exec[1]: is a number; it wants a string"},
		{`"exec": "/bin/true"`, "exec: is a string; it wants an array"},
		{`"exec": ["/bin/true", "` + long + `"]`, "exec[1]: has 204800 bytes; fewer than 131072 are allowed"},
		{`"exec": ["/bin/true", "\u0000"]`, "exec[1]: holds a NUL byte"},
		{`"environment": {"A=B": ""}`, `environment.A=B: "A=B" is not the name of a variable`},
		{`"environment": {"": ""}`, `environment.: "" is not the name of a variable`},
		{`"environment": {"A": 1}`, "environment.A: is a number; it wants a string"},
		{`"environment": {"A": "", "A": ""}`, "environment.A: is given twice; first in line 1, column 47"},
		{`"working_directory": "srv"`, `working_directory: "srv" is not an absolute path`},
		{`"working_directory": "/proc/self/fd/7"`, `working_directory: "/proc/self/fd/7" lies in /proc, whose links lead out of it`},
		{`"description": "a\nb"`, "description: holds a control character; one line of text is wanted"},
		{`"description": "\u202etxt"`, "description: holds a control character; one line of text is wanted"},
		{`"umask": "1777"`, `umask: "1777" is not a mask; write octal digits up to "0777"`},
		{`"umask": "008"`, `umask: "008" is not a mask; write octal digits up to "0777"`},
		{`"oom_score_adj": 1001`, "oom_score_adj: is 1001; the range is -1000 to 1000"},
		{`"limits": {"memory_max": "1023KiB"}`, "limits.memory_max: is 1023KiB; the range is 1MiB to 1024TiB"},
		{`"limits": {"memory_max": 268435456.0}`, "limits.memory_max: is 268435456.0; it wants a whole number, the range is 1MiB to 1024TiB"},
		{`"limits": {"memory_max": "16777216TiB"}`, `limits.memory_max: "16777216TiB" is not a size; write bytes or a whole number of KiB, MiB, GiB or TiB`},
		{`"limits": {"memory_max": "256 MiB"}`, `limits.memory_max: "256 MiB" is not a size; write bytes or a whole number of KiB, MiB, GiB or TiB`},
		{`"limits": {"memory_max": "256m"}`, `limits.memory_max: "256m" is not a size; write bytes or a whole number of KiB, MiB, GiB or TiB`},
		{`"limits": {"memory_max": true}`, `limits.memory_max: is true or false; it wants bytes as a whole number or a string such as "256MiB", or "max" for no limit`},
		{`"limits": {"memory_max": "100MiB", "memory_high": "101MiB"}`, "limits.memory_high: 101MiB is above memory_max, 100MiB"},
		{`"limits": {"memory_max": "100MiB", "memory_low": "101MiB"}`, "limits.memory_low: 101MiB is above memory_max, 100MiB"},
		{`"nice": 20`, "nice: is 20; the range is -20 to 19"},
		{`"scheduling": "rr"`, "scheduling_priority: is required with scheduling rr: 1 to 99"},
		{`"scheduling_priority": 5`, "scheduling_priority: counts with fifo and rr alone; scheduling is other"},
		{`"limits": {"cpu_idle": 1}`, "limits.cpu_idle: is a number; it wants true or false"},
		{`"limits": {"cpu_idle": true, "cpu_weight": 10}`, "limits.cpu_idle: leaves no place for a cpu_weight"},
		{`"limits": {"cpu_percent": 20, "cpu_burst_percent": 21}`, "limits.cpu_burst_percent: 21% is above cpu_percent, 20%"},
		{`"limits": {"cpu_percent": "max", "cpu_burst_percent": 21}`, "limits.cpu_burst_percent: has nothing to save from: it wants a cpu_percent"},
		{`"limits": {"cpu_burst_percent": "max"}`, `limits.cpu_burst_percent: can not be unlimited`},
		{`"limits": {"cpuset_cpus": 3}`, `limits.cpuset_cpus: is a number; it wants a string of numbers and spans of them, such as "0-3,8", or "max" for all`},
		{`"limits": {"cpuset_cpus": ""}`, `limits.cpuset_cpus: is empty`},
		{`"limits": {"cpuset_mems": "3-1"}`, `limits.cpuset_mems: 3-1 ends before it begins`},
		{`"limits": {"io_max": {"device": "/dev/vda"}}`, `limits.io_max: is an object; it wants an array`},
		{`"limits": {"io_max": [{"device": "/dev/vda"}]}`, `limits.io_max: /dev/vda has no limit`},
		{`"limits": {"io_max": [{"read_bps": 5}]}`, `limits.io_max[0].device: is required`},
		{`"limits": {"io_max": [{"device": "/a", "read_bps": 5}, {"device": "/a", "read_iops": 5}]}`, `limits.io_max: /a is named twice`},
		{`"limits": {"io_max": [{"device": "/a", "read_bps": 0}]}`, `limits.io_max[0].read_bps: is 0; the range is 1 to 1024TiB`},
		{`"limits": {"io_max": [{"device": "/a", "read_iops": "5KiB"}]}`, `limits.io_max[0].read_iops: is a string; it wants a number`},
		{`"limits": {"io_max": [{"device": "/a", "speed": 5}]}`, `limits.io_max[0].speed: is not a known key; known are device, read_bps, write_bps, read_iops, write_iops`},
		{`"limits": {"rlimits": {"nofile": 5}}`, `limits.rlimits.nofile: nofile is a limit of its own: write limits.nofile`},
		{`"limits": {"hugetlb_max": {"2MiB": "4MiB"}}`, `limits.hugetlb_max: is an object; it wants an array`},
		{`"limits": {"hugetlb_max": [{"page_size": "2MiB"}]}`, `limits.hugetlb_max[0].max: is required`},
		{`"limits": {"hugetlb_max": [{"max": "2MiB"}]}`, `limits.hugetlb_max[0].page_size: is required`},
		{`"limits": {"hugetlb_max": [{"page_size": "3MiB", "max": 0}]}`, `limits.hugetlb_max: 3MiB is no size of huge pages; write one as in 2MiB or 1GiB`},
		{`"limits": {"hugetlb_max": [{"page_size": "2MiB", "max": "3MiB"}]}`, `limits.hugetlb_max: 3MiB is no whole number of pages of 2MiB`},
		{`"limits": {"hugetlb_max": [{"page_size": "2MiB", "max": 0}, {"page_size": "2048KiB", "max": 0}]}`, `limits.hugetlb_max: pages of 2MiB are named twice`},
		{`"limits": {"io_device_weight": [{"device": "/a"}]}`, `limits.io_device_weight[0].weight: is required`},
		{`"limits": {"io_device_weight": [{"device": "/a", "weight": 10001}]}`, `limits.io_device_weight[0].weight: is 10001; the range is 1 to 10000`},
		{`"limits": {"io_device_weight": [{"device": "a", "weight": 1}]}`, `limits.io_device_weight: "a" is neither an absolute path without blanks nor a number such as 8:0`},
		{`"limits": {"io_device_weight": [{"device": "/a", "weight": 1}, {"device": "/a", "weight": 2}]}`, `limits.io_device_weight: /a is named twice`},
		{`"limits": {"rlimits": {"stack": "9MiB:8MiB"}}`, `limits.rlimits.stack: is 9MiB:8MiB, and the hard limit is less`},
		{`"limits": {"rlimits": {"stack": true}}`, `limits.rlimits.stack: is true or false; it wants a number, or a string such as "8MiB" or "1024:4096", soft and hard`},
		{`"limits": {"rlimits": {"nproc": "5KiB"}}`, `limits.rlimits.nproc: "5KiB" is not a whole number`},
		{`"limits": {"rlimits": {"x": 1}}`, `limits.rlimits.x: "x" is none of cpu, fsize, data, stack, core, rss, nproc, memlock, as, locks, sigpending, msgqueue, nice, rtprio, rttime`},
		{`"limits": {"oom_group": "no"}`, `limits.oom_group: is the string "no"; it wants true or false`},
		{`"limits": {"cpu_percent": 0}`, "limits.cpu_percent: is 0; it must be above 0"},
		{`"limits": {"cpu_percent": 0.5}`, "limits.cpu_percent: is 0.5%; the range is 1% to 819200%"},
		{`"limits": {"cpu_percent": 1e400}`, "limits.cpu_percent: is 1e400; that is more than any machine has"},
		{`"limits": {"cpu_percent": "50%"}`, `limits.cpu_percent: is the string "50%"; it wants a number, percent of one core, or "max" for no limit`},
		{`"limits": {"pids_max": 0}`, "limits.pids_max: is 0; the range is 1 to 4194304"},
		{`"limits": {"pids_max": 18446744073709551615}`, "limits.pids_max: is 18446744073709551615; it wants a whole number, the range is 1 to 4194304"},
		{`"limits": {"io_weight": "100"}`, `limits.io_weight: is the string "100"; it wants a whole number`},
		{`"limits": {"ram": 1}`, `limits.ram: is not a known key; known are memory_max, memory_high, memory_low, memory_min, memory_swap_max, cpu_percent, cpu_burst_percent, cpu_weight, cpu_idle, pids_max, io_weight, io_max, io_device_weight, hugetlb_max, memory_zswap_max, oom_group, cpuset_cpus, cpuset_mems, nofile, rlimits, memory_warning_percent, cpu_warning_percent, memory_pressure_percent, cpu_pressure_percent, io_pressure_percent, drift, best_effort`},
		{`"limits": {"memory_warning_percent": 0.5}`, "limits.memory_warning_percent: is 0.5; the range is 1 to 100"},
		{`"limits": null`, "limits: is null; it wants an object, or leave the key out"},
		{`"ready": {"type": "http"}`, "ready.url: is required by type http"},
		{`"ready": {"type": "http", "url": "ftp://a/"}`, `ready.url: "ftp://a/" is not an http or https address`},
		{`"ready": {"type": "http", "url": "http://"}`, `ready.url: "http://" is not an http or https address`},
		{`"ready": {"type": "grpc"}`, "ready.address: is required by type grpc"},
		{`"ready": {"type": "tcp", "address": ":80"}`, `ready.address: ":80" is not host:port`},
		{`"ready": {"service": "a"}`, "ready.service: belongs to type grpc; the type here is process"},
		{`"ready": {"type": "log", "timeout": "1s"}`, `ready.pattern: is required by type log`},
		{`"ready": {"type": "log", "pattern": "a("}`, "ready.pattern: error parsing regexp: missing closing ): `a(`; it is to be in the syntax of RE2 (https://golang.org/s/re2syntax)"},
		{`"ready": {"type": "log", "pattern": ""}`, `ready.pattern: is required by type log`},
		{`"ready": {"type": "log", "pattern": "up"}, "log": "null"`, `ready.type: log looks at the output, and that is not kept ("log": "null")`},
		{`"ready": {"type": "tcp", "address": "a:1", "settle": "1s"}`, `ready.settle: belongs to type process; the type here is tcp`},
		{`"ready": {"settle": "25h", "timeout": "24h"}`, `ready.settle: is 25h; the range is 0s to 24h`},
		{`"ready": {"type": "notify"}, "environment": {"NOTIFY_SOCKET": "/run/x"}`, `environment.NOTIFY_SOCKET: is the agent's to set where ready.type is notify or health.type watchdog`},
		{`"health": {"type": "watchdog", "threshold": 2}`, `health.threshold: belongs to type http or grpc or tcp or exec; the type here is watchdog`},
		{`"health": {"type": "watchdog"}, "environment": {"WATCHDOG_USEC": "1"}`, `environment.WATCHDOG_USEC: is the agent's to set where ready.type is notify or health.type watchdog`},
		{`"ready": {"type": "notify", "pattern": "x"}`, `ready.pattern: belongs to type log; the type here is notify`},
		{`"ready": {"settle": "30s"}`, `ready.settle: 30s is not below ready.timeout, 30s: no start would succeed`},
		{`"ready": {"pattern": "up"}`, `ready.pattern: belongs to type log; the type here is process`},
		{`"health": {"type": "log"}`, `health.type: "log" is not one of process, http, grpc, tcp, exec, watchdog`},
		{`"health": {"type": "exec"}`, `health.exec: is required by type exec`},
		{`"health": {"type": "exec", "exec": ["true"]}`, `health.exec[0]: "true" is not an absolute path`},
		{`"health": {"type": "tcp", "address": "192.0.2.1:80"}`, `health.address: 192.0.2.1 is not on this host; a check asks others only with "remote": true beside it`},
		{`"ready": {"type": "http", "url": "http://[2001:db8::1]/"}`, `ready.url: 2001:db8::1 is not on this host; a check asks others only with "remote": true beside it`},
		{`"health": {"type": "http", "url": "http://a/", "tls": {}}`, `health.tls: is for an https url; this is http://a/`},
		{`"health": {"type": "http", "url": "https://a/", "tls": {"ca": "ca.pem"}}`, `health.tls.ca: "ca.pem" is not an absolute path`},
		{`"health": {"type": "tcp", "address": "a:1", "tls": {}}`, `health.tls: belongs to type http or grpc; the type here is tcp`},
		{`"health": {"type": "http", "url": "http://a/", "status": [200, "2xx"]}`, `health.status[1]: "2xx" is no status of an answer, 200 to 599, nor a range such as 200-299`},
		{`"health": {"type": "http", "url": "http://a/", "status": 101}`, `health.status: "101" is no status of an answer, 200 to 599, nor a range such as 200-299`},
		{`"health": {"type": "http", "url": "http://a/", "status": []}`, `health.status: is empty; leave it out for 200, or name a status that is well`},
		{`"health": {"type": "http", "url": "http://a/", "status": true}`, `health.status: is true or false; it wants a status such as 200, or a list of such and ranges like "200-299"`},
		{`"health": {"type": "http", "url": "http://a/", "body": "("}`, "health.body: error parsing regexp: missing closing ): `(`; it is to be in the syntax of RE2 (https://golang.org/s/re2syntax)"},
		{`"health": {"type": "tcp", "address": "a:1", "success_threshold": 0}`, `health.success_threshold: is 0; the range is 1 to 1000`},
		{`"health": {"start_period": "5s"}`, `health.start_period: belongs to type http or grpc or tcp or exec; the type here is process`},
		{`"ready": {"interval": "1s"}`, "ready.interval: is not a known key; known are type, url, status, body, address, service, tls, remote, exec, settle, pattern, timeout"},
		{`"ready": {"timeout": "25h"}`, "ready.timeout: is 25h; the range is 1ms to 24h"},
		{`"stop": {"timeout": "+5s"}`, `stop.timeout: "+5s" is not a duration; write numbers with h, m, s, ms, us or ns, such as "1m30s"`},
		{`"stop": {"timeout": ".5s"}`, `stop.timeout: ".5s" is not a duration; write numbers with h, m, s, ms, us or ns, such as "1m30s"`},
		{`"stop": {"signal": "015"}`, `stop.signal: "015" is written 15`},
		{`"stop": {"signal": "+15"}`, `stop.signal: "+15" is written 15`},
		{`"health": {"interval": "5s"}`, "health.interval: belongs to type http or grpc or tcp or exec or watchdog; the type here is process"},
		{`"health": {"exec": ["/bin/true"]}`, "health.exec: belongs to type exec; the type here is process"},
		{`"health": {"type": "tcp", "address": "a:1", "interval": "-5s"}`, "health.interval: is -5s; the range is 100ms to 24h"},
		{`"health": {"type": "tcp", "address": "a:1", "interval": "5sec"}`, `health.interval: "5sec" is not a duration; write numbers with h, m, s, ms, us or ns, such as "1m30s"`},
		{`"health": {"type": "tcp", "address": "a:1", "interval": "9999999999h"}`, `health.interval: "9999999999h" is not a duration; write numbers with h, m, s, ms, us or ns, such as "1m30s"`},
		{`"restart": {"policy": "On-Failure"}`, `restart.policy: "On-Failure" is not one of on-failure, always, never`},
		{`"restart": {"max_backoff": "10ms"}`, "restart.max_backoff: 10ms is less than backoff, 1s"},
		{`"restart": {"max_attempts": 2.0}`, "restart.max_attempts: 2.0 is not written as a whole number"},
		{`"restart": {"reset_after": "0"}`, "restart.reset_after: is 0; the range is 1ms to 8760h"},
		{`"restart": {"deterministic": -1}`, "restart.deterministic: is -1; the range is 0 to 1000"},
		{`"restart": {"exit_codes": {"success": [256]}}`, "restart.exit_codes.success[0]: is 256; the range is 0 to 255"},
		{`"restart": {"exit_codes": {"success": [1.5]}}`, "restart.exit_codes.success[0]: 1.5 is not written as a whole number"},
		{`"restart": {"exit_codes": {"never": ["9"]}}`, `restart.exit_codes.never[0]: wants an exit code, which is a number, 0 to 255, or the name of a signal, such as "SIGTERM"`},
		{`"restart": {"exit_codes": {"never": ["sigterm"]}}`, `restart.exit_codes.never[0]: "sigterm" is written SIGTERM`},
		{`"restart": {"exit_codes": {"never": ["TERM", "SIGTERM"]}}`, "restart.exit_codes.never[1]: SIGTERM is there twice"},
		{`"restart": {"exit_codes": {"always": [1]}}`, "restart.exit_codes.always: is not a known key; known are success, never"},
		{`"restart": {"exit_codes": {"success": [3, 4], "never": [5, 3]}}`, "restart.exit_codes.never: 3 is in success as well; an end is clean, or the last, not both"},
		{`"stop": {"signal": "SIGNOPE"}`, `stop.signal: "SIGNOPE" is not a signal; write a name such as SIGTERM or a number`},
		{`"stop": {"signal": 15}`, "stop.signal: is a number; it wants a string"},
		{`"after": [{"service": "db"}]`, "after[0]: is an object; it wants the name of a service, without a condition"},
		{`"requires": "db"`, "requires: is a string; it wants an array"},
		{`"requires": [3]`, `requires[0]: is a number; it wants the name of a service, or {"service": NAME, "condition": HOW_FAR}`},
		{`"requires": [{"condition": "started"}]`, "requires[0].service: is required: the name of a service"},
		{`"requires": [{"service": "db", "condition": "up"}]`, `requires[0].condition: "up" is not one of ready, started, healthy, completed`},
		{`"requires": ["db", "cache", "db"]`, "requires[2]: db is in requires[0] already"},
		{`"requires": ["db"], "binds": ["db"]`, "binds[0]: db is in requires[0] as well, which binds includes"},
		{`"binds": [{"service": "db", "condition": "completed"}]`, "binds[0]: what has done its job has ended, and so would a; write it into requires"},
		{`"after": ["a"]`, "after[0]: is a itself"},
		{`"type": "job"`, `type: "job" is not one of service, oneshot`},
		{`"type": "oneshot", "ready": {"type": "tcp", "address": "a:1"}`, `ready.type: a oneshot is ready when its job is done, and tcp tells nothing of that; leave it out`},
		{`"type": "oneshot", "ready": {"settle": "1s"}`, `ready.settle: a oneshot is ready when its job is done, however soon; leave it out`},
		{`"type": "oneshot", "restart": {"policy": "always"}`, `restart.policy: a oneshot ends when its job is done: write on-failure or never, and schedule to run it again and again`},
		{`"health": {"type": "tcp", "address": "a:1"}, "type": "oneshot"`, `health.type: a oneshot is not asked how it is, for it ends by itself; leave it out, and bound its time by ready.timeout`},
		{`"schedule": {"cron": "@daily"}`, `schedule: is for type oneshot; the type here is service`},
		{`"type": "oneshot", "schedule": {}`, `schedule: says no time: write cron or every`},
		{`"type": "oneshot", "schedule": {"missed": "run"}`, `schedule: says no time: write cron or every`},
		{`"type": "oneshot", "schedule": {"cron": "* * *"}`, `schedule.cron: "* * *" can not be read: expected exactly 5 fields, found 3: [* * *]; write minute, hour, day of month, month and day of week, as in "30 3 * * mon-fri"`},
		{`"type": "oneshot", "schedule": {"cron": "0 0 30 feb *"}`, `schedule.cron: "0 0 30 feb *" never comes`},
		{`"type": "oneshot", "schedule": {"cron": "@daily", "timezone": "Midgard"}`, `schedule.timezone: "Midgard" is not the name of a time zone; write one as in "Europe/Stockholm" or "UTC"`},
		{`"type": "oneshot", "schedule": {"cron": "@daily", "every": "1h"}`, `schedule.every: is beside cron; write one of the two`},
		{`"type": "oneshot", "schedule": {"every": "1h", "timezone": "UTC"}`, `schedule.timezone: belongs to cron: every counts time, whatever the clock says`},
		{`"type": "oneshot", "schedule": {"every": "1ms"}`, `schedule.every: is 1ms; the range is 1s to 8760h`},
		{`"type": "oneshot", "schedule": {"every": "1h", "overlap": "kill"}`, `schedule.overlap: "kill" is not one of skip, queue, replace`},
		{`"restart": {"exit_codes": {"never": [0]}}`, `restart.exit_codes.never: 0 is a clean end, and no failure that could be the last: write policy on-failure, after which a clean end is not begun again`},
		{`"hooks": []`, `hooks: is an array; it wants an object`},
		{`"hooks": {"pre_start": ["/a"]}`, `hooks.pre_start[0]: is a string; it wants an array`},
		{`"hooks": {"post_stop": [["/a"], []]}`, `hooks.post_stop[1]: is required: the program's absolute path, then its arguments`},
		{`"hooks": {"pre_stop": [["a"]]}`, `hooks.pre_stop[0][0]: "a" is not an absolute path`},
		{`"hooks": {"timeout": "1s"}`, `hooks.timeout: is of no hook: name one`},
		{`"hooks": {"pre_start": [["/a"]], "timeout": "0s"}`, `hooks.timeout: is 0s; the range is 10ms to 24h`},
		{`"type": "oneshot", "hooks": {"post_start": [["/a"]]}`, `hooks.post_start: a oneshot is ready when its job is done: what is to follow that belongs into post_stop`},
		{`"reload": {}`, `reload: says no way: write signal or exec`},
		{`"reload": {"timeout": "1s"}`, `reload: says no way: write signal or exec`},
		{`"exec": ["/x"], "reload": {"signal": "SIGHUP", "exec": ["/a"]}`, `reload.exec: is beside signal; write one of the two`},
		{`"reload": {"signal": "SIGHUP", "timeout": "1s"}`, `reload.timeout: belongs to exec: a signal takes no time`},
		{`"reload": {"signal": "SIGKILL"}`, `reload.signal: SIGKILL can not be heeded by any program`},
		{`"exec": ["/x"], "reload": {"exec": ["a"]}`, `reload.exec[0]: "a" is not an absolute path`},
		{`"low_battery": "freeze"`, `low_battery: freeze is for power deferrable, and this is normal`},
		{`"power": "low"`, `power: "low" is not one of essential, normal, deferrable`},
		{`"priority": 1001`, "priority: is 1001; the range is 0 to 1000"},
		{`"priority": "high"`, "priority: is a string; it wants a number"},
		{`"log_rotate": {"size": "10MB"}`, `log_rotate.size: "10MB" is not a size; write bytes or a whole number of KiB, MiB, GiB or TiB`},
		{`"log_rotate": {"size": 1}`, "log_rotate.size: is 1; the range is 64KiB to 1TiB"},
		{`"log_rotate": {"size": 1.5e9}`, "log_rotate.size: 1.5e9 is not a whole number of bytes"},
		{`"log_rotate": {"size": true}`, `log_rotate.size: is true or false; it wants bytes as a whole number or a string such as "10MiB"`},
		{`"log_rotate": {"size": "2MiB", "total": "1MiB"}`, "log_rotate.total: 1MiB is below size, 2MiB"},
		{`"log_rotate": {"age": "0"}`, "log_rotate.age: is 0; the range is 1m to 87600h"},
		{`"log_rotate": {"full": "block"}`, "log_rotate.full: is not a known key; known are size, age, total"},
		{`"log": "null", "log_rotate": {}`, `log_rotate: belongs to a log file; log here is "null"`},
		{`"log": "journal", "log_rotate": {}`, `log_rotate: belongs to a log file; log here is "journal"`},
		{`"log_full": "drop"`, `log_full: "drop" is not one of fail, drop-count, block`},
		{`"log": "null", "log_full": "block"`, `log_full: belongs to a log file; log here is "null"`},
		{`"log_full": "fail", "log": "journal"`, `log_full: belongs to a log file; log here is "journal"`},
		{`"custom": {"": "x"}`, `custom.: "" is not a key of at least one letter`},
		{`"user": "0x0"`, `user: "0x0" is not the name or number of an account`},
		{`"user": "+0"`, `user: "+0" is not the name or number of an account`},
		{`"user": "-1"`, `user: "-1" is not the name or number of an account`},
		{`"user": " 0"`, `user: " 0" is not the name or number of an account`},
		{`"user": "00"`, `user: "00" is not the name or number of an account`},
		{`"user": "٠"`, `user: "٠" is not the name or number of an account`},
		{`"user": "4294967295"`, "user: 4294967295 is not the number of an account; the range is 0 to 4294967294"},
		{`"user": "4294967296"`, "user: 4294967296 is not the number of an account; the range is 0 to 4294967294"},
		{`"user": ""`, `user: "" is not the name or number of an account`},
		{`"a\u001b[2Jb": 1`, `"a\x1b[2Jb": is not a known key; known are name, description, type, schedule, launch, exec, environment, working_directory, user, group, umask, oom_score_adj, nice, scheduling, scheduling_priority, no_new_privs, limits, enforcement, usage_history, ready, health, hang, restart, stop, hooks, reload, requires, after, binds, autostart, priority, power, low_battery, log, log_full, log_rotate, custom`},
	} {
		document := fmt.Sprintf(`{"name": "a", %s}`, c.members)
		if !strings.Contains(c.members, `"exec": `) || strings.HasPrefix(c.members, `"health"`) {
			document = fmt.Sprintf(`{"name": "a", "exec": ["/a"], %s}`, c.members)
		}
		_, faults := ParseDefinition("", []byte(document), service.Defaults())
		require.NotEmpty(t, faults, "%.200s", c.members)
		require.Equal(t, c.want, withoutPlace(faults[0]), "%.200s", c.members)
	}
}

func withoutPlace(f Fault) string { return Fault{Field: f.Field, Message: f.Message}.String() }

func TestDefinitionMustBeAnObject(t *testing.T) {
	_, faults := ParseDefinition("a.json", []byte(`["name"]`), service.Defaults())
	require.Equal(t, "a.json:1:1: is an array; it wants an object", faults.Error())
}

func TestFaultsAreBounded(t *testing.T) {
	var keys []string
	for i := range 5000 {
		keys = append(keys, fmt.Sprintf(`"%s%d": 1`, strings.Repeat("k", 100), i))
	}
	_, faults := ParseDefinition("a.json", []byte("{"+strings.Join(keys, ",")+"}"), service.Defaults())
	require.Len(t, faults, maxFaults+1)
	require.Equal(t, "there are more faults than these", faults[maxFaults].Message)
	_, faults = ParseDefinition("a.json", []byte(`{"`+strings.Repeat("ü", 1000)+`": 1}`), service.Defaults())
	require.LessOrEqual(t, len(faults.Error()), 1000)
}

func TestDefinitionSpellings(t *testing.T) {
	for _, c := range []struct {
		members string
		want    func(*service.Spec)
	}{
		{`"limits": {"memory_max": 268435456}`, func(s *service.Spec) { s.Limits[service.MemoryMax] = service.Of(256 << 20) }},
		{`"limits": {"memory_max": "max"}`, func(s *service.Spec) { s.Limits[service.MemoryMax] = service.Of(service.Unlimited) }},
		{`"limits": {"memory_max": "1GiB"}`, func(s *service.Spec) { s.Limits[service.MemoryMax] = service.Of(1 << 30) }},
		{`"limits": {"cpu_percent": "max"}`, func(s *service.Spec) { s.Limits[service.CPUMax] = service.Of(service.Unlimited) }},
		{`"limits": {"cpu_percent": 12.5}`, func(s *service.Spec) { s.Limits[service.CPUMax] = service.Of(125_000) }},
		{`"limits": {"cpu_percent": 1.5e2}`, func(s *service.Spec) { s.Limits[service.CPUMax] = service.Of(1_500_000) }},
		{`"limits": {"drift": "tell"}`, func(s *service.Spec) { s.Drift = service.DriftTell }},
		{`"limits": {"cpuset_cpus": "8,0-3"}`, func(s *service.Spec) { s.Limits[service.CPUSetCPUs] = service.OfText("0-3,8") }},
		{`"limits": {"cpuset_mems": "max"}`, func(s *service.Spec) { s.Limits[service.CPUSetMems] = service.Of(service.Unlimited) }},
		{`"limits": {"io_max": [{"device": "/b", "read_bps": "1MiB", "write_iops": 9}, {"device": "8:0", "write_bps": "max", "read_bps": 1000}]}`, func(s *service.Spec) {
			s.Limits[service.IOMax] = service.OfText("/b:read_bps=1MiB,write_iops=9 8:0:read_bps=1000")
		}},
		{`"limits": {"hugetlb_max": [{"page_size": "1GiB", "max": 0}, {"page_size": 2097152, "max": "64MiB"}]}`, func(s *service.Spec) {
			s.Limits[service.HugetlbMax] = service.OfText("2MiB:64MiB 1GiB:0")
		}},
		{`"limits": {"hugetlb_max": "max", "io_device_weight": []}`, func(s *service.Spec) {
			s.Limits[service.HugetlbMax], s.Limits[service.IODeviceWeight] = service.Of(service.Unlimited), service.Of(service.Unlimited)
		}},
		{`"limits": {"io_device_weight": [{"device": "/b", "weight": 10}, {"device": "8:0", "weight": 10000}]}`, func(s *service.Spec) {
			s.Limits[service.IODeviceWeight] = service.OfText("/b:10 8:0:10000")
		}},
		{`"limits": {"rlimits": {"rttime": "500000:1000000"}}`, func(s *service.Spec) {
			s.Limits[service.Rlimits] = service.OfText("rttime=500000:1000000")
		}},
		{`"limits": {"io_max": []}`, func(s *service.Spec) { s.Limits[service.IOMax] = service.Of(service.Unlimited) }},
		{`"limits": {"rlimits": {"stack": "8MiB:max", "core": 0}}`, func(s *service.Spec) {
			s.Limits[service.Rlimits] = service.OfText("core=0 stack=8MiB:max")
		}},
		{`"limits": {"rlimits": {}}`, func(s *service.Spec) { s.Limits[service.Rlimits] = service.Of(service.Unlimited) }},
		{`"limits": {"oom_group": false}`, func(s *service.Spec) { s.Limits[service.OOMGroup] = service.Of(0) }},
		{`"limits": {"memory_zswap_max": 0}`, func(s *service.Spec) { s.Limits[service.MemoryZswapMax] = service.Of(0) }},
		{`"usage_history": true`, func(s *service.Spec) { s.UsageHistory = true }},
		{`"limits": {"best_effort": true}`, func(s *service.Spec) { s.BestEffort = true }},
		{`"restart": {"backoff": "2m"}`, func(s *service.Spec) { s.Restart.Backoff, s.Restart.MaxBackoff = 2*time.Minute, 2*time.Minute }},
		{`"restart": {"backoff": "0"}`, func(s *service.Spec) { s.Restart.Backoff = 0 }},
		{`"restart": {"reset_after": "5m", "deterministic": 0, "exit_codes": {"success": [3, "HUP"], "never": ["SIGSEGV", 78]}}`, func(s *service.Spec) {
			s.Restart.ResetAfter, s.Restart.Deterministic = 5*time.Minute, 0
			s.Restart.Success = service.Ends{}.And(service.Exit{Code: 3}).And(service.Exit{Signal: syscall.SIGHUP})
			s.Restart.Never = service.Ends{}.And(service.Exit{Code: 78}).And(service.Exit{Signal: syscall.SIGSEGV})
		}},
		{`"restart": {"policy": "never", "window": "1h0m0.5s"}`, func(s *service.Spec) {
			s.Restart.When, s.Restart.Window = service.RestartNever, time.Hour+500*time.Millisecond
		}},
		{`"stop": {"signal": "34", "force_kill": false}`, func(s *service.Spec) { s.Stop.Signal, s.Stop.ForceKill = 34, false }},
		{`"user": "0", "group": "4294967294"`, func(s *service.Spec) { s.User, s.Group = "0", "4294967294" }},
		{`"umask": "77"`, func(s *service.Spec) { s.Umask = 0o77 }},
		{`"health": {"type": "http", "url": "https://192.0.2.1/", "remote": true, "status": [204, "301-302"], "body": "^ok", "success_threshold": 2, "start_period": "10s",
			"tls": {"ca": "/ca.pem", "server_name": "a.org", "insecure": true}}`, func(s *service.Spec) {
			h := &s.Health
			h.Type, h.URL, h.Remote, h.Body, h.SuccessThreshold, h.StartPeriod = service.CheckHTTP, "https://192.0.2.1/", true, "^ok", 2, 10*time.Second
			h.Status = []service.StatusRange{{Low: 204, High: 204}, {Low: 301, High: 302}}
			h.TLS = &service.TLS{CA: "/ca.pem", ServerName: "a.org", Insecure: true}
		}},
		{`"health": {"type": "grpc", "address": "localhost:1", "tls": {}, "remote": false}`, func(s *service.Spec) {
			s.Health.Type, s.Health.Address, s.Health.TLS = service.CheckGRPC, "localhost:1", &service.TLS{}
		}},
		{`"ready": {"type": "exec", "exec": ["/bin/true", "-x"], "timeout": "1s"}`, func(s *service.Spec) {
			s.Ready.Type, s.Ready.Exec, s.Ready.Timeout = service.CheckExec, []string{"/bin/true", "-x"}, time.Second
		}},
		{`"health": {"type": "grpc", "address": "[::1]:50051", "service": "a.B"}`, func(s *service.Spec) {
			s.Health.Type, s.Health.Address, s.Health.Service = service.CheckGRPC, "[::1]:50051", "a.B"
		}},
		{`"log": "null", "launch": "cgroup", "autostart": true`, func(s *service.Spec) {
			s.Log, s.Launch, s.Autostart = service.LogNull, service.LaunchCgroup, true
		}},
		{`"log_full": "fail"`, func(*service.Spec) {}},
		{`"log_full": "drop-count"`, func(s *service.Spec) { s.LogFull = service.LogFullDrop }},
		{`"ready": {"settle": "2s"}`, func(s *service.Spec) { s.Ready.Settle = 2 * time.Second }},
		{`"health": {"type": "watchdog", "interval": "20s"}`, func(s *service.Spec) { s.Health.Type, s.Health.Interval = service.CheckWatchdog, 20*time.Second }},
		{`"ready": {"type": "notify"}`, func(s *service.Spec) { s.Ready.Type = service.CheckNotify }},
		{`"ready": {"type": "log", "pattern": "^(up|ready)"}`, func(s *service.Spec) { s.Ready.Type, s.Ready.Pattern = service.CheckLog, "^(up|ready)" }},
		{`"log_full": "block", "log": "file"`, func(s *service.Spec) { s.LogFull, s.Log = service.LogFullBlock, service.LogFile }},
		{`"log_rotate": {"size": 65536, "age": "24h", "total": "1TiB"}`, func(s *service.Spec) {
			s.Rotation = service.LogRotation{Size: 64 << 10, Age: 24 * time.Hour, Total: 1 << 40}
		}},
		{`"log_rotate": {"size": "5MiB"}`, func(s *service.Spec) { s.Rotation.Size = 5 << 20 }},
		{`"log_rotate": {"size": "20MiB"}`, func(s *service.Spec) { s.Rotation.Size, s.Rotation.Total = 20<<20, 100<<20 }},
		{`"log_rotate": {"size": "1TiB"}`, func(s *service.Spec) { s.Rotation.Size, s.Rotation.Total = 1<<40, 1<<40 }},
		{`"hooks": {}`, func(*service.Spec) {}},
		{`"hooks": {"pre_start": [["/a", "b"], ["/c"]], "post_start": [["/d"]]}`, func(s *service.Spec) {
			s.Hooks = service.Hooks{PreStart: [][]string{{"/a", "b"}, {"/c"}}, PostStart: [][]string{{"/d"}}, Timeout: 30 * time.Second}
		}},
		{`"type": "oneshot", "hooks": {"pre_stop": [["/e"]], "post_stop": [["/f"]], "timeout": "5m"}`, func(s *service.Spec) {
			s.Type = service.TypeOneshot
			s.Hooks = service.Hooks{PreStop: [][]string{{"/e"}}, PostStop: [][]string{{"/f"}}, Timeout: 5 * time.Minute}
		}},
		{`"environment": {}, "custom": {}`, func(*service.Spec) {}},
	} {
		want := service.Defaults()
		want.Name, want.Exec = service.MustName("a"), []string{"/a"}
		c.want(&want)
		require.Equal(t, want, parse(t, fmt.Sprintf(`{"name": "a", "exec": ["/a"], %s}`, c.members)), c.members)
	}
}

// TestRangesAgree holds the ranges of the table against service.Spec.Validate:
// what is at the end of a range passes both, what is beyond it fails Validate.
func TestRangesAgree(t *testing.T) {
	valid := parse(t, `{"name": "a", "exec": ["/a"], "restart": {"backoff": "0"}}`)
	for _, c := range []struct {
		field, form string
		set         func(*service.Spec, int64)
		low, high   int64
	}{
		{"oom_score_adj", `"oom_score_adj": %s`, func(s *service.Spec, n int64) { s.OOMScoreAdj = int(n) }, -1000, 1000},
		{"health.threshold", `"health": {"type": "tcp", "address": "a:1", "threshold": %s}`, func(s *service.Spec, n int64) { s.Health.Threshold = int(n) }, 1, 1000},
		{"restart.max_attempts", `"restart": {"max_attempts": %s}`, func(s *service.Spec, n int64) { s.Restart.MaxAttempts = int(n) }, 0, 1_000_000},
		{"ready.timeout", `"ready": {"timeout": "%sns"}`, func(s *service.Spec, n int64) { s.Ready.Timeout = time.Duration(n) }, 1e6, 24 * 3600e9},
		{"health.interval", `"health": {"type": "tcp", "address": "a:1", "interval": "%sns"}`, func(s *service.Spec, n int64) { s.Health.Interval = time.Duration(n) }, 100e6, 24 * 3600e9},
		{"health.timeout", `"health": {"type": "tcp", "address": "a:1", "timeout": "%sns"}`, func(s *service.Spec, n int64) { s.Health.Timeout = time.Duration(n) }, 10e6, 3600e9},
		{"restart.window", `"restart": {"window": "%sns"}`, func(s *service.Spec, n int64) { s.Restart.Window = time.Duration(n) }, 1e6, 365 * 24 * 3600e9},
		{"restart.backoff", `"restart": {"max_backoff": "24h", "backoff": "%sns"}`, func(s *service.Spec, n int64) { s.Restart.Backoff = time.Duration(n) }, 0, 24 * 3600e9},
		{"restart.max_backoff", `"restart": {"backoff": "0", "max_backoff": "%sns"}`, func(s *service.Spec, n int64) { s.Restart.MaxBackoff = time.Duration(n) }, 0, 24 * 3600e9},
		{"restart.reset_after", `"restart": {"reset_after": "%sns"}`, func(s *service.Spec, n int64) { s.Restart.ResetAfter = time.Duration(n) }, 1e6, 365 * 24 * 3600e9},
		{"restart.deterministic", `"restart": {"deterministic": %s}`, func(s *service.Spec, n int64) { s.Restart.Deterministic = int(n) }, 0, 1000},
		{"log_rotate.size", `"log_rotate": {"total": "1TiB", "size": %s}`, func(s *service.Spec, n int64) { s.Rotation.Size, s.Rotation.Total = uint64(n), 1<<40 }, 64 << 10, 1 << 40},
		{"log_rotate.total", `"log_rotate": {"size": "64KiB", "total": %s}`, func(s *service.Spec, n int64) { s.Rotation.Size, s.Rotation.Total = 64<<10, uint64(n) }, 64 << 10, 1 << 40},
		{"log_rotate.age", `"log_rotate": {"age": "%sns"}`, func(s *service.Spec, n int64) { s.Rotation.Age = time.Duration(n) }, 60e9, 10 * 365 * 24 * 3600e9},
		{"stop.timeout", `"stop": {"timeout": "%sns"}`, func(s *service.Spec, n int64) { s.Stop.Timeout = time.Duration(n) }, 0, 3600e9},
	} {
		for _, n := range []int64{c.low, c.high} {
			parse(t, fmt.Sprintf(`{"name": "a", "exec": ["/a"], `+c.form+`}`, fmt.Sprint(n)))
		}
		for _, n := range []int64{c.low - 1, c.high + 1} {
			spec := valid
			c.set(&spec, n)
			var fields []string
			for _, f := range spec.Validate() {
				fields = append(fields, f.Field)
			}
			require.Contains(t, fields, c.field)
			_, faults := ParseDefinition("", []byte(fmt.Sprintf(`{"name": "a", "exec": ["/a"], `+c.form+`}`, fmt.Sprint(n))), service.Defaults())
			require.Len(t, faults, 1, c.field)
			require.Equal(t, c.field, faults[0].Field)
		}
	}
}

func TestChanges(t *testing.T) {
	before := parse(t, `{"name": "a", "exec": ["/a"], "limits": {"memory_max": "1GiB"}, "environment": {"A": "1"}}`)
	require.Empty(t, Changes(before, before))
	after := parse(t, `{"name": "a", "exec": ["/a", "b"], "user": "x", "limits": {"memory_max": 1048576, "pids_max": 3},
		"ready": {"type": "tcp", "address": "a:1"}}`)
	require.Equal(t, []string{"exec", "environment", "limits.memory_max", "limits.pids_max", "ready.type", "ready.address", "user"},
		Changes(before, after))
}

func TestHint(t *testing.T) {
	known := []string{"memory_max", "exec", "name"}
	for key, want := range map[string]string{
		"memroy_max": `; did you mean "memory_max"?`, "memoryMax": `; did you mean "memory_max"?`, "Exec": `; did you mean "exec"?`,
		"exce": `; did you mean "exec"?`, "nam": `; did you mean "name"?`, "zzz": "; known are memory_max, exec, name",
		strings.Repeat("n", 1<<20): "; known are memory_max, exec, name",
	} {
		require.Equal(t, want, hint(key, known), "%.20s", key)
	}
}

// formatDefinition writes all that s says, defaults as well.
func formatDefinition(s service.Spec) []byte { return pretty(definition.write(s)) }

func FuzzParseDefinition(f *testing.F) {
	for _, file := range []string{"testdata/web.json", "testdata/faulty.json", "../../examples/services/web.json"} {
		if data, err := readAt(nil, file, AnyFile); err == nil {
			f.Add(data)
		}
	}
	f.Add([]byte(`{"name":"a","exec":["/a"],"limits":{"cpu_percent":33.3333,"memory_max":1048577,"nofile":16},"stop":{"signal":"64","timeout":"1.5ms"}}`))
	f.Add([]byte(`{"name":"a","exec":["/a",""],"health":{"type":"grpc","address":"[::1]:1","service":"\u00e9"},"umask":"7","user":"a$"}`))
	schema := resolved(f, DefinitionSchema())
	// Other defaults show whether a formatted document says everything.
	otherBase := service.Defaults()
	otherBase.Umask, otherBase.OOMScoreAdj, otherBase.AllowNewPrivs, otherBase.Autostart, otherBase.BestEffort = 0, 7, true, true, true
	otherBase.Launch, otherBase.Log = service.LaunchCgroup, service.LogNull
	otherBase.Restart, otherBase.Stop = service.RestartPolicy{}, service.StopPolicy{}
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, faults := ParseDefinition("a.json", data, service.Defaults())
		if len(faults) > 0 {
			require.Zero(t, spec)
			for _, fault := range faults {
				require.Positive(t, fault.Line)
				require.Positive(t, fault.Column)
				require.NotEmpty(t, fault.Message)
			}
			return
		}
		require.NoError(t, schema.Validate(decode(t, data)), "the schema refuses what is accepted")
		document := formatDefinition(spec)
		again, faults := ParseDefinition("b.json", document, otherBase)
		require.Empty(t, faults, "%s", document)
		require.Equal(t, spec, again)
	})
}

// The host's bound for what has to become ready is none for a job.
func TestTheBoundOfAJob(t *testing.T) {
	read := func(keys string) service.Spec {
		spec, faults := ParseDefinition("", []byte(`{"name": "a", "exec": ["/a"]`+keys+`}`), service.Defaults())
		require.Empty(t, faults)
		return spec
	}
	free, bounded := read(`, "type": "oneshot"`), read(`, "type": "oneshot", "ready": {"timeout": "30s"}`)
	require.False(t, free.Bounded)
	require.True(t, bounded.Bounded)
	require.Equal(t, bounded.Ready, free.Ready)
	require.Equal(t, []string{"ready.timeout"}, Changes(free, bounded))
	require.False(t, read(`, "ready": {"timeout": "30s"}`).Bounded)
}
