// Testhost runs a command on a test host; test/host/run builds it and becomes it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/test/host/internal/bare"
	"github.com/gladsheim/gladsheim/test/host/internal/cache"
	"github.com/gladsheim/gladsheim/test/host/internal/hosts"
	"github.com/gladsheim/gladsheim/test/host/internal/machine"
	"github.com/gladsheim/gladsheim/test/host/internal/options"
)

// Exit codes of our own; any other is the command's.
const (
	exitTimeout = 124
	exitNoHost  = 125
)

func main() {
	// What we start dies with the thread that started it, so this one must last.
	runtime.LockOSThread()

	tree := os.Args[1]
	opts, err := options.Parse(os.Args[2:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(options.Usage)
		return
	case err != nil:
		say("%v\n\n%s", err, options.Usage)
		os.Exit(exitNoHost)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	code, err := do(ctx, tree, opts)
	stop()
	if err != nil {
		say("%v", err)
	}
	os.Exit(code)
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "test/host/run: "+format+"\n", args...)
}

func do(ctx context.Context, tree string, opts options.Options) (int, error) {
	switch {
	case opts.List:
		for _, host := range hosts.All {
			fmt.Printf("%-12s %s (offers %s)\n", host.Name, host.About, strings.Join(host.Offers, " "))
		}
		return 0, nil
	case opts.Build != nil:
		return build(ctx, opts.Build)
	}
	if opts.Bin == "" {
		opts.Bin = filepath.Join(tree, "bin")
		if _, err := os.Stat(opts.Bin); err != nil {
			opts.Bin = ""
		}
	}
	opts.Env = append([]string{
		"GLADSHEIM_TEST_HOST=" + opts.Host.Name,
		"GLADSHEIM_TEST_OFFERS=" + strings.Join(opts.Host.Offers, " "),
	}, opts.Env...)

	if opts.Host.Bare() {
		code, err := bare.Run(ctx, opts)
		return verdict(ctx, opts, code, err)
	}
	maker, err := newMaker()
	if err != nil {
		return exitNoHost, err
	}
	snapshot, err := maker.Snapshot(ctx, opts.Host)
	if err != nil {
		return exitNoHost, fmt.Errorf("%s: %w", opts.Host.Name, err)
	}
	if opts.Disk == "" {
		opts.Env = append([]string{"GLADSHEIM_TEST_DISK=" + machine.ScratchDisk}, opts.Env...)
	}
	code, err := runMachine(ctx, snapshot, opts)
	return verdict(ctx, opts, code, err)
}

// verdict turns what went wrong with the host, as opposed to the command, into a code.
func verdict(ctx context.Context, opts options.Options, code int, err error) (int, error) {
	switch {
	case err == nil:
		return code, nil
	case ctx.Err() != nil:
		return 128 + int(unix.SIGINT), nil // whoever interrupted us knows
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout, fmt.Errorf("%s: timed out after %v", opts.Host.Name, opts.Timeout)
	}
	return exitNoHost, fmt.Errorf("%s: %w", opts.Host.Name, err)
}

// build makes the machines, side by side: one may download while another computes.
func build(ctx context.Context, list []hosts.Host) (int, error) {
	maker, err := newMaker()
	if err != nil {
		return exitNoHost, err
	}
	errs := make([]error, len(list))
	var wait sync.WaitGroup
	for i, host := range list {
		wait.Go(func() {
			if _, err := maker.Snapshot(ctx, host); err != nil {
				errs[i] = fmt.Errorf("%s: %w", host.Name, err)
			}
		})
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return exitNoHost, err
	}
	return 0, nil
}

func newMaker() (machine.Maker, error) {
	self, err := os.Executable()
	if err != nil {
		return machine.Maker{}, err
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return machine.Maker{}, err
	}
	return machine.Maker{
		Store: cache.Store{Dir: filepath.Join(dir, "gladsheim-hosts"), Log: say},
		Guest: filepath.Join(filepath.Dir(self), "guest"),
	}, nil
}
