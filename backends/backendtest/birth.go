package backendtest

import (
	"encoding/json"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func birthLaws() []law {
	return []law{
		{says: "the arguments arrive as they are", only: real, check: lawArguments},
		{says: "the environment is the definition's and a fixed PATH, and nothing of the agent's", only: real, alone: true, check: lawEnvironment},
		{says: "a PATH in the definition stays", only: real, check: lawPath},
		{says: "no descriptor but 0, 1 and 2 is open, whatever the agent has open", only: real, alone: true, check: lawDescriptors},
		{says: "without a log file the output goes to the null device", only: real, check: lawNoLog},
		{says: "the log file gets stdout and stderr, behind what it holds", only: real, check: lawLog},
		{says: "a log file that is a symbolic link is refused", only: real, check: lawLogLink},
		{says: "every byte of the output arrives, odd ones too", only: real, check: lawLogBytes},
		{says: "it leads a session of its own, in no terminal", only: real, check: lawSession},
		{says: "the working directory is the root unless the definition names one", only: real, check: lawDirectory},
		{says: "the umask is the definition's", only: real, check: lawUmask},
		{says: "user and group are the definition's, with the user's other groups and no capability", only: real, check: lawUser},
		{says: "a user may be a number, and a group may be named alone", only: real, check: lawUserNumber},
		{says: "no_new_privs is set unless the definition allows new privileges", only: real, check: lawNoNewPrivs},
		{says: "oom_score_adj is the definition's", only: real, check: lawOOMScore},
		{says: "niceness and policy of the scheduler are the definition's", only: real, check: lawScheduling},
		{says: "the limit of open files holds, and core dumps are off", only: real, check: lawRlimits},
		{says: "no signal is blocked or ignored, whatever the agent ignores", only: real, alone: true, check: lawSignalsClean},
		{says: "niceness, scheduler, CPUs and namespaces are the host's usual ones", only: real, check: lawOrdinary},
		{says: "limits hold before the first instruction: the program reads them from its own cgroup", only: real, check: lawLimitsAtBirth},
		{says: "limits too small for most programs hold before the first instruction as well", only: real, check: lawSmallLimitsAtBirth},
	}
}

// birth is the part of what "workload birth" prints that the laws look at.
type birth struct {
	PID, Parent, Group, Session int
	Descriptors                 map[string]string
	Arguments, Environment      []string
	Directory                   string
	Umask                       uint32
	UIDs, GIDs, Groups          []int
	Capabilities                map[string]string
	NoNewPrivileges             bool
	Limits                      map[string]string
	OOMScoreAdj, Nice, Policy   int
	Affinity                    string
	Cgroup                      string
	CgroupFiles                 map[string]string
	Namespaces                  map[string]string
}

// born launches the workload in its mode birth, as changed, and tells what it
// was born with.
func (b *bench) born(change func(*service.Launch)) birth {
	b.Helper()
	l := b.plan("birth")
	if change != nil {
		change(&l)
	}
	i := b.launch(l)
	exit := i.exit()
	require.True(b, exit.Clean(), "%v: %s", exit, i.log())
	var told birth
	require.NoError(b, json.Unmarshal([]byte(i.log()), &told), "%s", i.log())
	return told
}

// read launches cat on files of /proc/self. The Go runtime changes some of
// what it is born with before the first line of a program runs; cat does not.
func (b *bench) read(file string, change func(*service.Launch)) map[string]string {
	b.Helper()
	l := b.plan()
	nothing := filepath.Join(b.dir, token(l)) // an empty file, to carry the token
	require.NoError(b, os.WriteFile(nothing, nil, 0o644))
	l.Spec.Exec = []string{"/bin/cat", "--", nothing, "/proc/self/" + file}
	if change != nil {
		change(&l)
	}
	h, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	require.NoError(b, err)
	b.keep(h, l)
	require.Equal(b, service.Exit{}, b.exitOf(h))
	text, err := os.ReadFile(l.LogFile)
	require.NoError(b, err)
	lines := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if key, value, ok := strings.Cut(line, ":"); ok {
			lines[key] = strings.TrimSpace(value)
		} else if len(line) > 26 { // /proc/PID/limits has columns
			lines[strings.TrimSpace(line[:26])] = strings.Join(strings.Fields(line[26:]), " ")
		}
	}
	return lines
}

