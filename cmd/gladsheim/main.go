// Gladsheim is the command line of the agent of a Linux host: it starts, stops,
// limits and looks at the services the agent looks after. Each verb is one file.
// Data goes to stdout and everything else to stderr; the exit code is one of a
// documented few (exit.go).
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"
)

// version is set by the linker.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends us at once
	code := run(ctx, surroundings{
		args: os.Args[1:], in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv, now: time.Now,
		uid: os.Geteuid(), terminal: term.IsTerminal(int(os.Stdout.Fd())),
	})
	stop()
	os.Exit(code)
}
