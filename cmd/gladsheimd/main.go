// Gladsheimd is the agent of one Linux host: it owns the life of its services.
// See docs/ and `gladsheimd -h`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/gladsheim/gladsheim/agent"
	"github.com/gladsheim/gladsheim/api"
	"github.com/gladsheim/gladsheim/backends/offer"
	"github.com/gladsheim/gladsheim/failpoint"
	"github.com/gladsheim/gladsheim/journal"
	"github.com/gladsheim/gladsheim/logfile"
	"github.com/gladsheim/gladsheim/platform"
	"github.com/gladsheim/gladsheim/platform/power"
	"github.com/gladsheim/gladsheim/platform/wallclock"
	"github.com/gladsheim/gladsheim/procfs"
)

// version is set by the linker.
var version = "unknown"

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	o, err := parseOptions(os.Args[1:], os.LookupEnv)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(exitUsage) // flag has said why
	case o.version:
		fmt.Println("gladsheimd", version)
		return
	}
	if err := serve(o, log); err != nil {
		fmt.Fprintln(os.Stderr, "gladsheimd:", err)
		os.Exit(exitCode(err))
	}
}

func serve(o options, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends us at once
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	facts := platform.Detect()
	profile, err := platform.Choose(o.platform, facts)
	if err != nil {
		return unfit{err}
	}
	proc, err := procfs.New("/proc")
	if err != nil {
		return unfit{err}
	}
	settings, configErr := o.settings(profile)
	runErr := api.MakeRunDir(o.runDir)
	host, hostErr := offer.Open(ctx, offer.Config{Backend: o.backend, Facts: facts, Procfs: proc, AgentID: o.agentID(), RunDir: o.runDir, Log: log})
	if hostErr == nil {
		defer host.Close()
	}
	if err := errors.Join(configErr, runErr); err != nil || hostErr != nil {
		return unready(err, hostErr)
	}
	if err := failpoint.Serve(o.runDir); err != nil {
		return err
	}
	logs, err := logfile.Open(o.logDir, log)
	if err != nil {
		return err
	}
	defer logs.Close()
	supply := power.Open("/sys", log)
	defer supply.Close()
	clock := wallclock.Open(log)
	defer clock.Close()
	a, err := agent.Open(ctx, agent.Config{
		Version: version, StateDir: o.stateDir, RunDir: o.runDir, MakeRunDir: func() error { return api.MakeRunDir(o.runDir) }, LogDir: o.logDir, Logs: logs, Journal: journal.Host(), ServicesDir: o.servicesDir,
		Backends: host.Backends, Findings: host.Findings, Procfs: proc, SinceBoot: procfs.SinceBoot, ClockSet: clock.Set(), Facts: facts, Power: supply, Platform: profile.Name, Settings: settings, Log: log,
	})
	if err != nil {
		return err
	}
	defer a.Close()
	server := api.New(api.Config{Agent: a, Log: log})
	group, ctx := errgroup.WithContext(ctx)
	listen := listening(server, group, log)
	for _, address := range o.addresses(settings) {
		if err := listen(address); err != nil {
			return err
		}
	}
	group.Go(func() error {
		return reloads(ctx, hangups, o, profile, a, log, func() { relisten(o.addresses(settings), listen, log) })
	})
	group.Go(func() error {
		<-ctx.Done()
		leave(a, server)
		return nil
	})
	a.Autostart() // not before somebody can ask how it goes
	log.Info("ready", "version", version, "backends", host.Names(), "platform", profile.Name, "services", len(a.List()))
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	return group.Wait()
}