func lawArguments(b *bench) {
	odd := []string{"", " ", "two words", "-x=\"'$HOME`id`", "new\nline", "\xff\xfe", "%s%n", "äöü", "\t"}
	told := b.born(func(l *service.Launch) { l.Spec.Exec = append(l.Spec.Exec, odd[:5]...) })
	require.Equal(b, odd[:5], told.Arguments[4:])
	told = b.born(func(l *service.Launch) { l.Spec.Exec = append(l.Spec.Exec, odd[6:]...) })
	require.Equal(b, odd[6:], told.Arguments[4:])
}

func lawEnvironment(b *bench) {
	b.Setenv("GLADSHEIM_SECRET", "of the agent")
	told := b.born(func(l *service.Launch) {
		l.Spec.Environment = map[string]string{"TZ": "UTC", "EMPTY": "", "ODD": "a=b\nc d"}
	})
	require.ElementsMatch(b, []string{
		"TZ=UTC", "EMPTY=", "ODD=a=b\nc d", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}, told.Environment)
}

func lawPath(b *bench) {
	told := b.born(func(l *service.Launch) { l.Spec.Environment = map[string]string{"PATH": "/opt/bin"} })
	require.Equal(b, []string{"PATH=/opt/bin"}, told.Environment)
}

func lawDescriptors(b *bench) {
	// Inheritable ones, as an agent may have got from its own parent.
	low, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0)
	require.NoError(b, err)
	defer syscall.Close(low)
	require.NoError(b, syscall.Dup3(low, 777, 0))
	defer syscall.Close(777)
	l := b.plan("birth")
	told := b.born(func(planned *service.Launch) { planned.LogFile = l.LogFile })
	require.Equal(b, map[string]string{"0": "/dev/null", "1": l.LogFile, "2": l.LogFile}, told.Descriptors)
}

func lawNoLog(b *bench) {
	l := b.plan("sleep")
	l.LogFile = ""
	i := b.launch(l)
	for _, fd := range []string{"0", "1", "2"} {
		target, err := os.Readlink("/proc/" + strconv.Itoa(i.Ref().PID) + "/fd/" + fd)
		require.NoError(b, err)
		require.Equal(b, "/dev/null", target)
	}
}

func lawLog(b *bench) {
	l := b.plan("no-such-mode")
	require.NoError(b, os.WriteFile(l.LogFile, []byte("earlier\n"), 0o600))
	i := b.launch(l)
	require.Equal(b, service.Exit{Code: 2}, i.exit())
	require.True(b, strings.HasPrefix(i.log(), "earlier\n"), "it was overwritten: %q", i.log())
	require.Contains(b, i.log(), `"no-such-mode" is not a mode`, "stderr")

	l = b.plan("log", "3", "20")
	i = b.launch(l)
	require.Equal(b, service.Exit{}, i.exit())
	require.Equal(b, "0000000001 xxxxxxxx\n0000000002 xxxxxxxx\n0000000003 xxxxxxxx\n", i.log(), "stdout")
	info, err := os.Stat(l.LogFile)
	require.NoError(b, err)
	require.Zero(b, info.Mode().Perm()&0o137, "a log is nobody else's to read: %v", info.Mode())
}

func lawLogLink(b *bench) {
	l := b.plan("sleep")
	elsewhere := filepath.Join(b.dir, "precious")
	require.NoError(b, os.WriteFile(elsewhere, []byte("precious"), 0o600))
	require.NoError(b, os.Symlink(elsewhere, l.LogFile))
	_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	b.wantError(err, service.Unlaunchable)
	require.ErrorContains(b, err, l.LogFile)
	b.nothingOf(l)
	text, err := os.ReadFile(elsewhere)
	require.NoError(b, err)
	require.Equal(b, "precious", string(text))
}

