// Package vigil bounds the time that others have by the time in which this process is awake:
// however long it was stopped, frozen or without a processor, that counts as a moment.
package vigil

import (
	"context"
	"sync"
	"time"
)

// part is the most of the time that one sleep of ours can use up.
const part = 250 * time.Millisecond

// Vigil tells our own sleep from another's. Its methods may be called by many goroutines
// at once.
type Vigil struct {
	over func()
	end  context.CancelCauseFunc // of Keep's context, nil for none

	mu    sync.Mutex
	timer *time.Timer
	left  time.Duration // after the present part
	due   time.Time     // when the present part is over
	slept time.Duration // by parts that were late by more than a part; less is a busy host
	ended bool
}

// Keep is context.WithTimeout for the time in which we are awake. It passes in
// parts, each of which counts for itself alone, however late we see that it is over. What
// is over within the first costs one timer. The cause of a context whose time is over is
// context.DeadlineExceeded.
func Keep(parent context.Context, timeout time.Duration) (context.Context, *Vigil) {
	ctx, end := context.WithCancelCause(parent)
	v := &Vigil{over: func() { end(context.DeadlineExceeded) }, end: end}
	v.begin(timeout)
	return ctx, v
}

// Begin is time.AfterFunc for the time in which we are awake, as Keep counts it. over is
// called once at most, and may still run after Leave.
func Begin(timeout time.Duration, over func()) *Vigil {
	v := &Vigil{over: over}
	v.begin(timeout)
	return v
}

func (v *Vigil) begin(timeout time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.left = timeout
	v.timer = time.AfterFunc(v.next(), v.tick)
}

// next begins the next part, and tells how long that is. The caller holds mu.
func (v *Vigil) next() time.Duration {
	now := min(v.left, part)
	v.left -= now
	v.due = time.Now().Add(now)
	return now
}

// wake counts how late we are for the end of the present part. The caller holds mu.
func (v *Vigil) wake() {
	if late := time.Since(v.due); late > part {
		v.slept += late
	}
}

func (v *Vigil) tick() {
	if v.passed() {
		v.over()
	}
}

// passed begins the next part, or tells that the time is over.
func (v *Vigil) passed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return false
	}
	v.wake()
	if v.left > 0 {
		v.timer.Reset(v.next())
		return false
	}
	v.ended = true
	return true
}

// Leave ends the context, if its time is not over, and tells how long we slept.
func (v *Vigil) Leave() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.ended {
		v.wake()
	}
	v.timer.Stop()
	v.ended = true
	if v.end != nil {
		v.end(nil)
	}
	return v.slept
}
