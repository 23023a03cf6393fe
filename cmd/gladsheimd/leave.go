package main

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/gladsheim/gladsheim/agent"
	"github.com/gladsheim/gladsheim/api"
)

// leaveTime is how long calls under way may take once the agent has to leave.
const leaveTime = 5 * time.Second

// leave begins nothing any more, and lets calls under way come to their end.
func leave(a *agent.Agent, server *api.Server) {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	a.Leave()
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	server.Stop(ctx)
}
