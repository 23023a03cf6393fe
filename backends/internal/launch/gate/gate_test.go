package gate

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPlanArrivesAsItWasSent(t *testing.T) {
	for name, p := range map[string]Plan{
		"zero":  {},
		"pause": {Pause: true},
		"shim":  {Shim: true},
		"full": {
			Path: "/bin/x", Args: []string{"x", "", "a b", "\xff\n"}, Env: []string{"A=1", "B="}, Directory: "/srv",
			Umask: 0o27, OOMScoreAdj: -500, NoFile: 1 << 40, Brand: 1<<62 | 7, NoNewPrivs: true, IgnorePipe: true,
			Become: true, OwnUser: true, UID: 1<<32 - 2, GID: 12, Groups: []uint32{1, 2, 1<<32 - 2},
			Rlimits: []Rlimit{{3, 1 << 40, 1<<64 - 1}, {15, 0, 7}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			message, err := p.Encode()
			require.NoError(t, err)
			require.Equal(t, len(message)-4, int(getUint32(message)))
			got, ok := decode(message[4:])
			require.True(t, ok)
			require.Equal(t, p, got)
			for cut := range len(message) - 4 {
				_, ok := decode(message[4 : 4+cut])
				require.False(t, ok, "cut at %d", cut)
			}
			_, ok = decode(append(message[4:], 0))
			require.False(t, ok, "something follows")
		})
	}
}

func FuzzDecode(f *testing.F) {
	message, err := (&Plan{Args: []string{"a"}, Groups: []uint32{1}}).Encode()
	require.NoError(f, err)
	f.Add(message[4:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		p, ok := decode(data)
		if !ok {
			return
		}
		message, err := p.Encode()
		require.NoError(t, err)
		again, ok := decode(message[4:])
		require.True(t, ok)
		require.Equal(t, p, again)
	})
}

func TestPlanThatNoExecveTakesIsRefused(t *testing.T) {
	p := Plan{Args: make([]string, 1100)}
	long := strings.Repeat("x", 1<<20)
	for i := range p.Args {
		p.Args[i] = long
	}
	_, err := p.Encode()
	require.ErrorIs(t, err, ErrTooLong)
}

func TestAnswers(t *testing.T) {
	data := []byte{byte(StepUser), 1, 0, 0, 0, byte(StepExecute), 0, 0, 0, 0, 9, 9}
	answers, rest := ReadAnswers(data)
	require.Equal(t, []Answer{{StepUser, syscall.EPERM}, {StepExecute, 0}}, answers)
	require.Equal(t, []byte{9, 9}, rest)
	answers, rest = ReadAnswers(nil)
	require.Empty(t, answers)
	require.Empty(t, rest)
}

func TestMessagesOfAShim(t *testing.T) {
	c := Child{PID: 1<<31 - 1, StartTicks: 1<<64 - 1}
	e := End{Child: c, Status: 0x8b, CPU: 1 << 60, Brand: 1<<62 | 5, Session: 7, Whose: "web 1"}
	got, ok := DecodeEnd(e.Encode(SayEnd))
	require.True(t, ok)
	require.Equal(t, e, got)
	child, errno, ok := DecodeChild(EncodeChild(SayChild, c, syscall.EAGAIN))
	require.True(t, ok)
	require.Equal(t, c, child)
	require.Equal(t, syscall.EAGAIN, errno)
	for _, message := range [][]byte{nil, {SayEnd}, e.Encode(SayEnd)[:endSize-1], append(e.Encode(SayEnd), make([]byte, MaxWhose)...)} {
		_, ok := DecodeEnd(message)
		require.False(t, ok)
	}
	_, _, ok = DecodeChild(append(EncodeChild(SayChild, c, 0), 0))
	require.False(t, ok)
}

func TestTroubleArrivesAsItWasSaid(t *testing.T) {
	said := Trouble{Whose: "web 1", Block: true, Errno: syscall.ENOSPC, Bytes: 1<<64 - 1, Lines: 1 << 40, Began: 7, Ended: 1 << 62}
	got, ok := DecodeTrouble(said.Encode())
	require.True(t, ok)
	require.Equal(t, said, got)
	for _, message := range [][]byte{nil, {SayTrouble}, said.Encode()[:troubleSize-1], append(said.Encode(), make([]byte, MaxWhose)...)} {
		_, ok := DecodeTrouble(message)
		require.False(t, ok)
	}
}

