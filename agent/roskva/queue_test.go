package roskva

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

var web = service.MustName("web")

var errIll = errors.New("ill")

// asks is an exec check, every second.
func asks() service.Check {
	return service.Check{Type: service.CheckExec, Interval: time.Second, Timeout: time.Second, Threshold: 2, SuccessThreshold: 1}
}

// saying answers by turns, and the last word for ever.
func saying(words ...error) Exec {
	var said atomic.Int32
	return func(context.Context, []string) error {
		return words[min(int(said.Add(1)), len(words))-1]
	}
}

// statuses collects what is reported.
func statuses(seen *[]service.HealthStatus) Reporter {
	return func(_ service.Name, h service.Health) { *seen = append(*seen, h.Status) }
}

func TestSuccessesInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []service.HealthStatus
		r := newRoskva(t, statuses(&seen))
		check := asks()
		check.SuccessThreshold = 2
		leave := r.Attend(web, check, saying(nil, errIll, nil, nil, errIll, errIll, nil, nil), noExcuse, func() {})
		time.Sleep(7*time.Second + 1)
		synctest.Wait()
		leave("it does not run")
		const ill, well, checking = service.Ill, service.Healthy, service.Checking
		require.Equal(t, []service.HealthStatus{checking, checking, checking, checking, well, well, ill, ill, well, service.HealthUnknown}, seen)
	})
}

// In the start period failures do not count, until it has been healthy once.
func TestStartPeriod(t *testing.T) {
	for name, tt := range map[string]struct {
		says []error
		ill  time.Duration // after which it is unhealthy
	}{
		"never well":     {[]error{errIll}, 6 * time.Second},
		"well, then ill": {[]error{errIll, nil, errIll}, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, ill := time.Now(), make(chan time.Duration, 1)
				check := asks()
				check.StartPeriod = 5 * time.Second
				leave := newRoskva(t, nil).Attend(web, check, saying(tt.says...), noExcuse, func() { ill <- time.Since(began) })
				defer leave("")
				require.Equal(t, tt.ill, <-ill)
			})
		})
	}
}

// Many that are due at once take turns, and none is forgotten.
func TestNoMoreThanSoManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most, all atomic.Int32
		r := newRoskva(t, nil)
		exec := func(context.Context, []string) error {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer now.Add(-1)
			all.Add(1)
			time.Sleep(100 * time.Millisecond)
			return nil
		}
		const many = 1000
		for n := range many {
			defer r.Attend(service.MustName(fmt.Sprintf("web-%d", n)), asks(), exec, noExcuse, func() {})("")
		}
		time.Sleep(450 * time.Millisecond)
		synctest.Wait()
		require.EqualValues(t, atOnce, most.Load())
		require.EqualValues(t, many, all.Load())
	})
}

// Those who wait for their next check have no goroutine.
func TestIdleCostsNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoskva(t, nil)
		before := runtime.NumGoroutine()
		for n := range 100 {
			defer r.Attend(service.MustName(fmt.Sprintf("web-%d", n)), asks(), saying(nil), noExcuse, func() {})("")
		}
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		require.LessOrEqual(t, runtime.NumGoroutine(), before) // those of a test before may go meanwhile
	})
}

// A check that takes too long is ended, not only given up.
func TestTooLongIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []service.HealthStatus
		var ended atomic.Int32
		r := newRoskva(t, statuses(&seen))
		leave := r.Attend(web, asks(), func(ctx context.Context, _ []string) error {
			<-ctx.Done()
			ended.Add(1)
			return ctx.Err()
		}, noExcuse, func() {})
		time.Sleep(3*time.Second + 1) // 0..1, 2..3
		synctest.Wait()
		require.EqualValues(t, 2, ended.Load())
		leave("")
		require.Equal(t, []service.HealthStatus{service.Checking, service.Checking, service.CheckTimedOut, service.HealthUnknown}, seen)
	})
}

func TestLeavingEndsACheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoskva(t, nil)
		ended := make(chan struct{})
		leave := r.Attend(web, asks(), func(ctx context.Context, _ []string) error {
			<-ctx.Done()
			close(ended)
			return ctx.Err()
		}, noExcuse, func() { t.Error("unhealthy") })
		synctest.Wait()
		leave("")
		<-ended
	})
}

func TestNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoskva(t, nil)
		_, known, err := r.Now(t.Context(), web)
		require.NoError(t, err)
		require.False(t, known)
		check, began := asks(), time.Now()
		check.Interval, check.Timeout = time.Hour, time.Minute
		leave := r.Attend(web, check, func(context.Context, []string) error { time.Sleep(time.Second); return errIll }, noExcuse, func() {})
		time.Sleep(500 * time.Millisecond)
		health, known, err := r.Now(t.Context(), web) // the first is under way
		require.NoError(t, err)
		require.True(t, known)
		require.Equal(t, 1, health.Failures)
		require.Equal(t, time.Second, time.Since(began))
		time.Sleep(time.Minute)
		health, _, err = r.Now(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, "ill", health.Message)
		require.Equal(t, 1, health.Failures, "who asks does not make it ill the sooner")
		require.Equal(t, 62*time.Second, time.Since(began))
		require.Equal(t, began.Add(time.Hour+time.Second), health.NextCheck)

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, _, err = r.Now(ctx, web)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		left := make(chan bool)
		go func() {
			_, known, _ := r.Now(t.Context(), web)
			left <- known
		}()
		synctest.Wait()
		leave("")
		require.False(t, <-left, "it is checked no more")
	})
}

// Whoever wants to know now, and waits for a turn, does not wait for longer because the
// battery runs low.
func TestNowIsNotSlowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, began := newRoskva(t, nil), time.Now()
		check := asks()
		check.Interval, check.Timeout = time.Hour, time.Minute
		defer r.Attend(web, check, saying(nil), noExcuse, func() {})("")
		synctest.Wait()
		for n := range atOnce { // they have all the turns, for a minute
			silent := func(ctx context.Context, _ []string) error { <-ctx.Done(); return ctx.Err() }
			defer r.Attend(service.MustName(fmt.Sprintf("silent-%d", n)), check, silent, noExcuse, func() {})("")
		}
		synctest.Wait()
		answer := make(chan service.Health)
		go func() {
			health, _, _ := r.Now(t.Context(), web)
			answer <- health
		}()
		synctest.Wait()
		r.Slow(4)
		require.Equal(t, began.Add(time.Minute+4*time.Hour), (<-answer).NextCheck)
	})
}

func TestChecksAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, began := newRoskva(t, nil), time.Now()
		require.Empty(t, r.Checks(web))
		check := asks()
		check.Threshold = 1000
		leave := r.Attend(web, check, saying(nil, errIll), noExcuse, func() {})
		time.Sleep(99*time.Second + 1)
		synctest.Wait()
		checks := r.Checks(web)
		require.Len(t, checks, kept)
		require.Equal(t, service.Probe{At: began.Add(36 * time.Second), Failed: true, Status: service.Healthy, Message: "ill"}, checks[0])
		require.Equal(t, began.Add(99*time.Second), checks[kept-1].At)
		leave("")
		require.Empty(t, r.Checks(web))
	})
}

// Checks are spread around their interval, and on average are as far apart as it says.
func TestSpread(t *testing.T) {
	var sum time.Duration
	const many = 10_000
	for range many {
		d := spread(time.Second)
		require.InDelta(t, time.Second, d, jitter*float64(time.Second))
		sum += d
	}
	require.InDelta(t, time.Second, sum/many, 0.01*float64(time.Second))
}

// Who is attended anew under the same name is another.
func TestTheNextIncarnation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []string
		r := newRoskva(t, func(_ service.Name, h service.Health) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, h.Message)
		})
		first := r.Attend(web, asks(), saying(errIll), noExcuse, func() {})
		synctest.Wait()
		second := r.Attend(web, asks(), saying(nil), noExcuse, func() {})
		synctest.Wait()
		first("it does not run")
		require.Len(t, r.Checks(web), 1)
		second("it does not run")
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, []string{"first check under way", "ill", "first check under way", "the check succeeded", "it does not run", "it does not run"}, told)
	})
}
