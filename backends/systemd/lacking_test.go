package systemd

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// A limit that the host lacks is refused before anything is made or changed,
// or left out where that was asked for. No test host lacks one, so the backend
// is told that its does.
func TestLimitsThatTheHostLacks(t *testing.T) {
	needSystemd(t)
	b := newBackend(t, Config{})
	b.can.Limits[service.IOWeight], b.can.Why[service.IOWeight] = false, "the kernel does not offer the controller io"
	both := service.Limits{service.IOWeight: service.Of(50), service.PidsMax: service.Of(40)}
	refused := func(err error) {
		t.Helper()
		require.Equal(t, service.Unenforceable, service.KindOf(err), "%v", err)
		require.Equal(t, service.ReasonLimitUnenforceable, service.ReasonOf(err))
		require.ErrorContains(t, err, "io_weight (the kernel does not offer the controller io)")
		require.NotContains(t, err.Error(), "pids_max")
	}
	l := planned(t, both, "sleep")
	_, err := b.Launch(within(t), l, backends.Birth{Identify: func(service.Ref) error {
		t.Error("identify was called")
		return nil
	}})
	refused(err)
	nothingOf(t, b.Plan(l))

	h := start(t, b, planned(t, service.Limits{service.PidsMax: service.Of(70)}, "sleep"))
	before, err := h.Limits(within(t))
	require.NoError(t, err)
	_, err = h.Limit(within(t), both)
	refused(err)
	after, err := h.Limits(within(t))
	require.NoError(t, err)
	// A Go program raises its own limit on open files as it starts.
	before[service.NoFile], after[service.NoFile] = service.LimitReport{}, service.LimitReport{}
	require.Equal(t, before, after)
	require.Equal(t, "70", file(t, h.scope, "pids.max"))

	l = planned(t, both, "sleep")
	l.Spec.BestEffort = true
	h = start(t, b, l)
	require.Equal(t, "40", file(t, h.scope, "pids.max"))
	require.Equal(t, "[not set]", show(t, h.ref.Unit, "IOWeight"))
}
