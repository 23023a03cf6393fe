package agent

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/gladsheim/gladsheim/agent/service"
)

// How many services the policy restarts on a host at once, and how many a second after
// those.
const (
	turnsAtOnce    = 10
	turnsPerSecond = 10
)

// turns hands out turns to restart: those who ask first come first.
type turns struct {
	mu      sync.Mutex
	bucket  *rate.Limiter
	waiting map[service.Name]time.Time // when their turn comes, of those who have to wait
}

func newTurns() *turns {
	return &turns{bucket: rate.NewLimiter(turnsPerSecond, turnsAtOnce), waiting: map[service.Name]time.Time{}}
}

// take is how long a service has to wait before it asks again, 0 if it is its turn.
func (t *turns) take(name service.Name) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	turn, asked := t.waiting[name]
	if !asked {
		turn = now.Add(t.bucket.ReserveN(now, 1).DelayFrom(now))
	}
	if wait := turn.Sub(now); wait > 0 {
		t.waiting[name] = turn
		return wait
	}
	delete(t.waiting, name)
	return 0
}

// forget is for a service that does not ask again. What it had waited for is nobody's.
func (t *turns) forget(name service.Name) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, name)
}
