package power

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// TestPowerCuts: the power is cut at random moments while callers register and
// unregister, start, stop and restart services, and set limits. Whatever was
// acknowledged before holds in the next boot: definitions are there, limits are set,
// what is to run does, once, and what was stopped does not. No record is damaged,
// and the auditor finds nothing.
func TestPowerCuts(t *testing.T) {
	bin := programs(t)
	times, hosts := cuts(t)
	for _, host := range hosts {
		t.Run(host, func(t *testing.T) {
			disk, began := diskOf(t), time.Now()
			m := switchOn(t, host, bin, disk)
			m.install()
			m.awaitAgent()
			l := newLedger(m)
			for n := range times {
				moment := time.Duration(rand.Int64N(int64(5 * time.Second)))
				l.traffic(m, func() {
					time.Sleep(moment) // that is the moment
					m.cut()
				})
				m = switchOn(t, host, t.TempDir(), disk)
				m.awaitAgent()
				l.check(m, fmt.Sprintf("cut %d, after %v", n, moment))
				if n := n + 1; n%5 == 0 || n == times {
					t.Logf("%d power cuts in %v: %d changes acknowledged, 0 lost; %d were under way, of which %d hold",
						n, time.Since(began).Round(time.Second), l.acked, l.doubts, l.came)
				}
			}
		})
	}
}

// cuts is how often the power is cut, and of which hosts: GLADSHEIM_TEST_CUTS times
// of both, if that is set.
func cuts(t *testing.T) (times int, hosts []string) {
	both := []string{"systemd", "cgroup2"}
	if text := os.Getenv("GLADSHEIM_TEST_CUTS"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		return n, both
	}
	if os.Getenv("GLADSHEIM_TEST_SOAK") != "" {
		return 50, both
	}
	return 3, both[:1]
}

// fact is what holds of a service.
type fact struct {
	edition int // of its definition; 0: it is not registered
	up      bool
	pids    uint64 // that it may have
}

// entry is a service, and what its one caller knows of it.
type entry struct {
	name     string
	number   int // of seconds that it sleeps, by which its process is found
	scope    bool
	steps    []step
	sure     fact
	doubt    *fact // what holds instead if a change was made that nobody answered about
	editions int
	stopped  uint64 // the latest incarnation that a stop has ended
	acked    int
}

// step is a change that a caller may ask for: what holds after it, and the call.
type step func(m *machine, e *entry) (after fact, call func() error)

// ledger is what all callers were told.
type ledger struct {
	entries             []*entry
	acked, doubts, came int // came: of the doubts, how many changes were made
}

// newLedger registers services of all kinds, and starts those that run.
func newLedger(m *machine) *ledger {
	m.t.Helper()
	l := &ledger{}
	for kind, steps := range map[string][]step{
		"steady":  nil,
		"runner":  {startOrStop, startOrStop, restart, limit},
		"defined": {register, register, unregister},
	} {
		for i := range 4 {
			e := &entry{name: fmt.Sprintf("%s-%d", kind, i), number: 1_000_000 + len(l.entries), scope: m.systemd() && i%2 == 0, steps: steps}
			l.entries = append(l.entries, e)
			first := []step{register}
			if kind != "defined" {
				first = append(first, startOrStop)
			}
			for _, s := range first {
				require.NoError(m.t, e.take(m, s), e.name)
			}
		}
	}
	return l
}

func (e *entry) exec() []string { return []string{"/bin/sleep", strconv.Itoa(e.number)} }

// take takes a step. What it leads to is in doubt until it is answered.
func (e *entry) take(m *machine, s step) error {
	after, call := s(m, e)
	e.doubt = &after
	if err := call(); err != nil {
		return err
	}
	e.sure, e.doubt = after, nil
	e.acked++
	return nil
}

func register(m *machine, e *entry) (fact, func() error) {
	after := e.sure
	e.editions++
	after.edition, after.pids = e.editions, 50
	return after, func() error {
		launch := "cgroup"
		if e.scope {
			launch = "scope"
		}
		doc, err := json.Marshal(map[string]any{"name": e.name, "exec": e.exec(), "launch": launch, "limits": map[string]any{"pids_max": after.pids},
			"environment": map[string]string{"EDITION": strconv.Itoa(after.edition)}})
		if err != nil {
			return err
		}
		_, err = m.catalog().Register(contextFor(m.t), &gladsheimv1.RegisterRequest{Definition: doc, File: "test.json", Replace: true})
		return err
	}
}

func unregister(m *machine, e *entry) (fact, func() error) {
	if e.sure.edition == 0 {
		return register(m, e)
	}
	return fact{}, func() error {
		_, err := m.catalog().Unregister(contextFor(m.t), &gladsheimv1.UnregisterRequest{ServiceName: e.name})
		return err
	}
}

func startOrStop(m *machine, e *entry) (fact, func() error) {
	after := e.sure
	after.up = !after.up
	return after, func() error {
		if after.up {
			_, err := m.services().StartService(contextFor(m.t), &gladsheimv1.StartServiceRequest{ServiceName: e.name})
			return err
		}
		s, err := m.services().StopService(contextFor(m.t), &gladsheimv1.StopServiceRequest{ServiceName: e.name})
		if err == nil {
			e.stopped = s.Incarnation
		}
		return err
	}
}