func lawLogBytes(b *bench) {
	const size = 300_000
	i := b.launch(b.plan("long-line", strconv.Itoa(size)))
	require.Equal(b, service.Exit{}, i.exit())
	odd := "\x00\xff\x1b[31mred\r"
	want := strings.Repeat(odd, size/len(odd)+1)[:size] + "\n"
	require.True(b, i.log() == want, "%d bytes arrived, of %d", len(i.log()), len(want))
}

func lawSession(b *bench) {
	told := b.born(nil)
	require.Equal(b, told.PID, told.Session)
	require.Equal(b, told.PID, told.Group)
}

func lawDirectory(b *bench) {
	require.Equal(b, "/", b.born(nil).Directory)
	told := b.born(func(l *service.Launch) { l.Spec.WorkingDirectory = b.dir })
	require.Equal(b, b.dir, told.Directory)
}

func lawUmask(b *bench) {
	require.Equal(b, uint32(0o022), b.born(nil).Umask)
	told := b.born(func(l *service.Launch) { l.Spec.Umask = 0o077 })
	require.Equal(b, uint32(0o077), told.Umask)
}

// asRoot tells whether the agent may change its user. If not it wants a launch
// as another user to be refused for that.
func (b *bench) asRoot() bool {
	b.Helper()
	if os.Geteuid() == 0 {
		return true
	}
	l := b.plan("birth")
	l.Spec.User = "root"
	_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
	e := b.wantError(err, service.Unlaunchable)
	require.Equal(b, service.ReasonNoPermission, e.Reason)
	b.nothingOf(l)
	return false
}

func lawUser(b *bench) {
	account, err := user.Lookup(b.User)
	require.NoError(b, err)
	uid, gid := atoi(b, account.Uid), atoi(b, account.Gid)
	if !b.asRoot() {
		return
	}
	told := b.born(func(l *service.Launch) { l.Spec.User = b.User })
	require.Equal(b, []int{uid, uid, uid, uid}, told.UIDs)
	require.Equal(b, []int{gid, gid, gid, gid}, told.GIDs)
	ids, err := account.GroupIds()
	require.NoError(b, err)
	var groups []int
	for _, id := range ids {
		groups = append(groups, atoi(b, id))
	}
	require.ElementsMatch(b, groups, told.Groups)
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		require.Equal(b, "0000000000000000", told.Capabilities[set], set)
	}
}

func lawUserNumber(b *bench) {
	group, err := user.LookupGroup(b.Group)
	require.NoError(b, err)
	gid := atoi(b, group.Gid)
	if !b.asRoot() {
		return
	}
	told := b.born(func(l *service.Launch) { l.Spec.User, l.Spec.Group = "4321", b.Group })
	require.Equal(b, []int{4321, 4321, 4321, 4321}, told.UIDs)
	require.Equal(b, []int{gid, gid, gid, gid}, told.GIDs)
	for _, g := range told.Groups {
		require.Equal(b, gid, g, "a group of the agent is left")
	}

	told = b.born(func(l *service.Launch) { l.Spec.Group = b.Group })
	require.Equal(b, []int{0, 0, 0, 0}, told.UIDs)
	require.Equal(b, []int{gid, gid, gid, gid}, told.GIDs)
}

func atoi(b *bench, text string) int {
	b.Helper()
	n, err := strconv.Atoi(text)
	require.NoError(b, err)
	return n
}

func lawNoNewPrivs(b *bench) {
	require.True(b, b.born(nil).NoNewPrivileges)
	require.False(b, b.born(func(l *service.Launch) { l.Spec.AllowNewPrivs = true }).NoNewPrivileges)
}

func lawOOMScore(b *bench) {
	told := b.born(func(l *service.Launch) { l.Spec.OOMScoreAdj = 321 })
	require.Equal(b, 321, told.OOMScoreAdj)
	require.Equal(b, 0, b.born(nil).OOMScoreAdj)
}

