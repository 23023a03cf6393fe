package backendtest

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func rlimitLaws() []law {
	return []law{
		{says: "rlimits hold from the first instruction, soft and hard", only: real, check: lawRlimitsHeld},
		{says: "rlimits data has the kernel refuse memory", only: real, check: lawRlimitData},
		{says: "rlimits as is less than the gate itself has, and the program starts", only: real, check: lawRlimitAS},
		{says: "rlimits rttime ends who keeps the CPU in real time for longer, and is refused without cgroups", only: real, check: lawRlimitRTTime},
		{says: "a change of rlimits reaches the running process and what it has forked", only: real, check: lawRlimitChange},
		{says: "rlimits that are lifted are lifted from who runs", only: real, check: lawRlimitLift},
	}
}

// rlimited is what /proc tells of one limit of a process: soft and hard.
func (b *bench) rlimited(pid int, name string) []string {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	require.NoError(b, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.Fields(rest)[:2]
		}
	}
	b.Fatalf("no %s in %s", name, text)
	return nil
}

// No hard limit is above what an agent without CAP_SYS_RESOURCE may give.
func lawRlimitsHeld(b *bench) {
	q := service.OfText("core=0 fsize=4MiB:8MiB memlock=64KiB nproc=4000 sigpending=100:200 stack=1MiB:2MiB")
	i := b.launch(limited(b.plan("sleep"), service.Limits{service.Rlimits: q}))
	i.ready()
	for name, want := range map[string][]string{
		"Max core file size": {"0", "0"}, "Max file size": {"4194304", "8388608"}, "Max locked memory": {"65536", "65536"},
		"Max processes": {"4000", "4000"}, "Max pending signals": {"100", "200"}, "Max stack size": {"1048576", "2097152"},
		"Max cpu time": {"unlimited", "unlimited"},
	} {
		require.Equal(b, want, b.rlimited(i.Ref().PID, name), name)
	}
	report := i.limits()[service.Rlimits]
	require.Equal(b, service.LimitReport{Requested: q, Applied: q, Effective: q, Enforced: true}, report)
}

func lawRlimitData(b *bench) {
	i := b.launch(limited(b.plan("hog-memory", fmt.Sprint(256*mebi)), service.Limits{service.Rlimits: service.OfText("data=64MiB")}))
	i.says("cannot allocate memory")
	require.NotZero(b, i.exit().Code)
}

func lawRlimitAS(b *bench) {
	l := limited(b.plan("sleep"), service.Limits{service.Rlimits: service.OfText("as=64MiB data=32MiB")})
	l.Spec.Exec = []string{"/bin/sh", "-c", "echo ready $(ulimit -v); sleep 1000 # " + token(l)}
	i := b.launch(l)
	i.says("ready 65536")
	i.lives()
}

func lawRlimitRTTime(b *bench) {
	l := limited(b.plan("sleep"), service.Limits{service.Rlimits: service.OfText("rttime=200000:20000000")})
	if b.CgroupRoot == "" {
		_, err := b.agent.Launch(b.within(), l, nothingToIdentify)
		b.wantError(err, service.Unenforceable)
		require.ErrorContains(b, err, "finds the processes of services by their rttime")
		b.nothingOf(l)
		l.Spec.BestEffort = true
		i := b.launch(l)
		report := i.limits()[service.Rlimits]
		require.Equal(b, []service.Resource{service.Rlimits}, i.limits().Unenforced())
		require.Equal(b, l.Limits[service.Rlimits], report.Requested)
		require.NotContains(b, report.Applied.Text, "rttime")
		return
	}
	idle := b.launch(l)
	require.Equal(b, []string{"200000", "20000000"}, b.rlimited(idle.Ref().PID, "Max realtime timeout"))
	require.Equal(b, l.Limits[service.Rlimits], idle.limits()[service.Rlimits].Applied)

	l = limited(b.plan("sleep"), l.Limits)
	l.Spec.Scheduling, l.Spec.Priority = service.SchedulingRR, 1
	l.Spec.Exec = []string{"/bin/sh", "-c", "echo ready; while :; do :; done # " + token(l)}
	i := b.launch(l)
	require.Equal(b, service.Exit{Signal: syscall.SIGXCPU}, i.exit())
}

func lawRlimitChange(b *bench) {
	i := b.start("fork", "3")
	const children = 3
	require.Equal(b, children+1, b.alive(i.plan))
	q := service.OfText("fsize=1MiB:2MiB nproc=3000")
	applied, err := i.Limit(b.within(), service.Limits{service.Rlimits: q})
	require.NoError(b, err)
	require.Equal(b, q, applied[service.Rlimits].Applied)
	processes, err := i.Processes(b.within())
	require.NoError(b, err)
	require.Len(b, processes, children+1)
	for _, p := range processes {
		require.Equal(b, []string{"1048576", "2097152"}, b.rlimited(p.PID, "Max file size"))
		require.Equal(b, []string{"3000", "3000"}, b.rlimited(p.PID, "Max processes"))
	}
}

// mayRaise tells whether we may raise hard limits (CAP_SYS_RESOURCE).
func (b *bench) mayRaise() bool {
	var sets [2]unix.CapUserData
	require.NoError(b, unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0]))
	return sets[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// Who may not raise a hard limit is refused, with that reason, and all is as before.
func lawRlimitLift(b *bench) {
	const files, processes = "Max file size", "Max processes"
	free := b.start("sleep")
	own := b.rlimited(free.Ref().PID, files)
	i := b.launch(limited(b.plan("sleep"), service.Limits{service.Rlimits: service.OfText("fsize=1MiB nproc=3000")}))
	i.ready()
	require.Equal(b, []string{"1048576", "1048576"}, b.rlimited(i.Ref().PID, files))
	_, err := i.Limit(b.within(), service.Limits{service.Rlimits: service.OfText("nproc=3000")})
	if !b.mayRaise() {
		require.ErrorIs(b, err, unix.EPERM)
		require.Equal(b, []string{"1048576", "1048576"}, b.rlimited(i.Ref().PID, files))
		return
	}
	require.NoError(b, err)
	require.Equal(b, own, b.rlimited(i.Ref().PID, files))
	require.Equal(b, []string{"3000", "3000"}, b.rlimited(i.Ref().PID, processes))

	applied, err := i.Limit(b.within(), service.Limits{service.Rlimits: service.Of(service.Unlimited)})
	require.NoError(b, err)
	require.Equal(b, b.rlimited(free.Ref().PID, processes), b.rlimited(i.Ref().PID, processes))
	require.Equal(b, free.limits()[service.Rlimits].Applied, applied[service.Rlimits].Applied)
}