func restart(m *machine, e *entry) (fact, func() error) {
	after := e.sure
	after.up = true
	return after, func() error {
		_, err := m.services().RestartService(contextFor(m.t), &gladsheimv1.RestartServiceRequest{ServiceName: e.name})
		return err
	}
}

func limit(m *machine, e *entry) (fact, func() error) {
	after := e.sure
	after.pids = 100 + rand.Uint64N(1000)
	return after, func() error {
		_, err := m.services().SetResourceLimits(contextFor(m.t), &gladsheimv1.ResourceLimitsRequest{
			ServiceName: e.name, Limits: &gladsheimv1.ResourceLimits{PidsMax: &after.pids}})
		return err
	}
}

// traffic has all callers take steps, as fast as they can, until the power is cut.
func (l *ledger) traffic(m *machine, cut func()) {
	m.t.Helper()
	var callers sync.WaitGroup
	faults := make([]error, len(l.entries))
	for i, e := range l.entries {
		if len(e.steps) == 0 {
			continue
		}
		callers.Go(func() {
			for faults[i] == nil {
				faults[i] = e.take(m, e.steps[rand.IntN(len(e.steps))])
			}
		})
	}
	cut()
	callers.Wait()
	l.acked = 0
	for i, e := range l.entries {
		l.acked += e.acked
		if faults[i] != nil {
			require.ErrorIs(m.t, faults[i], errOff, e.name)
			l.doubts++
		}
	}
}

// check holds a host that was booted again against what was acknowledged.
func (l *ledger) check(m *machine, what string) {
	m.t.Helper()
	defer func() {
		if m.t.Failed() {
			m.t.Logf("%s: the agent said:\n%s", what, m.agentLog())
		}
	}()
	for _, e := range l.entries {
		may, rests := []fact{e.sure}, !e.sure.up
		if e.doubt != nil {
			may, rests = append(may, *e.doubt), rests && !e.doubt.up
		}
		is := e.look(m)
		for end := time.Now().Add(patience); !slices.Contains(may, is); is = e.look(m) {
			require.True(m.t, time.Now().Before(end), "%s: %s is %+v, and not one of %+v", what, e.name, is, may)
			time.Sleep(pause)
		}
		if e.doubt != nil && is == *e.doubt {
			l.came++
		}
		e.sure, e.doubt = is, nil
		if e.stopped > 0 {
			h, err := gladsheimv1.NewRuntimeServiceClient(m).ListExits(contextFor(m.t), &gladsheimv1.ListExitsRequest{ServiceName: e.name})
			require.NoError(m.t, err)
			require.NotEmpty(m.t, h.Exits, "%s: %s was stopped", what, e.name)
			require.GreaterOrEqual(m.t, h.Exits[0].Incarnation, e.stopped, "%s: %s", what, e.name)
			if rests {
				require.Equal(m.t, e.stopped, h.Exits[0].Incarnation, "%s: %s ran since it was stopped", what, e.name)
			}
			if !is.up { // maybe by a stop that nobody answered
				e.stopped = h.Exits[0].Incarnation
			}
		}
	}
	running := map[string]int{}
	for line := range strings.Lines(m.sh("ps -eo args= | grep '^/bin/sleep ' || true")) {
		running[strings.TrimSpace(line)]++
	}
	want := map[string]int{}
	for _, e := range l.entries {
		if e.sure.up {
			want[strings.Join(e.exec(), " ")] = 1
		}
	}
	require.Equal(m.t, want, running, what)
	require.Regexp(m.t, "(?m)^0 findings$", m.sh("gladsheim fsck"), what)
	require.Empty(m.t, m.sh("find /var/lib/gladsheim /run/gladsheim -name '*.corrupt-*'"), what)
	_, doctor := m.try("gladsheim doctor")
	require.NotContains(m.t, doctor, "could not be read", what)
}

// look tells what holds of a service, and waits for none of it.
func (e *entry) look(m *machine) (is fact) {
	m.t.Helper()
	def, err := m.catalog().GetDefinition(contextFor(m.t), &gladsheimv1.GetDefinitionRequest{ServiceName: e.name})
	if status.Code(err) == codes.NotFound {
		return fact{}
	}
	require.NoError(m.t, err)
	var doc struct{ Environment struct{ Edition string } }
	require.NoError(m.t, json.Unmarshal([]byte(def.Json), &doc))
	is.edition, err = strconv.Atoi(doc.Environment.Edition)
	require.NoError(m.t, err)
	s, err := m.services().GetServiceStatus(contextFor(m.t), &gladsheimv1.ServiceStatusRequest{ServiceName: e.name})
	require.NoError(m.t, err)
	switch s.State {
	case gladsheimv1.ServiceState_SERVICE_STATE_RUNNING:
		is.up = true
	case gladsheimv1.ServiceState_SERVICE_STATE_STOPPED:
	default: // on its way
		return fact{edition: -1}
	}
	limits, err := m.services().GetResourceLimits(contextFor(m.t), &gladsheimv1.ServiceRequest{ServiceName: e.name})
	require.NoError(m.t, err)
	is.pids = limits.GetPidsMax()
	if is.up {
		_, held := m.try("cat '/sys/fs/cgroup" + s.Cgroup + "/pids.max'")
		require.Equal(m.t, strconv.FormatUint(is.pids, 10), held, "%s: what the kernel holds it to", e.name)
	}
	return is
}
