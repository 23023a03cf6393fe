package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/byggvir"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

func limits(pairs ...uint64) (l service.Limits) {
	for i := 0; i < len(pairs); i += 2 {
		l[pairs[i]] = service.Of(pairs[i+1])
	}
	return l
}

const pids, memory, ioWeight = uint64(service.PidsMax), uint64(service.MemoryMax), uint64(service.IOWeight)

func (h *house) setLimits(name service.Name, l service.Limits) service.Applied {
	h.t.Helper()
	applied, err := h.SetLimits(h.t.Context(), name, l, service.Warnings{}, false, "dora")
	require.NoError(h.t, err)
	return applied
}

// holds is what holds of one resource, of a stopped service what is asked for.
func (h *house) holds(name service.Name, r service.Resource) service.Quota {
	h.t.Helper()
	applied, err := h.Limits(h.t.Context(), name)
	require.NoError(h.t, err)
	if h.status(name).Machine.State == service.Running {
		return applied[r].Applied
	}
	return applied[r].Requested
}

func TestSetLimitsWhileItRuns(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"limits": {"pids_max": 100, "nofile": 64}`)
		pid := h.start(web).PID()
		applied := h.setLimits(web, limits(pids, 50))
		require.Equal(t, service.Of(50), applied[service.PidsMax].Applied)
		require.Equal(t, service.Of(64), applied[service.NoFile].Applied)
		require.Equal(t, applied, h.status(web).Applied)
		require.Equal(t, pid, h.status(web).PID())

		h.crash(web)
		pass(time.Second)
		h.is(web, service.Running)
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax), "kept over a restart by the policy")
		h.stop(web)
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax))
		h.start(web)
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax), "and over one that was asked for")
		h.reopen()
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax), "and over one of the agent")
		h.reboot()
		h.open()
		h.is(web, service.Running)
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax), "and over one of the host")

		h.register(web, `"limits": {"pids_max": 70}`)
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax), "what runs goes on")
		_, err := h.Restart(t.Context(), web, service.StopOptions{})
		require.NoError(t, err)
		require.Equal(t, service.Of(70), h.holds(web, service.PidsMax), "dropped with the definition that it was set over")
	})
}

// What holds, what is kept and what is told must be of the same change.
func TestLimitsAreSetByOneAtATime(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"limits": {"pids_max": 100}`)
		h.start(web)
		free := make(chan struct{})
		h.fault = func(operation string, _ service.Ref) error {
			if operation == "limit" {
				<-free
			}
			return nil
		}
		h.reopen()
		first := make(chan error, 1)
		go func() {
			_, err := h.SetLimits(t.Context(), web, limits(pids, 50), service.Warnings{}, false, "dora")
			first <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := h.SetLimits(ctx, web, limits(pids, 60), service.Warnings{}, false, "erik")
		require.Equal(t, service.Timeout, service.KindOf(err), "%v", err)
		close(free)
		require.NoError(t, <-first)
		synctest.Wait()
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax), "the second was not carried out")
	})
}

func TestSetLimitsWhileItIsStopped(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		applied := h.setLimits(web, limits(pids, 50))
		require.Equal(t, service.LimitReport{Requested: service.Of(50), Enforced: true}, applied[service.PidsMax])
		h.setLimits(web, limits(memory, 64<<20))
		h.reopen()
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax))
		h.start(web)
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax))
		require.Equal(t, service.Of(64<<20), h.holds(web, service.MemoryMax))
	})
}

func TestSetLimitsDuringBackoff(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.crash(web)
		h.is(web, service.Backoff)
		h.setLimits(web, limits(pids, 50))
		pass(time.Second)
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax))
	})
}

// Limits that were set over a definition of the host are dropped when that
// changes, as those over one of a caller are.
func TestSetLimitsOverAFile(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.define(web, `"limits": {"pids_max": 100}`)
		h.open()
		h.setLimits(web, limits(pids, 50))
		h.reload()
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax))
		h.settings.ShutdownTimeout = time.Second
		h.reload()
		require.Equal(t, service.Of(50), h.holds(web, service.PidsMax), "other settings are no other definition")
		h.define(web, `"limits": {"pids_max": 70}`)
		h.reload()
		require.Equal(t, service.Of(70), h.holds(web, service.PidsMax))
		h.reopen()
		require.Equal(t, service.Of(70), h.holds(web, service.PidsMax))
	})
}

