package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/gladsheim/gladsheim/agent"
	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/api"
	"github.com/gladsheim/gladsheim/platform"
)

// options are the flags; each but version can be given as GLADSHEIMD_NAME, too.
type options struct {
	config, platform, backend             string
	servicesDir, stateDir, runDir, logDir string
	listen                                []string
	version                               bool
}

// systemConfig is looked for before the platform's own file.
const systemConfig = "/etc/gladsheim/gladsheim.json"

// parseOptions reads flags over the environment over the defaults. Of an error
// the user has been told.
func parseOptions(args []string, env func(string) (string, bool)) (options, error) {
	o := options{}
	set := flag.NewFlagSet("gladsheimd", flag.ContinueOnError)
	dirs := defaultDirs()
	set.StringVar(&o.config, "config", "", "configuration `file` (default "+systemConfig+", else the platform's)")
	set.StringVar(&o.platform, "platform", platform.Auto, "one of "+strings.Join(platform.Names(), ", "))
	set.StringVar(&o.backend, "backend", "auto", "auto, systemd, cgroupfs or exec")
	set.StringVar(&o.servicesDir, "services-dir", dirs.services, "`directory` of service definitions")
	set.StringVar(&o.stateDir, "state-dir", dirs.state, "`directory` of what is wanted; survives a reboot")
	set.StringVar(&o.runDir, "run-dir", dirs.run, "`directory` of what is; does not")
	set.StringVar(&o.logDir, "log-dir", dirs.log, "`directory` of the services' output")
	set.Func("listen", "`address` to serve, unix:///PATH or tcp://127.0.0.1:PORT; several with commas, or repeated (default the socket in run-dir)", func(v string) error {
		o.listen = append(o.listen, strings.Split(v, ",")...)
		return nil
	})
	set.BoolVar(&o.version, "version", false, "print the version and exit")
	if err := set.Parse(args); err != nil {
		return o, err
	}
	given := map[string]bool{}
	set.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var err error
	set.VisitAll(func(f *flag.Flag) {
		if f.Name == "version" { // a wish of one call; images say by such a variable which version they hold
			return
		}
		name := "GLADSHEIMD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := env(name); ok && !given[f.Name] && err == nil {
			if err = set.Set(f.Name, value); err != nil {
				err = fmt.Errorf("%s=%q: %w", name, value, err)
			}
		}
	})
	if err == nil && set.NArg() > 0 {
		err = fmt.Errorf("%q is not a flag; gladsheimd takes flags only", set.Arg(0))
	}
	if known := []string{"auto", "systemd", "cgroupfs", "exec"}; err == nil && !slices.Contains(known, o.backend) {
		err = fmt.Errorf("%q is not a backend; it is one of %s", o.backend, strings.Join(known, ", "))
	}
	for _, dir := range []*string{&o.servicesDir, &o.stateDir, &o.runDir, &o.logDir} {
		if err == nil { // services are launched with other working directories
			*dir, err = filepath.Abs(*dir)
		}
	}
	if err != nil {
		fmt.Fprintln(set.Output(), "gladsheimd:", err)
	}
	return o, err
}

type directories struct{ services, state, run, log string }

// defaultDirs are those of the system for root, else those of the user (XDG
// base directories).
func defaultDirs() directories {
	run := platform.RunDir(os.Geteuid(), os.Getenv)
	if os.Geteuid() == 0 {
		return directories{"/etc/gladsheim/services.d", "/var/lib/gladsheim", run, "/var/log/gladsheim"}
	}
	config := platform.UserDir(os.Getenv, "XDG_CONFIG_HOME", ".config")
	state := platform.UserDir(os.Getenv, "XDG_STATE_HOME", ".local/state")
	return directories{services: filepath.Join(config, "services.d"), state: state, run: run, log: filepath.Join(state, "log")}
}

// settings reads the configuration: the file that was named, else that of the
// system, else the platform's, else none.
func (o options) settings(profile platform.Profile) (config.Agent, error) {
	base := config.DefaultAgent(profile)
	files := []string{systemConfig, profile.ConfigFile()}
	if o.config != "" {
		files = []string{o.config}
	}
	for _, file := range files {
		if file == "" {
			continue
		}
		data, err := config.ReadFile(file, config.OwnFile)
		if errors.Is(err, fs.ErrNotExist) && o.config == "" {
			continue
		}
		if err != nil {
			return base, err
		}
		settings, faults := config.ParseAgent(file, data, base)
		settings.Source, settings.Loaded = file, time.Now()
		return settings, faults.Err("read the configuration")
	}
	base.Loaded = time.Now()
	return base, nil
}

// agentID names this agent among those of the host: no two can have the same
// state directory, and one that comes back has it still.
func (o options) agentID() string { return fmt.Sprintf("%d:%s", os.Geteuid(), o.stateDir) }

// addresses are what to serve: what flags name, else the socket and, where it is
// configured, TCP.
func (o options) addresses(settings config.Agent) []string {
	if len(o.listen) > 0 {
		return o.listen
	}
	out := []string{"unix://" + filepath.Join(o.runDir, platform.SocketName)}
	if settings.GRPC != nil {
		out = append(out, "tcp://"+settings.GRPC.Address())
	}
	return out
}

// reloads reads configuration and definitions again at each hangup, until ctx
// ends. What is faulty leaves what was in force. Addresses do not change; relisten
// makes a socket anew that was removed.
func reloads(ctx context.Context, hangups <-chan os.Signal, o options, profile platform.Profile, a *agent.Agent, log *slog.Logger, relisten func()) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
		}
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
		settings, err := o.settings(profile)
		if err != nil {
			log.Error("the configuration stays as it was", "error", err)
		}
		relisten()
		a.Reload(ctx, settings, err)
		log.Info("reloaded", "services", len(a.List()))
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	}
}

// listening has server serve an address, in group.
func listening(server *api.Server, group *errgroup.Group, log *slog.Logger) func(address string) error {
	return func(address string) error {
		l, err := api.Listen(address)
		if err != nil {
			return err
		}
		log.Info("listening", "address", address)
		group.Go(func() error { return server.Serve(l) })
		return nil
	}
}

// relisten listens anew on the unix sockets whose path is gone.
func relisten(addresses []string, listen func(string) error, log *slog.Logger) {
	for _, address := range addresses {
		path, unix := strings.CutPrefix(address, "unix://")
		if !unix {
			continue
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		log.Warn("the socket was removed", "address", address)
		if err := listen(address); err != nil {
			log.Error("cannot listen anew", "address", address, "error", err)
		}
	}
}
