package agent

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// plug is how a house is powered.
type plug struct {
	news chan struct{}

	mu  sync.Mutex
	now service.Power
	err error
}

func (p *plug) Read() (service.Power, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now, p.err
}

func (p *plug) News() <-chan struct{} { return p.news }

// is changes it without a word.
func (p *plug) is(now service.Power, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now, p.err = now, err
}

// unplugged and plugged change how the house is powered, and tell.
func (h *house) unplugged(percent float64) {
	h.power.is(service.Power{Battery: true, Draining: true, Percent: percent}, nil)
	h.power.news <- struct{}{}
	synctest.Wait()
}

func (h *house) plugged(percent float64) {
	h.power.is(service.Power{Battery: true, Percent: percent}, nil)
	h.power.news <- struct{}{}
	synctest.Wait()
}

// settle lets the host be on AC for long enough.
func settle() { pass(10 * time.Second) }

// battery runs f in a house that saves its battery, with services of all classes.
func battery(t *testing.T, f func(*testing.T, *house)) {
	t.Helper()
	inside(t, func(t *testing.T, h *house) {
		h.settings.StopServicesBelow, h.settings.ReduceMonitoringBelow = 15, 30
		for name, keys := range hall {
			h.define(name, keys)
		}
		f(t, h)
	})
}

var (
	core, mail, feed, sync1 = service.MustName("core"), service.MustName("mail"), service.MustName("feed"), service.MustName("sync")

	hall = map[service.Name]string{
		core: `"power": "essential", "priority": 0`, web: `"priority": 600`, mail: `"priority": 400`, feed: `"power": "deferrable"`,
		sync1: `"power": "deferrable", "priority": 900`,
	}
	sacrificed = []service.Name{feed, sync1, mail, web}
)

func (h *house) startAll() {
	h.t.Helper()
	for name := range hall {
		h.start(name)
	}
}

// cameTo are the services that came to a state after a notice, in their order.
func (h *house) cameTo(after uint64, state service.State) (names []service.Name) {
	for _, n := range h.Kept(after) {
		if n.Kind == service.NoticeState && n.State == state && n.Reason != "restored" {
			names = append(names, n.Service)
		}
	}
	return names
}

func TestLowBatteryStopsAndAcBringsBack(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.open()
		h.startAll()
		h.unplugged(30)
		require.Equal(t, service.PowerFull, h.PowerLevel())
		h.unplugged(29)
		require.Equal(t, service.PowerReduced, h.PowerLevel())
		h.is(feed, service.Running)

		before := h.Sequence()
		h.unplugged(14)
		require.Equal(t, service.PowerLow, h.PowerLevel())
		require.Equal(t, sacrificed, h.cameTo(before, service.Held), "one after another, in this order")
		h.is(core, service.Running)
		s := h.status(web)
		require.Equal(t, service.PublicStopped, s.Machine.Public())
		require.Equal(t, "stopped to save the battery; it starts again on AC", s.Error)
		require.Equal(t, service.VerdictStopped, s.LastExit.Verdict)
		require.Equal(t, holder, s.LastExit.RequestedBy)
		require.Zero(t, s.Machine.Restarts)
		require.Zero(t, s.Machine.Failures)
		require.Contains(t, h.doctor()[0], "the battery is saved: the host is on battery, 14%: Health checks and looks at what services use are 4 times as far apart. These services are stopped, and start again on AC: feed, mail, sync, web.")

		before = h.Sequence()
		h.plugged(14)
		pass(9 * time.Second)
		require.Empty(t, h.cameTo(before, service.Running), "it may be a loose plug")
		pass(time.Second)
		backward := slices.Clone(sacrificed)
		slices.Reverse(backward)
		require.Equal(t, backward, h.cameTo(before, service.Running))
		require.EqualValues(t, 0, h.status(web).Machine.Restarts)
		require.Equal(t, resumer, h.status(web).LastActor)
		require.Empty(t, h.status(web).Error)
		var told []string
		for _, n := range h.Kept(0) {
			if n.Kind == service.NoticePower {
				require.True(t, n.Service.IsZero())
				told = append(told, n.Reason)
			}
		}
		require.Equal(t, []string{"reduced", "low", "full"}, told)
		require.Empty(t, h.doctor())
	})
}

// Above the threshold by five percent is above it, also on battery.
func TestChargeBringsBack(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.open()
		h.startAll()
		h.unplugged(10)
		h.unplugged(20)
		h.is(web, service.Held)
		h.unplugged(20.5)
		h.is(web, service.Running)
		require.Equal(t, service.PowerReduced, h.PowerLevel())
	})
}

