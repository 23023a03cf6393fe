package e2e

import (
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/test/auditor"
)

// audited is a world in which the auditor is to find nothing, whatever is done to it.
type audited struct {
	*world
	host   auditor.Host
	expect auditor.Expectation
}

// audited starts services that are known and open nothing. They are to live on.
func (w *world) audited(steady ...string) *audited {
	w.t.Helper()
	for _, name := range steady {
		byGRPC{w}.start(name)
	}
	a := &audited{world: w, host: w.auditorHost(), expect: auditor.Expectation{Bare: steady, Quiet: true}}
	var err error
	a.expect.Since, err = auditor.Take(w.t.Context(), a.host)
	require.NoError(w.t, err)
	require.Len(w.t, a.expect.Since.Instances, len(steady))
	return a
}

// auditorHost is where the auditor finds this world.
func (w *world) auditorHost() auditor.Host {
	h := auditor.Host{State: w.path("state"), Run: w.path("run"), Socket: w.socket, AgentLog: w.path("daemon.log"), Proc: "/proc"}
	if limited(w.t) {
		h.Cgroups = "/sys/fs/cgroup"
	}
	return h
}

// settle is how long a host may take to come to rest after a fault: some seconds
// where it is not emulated.
const settle = 30 * time.Second

// audit holds the host against all that is known.
func (a *audited) audit(what string) {
	a.t.Helper()
	r, err := auditor.Audit(a.t.Context(), a.host, a.expect, settle)
	require.NoError(a.t, err)
	if len(r.Findings) > 0 {
		require.Empty(a.t, r.Findings, "%s\n%s", what, a.daemonLog())
	}
	require.Empty(a.t, r.Unchecked, what)
}