func lawScheduling(b *bench) {
	told := b.born(func(l *service.Launch) { l.Spec.Nice, l.Spec.Scheduling = 7, service.SchedulingBatch })
	require.Equal(b, 7, told.Nice)
	require.Equal(b, 3, told.Policy) // SCHED_BATCH
	told = b.born(func(l *service.Launch) { l.Spec.Scheduling = service.SchedulingIdle })
	require.Equal(b, 5, told.Policy) // SCHED_IDLE
	if os.Geteuid() != 0 {
		l := b.plan("sleep")
		l.Spec.Nice = -5
		_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
		require.ErrorContains(b, err, "set the scheduling")
		b.wantError(err, service.Unlaunchable)
		return
	}
	require.Equal(b, -5, b.born(func(l *service.Launch) { l.Spec.Nice = -5 }).Nice)
}

func lawRlimits(b *bench) {
	limits := b.read("limits", func(l *service.Launch) {
		l.Limits[service.NoFile] = service.Of(321)
	})
	require.Equal(b, "321 321 files", limits["Max open files"])
	require.Equal(b, "0 0 bytes", limits["Max core file size"])
	usual := b.read("limits", nil)
	require.True(b, strings.HasPrefix(usual["Max open files"], "1024 "), "the soft limit is the usual one: %q", usual["Max open files"])
}

func lawSignalsClean(b *bench) {
	signal.Ignore(syscall.SIGUSR2, syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGUSR2, syscall.SIGPIPE)
	status := b.read("status", nil)
	require.Equal(b, "0000000000000000", status["SigBlk"])
	require.Equal(b, "0000000000000000", status["SigIgn"])
}

func lawOrdinary(b *bench) {
	told := b.born(nil)
	if os.Geteuid() == 0 {
		require.Zero(b, told.Nice)
	}
	require.Zero(b, told.Policy)
	require.Equal(b, usualAffinity(), told.Affinity)
	for name, target := range told.Namespaces {
		if strings.HasSuffix(name, "_for_children") {
			continue
		}
		ours, err := os.Readlink("/proc/self/ns/" + name)
		require.NoError(b, err)
		require.Equal(b, ours, target)
	}
}

// lawLimitsAtBirth sets every limit that this host enforces by its cgroup.
func lawLimitsAtBirth(b *bench) {
	want := map[string]string{}
	var limits service.Limits
	for _, f := range cgroupFiles {
		if b.agent.Enforces().Limits[f.resource] {
			limits[f.resource] = service.Of(f.value)
			want[f.file] = f.text
		}
	}
	i := b.launch(limited(b.plan("birth"), limits))
	require.Equal(b, service.Exit{}, i.exit(), "%s", i.log())
	var told birth
	require.NoError(b, json.Unmarshal([]byte(i.log()), &told))
	for file, text := range want {
		require.Equal(b, text, inUnit(file, told.CgroupFiles[file]), file)
	}
	if b.CgroupRoot == "" {
		require.Empty(b, want, "the backend claims to enforce what only a cgroup can")
		return
	}
	require.Equal(b, "1", told.CgroupFiles["memory.oom.group"], "the kernel kills all of it or nothing")
	require.Equal(b, i.Ref().Cgroup, told.Cgroup)
}

// lawSmallLimitsAtBirth sets limits in which hardly more than cat can live,
// which reads them at once.
func lawSmallLimitsAtBirth(b *bench) {
	limits := service.Limits{
		service.MemoryMax: service.Of(6 * mebi), service.CPUMax: service.Of(5 * service.UsecPerPercent), service.PidsMax: service.Of(1),
	}
	l := limited(b.plan(), limits)
	l.Spec.Exec = []string{"/bin/cat", "--", filepath.Join(b.dir, token(l))} // an empty file
	require.NoError(b, os.WriteFile(l.Spec.Exec[2], nil, 0o644))
	if !b.enforces(l) {
		return
	}
	place := filepath.Join(b.CgroupRoot, b.agent.Plan(l).Cgroup)
	for _, file := range []string{"memory.max", "cpu.max", "pids.max"} {
		l.Spec.Exec = append(l.Spec.Exec, filepath.Join(place, file))
	}
	i := b.launch(l)
	require.Equal(b, service.Exit{}, i.exit(), "%s", i.log())
	require.Equal(b, "6291456\n5000 100000\n1\n", i.log())
}
