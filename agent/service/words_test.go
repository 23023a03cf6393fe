package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseName(t *testing.T) {
	for _, good := range []string{"a", "web", "web-1", "a_b-c", "x9", strings.Repeat("a", 63)} {
		n, err := ParseName(good)
		require.NoError(t, err, good)
		require.Equal(t, good, n.String())
	}
	for _, bad := range []string{"", "A", "1a", "-a", "a-", "a--b", "a_-b", "a.b", "a/b", "..", "cgroup.procs", "a b", "a\nb", "a\x00",
		"%s", "näme", "a\u202eb", "\xff", strings.Repeat("a", 64), strings.Repeat("x", 1<<16), "-.slice", "a.service"} {
		_, err := ParseName(bad)
		require.Equal(t, Invalid, KindOf(err), "%.20q", bad)
		require.Equal(t, ReasonBadName, ReasonOf(err))
		require.Less(t, len(err.Error()), 300, "an error must not repeat a huge name")
	}
}

// A record may hold the zero Name, as in the Ref of a service that does not run.
func TestZeroNameReadsBack(t *testing.T) {
	raw, err := json.Marshal(Ref{})
	require.NoError(t, err)
	back := Ref{Name: MustName("web")}
	require.NoError(t, json.Unmarshal(raw, &back))
	require.True(t, back.IsZero())
	require.Error(t, json.Unmarshal([]byte(`{"name": "A"}`), &back))
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"web", "a..b", "../x", "a-b_c", "cgroup.procs"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			require.True(t, n.IsZero())
			return
		}
		require.Equal(t, s, n.String())
		require.True(t, filepath.IsLocal(s))
		require.Equal(t, s, filepath.Base(s))
		require.NotContains(t, s, ".")
		var back Name
		text, _ := n.MarshalText()
		require.NoError(t, back.UnmarshalText(text))
		require.Equal(t, n, back)
	})
}

func TestParseQuota(t *testing.T) {
	for _, tt := range []struct {
		r    Resource
		text string
		want uint64
		back string
	}{
		{MemoryMax, "256MiB", 256 << 20, "256MiB"},
		{MemoryMax, "1048577", 1048577, "1048577"},
		{MemoryMax, "max", Unlimited, "max"},
		{MemorySwapMax, "0", 0, "0"},
		{CPUMax, "20", 200_000, "20%"},
		{CPUMax, "12.5%", 125_000, "12.5%"},
		{PidsMax, "512", 512, "512"},
		{NoFile, "4096", 4096, "4096"},
		{MemoryLow, "0", 0, "0"},
		{MemoryMin, "max", Unlimited, "max"},
		{CPUIdle, "true", 1, "true"},
		{CPUIdle, "false", 0, "false"},
		{CPUBurst, "0", 0, "0%"},
		{CPUBurst, "7.5", 75_000, "7.5%"},
	} {
		q, err := tt.r.Parse(tt.text)
		require.NoError(t, err, tt.text)
		require.Equal(t, Of(tt.want), q)
		require.Equal(t, tt.back, tt.r.Format(q))
	}
	for _, tt := range []struct {
		r    Resource
		text string
	}{
		{MemoryMax, "256MB"}, {MemoryMax, "-1"}, {MemoryMax, ""}, {MemoryMax, "1.5GiB"}, {MemoryMax, "99999999999TiB"}, {MemoryMax, "12"},
		{MemoryMax, "256 MiB"}, {CPUMax, "NaN"}, {CPUMax, "0"}, {CPUMax, "-3"}, {CPUMax, "1e300"}, {CPUMax, "half"}, {CPUMax, "0.5"},
		{PidsMax, "0"}, {PidsMax, "lots"}, {NoFile, "max"}, {CPUWeight, "0"}, {CPUWeight, "10001"}, {IOWeight, "max"},
		{CPUIdle, "1"}, {CPUIdle, "max"}, {CPUBurst, "max"}, {CPUBurst, "-1"},
	} {
		_, err := tt.r.Parse(tt.text)
		require.Error(t, err, "%v %q", tt.r, tt.text)
	}
}

func FuzzParseQuota(f *testing.F) {
	f.Add(uint8(0), "12MiB")
	f.Add(uint8(3), "33.3")
	f.Fuzz(func(t *testing.T, r uint8, text string) {
		res := Resource(r % uint8(NumResources))
		q, err := res.Parse(text)
		if err != nil {
			return
		}
		back, err := res.Parse(res.Format(q))
		require.NoError(t, err)
		require.Equal(t, q, back)
	})
}

