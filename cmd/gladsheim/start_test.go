package main

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/apitest"
)

func needs(names ...string) (out []service.Need) {
	for _, name := range names {
		out = append(out, service.Need{Service: service.MustName(name)})
	}
	return out
}

// put makes services known that do not run, each with what it says of others.
func (c *cli) put(services map[string]service.Spec) {
	for name, says := range services {
		s := stopped(name)
		s.Status.Spec.Requires, s.Status.Spec.After, s.Status.Spec.Binds = says.Requires, says.After, says.Binds
		c.agent.Put(s)
	}
}

// begunBy are the services in the order in which they were started.
func begunBy(agent *apitest.Agent) (names []string) {
	for _, n := range agent.Kept(0) {
		if n.Kind == service.NoticeState && n.State == service.Running && n.Incarnation == 1 {
			names = append(names, n.Service.String())
		}
	}
	return names
}

func TestStartGoesInTheOrderOfNeed(t *testing.T) {
	c := newCLI(t)
	c.put(map[string]service.Spec{
		"web":     {Requires: needs("db"), After: needs("migrate")},
		"db":      {Binds: needs("disk")},
		"disk":    {},
		"migrate": {Requires: needs("disk")},
	})
	out := c.mustRun("start", "web", "db", "migrate", "disk")
	require.Equal(t, []string{"disk", "web"}, []string{begunBy(c.agent)[0], begunBy(c.agent)[3]})
	require.Equal(t, "● disk: running, pid 5001\n● db: running, pid 5001\n● migrate: running, pid 5001\n● web: running, pid 5001\n", out)
}

// One in between that nobody named is started by who needs it, with all that it requires.
func TestStartGoesInTheOrderOfWhatIsBetween(t *testing.T) {
	c := newCLI(t)
	c.put(map[string]service.Spec{"web": {Requires: needs("app")}, "app": {After: needs("batch"), Requires: needs("db")}, "db": {}})
	c.mustRun("start", "web", "db")
	require.Equal(t, []string{"db", "web"}, begunBy(c.agent))
}

// What is to be started alone may be ready only when who requires it is there.
func TestStartWaitsForNoneThatIsToBeStartedAlone(t *testing.T) {
	c := newCLI(t)
	c.put(map[string]service.Spec{"web": {Requires: []service.Need{{Service: service.MustName("db"), Condition: service.ConditionStarted}}}, "db": {}})
	var starts atomic.Int32
	both := make(chan struct{})
	c.agent.Before = func(ctx context.Context, method string) error {
		if method != "Start" {
			return nil
		}
		if starts.Add(1) == 2 {
			close(both)
		}
		select {
		case <-both:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mustRun("--timeout", "20s", "start", "web", "db")
}

func TestStartLeavesOutWhatCanNotBe(t *testing.T) {
	c := newCLI(t)
	c.put(map[string]service.Spec{"web": {Requires: needs("db")}, "log": {After: needs("db")}, "db": {}})
	var starts atomic.Int32
	c.agent.Before = func(_ context.Context, method string) error {
		if method == "Start" && starts.Add(1) == 1 {
			return &service.Error{Op: "start", Service: service.MustName("db"), Kind: service.Unlaunchable, Reason: service.ReasonExitedEarly, Err: errors.New("it ended: exit code 3")}
		}
		return nil
	}
	code, out, errs := c.run("start", "web", "log", "db")
	require.Equal(t, exitFailure, code)
	require.Equal(t, "● log: running, pid 5001\n", out)
	require.Equal(t, "gladsheim: cannot start db: it ended: exit code 3\n  see what it wrote: gladsheim logs db\ngladsheim: cannot start web: it requires db, which is not ready\n", errs)
	require.Equal(t, []string{"log"}, begunBy(c.agent))
}

// A start that has failed says what becomes of the service.
func TestAFailedStartTellsWhatBecomesOfIt(t *testing.T) {
	for _, outlook := range []string{"it is tried again in 1s, attempt 1 of 3", "given up, since it is not to be restarted (restart.policy)"} {
		c := newCLI(t)
		c.agent.Before = func(_ context.Context, method string) error {
			if method != "Start" && method != "Restart" {
				return nil
			}
			return &service.Error{Op: "start", Service: service.MustName("batch"), Kind: service.Unlaunchable, Reason: service.ReasonExitedEarly,
				Err: errors.New("it ended: exit code 3"), LastLines: []string{"no room"}, Outlook: outlook}
		}
		for _, verb := range []string{"start", "restart"} {
			code, _, errs := c.run(verb, "batch")
			require.Equal(t, exitFailure, code)
			require.Equal(t, "gladsheim: cannot start batch: it ended: exit code 3\n  its last lines:\n    no room\n  "+outlook+"\n  see what it wrote: gladsheim logs batch\n", errs)
		}
	}
}

// A hook that took too long is not waited for any more.
func TestAHookThatTookTooLong(t *testing.T) {
	c := newCLI(t)
	c.agent.Before = func(_ context.Context, method string) error {
		if method != "Start" {
			return nil
		}
		return &service.Error{Op: "start", Service: service.MustName("batch"), Kind: service.Timeout, Reason: service.ReasonHookFailed, Err: errors.New("pre_start: it did not end within 6s")}
	}
	_, _, errs := c.run("start", "batch")
	require.Equal(t, "gladsheim: cannot start batch: pre_start: it did not end within 6s\n  all that is kept of what it wrote: gladsheim history batch --crashes, then --crash RUN\n", errs)
}

func TestStartOfWhatRunsKeepsNobody(t *testing.T) {
	c := newCLI(t)
	c.put(map[string]service.Spec{"web": {Requires: needs("api")}})
	code, out, errs := c.run("start", "web", "api")
	require.Equal(t, exitConflict, code)
	require.Equal(t, "● web: running, pid 5001\n", out)
	require.Contains(t, errs, "cannot start api: it is running")
	require.True(t, slices.Contains(begunBy(c.agent), "web"))
}
