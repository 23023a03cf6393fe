package skirnir

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

const thisBoot = "0a1b2c3d-0000-4000-8000-000000000001"

// bodies are those of the notes that are kept, and must be numbered without a hole.
func bodies(t *testing.T, r *ring) []string {
	t.Helper()
	notes, err := readNotes(r.kept(), 0)
	require.NoError(t, err)
	var out []string
	for i, n := range notes {
		require.Equal(t, r.sequence-uint64(len(notes)-1-i), n.sequence)
		out = append(out, string(n.body))
	}
	return out
}

func TestARingKeepsTheLatest(t *testing.T) {
	r := newRing(thisBoot, 1000)
	random := rand.New(rand.NewPCG(1, 2))
	var all []string
	for i := range 5000 {
		body := strings.Repeat(strconv.Itoa(i%10), random.IntN(2000))
		require.NoError(t, r.append(time.Unix(int64(i), 0), []byte(body)))
		if all = append(all, body); i%501 != 0 {
			continue
		}
		taken, err := readRing(slices.Clone(r.memory), thisBoot)
		require.NoError(t, err)
		require.EqualValues(t, 1001+i, taken.sequence)
		require.Equal(t, *r, ring{memory: r.memory, oldest: taken.oldest, end: taken.end, sequence: taken.sequence, before: taken.before, room: r.room})
		kept := bodies(t, taken)
		require.Equal(t, all[len(all)-len(kept):], kept)
		if len(kept) < len(all) {
			size := 0
			for _, body := range kept {
				size += int(inUnits(len(body))) * unit
			}
			require.Greater(t, size, areaSize-3*maxBody, "no room is wasted")
			require.Equal(t, time.Unix(int64(len(all)-len(kept)-1), 1), taken.since(), "just after the last that was dropped")
		}
	}
}

// The process may die at any moment of a write. Then it is as if that had not been
// begun, but for the oldest notes that had to make room.
func TestARingThatWasCutOffInAWrite(t *testing.T) {
	for name, notes := range map[string]int{"the first": 0, "in the middle": 7, "over the end": 1900, "in the place of others": 3000} {
		t.Run(name, func(t *testing.T) {
			r := newRing(thisBoot, 0)
			for i := range notes {
				require.NoError(t, r.append(time.Now(), bytes.Repeat([]byte{byte('a' + i%26)}, 1000)))
			}
			if name == "over the end" {
				for left := areaSize - int(r.end)*unit; left > 2*unit; left = areaSize - int(r.end)*unit {
					require.NoError(t, r.append(time.Now(), make([]byte, min(maxBody, left-noteHead-2*unit))))
				}
			}
			body := bytes.Repeat([]byte("z"), 100)
			before := r.kept()
			require.NoError(t, r.makeRoom(inUnits(len(body))))
			at, sequence, state := int(r.end)*unit, r.sequence, slices.Clone(r.memory)
			require.NoError(t, r.append(time.Now(), body))
			for i := range noteHead + len(body) {
				where := areaAt + (at+i)%areaSize
				if notes > 1000 && i%16 != 0 { // each look at a full ring takes its time
					state[where] = r.memory[where]
					continue
				}
				taken, err := readRing(state, thisBoot)
				require.NoError(t, err)
				require.Equal(t, sequence, taken.sequence)
				require.True(t, bytes.HasSuffix(before, taken.kept()))
				state[where] = r.memory[where]
			}
			copy(state[cursorAt:cursorAt+8], r.memory[cursorAt:]) // one word, which is written at once
			taken, err := readRing(state, thisBoot)
			require.NoError(t, err)
			require.Equal(t, sequence+1, taken.sequence)
		})
	}
}

// The cursor is set last: a write that does not come to its end leaves it as it was.
func TestTheCursorIsSetLast(t *testing.T) {
	r, path := newRing(thisBoot, 0), filepath.Join(t.TempDir(), ringFile)
	require.NoError(t, r.toFile(path))
	require.NoError(t, r.append(time.Now(), []byte("one")))
	before := r.cursor().Load()
	require.NoError(t, os.Truncate(path, areaAt)) // what is copied there is a fault
	require.Error(t, guard(func() error { return r.append(time.Now(), []byte("two")) }))
	require.Equal(t, before, r.cursor().Load())
	require.NoError(t, r.leave())
}

