package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// The sawtooth whose peak is known, and how much of a disk it reads through the page
// cache before.
const (
	toothPeak   = 160 * mebibyte
	toothPeriod = 6 * time.Second
	toothCache  = 64 // MiB
)

// TestUsageIsRemembered: what a service used outlives the agent, is told to people and
// programs alike, and limits that are recommended by it are near the true peak, whatever
// it has in the page cache, and do it no harm.
func TestUsageIsRemembered(t *testing.T) {
	anywhere(t)
	for i, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) { rememberUsage(t, newWorld(t), mode, i*toothCache) })
	}
}

func rememberUsage(t *testing.T, w *world, mode string, skip int) {
	cli := byCLI{w}
	def := workload(t, "tooth", "tooth", "sawtooth", fmt.Sprint(toothPeak), toothPeriod.String())
	if limited(t) {
		// What is cached of a disk goes with whoever has it open last.
		script := fmt.Sprintf("exec 3<%[1]s; dd if=%[1]s of=/dev/null bs=1M count=%[2]d skip=%[3]d; exec %[4]s", disk(t), toothCache, skip, strings.Join(def["exec"].([]string), " "))
		def["exec"] = []string{"/bin/sh", "-c", script}
	}
	w.register(def.with(fields{"launch": mode, "usage_history": true, "log": "file", "limits": limits(t, fields{"memory_max": "512MiB"})}))
	w.register(workload(t, "plain", "tooth", "sleep").with(fields{"launch": mode}))
	s := cli.start("tooth")
	checkPlace(t, s, mode)
	cli.start("plain")

	r := w.cli("recommend", "tooth")
	require.Equal(t, 9, r.code, "%s%s", r.stdout, r.stderr)
	require.Contains(t, r.stderr, "no advice before 1m0s")
	r = w.cli("usage", "plain", "--history")
	require.Equal(t, 9, r.code, "%s%s", r.stdout, r.stderr)
	require.Contains(t, r.stderr, `"usage_history": true`)
	watchPlain(t, w)

	eventually(t, "half a minute is remembered", func() bool { return len(cli.used("tooth")) >= 30 })
	before := cli.used("tooth")
	w.leave(syscall.SIGKILL)
	w.begin()
	after := cli.used("tooth")
	require.GreaterOrEqual(t, len(after), len(before))
	last := len(before) - 1 // which may not have been complete
	for i, u := range before[:last] {
		// The first of them may have left the five minutes of the finest tier.
		same := after[i]
		require.InDelta(t, u.BeganUnixMs, same.BeganUnixMs, 100, "it is reckoned from now")
		same.BeganUnixMs = u.BeganUnixMs
		require.Equal(t, u.String(), same.String())
	}

	var advice *gladsheimv1.Recommendation
	eventually(t, "there is a recommendation", func() bool { return w.cli("recommend", "tooth").code == 0 })
	eventually(t, "it saw ten peaks", func() bool {
		advice = read(cli, &gladsheimv1.Recommendation{}, "recommend", "tooth")
		return time.Duration(advice.WatchedMs)*time.Millisecond >= 10*toothPeriod
	})
	t.Log(w.mustCLI("recommend", "tooth"))
	e := advice.Evidence
	require.Equal(t, gladsheimv1.Confidence_CONFIDENCE_LOW, advice.Confidence)
	require.InEpsilon(t, toothPeak, e.GetHeldPeakBytes(), 0.05)
	recommended := map[string]float64{}
	for _, l := range advice.Limits {
		recommended[l.Name] = l.Recommended
	}
	require.Greater(t, recommended["memory_max"], float64(toothPeak))
	require.InEpsilon(t, toothPeak, recommended["memory_max"], 0.1)
	if limited(t) {
		require.EqualValues(t, 512*mebibyte, current(advice, "memory_max"))
		peak, err := strconv.ParseFloat(cgroupFile(t, s.Cgroup, "memory.peak"), 64)
		require.NoError(t, err)
		require.InEpsilon(t, peak, float64(e.GetKernelPeakBytes()), 0.02)
		require.Greater(t, e.GetKernelPeakBytes(), uint64(toothPeak+toothCache/2*mebibyte), "the page cache was not used")
		w.mustCLI("set", "tooth", fmt.Sprintf("memory_max=%.0f", recommended["memory_max"]), fmt.Sprintf("memory_high=%.0f", recommended["memory_high"]), fmt.Sprintf("pids_max=%.0f", recommended["pids_max"]))
		set := time.Now()
		eventually(t, "it went on for three periods", func() bool { return time.Since(set) > 3*toothPeriod })
		require.Zero(t, cgroupKey(t, s.Cgroup, "memory.events", "oom_kill"))
		require.Equal(t, s.ProcessId, cli.status("tooth").ProcessId)
	}

	text := w.mustCLI("usage", "tooth", "--history")
	require.Regexp(t, regexp.MustCompile(`(?m)^MEMORY +\|.+\|  now .+  least .+  most .+$`), text)
	require.Regexp(t, regexp.MustCompile(`(?m)^CPU +\|.+\|  now .+%`), text)
	t.Log(text)
	most, began := uint64(0), int64(0)
	for _, u := range cli.used("tooth") {
		require.Greater(t, u.BeganUnixMs, began)
		require.LessOrEqual(t, u.GetMemoryBytes(), u.GetMemoryPeakBytes())
		require.LessOrEqual(t, u.GetMemoryHeldBytes(), u.GetMemoryPeakBytes())
		most, began = max(most, u.GetMemoryHeldBytes()), u.BeganUnixMs
	}
	require.InEpsilon(t, toothPeak, most, 0.05)
	require.InDelta(t, time.Now().UnixMilli(), began, 15_000)

	require.FileExists(t, w.path("run", "usage", "tooth.ring"))
	require.NoFileExists(t, w.path("run", "usage", "plain.ring"))
	cli.stop("tooth")
	cli.unregister("tooth")
	require.NoFileExists(t, w.path("run", "usage", "tooth.ring"))
}

// watchPlain looks on at a service that is not remembered.
func watchPlain(t *testing.T, w *world) {
	t.Helper()
	began := time.Now()
	s, err := w.runtime().WatchUsage(contextFor(t), &gladsheimv1.WatchUsageRequest{ServiceNames: []string{"plain"}})
	require.NoError(t, err)
	for i := range 5 {
		u, err := s.Recv()
		require.NoError(t, err)
		require.Equal(t, "plain", u.ServiceName)
		require.NotZero(t, u.Usage.GetMemoryBytes())
		if i > 0 { // the first tells of the time since the launch, or of no time
			require.NotNil(t, u.Usage.CpuPercent, "sample %d: %v", i, u)
		}
	}
	require.Less(t, time.Since(began), 30*time.Second)
}

// used is what a service used, as programs are told.
func (d byCLI) used(name string) []*gladsheimv1.UsageSample {
	d.t.Helper()
	return read(d, &gladsheimv1.UsageHistory{}, "usage", name, "--history").Samples
}

func current(r *gladsheimv1.Recommendation, name string) float64 {
	for _, l := range r.Limits {
		if l.Name == name {
			return l.GetCurrent()
		}
	}
	return 0
}
