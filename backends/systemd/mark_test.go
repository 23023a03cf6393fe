package systemd

import (
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/process"
)

// TestMarkThatLies: a service of root writes the mark of its scope anew, and who
// lives elsewhere is not taken for its main process.
func TestMarkThatLies(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	h := start(t, b, planned(t, service.Limits{}, "fork", "2"))
	told := func(mark string) service.Ref {
		t.Helper()
		require.NoError(t, h.scope.SetMark(mark))
		refs, err := newBackend(t, Config{}).Leftovers(within(t), nil)
		require.NoError(t, err)
		i := slices.IndexFunc(refs, func(ref service.Ref) bool { return ref.Unit == h.ref.Unit })
		require.NotEqual(t, -1, i)
		return refs[i]
	}
	nobody := h.ref
	nobody.PID, nobody.StartTicks, nobody.BootID = 0, 0, ""
	for _, stranger := range []int{1, os.Getpid()} {
		ticks, err := b.fs.StartTicks(stranger)
		require.NoError(t, err)
		require.Equal(t, nobody, told(process.Mark(stranger, ticks)))
	}
	own := process.Mark(h.ref.PID, h.ref.StartTicks)
	require.Equal(t, h.ref, told(own), "it lives there")
	require.NoError(t, h.Signal(within(t), syscall.SIGKILL))
	waitExit(t, h)
	require.Equal(t, h.ref, told(own), "it has ended")
	release(t, h)
	nothingOf(t, h.ref)
}
