package place

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/cgroup"
)

// cage is a group of plain files, whose writes can be refused.
type cage struct {
	cgroup.Group
	t   *testing.T
	dir string
	// refuse is asked before each write.
	refuse func(file string) error
}

func newCage(t *testing.T, files map[string]string) *cage {
	root := t.TempDir()
	c := &cage{t: t, dir: filepath.Join(root, "a"), refuse: func(string) error { return nil }}
	require.NoError(t, os.Mkdir(c.dir, 0o755))
	for name, text := range files {
		require.NoError(t, os.WriteFile(filepath.Join(c.dir, name), []byte(text+"\n"), 0o644))
	}
	tree, err := cgroup.OpenFixture(root)
	require.NoError(t, err)
	c.Group = tree.WithFault(func(call, path string) error {
		if call == "write" {
			return c.refuse(filepath.Base(path))
		}
		return nil
	}).Group("/a")
	return c
}

func (c *cage) holds(file string) string {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, file))
	require.NoError(c.t, err)
	return strings.TrimSpace(string(text))
}

func (c *cage) set(_ context.Context, l service.Limits) error { return c.Apply(l) }

var limitsOfPidsAndWeight = map[string]string{"pids.max": "77", "cpu.weight": "100", "cpu.idle": "0"}

// A change that fails half way leaves nothing behind, and the error is that of the
// change.
func TestAChangeIsMadeOrNot(t *testing.T) {
	c := newCage(t, limitsOfPidsAndWeight)
	change := service.Limits{service.CPUWeight: service.Of(333), service.PidsMax: service.Of(55)}
	c.refuse = func(file string) error {
		if file == "pids.max" && c.holds("cpu.weight") == "333" {
			return unix.EINVAL
		}
		return nil
	}
	err := Whole(t.Context(), c.Group, change, c.Lower, c.set)
	require.ErrorIs(t, err, unix.EINVAL)
	require.ErrorContains(t, err, "all is as before again")
	require.Equal(t, "100", c.holds("cpu.weight"))
	require.Equal(t, "77", c.holds("pids.max"))

	c.refuse = func(string) error { return nil }
	require.NoError(t, Whole(t.Context(), c.Group, change, c.Lower, c.set))
	require.Equal(t, "333", c.holds("cpu.weight"))
	require.Equal(t, "55", c.holds("pids.max"))
}

// When what was can not be set again, the error tells what holds instead.
func TestAChangeThatStaysHalfIsTold(t *testing.T) {
	c := newCage(t, limitsOfPidsAndWeight)
	c.refuse = func(file string) error {
		if c.holds("cpu.weight") == "333" {
			return unix.EROFS
		}
		return nil
	}
	change := service.Limits{service.CPUWeight: service.Of(333), service.PidsMax: service.Of(55)}
	err := Whole(t.Context(), c.Group, change, c.Lower, c.set)
	require.ErrorIs(t, err, unix.EROFS)
	require.ErrorContains(t, err, "so that now cpu_weight is 333 instead of 100")
	require.NotContains(t, err.Error(), "pids_max is")
}

// What was refused before anything was changed is not undone.
func TestAChangeThatWasNotBegun(t *testing.T) {
	c := newCage(t, limitsOfPidsAndWeight)
	no := errors.New("no")
	err := Whole(t.Context(), c.Group, service.Limits{service.PidsMax: service.Of(55)},
		func(context.Context, service.Limits, func(context.Context) error) error { return no }, c.set)
	require.Equal(t, no, err)
}

func applied(l service.Limits) (a service.Applied) {
	for r, q := range l {
		a[r].Applied = q
	}
	return a
}

// What somebody else has written is not taken for ours with a change of something else.
func TestBaselineKeepsWhatIsWanted(t *testing.T) {
	var b Baseline
	asked := service.Limits{service.PidsMax: service.Of(77)}
	holds := service.Limits{
		service.PidsMax: service.Of(77), service.CPUWeight: service.Of(100), service.CPUIdle: service.Of(0), service.CPUBurst: service.Of(0),
	}
	b.Begin(asked, applied(holds))
	foreign := holds
	foreign[service.CPUWeight], foreign[service.CPUBurst], foreign[service.PidsMax] = service.Of(1), service.Of(5000), service.Of(99)
	b.Set(service.Limits{service.PidsMax: service.Of(55)}, applied(foreign)) // it was overwritten before it was read
	always := func(service.Drift) service.OnDrift { return service.DriftBack }
	drifts, back := b.Drifts(applied(foreign), always)
	require.Len(t, drifts, 3)
	require.Equal(t, service.Limits{
		service.PidsMax: service.Of(55), service.CPUWeight: service.Of(100), service.CPUBurst: service.Of(0),
	}, back)

	// What is idle has no weight, which is no drift.
	idle := back.Over(holds)
	idle[service.CPUIdle], idle[service.CPUWeight] = service.Of(1), service.Quota{}
	b.Set(service.Limits{service.CPUIdle: service.Of(1)}, applied(idle))
	drifts, _ = b.Drifts(applied(idle), always)
	require.Empty(t, drifts)
}
