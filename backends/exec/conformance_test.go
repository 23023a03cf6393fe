package exec

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/backendtest"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// newBackend is a backend as a fresh agent has it.
func newBackend(t testing.TB) *Backend {
	t.Helper()
	w, err := watch.New()
	require.NoError(t, err)
	fs, err := procfs.New("/proc")
	require.NoError(t, err)
	b, err := New(w, fs, "agent", backendtest.RunDir(t))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, b.Close())
		require.NoError(t, w.Close())
	})
	return b
}

func TestConformance(t *testing.T) {
	var offers service.Enforcement
	offers.Limits[service.NoFile], offers.Limits[service.Rlimits] = true, true
	offers.BornInside = true
	backendtest.Run(t, backendtest.Subject{
		New:      func(t *testing.T) backends.Backend { return newBackend(t) },
		Workload: backendtest.Workload(t),
		Offers:   offers,

		KeepsExits: true,
	})
}