func TestCPUQuota(t *testing.T) {
	q, err := CPUMax.OfPercent(math.Inf(1))
	require.NoError(t, err)
	require.EqualValues(t, uint64(Unlimited), q.Value)
	require.True(t, math.IsInf(q.Percent(), 1))
	_, err = CPUMax.OfPercent(math.NaN())
	require.Error(t, err)
}

func TestLimitsOver(t *testing.T) {
	var base, own Limits
	base[MemoryMax], base[PidsMax] = Of(1), Of(2)
	own[MemoryMax] = Of(3)
	got := own.Over(base)
	require.Equal(t, Of(3), got[MemoryMax])
	require.Equal(t, Of(2), got[PidsMax])
	require.False(t, got[CPUMax].Set)
}

func TestExplain(t *testing.T) {
	var e Enforcement
	e.Why[MemoryMax], e.Why[MemoryHigh], e.Why[IOWeight] = "no memory", "no memory", "no io"
	require.Equal(t, "memory_max, memory_high (no memory), nofile, io_weight (no io)", e.Explain([]Resource{MemoryMax, MemoryHigh, NoFile, IOWeight}))
}

func TestMissingLimits(t *testing.T) {
	var want Limits
	want[MemoryMax], want[CPUMax], want[NoFile] = Of(1), Of(Unlimited), Of(64)
	e := Enforcement{}
	e.Limits[NoFile] = true
	require.Equal(t, []Resource{MemoryMax}, e.Missing(want), "unlimited asks for nothing")
}

func TestConflicts(t *testing.T) {
	of := func(q map[Resource]uint64) (l Limits) {
		for r, n := range q {
			l[r] = Of(n)
		}
		return l
	}
	for _, fine := range []map[Resource]uint64{
		{},
		{MemoryMax: 10, MemoryHigh: 10, MemoryLow: 10, MemoryMin: 10},
		{MemoryMax: 10, MemoryHigh: Unlimited, MemoryLow: Unlimited, MemoryMin: Unlimited},
		{MemoryLow: 10, MemoryMin: 20},
		{CPUBurst: 5}, {CPUBurst: 0}, {CPUBurst: 5, CPUMax: 5}, {CPUBurst: 0, CPUMax: Unlimited},
		{CPUIdle: 0, CPUWeight: 5}, {CPUIdle: 1},
	} {
		require.Empty(t, of(fine).Conflicts(), "%v", fine)
	}
	for field, wrong := range map[string]map[Resource]uint64{
		"limits.memory_high":        {MemoryMax: 10, MemoryHigh: 11},
		"limits.memory_low":         {MemoryMax: 10, MemoryLow: 11},
		"limits.memory_min":         {MemoryMax: 10, MemoryMin: 11},
		"limits.cpu_burst_percent ": {CPUBurst: 5, CPUMax: Unlimited},
		" limits.cpu_burst_percent": {CPUBurst: 6, CPUMax: 5},
		"limits.cpu_idle":           {CPUIdle: 1, CPUWeight: 5},
	} {
		faults := of(wrong).Conflicts()
		require.Len(t, faults, 1, "%v", wrong)
		require.Equal(t, strings.TrimSpace(field), faults[0].Field)
	}
}

func TestEveryResourceHasANameAndBounds(t *testing.T) {
	for r := range NumResources {
		require.NotEmpty(t, r.String())
		back, err := ParseResource(r.String())
		require.NoError(t, err)
		require.Equal(t, r, back)
		require.NotZero(t, resources[r].high)
	}
	_, err := ParseResource("colour")
	require.ErrorContains(t, err, "memory_max")
}

func TestSignals(t *testing.T) {
	for _, text := range []string{"SIGTERM", "TERM", "term", "15"} {
		s, err := ParseSignal(text)
		require.NoError(t, err)
		require.Equal(t, syscall.SIGTERM, s)
	}
	for _, text := range []string{"", "0", "65", "-9", "SIGNAL", "9; rm"} {
		_, err := ParseSignal(text)
		require.Error(t, err, text)
	}
	require.Equal(t, "SIGKILL", SignalName(9))
	require.Equal(t, "SIG40", SignalName(40))
}