// A ring of which one bit is another one is not taken for what it is not (A9).
func TestARingWithOneBitFlipped(t *testing.T) {
	r := newRing(thisBoot, 77)
	for i := range 4 {
		require.NoError(t, r.append(time.Unix(int64(i), 0), []byte("note "+strconv.Itoa(i))))
	}
	want := bodies(t, r)
	told, m := 0, slices.Clone(r.memory)
	for at := 0; at < areaAt+int(r.end)*unit; at++ {
		if at == cursorAt+8 {
			at = areaAt
		}
		for bit := range 8 {
			m[at] = r.memory[at] ^ 1<<bit
			taken, err := readRing(m, thisBoot)
			m[at] = r.memory[at]
			if err != nil {
				told++
				continue
			}
			m[at] ^= 1 << bit
			require.Equal(t, want, bodies(t, taken), "byte %d, bit %d", at, bit)
			m[at] = r.memory[at]
			require.Equal(t, r.sequence, taken.sequence)
		}
	}
	require.Greater(t, told, 8*(headLength+8+4*noteHead), "every byte that says something")
}

// A ring that ends too early is none (A8).
func TestARingThatIsCutOff(t *testing.T) {
	r := newRing(thisBoot, 77)
	for range 4 {
		require.NoError(t, r.append(time.Now(), []byte("note")))
	}
	for length := range ringSize {
		if length > areaAt+int(r.end)*unit+100 && length < ringSize-100 && length%1009 != 0 {
			continue
		}
		_, err := readRing(r.memory[:length:length], thisBoot)
		require.Error(t, err, "%d bytes", length)
		if length >= areaAt+noteHead+4 {
			require.GreaterOrEqual(t, believed(r.memory[:min(length, areaAt+1000)]), uint64(78))
		}
	}
}

// place is a run directory.
type place struct {
	t   *testing.T
	dir string
}

func (p place) path() string { return filepath.Join(p.dir, ringFile) }

// open opens a registry with one service there. An earlier one is dead: nobody asks
// it for anything.
func (p place) open(boot string) (*Registry, error) {
	p.t.Helper()
	r, fault := OpenRegistry(p.dir, boot)
	p.t.Cleanup(func() { require.NoError(p.t, r.Close()) })
	r.Add(status("web", service.Running))
	return r, fault
}

func tell(r *Registry, details ...string) {
	for _, d := range details {
		r.Update(service.MustName("web"), News{Detail: d}, func(*service.Status) {})
	}
}

func details(notices []service.Notice) []string {
	var out []string
	for _, n := range notices {
		out = append(out, n.Detail)
	}
	return out
}

// aside are the files that were set aside.
func (p place) aside() []string {
	entries, err := os.ReadDir(p.dir)
	require.NoError(p.t, err)
	var out []string
	for _, e := range entries {
		if e.Name() != ringFile {
			out = append(out, e.Name())
		}
	}
	return out
}