func TestHostsWithoutABatteryNeverTrip(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.settings.StopServicesBelow = 100
		h.open()
		h.startAll()
		for _, p := range []service.Power{{}, {Draining: true}, {Battery: true, Percent: 1}} {
			h.power.is(p, nil)
			h.power.news <- struct{}{}
			synctest.Wait()
			require.Equal(t, service.PowerFull, h.PowerLevel())
		}
		h.is(web, service.Running)
	})
}

// What somebody starts while the battery is low runs on, also under the next agent,
// until it is low the next time.
func TestTheUsersWishCounts(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.open()
		h.startAll()
		h.unplugged(10)
		h.start(web)
		h.stop(mail)
		h.unplugged(5)
		h.is(web, service.Running)
		h.reopen()
		pass(time.Minute)
		h.is(web, service.Running)
		h.is(mail, service.Stopped)
		h.is(feed, service.Held)
		require.Equal(t, "stopped to save the battery; it starts again on AC", h.status(feed).Error)
		h.plugged(5)
		settle()
		h.is(feed, service.Running)
		h.is(mail, service.Stopped)
		h.unplugged(5)
		h.is(web, service.Held)
	})
}

// What is held comes back under the next agent, and after a reboot.
func TestHeldOutlivesTheAgent(t *testing.T) {
	for name, between := range map[string]func(*house){
		"agent": func(h *house) { h.close() },
		"boot":  func(h *house) { h.reboot() },
	} {
		t.Run(name, func(t *testing.T) {
			battery(t, func(t *testing.T, h *house) {
				h.open()
				h.startAll()
				h.unplugged(10)
				between(h)
				h.open()
				pass(time.Minute)
				for _, s := range sacrificed {
					h.is(s, service.Held)
				}
				h.is(core, service.Running)
				between(h)
				h.power.is(service.Power{Battery: true, Percent: 11}, nil)
				h.open()
				settle()
				for s := range hall {
					h.is(s, service.Running)
				}
			})
		})
	}
}

// With the run directory lost it is still known that they are to come back.
func TestHeldOutlivesTheRunDirectory(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.open()
		h.startAll()
		h.unplugged(10)
		h.close()
		require.NoError(t, os.RemoveAll(h.path("run")))
		h.open()
		pass(time.Minute)
		h.is(web, service.Held)
		h.is(core, service.Running)
		require.Equal(t, 1, h.host.Launches(web))
		h.plugged(10)
		settle()
		h.is(web, service.Running)
		require.EqualValues(t, 2, h.status(web).Machine.Incarnation)
	})
}

// A boot with a low battery starts the essential alone; what is stopped meanwhile is
// not started when it is over.
func TestBootWithALowBattery(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		for name, keys := range hall {
			h.define(name, keys, `"autostart": true`)
		}
		h.power.is(service.Power{Battery: true, Draining: true, Percent: 3}, nil)
		h.open()
		h.is(core, service.Running)
		h.is(web, service.Held)
		require.Zero(t, h.host.Launches(web))
		h.stop(mail)
		h.reopen()
		h.is(mail, service.Stopped)
		h.is(web, service.Held)
		h.plugged(3)
		settle()
		h.is(web, service.Running)
		h.is(mail, service.Stopped)
	})
}

// An agent that dies before it has stopped all has the next one go on.
func TestHoldingGoesOn(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.host.Script(feed, fake.Script{Stubborn: true})
		h.open()
		h.startAll()
		h.unplugged(10)
		h.is(feed, service.Stopping)
		h.is(web, service.Running)
		h.reopen()
		pass(time.Minute)
		for _, s := range sacrificed {
			h.is(s, service.Held)
		}
	})
}

// When mains are back before all are stopped, the rest runs on.
func TestMainsAreBackMeanwhile(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.host.Script(feed, fake.Script{Stubborn: true})
		h.open()
		h.startAll()
		h.unplugged(10)
		h.unplugged(40)
		pass(time.Minute)
		require.Equal(t, 1, h.host.Launches(web))
		require.Equal(t, 2, h.host.Launches(feed))
		h.is(feed, service.Running)
	})
}

// One that takes its time to end keeps the others neither from being stopped nor from
// coming back, and comes back itself when it has ended at last.
func TestASlowEndKeepsNobody(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.define(feed, hall[feed], `"stop": {"timeout": "10m"}`)
		h.host.Script(feed, fake.Script{Stubborn: true})
		h.open()
		h.startAll()
		h.unplugged(10)
		h.is(web, service.Running)
		pass(time.Minute)
		h.is(feed, service.Stopping)
		h.is(web, service.Held)
		h.plugged(10)
		settle()
		h.is(web, service.Running)
		h.is(feed, service.Stopping)
		pass(10 * time.Minute)
		h.is(feed, service.Running)
		require.NotContains(t, h.log.String(), "can not be stopped")
	})
}