func TestTicksAreFoundBehindAnyName(t *testing.T) {
	text, err := os.ReadFile("/proc/self/stat")
	require.NoError(t, err)
	ticks := ticksOf(text)
	require.NotZero(t, ticks)
	require.Equal(t, ticks, startTicks(os.Getpid()))
	after := string(text[strings.LastIndexByte(string(text), ')')+1:])
	for _, name := range []string{"x", "a b", "a) R 1 2", "))"} {
		require.Equal(t, ticks, ticksOf([]byte("7 ("+name+")"+after)), name)
	}
	for _, damaged := range []string{"", "7 (x", "7 (x) R 1"} {
		require.Zero(t, ticksOf([]byte(damaged)))
	}
	for stat, name := range map[string]string{"7 (a) b) R": "a) b", "7 () R": "", "7 (x": "", "": "", ")(": ""} {
		require.Equal(t, name, nameOf([]byte(stat)), stat)
	}
}

func TestEveryStepHasAName(t *testing.T) {
	for s := range numSteps {
		require.NotEmpty(t, s.String())
	}
	require.Equal(t, "unknown step", numSteps.String())
}

func TestDecimal(t *testing.T) {
	for n, want := range map[int32]string{0: "0", 7: "7", -1: "-1", 1000: "1000", -1000: "-1000", -1 << 31: "-2147483648"} {
		require.Equal(t, want, string(decimal(n)))
	}
}

// Where the kernel has no close_range with CLOSE_RANGE_CLOEXEC.
func TestDescriptorsAreMarkedOneByOne(t *testing.T) {
	var open []int
	for range 300 { // more than one read of the directory
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		open = append(open, fd)
	}
	require.Zero(t, markAll())
	for _, fd := range open {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.NoError(t, err)
		require.Equal(t, unix.FD_CLOEXEC, flags)
	}
}

// The gate begins before nearly everything else of the program.
func TestItImportsNothingLarge(t *testing.T) {
	for _, file := range []string{"gate.go", "run.go", "plan.go", "dress.go", "change.go", "shim.go", "message.go", "pipe.go", "pour.go"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if imported, ok := strings.CutPrefix(strings.TrimPrefix(line, "import "), `"`); ok && strings.HasSuffix(imported, `"`) {
				require.Contains(t, []string{`syscall"`, `unsafe"`, `errors"`, `sync"`}, imported, file)
			}
		}
	}
}

func TestSelf(t *testing.T) {
	for _, is := range []struct {
		pid   int
		ticks uint64
	}{{1, 0}, {1<<22 - 1, 1<<39 - 1}, {4711, 123456789}} {
		self := Self(is.pid, is.ticks)
		require.Less(t, self, uint64(1)<<62, "less than any brand")
		pid, ticks, ok := ParseSelf(self)
		require.True(t, ok)
		require.Equal(t, is.pid, pid)
		require.Equal(t, is.ticks, ticks)
	}
	for _, ordinary := range []uint64{0, 1_000_000, 1<<61 - 1, 1 << 61, 1 << 62, 1<<62 | 1<<61, ^uint64(0)} {
		_, _, ok := ParseSelf(ordinary)
		require.False(t, ok, "%x", ordinary)
	}
	stat, err := os.ReadFile("/proc/self/stat")
	require.NoError(t, err)
	fields := strings.Fields(string(stat))
	self, errno := ownSelf(false)
	require.Zero(t, errno)
	pid, ticks, ok := ParseSelf(self)
	require.True(t, ok)
	require.Equal(t, os.Getpid(), pid)
	require.Equal(t, fields[21], strconv.FormatUint(ticks, 10))
	for cut := range len(strings.Join(fields[:22], " ")) + 1 {
		require.Zero(t, ticksOf(stat[:cut]), "cut at %d", cut)
	}
}
