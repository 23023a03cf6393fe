package roskva

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// dog is a service with a watchdog, in a bubble.
type dog struct {
	*testing.T
	*Roskva
	latest atomic.Pointer[service.Health]
	ill    atomic.Int32
	excuse atomic.Pointer[error] // of its silence
	leave  func(string)
}

func watchdogTest(t *testing.T, f func(*dog)) {
	synctest.Test(t, func(t *testing.T) {
		d := &dog{T: t}
		d.Roskva = New(func(_ service.Name, h service.Health) { d.latest.Store(&h) })
		defer d.Close()
		check := service.Defaults().Health
		check.Type, check.Interval = service.CheckWatchdog, 10*time.Second
		excuse := func() error {
			if why := d.excuse.Load(); why != nil {
				return *why
			}
			return nil
		}
		d.leave = d.Attend(web, check, nil, excuse, func() { d.ill.Add(1) })
		defer d.leave("it is over")
		f(d)
	})
}

func (d *dog) pass(t time.Duration) {
	time.Sleep(t)
	synctest.Wait()
}

func TestWatchdogIsFed(t *testing.T) {
	watchdogTest(t, func(d *dog) {
		require.Equal(t, service.Checking, d.latest.Load().Status)
		for range 5 {
			d.pass(9 * time.Second)
			d.Beat(web)
			require.Equal(t, service.Healthy, d.latest.Load().Status)
			require.Equal(t, time.Now().Add(10*time.Second), d.latest.Load().NextCheck)
		}
		require.Len(t, d.Checks(web), 1, "beats are no history")
		d.pass(10 * time.Second)
		d.Beat(web) // at the very last moment, so that it was on its way
		d.pass(9 * time.Second)
		require.Zero(t, d.ill.Load())
		require.Equal(t, service.Healthy, d.latest.Load().Status)
	})
}

func TestWatchdogThatIsNotFed(t *testing.T) {
	watchdogTest(t, func(d *dog) {
		d.Beat(web)
		d.pass(10*time.Second + onItsWay - 1)
		require.Zero(t, d.ill.Load())
		d.pass(1)
		require.EqualValues(t, 1, d.ill.Load(), "once is enough")
		require.Equal(t, service.Ill, d.latest.Load().Status)
		require.Equal(t, "it has not said WATCHDOG=1 within 10s", d.latest.Load().Message)
		d.pass(time.Minute)
		require.EqualValues(t, 1, d.ill.Load(), "and is told once")
		d.Beat(web)
		require.Equal(t, service.Healthy, d.latest.Load().Status)
	})
	watchdogTest(t, func(d *dog) {
		d.pass(time.Minute)
		require.EqualValues(t, 1, d.ill.Load(), "one that never says a word fails, too")
	})
}

func TestWatchdogTrigger(t *testing.T) {
	watchdogTest(t, func(d *dog) {
		d.Beat(web)
		d.Trigger(web)
		synctest.Wait()
		require.EqualValues(t, 1, d.ill.Load())
		require.Equal(t, "it said WATCHDOG=trigger", d.latest.Load().Message)
		d.Trigger(web)
		synctest.Wait()
		require.EqualValues(t, 1, d.ill.Load())
	})
}

// To look now, or more seldom, is no matter of a watchdog.
func TestWatchdogIsNotAsked(t *testing.T) {
	watchdogTest(t, func(d *dog) {
		d.Beat(web)
		d.Slow(10)
		h, known, err := d.Now(context.Background(), web)
		require.NoError(t, err)
		require.True(t, known)
		require.Equal(t, service.Healthy, h.Status)
		d.pass(9 * time.Second)
		require.Zero(t, d.ill.Load())
		d.pass(2 * time.Second)
		require.EqualValues(t, 1, d.ill.Load())
	})
}

// Who is kept from saying a word is not blamed for it.
func TestWatchdogOfTheExcused(t *testing.T) {
	watchdogTest(t, func(d *dog) {
		d.Beat(web)
		stopped := errors.New("dora has stopped it")
		d.excuse.Store(&stopped)
		d.pass(time.Minute)
		require.Zero(t, d.ill.Load())
		require.Equal(t, service.Checking, d.latest.Load().Status)
		require.Equal(t, "it is not judged: dora has stopped it", d.latest.Load().Message)
		d.excuse.Store(nil)
		d.pass(11 * time.Second)
		require.EqualValues(t, 1, d.ill.Load())
	})
}

// Nobody is blamed for a silence in which we slept.
func TestWatchdogOverASleepOfOurs(t *testing.T) {
	watchdogTest(t, func(d *dog) {
		d.Beat(web)
		d.mu.Lock()
		p := d.patients[web]
		unhealthy := d.hear(p, time.Now(), context.DeadlineExceeded, 5*time.Second)
		d.mu.Unlock()
		require.False(t, unhealthy)
		require.Equal(t, service.Healthy, d.latest.Load().Status)
		require.Contains(t, d.latest.Load().Message, "held up")
	})
}

func TestBeatsOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(func(service.Name, service.Health) {})
		defer r.Close()
		r.Beat(web)
		r.Trigger(web)
		leave := r.Attend(web, service.Check{Type: service.CheckProcess}, nil, noExcuse, func() { t.Error("unhealthy") })
		r.Beat(web)
		r.Trigger(web)
		leave("")
	})
}