func TestSetLimitsRefuses(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		e := fake.Everything()
		e.Limits[service.IOWeight] = false
		h.enforces = &e
		h.open()
		h.register(web, `"limits": {"pids_max": 100}`)
		for _, running := range []bool{false, true} {
			if running {
				h.start(web)
			}
			_, err := h.SetLimits(t.Context(), web, limits(pids, 0), service.Warnings{}, false, "dora")
			refused(t, err, service.Invalid, "pids_max")
			_, err = h.SetLimits(t.Context(), web, limits(ioWeight, 10, pids, 50), service.Warnings{}, false, "dora")
			refused(t, err, service.Unenforceable, "io_weight")
			_, err = h.SetLimits(t.Context(), web, limits(memory, 1<<20, uint64(service.MemoryHigh), 2<<20), service.Warnings{}, false, "dora")
			refused(t, err, service.Invalid, "memory_high")
			require.Equal(t, service.Of(100), h.holds(web, service.PidsMax))
		}
		_, err := h.SetLimits(t.Context(), db, limits(pids, 50), service.Warnings{}, false, "dora")
		refused(t, err, service.NotFound)
		_, err = h.Limits(t.Context(), db)
		refused(t, err, service.NotFound, "cannot read limits of db")
	})
}

// The kernel refuses: nothing is kept.
func TestSetLimitsFails(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.fault = func(operation string, _ service.Ref) error {
			if operation == "limit" {
				return &service.Error{Op: "limit", Service: web, Kind: service.HostUnavailable}
			}
			return nil
		}
		h.open()
		h.register(web, `"limits": {"pids_max": 100}`)
		h.start(web)
		_, err := h.SetLimits(t.Context(), web, limits(pids, 50), service.Warnings{}, false, "dora")
		refused(t, err, service.HostUnavailable)
		require.Equal(t, service.Of(100), h.holds(web, service.PidsMax))
		h.stop(web)
		require.Equal(t, service.Of(100), h.holds(web, service.PidsMax))
	})
}

// What can not be enforced and was asked for as best effort is told.
func TestBestEffort(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		e := fake.Everything()
		e.Limits[service.IOWeight] = false
		h.enforces = &e
		h.open()
		h.register(web, `"limits": {"io_weight": 50, "best_effort": true}`)
		h.start(web)
		for range 2 { // after a restart of the agent too
			require.Equal(t, []service.Resource{service.IOWeight}, h.status(web).Applied.Unenforced())
			require.Len(t, h.doctor(), 1)
			require.Contains(t, h.doctor()[0], "web runs without its limit io_weight: The host can not enforce it")
			h.reopen()
			h.is(web, service.Running)
		}
		applied := h.setLimits(web, limits(ioWeight, 20, pids, 9))
		require.Equal(t, service.LimitReport{Requested: service.Of(20)}, applied[service.IOWeight])
		require.Equal(t, service.Of(9), applied[service.PidsMax].Applied)
		read, err := h.Limits(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, service.LimitReport{Requested: service.Of(20)}, read[service.IOWeight])
	})
}

func TestUsage(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"limits": {"memory_max": "100MiB", "memory_warning_percent": 50}`)
		h.host.Script(web, fake.Script{Children: 2, Usage: func(age time.Duration) service.Usage {
			return service.Usage{Source: "cgroup", CPUTime: age / 2, Memory: uint64(age.Seconds()) << 20}
		}})
		_, _, err := h.Usage(t.Context(), web)
		refused(t, err, service.NotRunning)
		processes, err := h.Processes(t.Context(), web)
		require.NoError(t, err)
		require.Empty(t, processes)
		_, err = h.Processes(t.Context(), db)
		refused(t, err, service.NotFound)

		pid := h.start(web).PID()
		pass(10 * time.Second)
		u, at, err := h.Usage(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, time.Now(), at)
		require.InDelta(t, 50, u.CPUPercent, 0.1)
		require.Equal(t, service.Of(3), u.Pids)
		processes, err = h.Processes(t.Context(), web)
		require.NoError(t, err)
		require.Len(t, processes, 3)
		require.Equal(t, pid, processes[0].PID)
		require.Empty(t, h.reasons(web, service.NoticeViolation))

		pass(100 * time.Second)
		require.Equal(t, []string{"memory-warning"}, h.reasons(web, service.NoticeViolation), "told once")
		require.NotZero(t, h.status(web).Violations[service.MemoryWarning])
	})
}

// A start that is refused changes nothing of what runs.
func TestWarningLevelsOfARefusedStart(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		require.Equal(t, service.Warnings{Memory: 80, CPU: 80}, h.status(web).Warnings)
		_, err := h.Start(t.Context(), web, service.StartOptions{Warnings: service.Warnings{Memory: 1}})
		refused(t, err, service.AlreadyRunning)
		require.Equal(t, service.Warnings{Memory: 80, CPU: 80}, h.status(web).Warnings)
		_, err = h.SetLimits(t.Context(), web, service.Limits{}, service.Warnings{CPU: 90}, false, "dora")
		require.NoError(t, err)
		h.reopen()
		require.Equal(t, service.Warnings{Memory: 80, CPU: 90}, h.status(web).Warnings)
	})
}

// What was seen of an incarnation is not kept once it has begun to end, since
// nothing would correct it before the next start.
func TestWhatWasSeenBeforeAnEnd(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"limits": {"memory_max": "100MiB"}`)
		h.host.Script(web, fake.Script{Stubborn: true})
		seen := h.start(web)
		incarnation := seen.Machine.Incarnation
		well, much := service.Health{Status: service.Healthy}, byggvir.News{Service: web, Incarnation: incarnation, Violation: service.MemoryWarning, Began: time.Now()}
		stop := later(func() error { _, err := h.Stop(t.Context(), web, service.StopOptions{}); return err })
		require.Equal(t, service.Stopping, h.status(web).Machine.State)
		told := h.Sequence()
		h.keepLook(web, incarnation, well)
		require.Equal(t, service.HealthUnknown, h.status(web).Health.Status)
		require.Equal(t, told, h.Sequence())
		pass(time.Minute)
		require.NoError(t, <-stop)
		h.is(web, service.Stopped)

		h.keepLook(web, incarnation, well)
		h.tellViolation(much)
		h.keepApplied(web, seen.Applied, seen.Applied)
		require.Equal(t, service.HealthUnknown, h.status(web).Health.Status)
		require.Zero(t, h.status(web).Violations)
		require.Zero(t, h.status(web).Applied)
		h.start(web)
		told = h.Sequence()
		h.tellViolation(much)
		require.Zero(t, h.status(web).Violations, "it was another that used so much")
		require.Equal(t, told, h.Sequence())
	})
}