func TestJudge(t *testing.T) {
	killed, oom := Exit{Signal: 9}, func(l OOM) Remains { return Remains{OOM: l} }
	for _, tt := range []struct {
		exit  Exit
		rest  Remains
		cause Cause
		want  Verdict
	}{
		{Exit{}, Remains{}, CauseNone, VerdictClean},
		{Exit{Code: 137}, Remains{}, CauseNone, VerdictCrash},
		{Exit{Code: 137}, oom(OOMOwn), CauseNone, VerdictCrash},
		{Exit{Signal: 11}, Remains{}, CauseNone, VerdictCrash},
		{killed, Remains{}, CauseNone, VerdictKilled},
		{killed, oom(OOMOwn), CauseNone, VerdictOwnOOM},
		{killed, oom(OOMAncestor), CauseNone, VerdictAncestorOOM},
		{killed, oom(OOMHost), CauseNone, VerdictHostOOM},
		{killed, Remains{}, CauseAsked, VerdictStopped},
		{Exit{}, Remains{}, CauseAsked, VerdictStopped},
		{killed, Remains{}, CauseUnhealthy, VerdictUnhealthy},
		{killed, Remains{}, CauseStartup, VerdictStartupTime},
		{Exit{Unknown: "agent_was_down"}, Remains{}, CauseNone, VerdictUnknown},
		{Exit{Unknown: "agent_was_down"}, oom(OOMOwn), CauseNone, VerdictOwnOOM},
		{Exit{Unknown: "agent_was_down"}, oom(OOMHost), CauseAsked, VerdictHostOOM},
	} {
		require.Equal(t, tt.want, Judge(tt.exit, tt.rest, tt.cause, Ends{}), "%+v", tt)
	}
}

func TestErrorText(t *testing.T) {
	cause := errors.New("EPERM")
	err := fmt.Errorf("outer: %w", &Error{Op: "start", Service: MustName("web"), Kind: Unlaunchable, Err: cause})
	require.Equal(t, "outer: cannot start web: EPERM", err.Error())
	require.Equal(t, Unlaunchable, KindOf(err))
	require.Equal(t, Reason("LAUNCH_FAILED"), ReasonOf(err))
	require.ErrorIs(t, err, cause)
	require.Equal(t, Internal, KindOf(cause))
	require.Equal(t, Reason("INTERNAL"), ReasonOf(cause))
	faulty := &Error{Op: "register", Kind: Invalid, Faults: []Fault{{Field: "exec", Message: "is required"}, {Field: "name", Message: "is required"}}}
	require.Contains(t, faulty.Error(), "exec: is required")
	require.Contains(t, faulty.Error(), "name: is required")
}

func TestDefaultsNeedOnlyNameAndExec(t *testing.T) {
	s := Defaults()
	faults := s.Validate()
	require.Len(t, faults, 2)
	s.Name, s.Exec = MustName("web"), []string{"/bin/true"}
	require.Empty(t, s.Validate())
}

func TestValidateFindsEveryFault(t *testing.T) {
	s := Defaults()
	s.Name, s.Exec = MustName("web"), []string{"relative"}
	s.WorkingDirectory = "/proc/self/fd/9"
	s.Environment = map[string]string{"A=B": "x", "OK": "a\x00b"}
	s.Limits[PidsMax] = Of(0)
	s.Limits[MemoryMax], s.Limits[MemoryHigh] = Of(64<<20), Of(128<<20)
	s.Ready = Check{Type: CheckHTTP, URL: "ftp://x", Timeout: 1}
	s.Health.Threshold = 0
	s.Restart.MaxBackoff = 0
	s.OOMScoreAdj = 2000
	s.Rotation = LogRotation{Size: 1 << 20, Age: 1, Total: 1 << 10}
	var fields []string
	for _, f := range s.Validate() {
		fields = append(fields, f.Field)
	}
	require.ElementsMatch(t, []string{
		"exec[0]", "working_directory", "environment", "environment.OK", "oom_score_adj", "limits.pids_max", "limits.memory_high",
		"ready.url", "ready.timeout", "health.threshold", "restart.max_backoff",
		"log_rotate.age", "log_rotate.total", "log_rotate.total",
	}, fields)
}

func TestAFailureIsTheErrorAgain(t *testing.T) {
	web := MustName("web")
	for _, err := range []error{
		nil,
		errors.New("it ended"),
		&Error{Op: "start", Service: web, Kind: Unlaunchable, Reason: ReasonExecNotFound, Err: errors.New("no such file")},
		&Error{Op: "stop", Service: web, Kind: Timeout},
	} {
		raw, wrong := json.Marshal(FailureOf(err))
		require.NoError(t, wrong)
		var kept *Failure
		require.NoError(t, json.Unmarshal(raw, &kept))
		again := kept.Of(web)
		if err == nil {
			require.NoError(t, again)
			continue
		}
		require.EqualError(t, again, err.Error())
		require.Equal(t, KindOf(err), KindOf(again))
		require.Equal(t, ReasonOf(err), ReasonOf(again))
	}
}
