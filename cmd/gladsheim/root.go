package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/gladsheim/gladsheim/api/client"
	"github.com/gladsheim/gladsheim/platform"
)

// surroundings are what the command has from outside.
type surroundings struct {
	args     []string
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string
	now      func() time.Time
	uid      int  // of whoever runs it
	terminal bool // out is one
}

// app is one run of the command.
type app struct {
	surroundings
	style

	host    string
	format  string
	timeout time.Duration

	client *client.Client // nil until connect

	absence sync.Mutex
	waiting int // streams that wait for the next agent
}

// run runs the command and gives its exit code.
func run(ctx context.Context, s surroundings) int {
	a := &app{surroundings: s, style: styleOf(s)}
	defer a.close()
	root := a.root()
	root.SetArgs(s.args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil {
		return exitInterrupted
	}
	a.complain(err)
	return a.code(err)
}

const (
	groupRun    = "run"
	groupLook   = "look"
	groupChange = "change"
	groupHost   = "host"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "gladsheim",
		Short: "Start, stop, limit and watch the services of this host",
		Long: `Start, stop, limit and watch the services of this host.

The agent, gladsheimd, does the work; this command talks to it at --host.

Exit codes: 0 done, 1 failure (health, doctor, fsck: problems found), 2 usage, 3 not
running, 4 no such service, 5 denied, 6 invalid definition or configuration,
7 agent unreachable, or the host did not serve it (a full disk, systemd), 8 timed out, 9 conflict, 130 interrupted. With several
services it is the highest of theirs.`,
		SilenceErrors:              true,
		SuggestionsMinimumDistance: 2,
		SilenceUsage:               true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.ValidateFlagGroups(); err != nil {
				return usage(fmt.Errorf("cannot read the command line: %w; see: %s --help", err, cmd.CommandPath()))
			}
			id := cmd.Flags().Lookup(requestID)
			switch {
			case a.timeout < 0:
				return usage(fmt.Errorf("cannot give up after %v: --timeout is a time from now on, such as 10s", a.timeout))
			case id != nil && id.Changed && id.Value.String() == "":
				return usage(fmt.Errorf("cannot take an empty --%s: it is no id; leave the flag out, or name one", requestID))
			case a.format != "table" && a.format != "json" && a.format != "jsonl":
				return usage(fmt.Errorf("cannot write %q; -o is table, json or jsonl", a.format))
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.host, "host", a.defaultHost(), "the agent's `address`, unix:///PATH or tcp://HOST:PORT (GLADSHEIM_HOST)")
	flags.StringVarP(&a.format, "output", "o", "table", "`format`: table, json or jsonl (the messages of the API)")
	flags.DurationVar(&a.timeout, "timeout", 0, "give up after this `time`; 0: 30s, and for what starts and stops as long as the definition allows")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(fmt.Errorf("cannot read the command line: %s; see: %s --help", plainly(err), cmd.CommandPath()))
	})
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run:"},
		&cobra.Group{ID: groupLook, Title: "Look:"},
		&cobra.Group{ID: groupChange, Title: "Change:"},
		&cobra.Group{ID: groupHost, Title: "Host and agent:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupRun, a.startCommand(), a.stopCommand(), a.restartCommand(), a.waitCommand(), a.killCommand(), a.signalCommand(), a.reloadCommand(),
		a.freezeCommand(), a.thawCommand())
	add(groupLook, a.statusCommand(), a.listCommand(), a.healthCommand(), a.usageCommand(), a.limitsCommand(), a.recommendCommand(),
		a.eventsCommand(), a.logsCommand(), a.historyCommand(), a.depsCommand(), a.definitionCommand())
	add(groupChange, a.setCommand(), a.registerCommand(), a.unregisterCommand(), a.applyCommand())
	add(groupHost, a.systemCommand(), a.statsCommand(), a.metricsCommand(), a.doctorCommand(), a.fsckCommand(), a.configCommand(), a.versionCommand())
	root.SetHelpCommandGroupID(groupHost)
	root.SetCompletionCommandGroupID(groupHost)
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	help, _, _ := root.Find([]string{"help"})
	help.Args = aCommand
	strict(root)
	return root
}

// plainly is what is wrong with a flag, without the names of Go's functions.
func plainly(err error) string {
	text := err.Error()
	e, ok := errors.AsType[*strconv.NumError](err)
	if !ok {
		return text
	}
	what := "is no whole number"
	switch {
	case errors.Is(e.Err, strconv.ErrRange):
		what = "is out of range"
	case e.Func == "ParseBool":
		what = "is neither true nor false"
	}
	return strings.Replace(text, e.Error(), fmt.Sprintf("%q %s", e.Num, what), 1)
}

// defaultHost is the agent that is meant when nobody says which: one of the
// user's own where there is one, else that of the system.
func (a *app) defaultHost() string {
	if address := a.getenv("GLADSHEIM_HOST"); address != "" {
		return address
	}
	if a.uid != 0 {
		socket := filepath.Join(platform.RunDir(a.uid, a.getenv), platform.SocketName)
		if _, err := os.Lstat(socket); err == nil && filepath.IsAbs(socket) {
			return "unix://" + socket
		}
	}
	return client.DefaultAddress
}

// strict makes every mistake in the command line one of usage, and refuses
// words after a command that takes none.
func strict(c *cobra.Command) {
	check := c.Args
	if check == nil {
		check = noWords
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usage(fmt.Errorf("cannot read the command line: %w; see: %s --help", err, cmd.CommandPath()))
		}
		return nil
	}
	if c.HasSubCommands() && c.RunE == nil {
		c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	for _, child := range c.Commands() {
		strict(child)
	}
}

func noWords(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		text := fmt.Sprintf("%q is no command", args[0])
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
		}
		return errors.New(text)
	}
	return fmt.Errorf("%q is not expected", args[0])
}

// aCommand wants the words of one, or none.
func aCommand(cmd *cobra.Command, args []string) error {
	if _, rest, err := cmd.Root().Find(args); err != nil || len(rest) > 0 {
		return fmt.Errorf("%q is no command", strings.Join(args, " "))
	}
	return nil
}

// connect prepares the client.
func (a *app) connect() error {
	if a.client != nil {
		return nil
	}
	c, err := client.Dial(a.host)
	if err != nil {
		return usage(err)
	}
	a.client = c
	return nil
}

func (a *app) close() {
	if a.client != nil {
		a.client.Close()
	}
}

// answerTimeout is how long a question may take that the user set no bound for.
const answerTimeout = 30 * time.Second

// question bounds a call that the agent should answer at once.
func (a *app) question(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout > 0 {
		return context.WithTimeout(ctx, a.timeout)
	}
	return context.WithTimeout(ctx, answerTimeout)
}

// reading bounds a stream, which ends by itself unless it is followed.
func (a *app) reading(ctx context.Context, follow bool) (context.Context, context.CancelFunc) {
	if follow {
		return a.deed(ctx)
	}
	return a.question(ctx)
}

// deed bounds a call that takes as long as a service takes.
func (a *app) deed(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout > 0 {
		return context.WithTimeout(ctx, a.timeout)
	}
	return context.WithCancel(ctx)
}
