package e2e

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gladsheim/gladsheim/failpoint"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
	"github.com/gladsheim/gladsheim/test/auditor"
)

// TestEveryStepMayFail: at each step of a start and of a stop the agent is killed,
// and where there is time for it, fails, hangs and panics. What was on record when
// it died comes true without more; whoever asks again gets a definite answer, the
// service runs once or not at all, as was asked for, and the auditor finds nothing.
// The plain cycle before proves that each point is passed, by the backends that the
// registry says and by no others.
func TestEveryStepMayFail(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			if mode == "cgroup" {
				oneOfAKind(t)
			}
			w := newWorldOf(t, "gladsheimd-failpoints")
			m := w.matrix(mode)
			m.passesItsPoints()
			for _, action := range actions() {
				t.Run(action.name, func(t *testing.T) { m.in(t).all(action) })
			}
		})
	}
}

// action is what happens at a point; deadly is how the agent ends of it, "" if it
// goes on.
type action struct{ name, term, deadly string }

// actions are the deaths of the agent on every host. What fails or hangs takes the
// same ways on all, and is seen on those that take the least time, unless there is
// time for all.
func actions() []action {
	delay := "5s"
	if !soak {
		delay = "50ms"
	}
	all := []action{
		{"kill", "kill", "signal: killed"},
		{"panic", "panic", "exit status 2"},
		{"error", "1*error(no luck)", ""},
		{"delay", "1*delay(" + delay + ")", ""},
	}
	switch os.Getenv("GLADSHEIM_TEST_HOST") {
	case "cgroup2", "bare":
		return all
	}
	if soak {
		return all
	}
	return all[:1]
}

// matrix is a world in which a service is started and stopped under faults, while
// a witness runs and is never to notice.
type matrix struct {
	*audited
	backend string
}

func (w *world) matrix(mode string) *matrix {
	w.register(fields{"name": "witness", "exec": []string{"/bin/sleep", "infinity"}, "launch": mode})
	w.register(fields{"name": "victim", "exec": []string{"/bin/sh", "-c", "sleep 1000 & exec sleep 2000"}, "launch": mode,
		"restart": fields{"policy": "on-failure", "backoff": "10ms"}})
	m := &matrix{w.audited("witness"), map[string]string{"scope": "systemd", "cgroup": "cgroupfs", "auto": "exec"}[mode]}
	bystander := exec.Command("/bin/sleep", "infinity")
	require.NoError(w.t, bystander.Start())
	w.t.Cleanup(func() {
		require.NoError(w.t, bystander.Process.Kill())
		_ = bystander.Wait()
	})
	stander, err := auditor.Bystander(m.host, bystander.Process.Pid)
	require.NoError(w.t, err)
	m.expect.Bystanders = []auditor.Instance{stander}
	return m
}

// in is m for a subtest, which leaves behind another daemon than it found.
func (m *matrix) in(t *testing.T) *matrix {
	parent := m.t
	m.t = t
	t.Cleanup(func() { m.t = parent })
	return m
}

// order gives the agent's failpoints an order.
func (m *matrix) order(text string) string {
	m.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(m.host.Run, "failpoints.sock"))
	require.NoError(m.t, err)
	defer conn.Close()
	_, err = fmt.Fprintln(conn, text)
	require.NoError(m.t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(m.t, err)
	return strings.TrimSuffix(line, "\n")
}

func (m *matrix) arm(text string) { require.Equal(m.t, "ok", m.order("arm "+text)) }

// hits are the points that were hit since they were armed.
func (m *matrix) hits() map[failpoint.Point]bool {
	out := map[failpoint.Point]bool{}
	for part := range strings.SplitSeq(m.order("hits"), "; ") {
		point, _, _ := strings.Cut(part, "=")
		out[failpoint.Point(point)] = true
	}
	return out
}

