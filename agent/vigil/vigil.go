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
	mu    sync.Mutex
	timer *time.Timer
	left  time.Duration // after the present part
	due   time.Time     // when the present part is over
	slept time.Duration // by parts that were late by more than a part; less is a busy host
	ended bool
	end   context.CancelCauseFunc
}

// Keep is context.WithTimeout for the time in which we are awake. It passes in
// parts, each of which counts for itself alone, however late we see that it is over. What
// is over within the first costs one timer. The cause of a context whose time is over is
// context.DeadlineExceeded.
func Keep(parent context.Context, timeout time.Duration) (context.Context, *Vigil) {
	ctx, end := context.WithCancelCause(parent)
	v := &Vigil{left: timeout, end: end}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.timer = time.AfterFunc(timeout, v.over)
	v.begin()
	return ctx, v
}

// begin begins the next part. The caller holds mu.
func (v *Vigil) begin() {
	now := min(v.left, part)
	v.left -= now
	v.due = time.Now().Add(now)
	v.timer.Reset(now)
}

// wake counts how late we are for the end of the present part. The caller holds mu.
func (v *Vigil) wake() {
	if late := time.Since(v.due); late > part {
		v.slept += late
	}
}

func (v *Vigil) over() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return
	}
	v.wake()
	if v.left > 0 {
		v.begin()
		return
	}
	v.ended = true
	v.end(context.DeadlineExceeded)
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
	v.end(nil)
	return v.slept
}