func TestTheNextAgentTellsWhatThisOneTold(t *testing.T) {
	p := place{t, t.TempDir()}
	first, fault := p.open(thisBoot)
	require.NoError(t, fault)
	require.NoError(t, first.Transient())
	after, told := first.Watch(t.Context())
	require.InDelta(t, time.Now().UnixMicro(), after, 1e9)
	web := service.MustName("web")
	x := &service.ExitRecord{
		Incarnation: 3, Exit: service.Exit{Signal: syscall.SIGKILL, Core: true}, Verdict: service.VerdictOwnOOM, RequestedBy: "uid 0 (root)",
		Remains: service.Remains{Usage: service.Usage{Source: "cgroup", CPUTime: time.Second, Pids: service.Of(3)}, OOM: service.OOMOwn, Leftovers: 2},
		Started: time.Now(), Ended: time.Now(), LastLines: []string{"<one>", "two\x00", "\u2028"}, Message: "it ended",
	}
	first.Update(web, News{Kind: service.NoticeState, Reason: "start", Detail: "of no \xff meaning"}, func(s *service.Status) {
		s.Machine = service.Machine{State: service.Stopping, Again: true, Incarnation: 3}
		s.Ref.PID, s.LastActor = 4711, "uid 7"
	})
	first.Update(web, News{Kind: service.NoticeExit}, func(s *service.Status) { s.LastExit = x })
	first.Update(web, News{Kind: service.NoticeHealth}, func(s *service.Status) { s.Health.Status = service.Ill })
	first.Update(web, News{Kind: service.NoticeViolation, Detail: strings.Repeat("long \x01", 10_000)}, func(*service.Status) {})
	first.Remove(web, News{Kind: service.NoticeUnregistered})
	second, fault := p.open(thisBoot)
	require.NoError(t, fault)
	require.Equal(t, after+5, second.Sequence())
	kept := second.Kept(after)
	require.Len(t, kept, 5)
	for i, n := range kept {
		require.Equal(t, after+1+uint64(i), n.Sequence)
		require.Equal(t, <-told, n)
	}
	require.Equal(t, service.PublicRestarting, kept[0].Public)
	require.Equal(t, 4711, kept[0].PID)
	require.Equal(t, x.LastLines, kept[1].Exit.LastLines)
	require.Equal(t, x.Remains, kept[1].Exit.Remains)
	require.Equal(t, service.Ill, kept[2].Health)
	require.Greater(t, len(kept[3].Detail), 1000, "shortened, and no more than that")
	require.Less(t, len(kept[3].Detail), maxBody)
	tell(second, "of the second")
	require.Equal(t, after+6, second.Sequence())
	require.Equal(t, first.KeptSince(), second.KeptSince())
	require.Empty(t, p.aside())
	info, err := os.Stat(p.path())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
}

// Last lines that would not fit go, the older ones first.
func TestAnExitWithManyLines(t *testing.T) {
	r := fresh()
	r.Add(status("web", service.Running))
	lines := make([]string, 20)
	for i := range lines {
		lines[i] = fmt.Sprint(i, strings.Repeat("x", 800))
	}
	r.Update(service.MustName("web"), News{Kind: service.NoticeExit}, func(s *service.Status) {
		s.LastExit = &service.ExitRecord{LastLines: lines, Message: "it ended"}
	})
	x := r.Kept(0)[0].Exit
	require.Equal(t, lines[15:], x.LastLines)
	require.Equal(t, "it ended", x.Message)
	s, _ := r.Get(service.MustName("web"))
	require.Len(t, s.LastExit.LastLines, 20, "the status has all")
}