// passesItsPoints starts and stops once with nothing armed.
func (m *matrix) passesItsPoints() {
	m.arm("")
	byGRPC{m.world}.start("victim")
	byGRPC{m.world}.stop("victim")
	var want []failpoint.Point
	for _, p := range failpoint.Points() {
		if p.Of(m.backend) {
			want = append(want, p)
		}
	}
	require.ElementsMatch(m.t, want, slices.Collect(maps.Keys(m.hits())))
	m.audit("after a plain start and stop")
}

// all goes through every point: one of a start and one of a stop at a time.
func (m *matrix) all(a action) {
	var starts, stops []failpoint.Point
	for _, p := range failpoint.Points() {
		switch {
		case !p.Of(m.backend):
		case p[0] == 'S':
			starts = append(starts, p)
		default:
			stops = append(stops, p)
		}
	}
	for i := range max(len(starts), len(stops)) {
		m.start(starts[i%len(starts)], a)
		m.stop(stops[i%len(stops)], a)
	}
}

func (m *matrix) start(p failpoint.Point, a action) {
	m.deed(p, a, func() (auditor.Ack, error) {
		s, err := m.services().StartService(contextFor(m.t), &gladsheimv1.StartServiceRequest{ServiceName: "victim"})
		return auditor.Ack{Service: "victim", Deed: auditor.Started, Incarnation: s.GetIncarnation()}, err
	}, codes.AlreadyExists, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING)
}

func (m *matrix) stop(p failpoint.Point, a action) {
	m.deed(p, a, func() (auditor.Ack, error) {
		s, err := m.services().StopService(contextFor(m.t), &gladsheimv1.StopServiceRequest{ServiceName: "victim"})
		return auditor.Ack{Service: "victim", Deed: auditor.Stopped, Incarnation: s.GetIncarnation()}, err
	}, codes.FailedPrecondition, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED)
}

// deed asks for something while a point is armed, and once more after that. already
// is the answer to whoever asks for what is done.
func (m *matrix) deed(p failpoint.Point, a action, ask func() (auditor.Ack, error), already codes.Code, end gladsheimv1.ServiceState) {
	m.t.Helper()
	what := fmt.Sprintf("%s at %s", a.name, p)
	m.expect.Acked = nil
	again := func() error {
		ack, err := ask()
		if err == nil {
			m.expect.Acked = append(m.expect.Acked, ack)
		}
		return err
	}
	m.arm(string(p) + "=" + a.term)
	err := again()
	if a.deadly != "" {
		require.Error(m.t, err, "%s was not reached", p)
		m.died(what, a.deadly)
		if intended(p) {
			m.becomes(what, end)
		}
	} else {
		if err != nil {
			require.ErrorContains(m.t, err, "failpoint", what)
		}
		require.True(m.t, m.hits()[p], "%s was not reached", p)
		m.arm("")
	}
	if err := again(); err != nil {
		require.Equal(m.t, already, status.Code(err), "%s, asked again: %v\n%s", what, err, m.daemonLog())
	}
	m.becomes(what, end)
	m.audit(what)
}

// intended tells whether, at a point, what was asked for is on record: then the next
// agent does it, also if nobody asks again.
func intended(p failpoint.Point) bool {
	return !slices.Contains([]failpoint.Point{failpoint.S0Received, failpoint.S1Authorised, failpoint.S3Audited,
		failpoint.T0Received, failpoint.T1Authorised}, p)
}

func (m *matrix) becomes(what string, end gladsheimv1.ServiceState) {
	m.t.Helper()
	eventually(m.t, what+": "+end.String(), func() bool { return byGRPC{m.world}.status("victim").State == end })
}

// died waits for the death of the agent and begins another one.
func (m *matrix) died(what, how string) {
	m.t.Helper()
	select {
	case err := <-m.gone:
		require.EqualError(m.t, err, how, "%s\n%s", what, m.daemonLog())
	case <-time.After(patience):
		require.Fail(m.t, "the agent lives", what)
	}
	m.conn.Close()
	m.begin()
}
