package roskva

import (
	"context"
	"sync"
	"time"
)

// part is the most of its time that a question loses by one sleep of ours.
const part = 250 * time.Millisecond

// vigil tells our own sleep from a service's. We sleep when this process is
// stopped, frozen or without a processor.
type vigil struct {
	mu    sync.Mutex
	timer *time.Timer
	left  time.Duration // after the present part
	due   time.Time     // when the present part is over
	slept time.Duration // by parts that were late by more than a part; less is a busy host
	ended bool
	end   context.CancelCauseFunc
}

// awake is context.WithTimeout for the time in which we are awake. It passes in
// parts, each of which counts for itself alone, however late we see that it is over.
// A question that is answered within the first costs one timer.
func awake(parent context.Context, timeout time.Duration) (context.Context, *vigil) {
	ctx, end := context.WithCancelCause(parent)
	v := &vigil{left: timeout, end: end}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.timer = time.AfterFunc(timeout, v.over)
	v.begin()
	return ctx, v
}

// begin begins the next part. The caller holds mu.
func (v *vigil) begin() {
	now := min(v.left, part)
	v.left -= now
	v.due = time.Now().Add(now)
	v.timer.Reset(now)
}

// wake counts how late we are for the end of the present part. The caller holds mu.
func (v *vigil) wake() {
	if late := time.Since(v.due); late > part {
		v.slept += late
	}
}

func (v *vigil) over() {
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

// leave ends the context, if its time is not over, and tells how long we slept.
func (v *vigil) leave() time.Duration {
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
