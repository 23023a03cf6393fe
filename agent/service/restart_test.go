package service

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestDelayIsSpread(t *testing.T) {
	p := RestartPolicy{Backoff: time.Second, MaxBackoff: 5 * time.Second}
	rapid.Check(t, func(t *rapid.T) {
		failures, spread := rapid.IntRange(1, 60).Draw(t, "failures"), rapid.Float64Range(0, 1).Draw(t, "spread")
		d, middle := p.Delay(failures, spread), p.Delay(failures, 0.5)
		require.LessOrEqual(t, d, p.MaxBackoff)
		require.InDelta(t, middle, d, float64(middle)/5+1)
	})
}

func TestFailuresWithinAWindow(t *testing.T) {
	for _, attempts := range []int{3, 1000, 1_000_000} {
		p := RestartPolicy{MaxAttempts: attempts, Window: time.Minute}
		rapid.Check(t, func(t *rapid.T) {
			var kept Failures
			var all []time.Duration
			now := time.Hour
			for range rapid.IntRange(1, 300).Draw(t, "failures") {
				now += time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "pause"))
				kept, all = kept.Within(p, now).And(p, now), append(all, now)
				var least, most int // of a window less, and not less, than what is told apart
				for _, at := range all {
					if now-at < p.Window-p.Window/keptMoments {
						least++
					}
					if now-at < p.Window {
						most++
					}
				}
				require.LessOrEqual(t, kept.Count(), most)
				require.GreaterOrEqual(t, kept.Count(), least)
				if attempts <= keptMoments {
					require.Equal(t, most, kept.Count())
				}
				require.LessOrEqual(t, len(kept), keptMoments+2)
			}
		})
	}
}

func TestEndsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e Ends
		in := map[Exit]bool{}
		for _, n := range rapid.SliceOf(rapid.IntRange(0, 255+31)).Draw(t, "ends") {
			x := Exit{Code: n}
			if n > 255 {
				x = Exit{Signal: syscall.Signal(n - 255)}
			}
			e, in[x] = e.And(x), true
		}
		require.Len(t, e.All(), len(in))
		for _, x := range e.All() {
			require.True(t, in[x], "%v", x)
		}
		raw, err := json.Marshal(e)
		require.NoError(t, err)
		back := Ends{}.And(Exit{Code: 7})
		require.NoError(t, json.Unmarshal(raw, &back))
		require.Equal(t, e, back)
	})
	e := Ends{}.And(Exit{Code: 0}).And(Exit{Signal: syscall.SIGSEGV})
	require.True(t, e.Has(Exit{Signal: syscall.SIGSEGV, Core: true}))
	require.False(t, e.Has(Exit{Unknown: "agent_was_down"}))
	require.False(t, e.Has(Exit{Signal: 40}))
	require.Equal(t, "0 SIGSEGV", e.String())
}

// What is the same crash to a person has one fingerprint, and another has another.
func TestFingerprint(t *testing.T) {
	crash := Exit{Code: 2}
	of := func(lines ...string) string { return Fingerprint(VerdictCrash, crash, lines) }
	for _, same := range [][2]string{
		{"2026-11-29T15:04:05.123Z ERROR conn 17 lost", "2027-01-02T03:04:05.9Z ERROR conn 4 lost"},
		{"Nov 29 15:04:05 host app[123]: boom", "Jan  2 05:04:05 host app[99]: boom"},
		{"panic at 0xc000012345", "panic at 0xdeadbeef00"},
		{"goroutine 1 [running]:", "goroutine 77 [running]:"},
		{"id=550e8400-e29b-41d4-a716-446655440000", "id=123e4567-e89b-12d3-a456-426614174000"},
		{"\x1b[31mfailed\x1b[0m", "failed"},
		{"cannot bind 127.0.0.1:8080", "cannot bind 10.0.0.12:80"},
		{"took 12.5ms", "took 3ms"},
		{"  retry   3 ", "retry 4"},
	} {
		require.Equal(t, of(same[0]), of(same[1]), "%q", same)
	}
	require.Equal(t, of("start", "tick 1", "tick 2", "tick 3", "boom"), of("start", "tick 1", "", "boom"), "lines that repeat")
	for _, other := range [][2]string{
		{"cannot open the file", "cannot read the file"}, {"panic: nil map", "panic: index out of range"}, {"", "boom"},
	} {
		require.NotEqual(t, of(other[0]), of(other[1]), "%q", other)
	}
	require.NotEqual(t, Fingerprint(VerdictCrash, Exit{Code: 1}, nil), Fingerprint(VerdictCrash, crash, nil))
	require.NotEqual(t, Fingerprint(VerdictCrash, crash, nil), Fingerprint(VerdictUnhealthy, crash, nil))
	require.Equal(t, Fingerprint(VerdictCrash, Exit{Signal: 11}, nil), Fingerprint(VerdictCrash, Exit{Signal: 11, Core: true}, nil), "whether there was room for a dump")
	require.Equal(t, of(strings.Repeat("x", 600)+"a"), of(strings.Repeat("x", 600)+"b"), "only so much of a line counts")
	require.Len(t, of(), 16)
}

func FuzzFingerprint(f *testing.F) {
	f.Add("panic: \x1b[31m0x1f at 12:00\xff")
	f.Fuzz(func(t *testing.T, line string) {
		plain := plainLine(line)
		require.Equal(t, plain, plainLine(plain), "once is enough")
	})
}
