package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// diarist is a service that writes down when it begins and when it is told to end.
func (w *world) diarist(name string, more fields) fields {
	script := fmt.Sprintf(`echo %s up >> %[2]s; trap 'echo %[1]s down >> %[2]s; exit 0' TERM; sleep 100000 & wait`, name, w.path("diary"))
	return fields{"name": name, "exec": []string{"/bin/sh", "-c", script}}.with(more)
}

func (w *world) diary() []string {
	w.t.Helper()
	text, err := os.ReadFile(w.path("diary"))
	require.NoError(w.t, err)
	require.NoError(w.t, os.Remove(w.path("diary")))
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// TestDependencies: real programs begin behind what they require, and end before it.
func TestDependencies(t *testing.T) {
	anywhere(t)
	for _, mode := range preferred(t) {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			settle := fields{"launch": mode, "ready": fields{"settle": "500ms", "timeout": patience.String()}}
			w.register(w.diarist("disk", settle))
			w.register(w.diarist("db", settle.with(fields{"requires": []string{"disk"}})))
			w.register(w.diarist("web", settle.with(fields{"requires": []any{fields{"service": "db", "condition": "ready"}}})))
			w.register(w.diarist("agentx", settle.with(fields{"binds": []string{"web"}})))

			byGRPC{w}.start("agentx")
			require.Equal(t, []string{"disk up", "db up", "web up", "agentx up"}, w.diary())
			tree := w.mustCLI("deps", "agentx")
			require.Equal(t, "● agentx: running\n└─ binds ready ● web: running\n   └─ requires ready ● db: running\n      └─ requires ready ● disk: running\n", tree)
			graph := read(byCLI{w}, &gladsheimv1.DependencyGraph{}, "deps", "--reverse", "db")
			require.Len(t, graph.GetServices(), 3)

			// The bound end with it, and first; those that require it run on.
			byGRPC{w}.stop("web")
			require.Equal(t, []string{"agentx down", "web down"}, w.diary())
			waiting := byGRPC{w}.status("agentx")
			require.Equal(t, "waiting", waiting.GetPhase())
			require.Equal(t, "waits for web to be ready", waiting.GetWaitingFor())
			require.Contains(t, w.mustCLI("list"), "waits for web to be ready")

			byGRPC{w}.start("web")
			eventually(t, "it is back", func() bool { return byGRPC{w}.status("agentx").GetPhase() == "running" })
			require.Equal(t, []string{"web up", "agentx up"}, w.diary())

			w.mustCLI("stop", "disk", "agentx", "db", "web")
			require.Equal(t, []string{"agentx down", "web down", "db down", "disk down"}, w.diary())
		})
	}
}

// TestDependenciesThatCanNotBe: circles, unknown names and what others name, as people see it.
func TestDependenciesThatCanNotBe(t *testing.T) {
	native(t)
	w := newWorld(t)
	write := func(name, requires string) string {
		path := w.path(name + ".json")
		writeFile(t, path, []byte(fmt.Sprintf("{\"name\": %q, \"exec\": [\"/bin/sleep\", \"1000\"],\n \"requires\": [%q]}\n", name, requires)))
		return path
	}
	a, b := write("a", "b"), write("b", "a")
	r := w.cli("register", "-f", a)
	require.Equal(t, 6, r.code)
	require.Contains(t, r.stderr, a+":2:15: requires[0]: no service b is registered or defined")
	r = w.cli("apply", "-f", a, "-f", b)
	require.Equal(t, 6, r.code)
	require.Contains(t, r.stderr, a+":2:15: requires[0]: leads back to a: b requires a ("+b+":2:15)")
	require.Contains(t, r.stderr, b+":2:15: requires[0]: leads back to b: a requires b ("+a+":2:15)")
	writeFile(t, b, []byte(`{"name": "b", "exec": ["/bin/false"], "restart": {"policy": "never"}, "ready": {"settle": "5s"}}`))
	w.mustCLI("apply", "-f", a, "-f", b)
	r = w.cli("unregister", "b")
	require.Equal(t, 9, r.code)
	require.Contains(t, r.stderr, "it is named by a (requires[0])")
	r = w.cli("start", "a")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "cannot start a: it requires b to be ready: cannot start b: it ended: exit code 1")
	s := byGRPC{w}.status("a")
	require.Equal(t, "stopped", s.GetPhase())
	require.Zero(t, s.GetIncarnation())
	require.Zero(t, s.GetFailuresInARow())
}

// TestOutage: a database is down for a while, and clients end without it, over the end of
// the agent. None is given up, no attempt is spent, and all are back soon after.
func TestOutage(t *testing.T) {
	anywhere(t)
	for _, mode := range preferred(t) {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			const clients = 10
			pid, down := w.path("db.pid"), w.path("down")
			w.register(fields{"name": "db", "launch": mode, "ready": fields{"settle": "300ms", "timeout": patience.String()},
				"restart": fields{"max_attempts": 10000, "backoff": "200ms", "max_backoff": "400ms", "deterministic": 0},
				"exec":    []string{"/bin/sh", "-c", "if [ -e " + down + " ]; then exit 1; fi; echo $$ > " + pid + "; exec sleep 100000"}})
			names := make([]string, clients)
			for i := range names {
				names[i] = fmt.Sprintf("client%d", i)
				w.register(fields{"name": names[i], "launch": mode, "requires": []string{"db"}, "restart": fields{"max_attempts": 1},
					"exec": []string{"/bin/sh", "-c", "while [ -d /proc/$(cat " + pid + ") ]; do sleep 0.2; done; exit 1"}})
			}
			w.mustCLI(append([]string{"start"}, names...)...)
			first := byGRPC{w}.status("db").GetIncarnation()

			writeFile(t, down, nil)
			w.mustCLI("signal", "db", "KILL")
			all := func(phase string) func() bool {
				return func() bool {
					for _, name := range names {
						s := byGRPC{w}.status(name)
						require.NotEqual(t, "crashed", s.GetPhase(), "%v", s)
						if s.GetPhase() != phase {
							return false
						}
						require.Zero(t, s.GetFailuresInARow())
						require.Zero(t, s.GetRecentFailures())
					}
					return true
				}
			}
			eventually(t, "all wait", all("waiting"))
			eventually(t, "the outage lasts", func() bool { return byGRPC{w}.status("db").GetIncarnation() > first+3 })
			require.Contains(t, byGRPC{w}.exits(names[0]).GetExits()[0].GetMessage(), "that is no failure of its own")
			w.leave(syscall.SIGKILL)
			w.begin()
			require.True(t, all("waiting")())

			require.NoError(t, os.Remove(down))
			eventually(t, "all are back", all("running"))
			for _, name := range names {
				require.EqualValues(t, 2, byGRPC{w}.status(name).GetIncarnation(), name)
			}
		})
	}
}