// What holds no ring of this boot is not believed, and numbers go on beyond all
// that were given (A8 to A11).
func TestWhatIsNoRing(t *testing.T) {
	elsewhere := t.TempDir()
	edit := func(change func([]byte) []byte) func(*testing.T, place) {
		return func(t *testing.T, p place) {
			m, err := os.ReadFile(p.path())
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(p.path(), change(m), 0o600))
		}
	}
	instead := func(put func(path string) error) func(*testing.T, place) {
		return func(t *testing.T, p place) {
			require.NoError(t, os.Remove(p.path()))
			require.NoError(t, put(p.path()))
		}
	}
	rows := map[string]struct {
		harm  func(*testing.T, place)
		fault string // "" for none
	}{
		"missing":          {instead(func(string) error { return nil }), ""},
		"empty":            {edit(func([]byte) []byte { return nil }), "no ring of events"},
		"half":             {edit(func(m []byte) []byte { return m[:ringSize/2] }), "should have"},
		"a byte more":      {edit(func(m []byte) []byte { return append(m, 0) }), "should have"},
		"2 GB":             {func(t *testing.T, p place) { require.NoError(t, os.Truncate(p.path(), 2<<30)) }, "should have"},
		"zeros":            {edit(func(m []byte) []byte { clear(m); return m }), "no ring of events"},
		"a bit":            {edit(func(m []byte) []byte { m[areaAt+40] ^= 4; return m }), "checksum of an event"},
		"a bit of a head":  {edit(func(m []byte) []byte { m[20] ^= 4; return m }), "checksum of its head"},
		"a bit of a place": {edit(func(m []byte) []byte { m[cursorAt] ^= 4; return m }), "checksum of its cursor"},
		"a hole": {edit(func(m []byte) []byte {
			r := newRing(thisBoot, 0)
			_ = r.append(time.Now(), []byte("one"))
			r.sequence += 2
			_ = r.append(time.Now(), []byte("four"))
			return r.memory
		}), "is followed by"},
		"a later version": {edit(func(m []byte) []byte { m[8]++; return m }), "has format"},
		"directory":       {instead(func(path string) error { return os.MkdirAll(path+"/x", 0o700) }), "not a regular file"},
		"symbolic link": {instead(func(path string) error {
			return os.Symlink(filepath.Join(elsewhere, "file"), path)
		}), "too many levels"},
		"fifo": {instead(func(path string) error { return unix.Mkfifo(path, 0o600) }), "not a regular file"},
	}
	if os.Geteuid() == 0 { // nobody else could give it away
		rows["another user's"] = struct {
			harm  func(*testing.T, place)
			fault string
		}{func(t *testing.T, p place) { require.NoError(t, os.Chown(p.path(), 12345, 12345)) }, "belongs to uid 12345"}
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			p := place{t, t.TempDir()}
			first, fault := p.open(thisBoot)
			require.NoError(t, fault)
			tell(first, "one", "two", "three")
			last := first.Sequence()
			require.NoError(t, first.Close())
			row.harm(t, p)
			second, fault := p.open(thisBoot)
			if row.fault == "" {
				require.NoError(t, fault)
				require.Empty(t, p.aside())
			} else {
				require.ErrorContains(t, fault, row.fault)
				require.ErrorContains(t, fault, p.path())
				require.Len(t, p.aside(), 1)
				require.ErrorContains(t, fault, p.aside()[0])
			}
			require.NoError(t, second.Transient())
			require.Greater(t, second.Sequence(), last)
			require.Empty(t, second.Kept(0))
			tell(second, "four")
			third, fault := p.open(thisBoot)
			require.NoError(t, fault)
			require.Equal(t, []string{"four"}, details(third.Kept(0)))
			require.Equal(t, second.Sequence(), third.Sequence())
			require.Empty(t, must(os.ReadDir(elsewhere)), "nothing is written through a link")
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Though the clock was set back, a damaged ring and one of another boot tell which
// numbers were given.
func TestNumbersGrowThoughTheClockWasSetBack(t *testing.T) {
	for name, boot := range map[string]string{"damaged": thisBoot, "of another boot": "0a1b2c3d-0000-4000-8000-000000000002"} {
		t.Run(name, func(t *testing.T) {
			p := place{t, t.TempDir()}
			first, _ := p.open(thisBoot)
			tell(first, "one")
			last := first.Sequence()
			require.NoError(t, first.Close())
			if name == "damaged" {
				m, err := os.ReadFile(p.path())
				require.NoError(t, err)
				m[cursorAt] ^= 1
				require.NoError(t, os.WriteFile(p.path(), m, 0o600))
			}
			synctest.Test(t, func(t *testing.T) { // where it is the year 2000
				second, fault := OpenRegistry(p.dir, boot)
				require.Equal(t, name == "damaged", fault != nil, "%v", fault)
				require.Greater(t, second.Sequence(), last)
				require.Empty(t, second.Kept(0))
				require.NoError(t, second.Close())
			})
		})
	}
}

// Where there can be no file the registry goes on with what there was, in memory,
// and says so; and no file remains from which the next would count the same
// numbers again.
func TestARegistryWithoutAFile(t *testing.T) {
	p := place{t, t.TempDir()}
	first, _ := p.open(thisBoot)
	tell(first, "one", "two")
	require.NoError(t, first.Close())
	blocked := p.path() + ".new"
	require.NoError(t, os.MkdirAll(filepath.Join(blocked, "x"), 0o700))
	second, fault := p.open(thisBoot)
	require.NoError(t, fault)
	require.ErrorContains(t, second.Transient(), blocked)
	tell(second, "three")
	require.Equal(t, []string{"one", "two", "three"}, details(second.Kept(0)))
	require.NoFileExists(t, p.path())
	require.NoError(t, os.RemoveAll(blocked))
	third, fault := p.open(thisBoot)
	require.NoError(t, fault)
	require.NoError(t, third.Transient())
	require.Greater(t, third.Sequence(), second.Sequence())
}

// A file that somebody makes shorter while it is in use is not the end of the
// agent.
func TestAFileThatIsLostInUse(t *testing.T) {
	p := place{t, t.TempDir()}
	first, _ := p.open(thisBoot)
	_, told := first.Watch(t.Context())
	tell(first, "one")
	require.NoError(t, os.Truncate(p.path(), areaAt))
	tell(first, "two", "three")
	require.Error(t, first.Transient())
	require.ErrorContains(t, first.Transient(), p.path())
	for want := (<-told).Sequence; len(told) > 0; {
		want++
		require.Equal(t, want, (<-told).Sequence)
	}
	require.Equal(t, []string{"two", "three"}, details(first.Kept(0)))
	require.NoFileExists(t, p.path())
	second, _ := p.open(thisBoot)
	require.Greater(t, second.Sequence(), first.Sequence())
	tell(second, "four")
	require.NoError(t, os.Truncate(p.path(), areaAt))
	require.Empty(t, second.Kept(0), "reading fails as well")
	require.Error(t, second.Transient())
}

func TestAClosedRegistryTellsNothing(t *testing.T) {
	p := place{t, t.TempDir()}
	r, _ := p.open(thisBoot)
	_, told := r.Watch(t.Context())
	require.NoError(t, r.Close())
	tell(r, "late")
	require.Empty(t, told)
	next, fault := p.open(thisBoot)
	require.NoError(t, fault)
	require.Empty(t, next.Kept(0))
}

// TestMain runs this instead of the tests when it is to be killed: it tells
// without end, and says each number only after it was kept.
func beKilled(dir string) {
	r, fault := OpenRegistry(dir, thisBoot)
	if fault != nil || r.Transient() != nil {
		fmt.Println(fault, r.Transient())
		os.Exit(1)
	}
	r.Add(status("web", service.Running))
	for i := 0; ; i++ {
		tell(r, strings.Repeat("x", i%3000))
		fmt.Println(r.Sequence())
	}
}

// Of what a process told that was killed, the next one knows all.
func TestKilledWhileTelling(t *testing.T) {
	p := place{t, t.TempDir()}
	before, random := uint64(0), rand.New(rand.NewPCG(3, 4))
	for range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SKIRNIR_BE_KILLED="+p.dir)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		said := bufio.NewReader(out)
		first, last := uint64(0), uint64(0)
		for lines, enough := 0, 1+random.IntN(3000); ; lines++ {
			if lines == enough {
				require.NoError(t, cmd.Process.Kill())
			}
			line, err := said.ReadString('\n')
			if err != nil { // what was cut off was not said
				break
			}
			last, err = strconv.ParseUint(strings.TrimSpace(line), 10, 64)
			require.NoError(t, err)
			first = cmp.Or(first, last)
		}
		_ = cmd.Wait()
		if before != 0 {
			require.Equal(t, before+1, first, "no hole, and no number twice")
		}
		r, fault := OpenRegistry(p.dir, thisBoot)
		require.NoError(t, fault)
		require.GreaterOrEqual(t, r.Sequence(), last)
		require.LessOrEqual(t, r.Sequence(), last+1, "one at most was kept and not said")
		before = r.Sequence()
		require.NoError(t, r.Close())
	}
	require.Empty(t, p.aside())
}

func BenchmarkTell(b *testing.B) {
	r, fault := OpenRegistry(b.TempDir(), thisBoot)
	require.NoError(b, fault)
	require.NoError(b, r.Transient())
	r.Add(status("web", service.Running))
	for b.Loop() {
		r.Update(service.MustName("web"), News{Kind: service.NoticeState, Reason: "start"}, func(*service.Status) {})
	}
	require.NoError(b, r.Close())
}

func BenchmarkOpen(b *testing.B) {
	p := b.TempDir()
	for b.Loop() {
		r, _ := OpenRegistry(p, thisBoot)
		require.NoError(b, r.Transient())
		require.NoError(b, r.Close())
	}
}
