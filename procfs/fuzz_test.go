package procfs

import (
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// Whatever name a process gives itself, the fields after it are read right.
func FuzzStatName(f *testing.F) {
	for _, name := range []string{"web", evil, ")", "(", ") (", "", "a b\tc", "\x00\xff", ") Z 0 0 0 0"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p, err := parseStat([]byte(stat(12, name, 'S', 3, 4, 5)))
		require.NoError(t, err)
		require.Equal(t, name, p.Name)
		require.Equal(t, []int{12, 3, 4, 5}, []int{p.PID, p.PPID, p.PGID, p.SID})
		require.Equal(t, byte('S'), p.State)
		require.Equal(t, uint64(123456), p.Start)
		require.Equal(t, 7, p.Threads)
	})
}

// Parsers take any bytes without panicking, and what they accept is sane.
func FuzzParsers(f *testing.F) {
	for _, seed := range []string{
		stat(1, "a", 'S', 0, 1, 1), stat(1, evil, 'Z', 0, 1, 1), "1 (a) S", "", ")(", "1 (a) SS 1 1 1",
		"x (a) S 1", "-1 (a) S 1", limits, "Max realtime timeout", "Max realtime timeout  x y us", "Max open files 1",
		"VmHWM: 12 kB", "VmHWM:", "VmHWM: 18446744073709551615 kB", "/bin/a\x00b\x00", "\x00\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := parseStat(data); err == nil {
			require.Positive(t, p.PID)
			require.GreaterOrEqual(t, p.PPID, 0)
			require.GreaterOrEqual(t, p.Threads, 0)
		}
		if soft, hard, err := parseLimit(data, limitRTTime); err != nil {
			require.Zero(t, soft)
			require.Zero(t, hard)
		}
		if m, err := parseMemory(data); err == nil {
			require.Zero(t, (m.Peak|m.Anon|m.File|m.Swap)%1024)
		}
		if read, written, err := parseIO(data); err != nil {
			require.Zero(t, read+written)
		}
		command := parseCommand(data)
		require.False(t, strings.ContainsFunc(command, func(r rune) bool { return !unicode.IsPrint(r) }), "%q", command)
		require.LessOrEqual(t, len(command), 4*commandLength)
	})
}
