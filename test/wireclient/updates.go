package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/test/wireclient/oldpb"
)

// updates is a health subscription that is read, and checked, all the time the story
// goes on.
type updates struct {
	mu    sync.Mutex
	last  oldpb.HealthStatus
	count int
	err   error // what was wrong first
}

// subscribe reads the health of the service until ctx ends.
func subscribe(ctx context.Context, agent oldpb.GladsheimServiceClient, name string) *updates {
	u := &updates{}
	go func() {
		stream, err := agent.SubscribeServiceHealth(ctx, &oldpb.HealthSubscribeRequest{
			ServiceName:      name,
			UpdateIntervalMs: proto.Uint32(uint32(beat.Milliseconds())),
		})
		for err == nil {
			var update *oldpb.HealthUpdate
			if update, err = stream.Recv(); err == nil {
				err = u.note(update, name)
			}
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.err = fmt.Errorf("the subscription ended: %w", err)
	}()
	return u
}

// note takes an update, which must be about the service, of now, and have
// state_changed exactly if its status differs from that of the update before.
func (u *updates) note(update *oldpb.HealthUpdate, name string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	is, was := update.GetHealth().GetStatus(), u.last
	changed := u.count > 0 && is != was
	u.last = is
	u.count++
	return errors.Join(
		want(update.GetHealth().GetServiceName() == name, "update %d is about %q", u.count, update.GetHealth().GetServiceName()),
		want(update.GetStateChanged() == changed, "state_changed is %t in update %d, from %s to %s", update.GetStateChanged(), u.count, was, is),
		wantTime("update_time_unix", update.GetUpdateTimeUnix(), time.Now().Add(-slack)),
	)
}

// reach waits until the latest update has the status.
func (u *updates) reach(ctx context.Context, status oldpb.HealthStatus) error {
	return u.wait(ctx, func() bool { return u.count > 0 && u.last == status }, "an update to "+status.String())
}

// more waits for n updates more.
func (u *updates) more(ctx context.Context, n int) error {
	u.mu.Lock()
	enough := u.count + n
	u.mu.Unlock()
	return u.wait(ctx, func() bool { return u.count >= enough }, "more updates")
}

func (u *updates) wait(ctx context.Context, done func() bool, what string) error {
	for {
		u.mu.Lock()
		ok, err, last, count := done(), u.err, u.last, u.count
		u.mu.Unlock()
		if ok || err != nil {
			return err
		}
		if !pause(ctx) {
			return fmt.Errorf("waited in vain for %s; %d came, the last with %s", what, count, last)
		}
	}
}
