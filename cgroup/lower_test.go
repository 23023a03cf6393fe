package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// memoryHost is a group of plain files with somebody who does of memory what a kernel would.
type memoryHost struct {
	t       *testing.T
	dir     string
	group   Group
	stuck   uint64             // bytes that do not come back, known only by trying
	grasped func(bytes uint64) // called after each reclaim
	written []string           // files, in turn
}

func newMemoryHost(t *testing.T, current, anon uint64) *memoryHost {
	tree, root := fixture(t, map[string]string{
		"a/memory.max": fmt.Sprint(512 << 20), "a/memory.high": "max", "a/memory.current": fmt.Sprint(current),
		"a/memory.stat":     fmt.Sprintf("active_anon %d\ninactive_anon 0\nunevictable 0", anon),
		"a/memory.swap.max": "0", "a/memory.swap.current": "0", "a/memory.reclaim": "",
		"a/memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0",
	})
	h := &memoryHost{t: t, dir: filepath.Join(root, "a"), stuck: anon}
	h.group = tree.WithFault(h.call).Group("/a")
	return h
}

func (h *memoryHost) put(file, text string) {
	require.NoError(h.t, os.WriteFile(filepath.Join(h.dir, file), []byte(text+"\n"), 0o644))
}

func (h *memoryHost) get(file string) string {
	return strings.TrimSpace(content(h.t, h.dir, file))
}

func (h *memoryHost) use() uint64 {
	n, err := strconv.ParseUint(h.get("memory.current"), 10, 64)
	require.NoError(h.t, err)
	return n
}

func (h *memoryHost) call(call, path string) error {
	if call != "write" {
		return nil
	}
	file := filepath.Base(path)
	h.written = append(h.written, file)
	require.NoError(h.t, os.Truncate(path, 0))
	if file != "memory.reclaim" {
		return nil
	}
	use := h.use()
	less := min(use-min(use, h.stuck), reclaimStep)
	h.put("memory.current", fmt.Sprint(use-less))
	if h.grasped != nil {
		h.grasped(less)
	}
	if less < reclaimStep/2 {
		return unix.EAGAIN
	}
	return nil
}

func (h *memoryHost) lower(ctx context.Context, most uint64) error {
	l := service.Limits{service.MemoryMax: service.Of(most)}
	return h.group.Lower(ctx, l, func(ctx context.Context) error {
		require.NoError(h.t, ctx.Err())
		require.LessOrEqual(h.t, h.use(), most)
		return h.group.Apply(l)
	})
}

func (h *memoryHost) untouched() {
	h.t.Helper()
	require.Equal(h.t, []string{fmt.Sprint(512 << 20), "max"}, []string{h.get("memory.max"), h.get("memory.high")})
}

func memoryStory(t *testing.T, current, anon uint64, f func(t *testing.T, h *memoryHost)) {
	synctest.Test(t, func(t *testing.T) { f(t, newMemoryHost(t, current, anon)) })
}

func TestLowerReclaimsFirst(t *testing.T) {
	memoryStory(t, 390<<20, 90<<20, func(t *testing.T, h *memoryHost) {
		require.NoError(t, h.lower(t.Context(), 128<<20))
		require.Equal(t, []string{fmt.Sprint(128 << 20), "max"}, []string{h.get("memory.max"), h.get("memory.high")})
		require.Equal(t, []string{"memory.high", "memory.max", "memory.high"}, h.written[len(h.written)-3:])
	})
}

func TestLowerOfWhatFitsReclaimsNothing(t *testing.T) {
	memoryStory(t, 90<<20, 90<<20, func(t *testing.T, h *memoryHost) {
		start := time.Now()
		require.NoError(t, h.lower(t.Context(), 128<<20))
		require.Equal(t, []string{"memory.high", "memory.max", "memory.high"}, h.written)
		require.Zero(t, time.Since(start))
		h.written = nil
		require.NoError(t, h.lower(t.Context(), 256<<20))
		require.Equal(t, []string{"memory.max"}, h.written, "a higher one needs no care")
	})
}

func TestLowerRefusesWhatCanNotFit(t *testing.T) {
	memoryStory(t, 300<<20, 200<<20, func(t *testing.T, h *memoryHost) {
		err := h.lower(t.Context(), 128<<20)
		require.ErrorContains(t, err, "it would not fit: of 300.0MiB in use 200.0MiB can not be reclaimed")
		require.Empty(t, h.written)
		h.untouched()
	})
	memoryStory(t, 300<<20, 90<<20, func(t *testing.T, h *memoryHost) { // nobody knows beforehand
		h.stuck = 200 << 20
		start := time.Now()
		err := h.lower(t.Context(), 128<<20)
		_, inUse := errors.AsType[*InUseError](err)
		require.True(t, inUse, "%v", err)
		require.Less(t, time.Since(start), 2*lowerPatient)
		h.untouched()
	})
}

// One that takes back what it lost never fits.
func TestLowerEnds(t *testing.T) {
	memoryStory(t, 300<<20, 90<<20, func(t *testing.T, h *memoryHost) {
		h.grasped = func(bytes uint64) {
			time.Sleep(time.Second)
			h.put("memory.current", fmt.Sprint(h.use()+bytes))
		}
		err := h.lower(t.Context(), 128<<20)
		_, inUse := errors.AsType[*InUseError](err)
		require.True(t, inUse, "%v", err)
		h.untouched()
	})
}

func TestLowerEndsWhenItHurts(t *testing.T) {
	for kind, pressure := range map[string]string{
		"it was held up":        "some avg10=0 avg60=0 avg300=0 total=%d\nfull avg10=0 avg60=0 avg300=0 total=0",
		"all of it was held up": "some avg10=0 avg60=0 avg300=0 total=0\nfull avg10=0 avg60=0 avg300=0 total=%d",
	} {
		memoryStory(t, 390<<20, 90<<20, func(t *testing.T, h *memoryHost) {
			usec := 0
			h.grasped = func(uint64) {
				time.Sleep(100 * time.Millisecond)
				usec += 90_000
				h.put("memory.pressure", fmt.Sprintf(pressure, usec))
			}
			require.ErrorContains(t, h.lower(t.Context(), 128<<20), kind)
			h.untouched()
		})
	}
}

func TestLowerIsGivenUp(t *testing.T) {
	memoryStory(t, 390<<20, 90<<20, func(t *testing.T, h *memoryHost) {
		ctx, cancel := context.WithTimeout(t.Context(), strainWindow/2) // while it is looked at
		defer cancel()
		require.ErrorIs(t, h.lower(ctx, 128<<20), context.DeadlineExceeded)
		require.Contains(t, h.written, "memory.high")
		h.untouched()
	})
}

func TestLowerWithoutReclaimFile(t *testing.T) {
	memoryStory(t, 390<<20, 90<<20, func(t *testing.T, h *memoryHost) {
		require.NoError(t, os.Remove(filepath.Join(h.dir, "memory.reclaim")))
		tree := h.group.tree
		h.group = tree.WithFault(func(call, path string) error {
			err := h.call(call, path)
			if call == "write" && filepath.Base(path) == "memory.high" {
				h.put("memory.current", fmt.Sprint(max(h.use()-min(h.use(), reclaimStep), h.stuck)))
				require.NoError(t, os.Truncate(path, 0))
			}
			return err
		}).Group("/a")
		require.NoError(t, h.lower(t.Context(), 128<<20))
		require.Equal(t, []string{fmt.Sprint(128 << 20), "max"}, []string{h.get("memory.max"), h.get("memory.high")})
	})
}
