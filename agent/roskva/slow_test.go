package roskva

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Slow counts at once, in both directions, and what is told of the next check is true.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var last service.Health
		begin := time.Now()
		r := newRoskva(t, func(_ service.Name, h service.Health) {
			mu.Lock()
			defer mu.Unlock()
			last = h
		})
		due := func(checked, next time.Duration) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			require.Equal(t, checked, last.LastCheck.Sub(begin))
			require.Equal(t, next, last.NextCheck.Sub(begin))
		}
		check := service.Check{Type: service.CheckHTTP, URL: "gopher://nowhere", Interval: 5 * time.Second, Timeout: time.Second, Threshold: 100}
		leave := r.Attend(service.MustName("web"), check, nil, noExcuse, func() {})
		defer leave("")
		due(0, 5*time.Second)
		time.Sleep(5 * time.Second)
		due(5*time.Second, 10*time.Second)
		time.Sleep(2 * time.Second)
		r.Slow(4)
		due(5*time.Second, 25*time.Second)
		time.Sleep(18 * time.Second)
		due(25*time.Second, 45*time.Second)
		time.Sleep(10 * time.Second)
		r.Slow(1) // it would have been due by now
		due(35*time.Second, 40*time.Second)
		r.Slow(1)
		time.Sleep(5 * time.Second)
		due(40*time.Second, 45*time.Second)
	})
}