// An incarnation begins without the warnings of the one that it follows at once.
func TestWarningsEndWithTheIncarnation(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"limits": {"memory_max": "100MiB"}`)
		h.tellViolation(byggvir.News{Service: web, Incarnation: h.start(web).Machine.Incarnation, Violation: service.MemoryWarning, Began: time.Now()})
		require.NotZero(t, h.status(web).Violations[service.MemoryWarning])
		_, err := h.Restart(t.Context(), web, service.StopOptions{})
		require.NoError(t, err)
		require.Zero(t, h.status(web).Violations)
	})
}

// A change is held against what the service was started with, and what it comes back with.
func TestAChangeKnowsTheOptionsOfTheStart(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"limits": {"memory_max": "512MiB"}`)
		_, err := h.Start(t.Context(), web, service.StartOptions{Actor: "alice", Limits: service.Limits{service.MemoryMax: service.Of(64 << 20)}})
		require.NoError(t, err)
		_, err = h.SetLimits(t.Context(), web, service.Limits{service.MemoryHigh: service.Of(100 << 20)}, service.Warnings{}, false, "alice")
		refused(t, err, service.Invalid, "100MiB is above memory_max, 64MiB")
		h.crash(web)
		h.is(web, service.Backoff)
		applied, err := h.Limits(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, service.Of(64<<20), applied[service.MemoryMax].Requested)
		h.stop(web)
		applied, err = h.Limits(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, service.Of(512<<20), applied[service.MemoryMax].Requested)
	})
}

// What is missing is told to who runs without a limit, too: a host may have cgroup v2
// and not this.
func TestBestEffortSaysWhatIsMissing(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		e := fake.Everything()
		e.Limits[service.IOWeight], e.Why[service.IOWeight] = false, "the controller io ends in /, which does not pass it on"
		h.enforces = &e
		h.open()
		h.register(web, `"limits": {"io_weight": 50, "best_effort": true}`)
		h.start(web)
		require.Contains(t, h.doctor(), "web runs without its limit io_weight: The definition says best_effort: the controller io ends in /, which does not pass it on.")
		elsewhere := h.without(h.status(web), service.IOMax)
		require.Contains(t, elsewhere.Detail, "has not got what it names", "as a disk that is gone")
		require.Contains(t, elsewhere.Fix, "gladsheim limits web")
	})
}

// A service that does not run, or is frozen, is not well, whatever its last check said:
// that it is not checked any more comes later than its state.
func TestHealthOfWhatIsNotChecked(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, unanswered)
		h.start(web)
		synctest.Wait()
		health := func() service.Health {
			health, err := h.CheckHealth(t.Context(), web)
			require.NoError(t, err)
			return health
		}
		h.judge(web, service.Healthy)
		require.Equal(t, service.Healthy, health().Status)
		_, err := h.Freeze(t.Context(), web, "alice")
		require.NoError(t, err)
		h.judge(web, service.Healthy)
		require.Equal(t, service.Health{Strategy: service.CheckTCP, Message: "it is frozen"}, health())
		h.stop(web)
		h.judge(web, service.Healthy)
		require.Equal(t, service.Health{Strategy: service.CheckTCP, Message: "it does not run"}, health())
	})
}