// One that waits for its next attempt gets none while the battery is low.
func TestNoAttemptsOnALowBattery(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.open()
		h.start(web)
		h.crash(web)
		h.is(web, service.Backoff)
		h.unplugged(10)
		pass(time.Hour)
		h.is(web, service.Held)
		require.Equal(t, 1, h.host.Launches(web))
		h.plugged(10)
		settle()
		h.is(web, service.Running)
	})
}

// One that can not be brought back says why, and is tried again the next time.
func TestWhatCanNotComeBack(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.open()
		h.start(web)
		h.unplugged(10)
		h.define(web, `"limits": {"cpu_percent": 250}`)
		h.reload()
		h.plugged(10)
		settle()
		h.is(web, service.Held)
		require.Contains(t, h.status(web).Error, "stopped to save the battery, and could not be started again: ")
		require.Contains(t, h.status(web).Error, "250% is more than this host has")
		h.define(web)
		h.reload()
		h.unplugged(10)
		h.plugged(10)
		settle()
		h.is(web, service.Running)
	})
}

func TestPowerThatCanNotBeRead(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.open()
		h.power.is(service.Power{Battery: true, Draining: true, Percent: 80}, errors.New("BAT1: input/output error"))
		info, err := h.Host(t.Context())
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, service.PowerInfo{
			Power: service.Power{Battery: true, Draining: true, Percent: 80}, StopBelow: 15, ReduceBelow: 30,
		}, info.Power)
		require.Contains(t, h.doctor()[0], "a power supply can not be read: BAT1: input/output error")
		require.Contains(t, h.log.String(), "BAT1: input/output error")
	})
}

// Where a driver tells nothing, whoever asks for the host has it looked at.
func TestSilentDriver(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.open()
		h.startAll()
		h.power.is(service.Power{Battery: true, Draining: true, Percent: 5}, nil)
		pass(time.Hour)
		h.is(web, service.Running)
		_, err := h.Host(t.Context())
		require.NoError(t, err)
		synctest.Wait()
		h.is(web, service.Held)
	})
}

// A threshold that is changed counts at once.
func TestReloadOfThresholds(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.open()
		h.startAll()
		h.unplugged(40)
		h.settings.StopServicesBelow = 50
		h.reload()
		h.is(web, service.Held)
		h.settings.StopServicesBelow = 0
		h.reload()
		h.is(web, service.Running)
	})
}

// A service whose definition goes while it is held is not forgotten.
func TestHeldWithoutADefinition(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.open()
		h.start(web)
		h.unplugged(10)
		h.remove("services.d/web.json")
		h.reload()
		h.is(web, service.Held)
		require.Equal(t, sourceGone, h.status(web).Source)
		h.plugged(10)
		settle()
		h.is(web, service.Running)
	})
}

// On a low battery places go to those that are started, then to those that wait, each by
// their priority.
func TestPlacesOnALowBattery(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.settings.MaxServices = 2
		for name, keys := range hall { // core, which is essential, has the lowest priority
			h.define(name, keys, `"autostart": true`)
		}
		h.power.is(service.Power{Battery: true, Draining: true, Percent: 3}, nil)
		h.open()
		h.is(core, service.Running)
		h.is(sync1, service.Held)
		for _, name := range []service.Name{web, mail, feed} {
			h.is(name, service.Stopped)
			require.Contains(t, h.status(name).Error, "max_services")
		}
	})
}

// hesitant is a backend before which something happens when a launch is planned.
type hesitant struct {
	*fake.Backend
	armed  atomic.Bool
	before func()
}

func (b *hesitant) Enforces() service.Enforcement {
	if b.armed.CompareAndSwap(true, false) {
		b.before()
	}
	return b.Backend.Enforces()
}

// A battery that becomes low between the look at it and the start has the service held
// all the same.
func TestTheBatteryIsLowMeanwhile(t *testing.T) {
	battery(t, func(t *testing.T, h *house) {
		h.define(web, hall[web], `"autostart": true`)
		b := &hesitant{Backend: fake.New(fake.Config{Host: h.host}), before: func() {
			h.power.is(service.Power{Battery: true, Draining: true, Percent: 10}, nil)
			h.power.news <- struct{}{}
			time.Sleep(time.Second) // until that is seen
		}}
		h.backends = []backends.Backend{b}
		b.armed.Store(true)
		h.open()
		pass(2 * time.Second)
		require.Equal(t, service.PowerLow, h.PowerLevel())
		h.is(web, service.Held)
		h.plugged(10)
		settle()
		h.is(web, service.Running)
	})
}
